"""The page of a run: complete, self-contained, and safe from what a caption may hold."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from experiments.cli import main
from experiments.report import write_report

ATTACK = '<script>alert("x")</script>'


class Tags(HTMLParser):
    """Start tags with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture
def page(run: Path, tmp_path: Path) -> str:
    return write_report(run, str(tmp_path / "page.html")).read_text()


def test_it_shows_numbers_floors_curves_queries_and_configuration(page: str) -> None:
    for wanted in (
        "product feature",
        "TF-IDF on captions",
        "untrained model",
        "random order",
        "class_path",
        "same/mAP@10",
    ):
        assert wanted in page
    assert "The identical product" in page
    assert "same/Prec@10" in page
    assert page.count("<svg") == 2
    tags = Tags(page).found
    pictures = [attributes["src"] for tag, attributes in tags if tag == "img"]
    assert len(pictures) >= 6 * 5
    assert all(str(source).startswith("data:image/jpeg;base64,") for source in pictures)
    assert "✓ right" in page or "✗ wrong" in page


def test_it_needs_no_network_and_fits_phone_and_dark_mode(page: str) -> None:
    tags = Tags(page).found
    assert [tag for tag, _ in tags if tag in ("script", "link", "iframe")] == []
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)
    assert "url(http" not in page
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in tags
    assert "color-scheme: light dark" in page


def test_captions_are_escaped(run: Path, shards: Path, tmp_path: Path) -> None:
    data = tmp_path / "data" / "synthetic"
    shutil.copytree(shards, data)
    for split in ("test", "gallery"):
        file = data / "annotations" / f"{split}.txt"
        lines = [line.split("#####") for line in file.read_text().splitlines()]
        attacked = ["#####".join([line[0], ATTACK, *line[2:4], f"{ATTACK}{line[4]}"]) for line in lines]
        file.write_text("\n".join(attacked) + "\n")
    copy = tmp_path / run.name
    shutil.copytree(run, copy)
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace(str(shards), str(data)))
    text = write_report(copy, str(tmp_path / "page.html")).read_text()
    assert "&lt;script&gt;" in text
    assert "<script" not in text


def test_without_its_shards_the_page_says_so(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / run.name
    shutil.copytree(run, copy)
    config = copy / "config.yaml"
    config.write_text(re.sub(r"folder: .*", f"folder: {tmp_path / 'gone'}", config.read_text()))
    text = write_report(copy, str(tmp_path / "page.html")).read_text()
    assert "No pictures:" in text
    assert "TF-IDF on captions" in text


def test_the_command_prints_where_the_page_is(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", "--run", str(run)]) == 0
    printed = Path(capsys.readouterr().out.strip())
    assert printed == Path("reports") / f"{run.name}.html"
    assert printed.is_file()
