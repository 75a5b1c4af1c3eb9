"""The page of a run: complete, self-contained, and safe from what a caption may hold."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from datamodules.shard_folder import ShardFolder
from experiments.cli import main
from experiments.definitions import define
from experiments.instance_files import read_instances
from experiments.report import write_report
from experiments.report_queries import COLOURS, HITS_SHOWN, _crop
from tests.experiments.page_reader import PageReader

ROOT = Path(__file__).parents[2]
ATTACK = '<script>alert("x")</script>'


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
    assert [line for line in page.splitlines() if "<svg" in line and "aria-label" not in line] == []
    assert "Queries read as one" not in page
    assert len(page) < 1_000_000
    assert 'class="strip"' not in page
    tags = PageReader(page).tags
    pictures = [attributes["src"] for tag, attributes in tags if tag == "img"]
    assert len(pictures) >= 6 * 5
    assert all(str(source).startswith("data:image/jpeg;base64,") for source in pictures)
    assert "✓ right" in page or "✗ wrong" in page


def test_it_needs_no_network_and_fits_phone_and_dark_mode(page: str) -> None:
    tags = PageReader(page).tags
    assert [tag for tag, _ in tags if tag in ("script", "link", "iframe")] == []
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)
    assert not re.search(r"""url\(\s*["']?(https?:)?//""", page)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in tags
    assert "prefers-color-scheme: dark" in page


def test_every_metric_it_shows_leads_to_its_definition(page: str) -> None:
    reader = PageReader(page)
    places = {attributes["id"] for _, attributes in reader.tags if "id" in attributes}
    links = {str(attributes["href"]).removeprefix("#") for attributes in reader.attributes("a")}
    assert links <= places
    heads = {cell for table in reader.tables for cell in table[0] if "@" in cell}
    curves = {f"val/{key}" for key in ("mAP@10", "mAR@10") if f"val/{key}" in page}
    shown = {f"{prefix}{key}" for key in heads for prefix in ("", "textbook/") if "/" not in key and key[0] in "mP"}
    assert len(heads) >= 13
    assert {"recall@10", "found@10", "same/Prec@10"} <= heads
    for key in heads | curves | shown:
        found = define(key)
        assert found is not None, key
        assert found.anchor in places, key
        assert found.words in reader.text
        assert found.formula in reader.text


def test_it_says_which_labels_are_found_and_which_are_taken_for_each_other(page: str, run: Path, shards: Path) -> None:
    tables = PageReader(page).tables
    best, worst = ({row[0]: float(row[3]) for row in table[1:]} for table in tables if table[0][0] == "label")
    assert not set(best) & set(worst)
    assert list(best.values()) == sorted(best.values(), reverse=True)
    assert list(worst.values()) == sorted(worst.values())
    labels_of = {row.id: row.labels for split in ("test", "gallery") for row in ShardFolder(shards).annotations(split)}
    first, same = (table[1] for table in tables if table[0][0] == "wanted")
    for (wanted, came, *counts), file, depth in ((first, "test.txt", 10), (same, "test-same.txt", 1)):
        lists = [line.split(",") for line in (run / "rankings" / file).read_text().splitlines()]
        naming = [(query, hits[:depth]) for query, *hits in lists if wanted in labels_of[query]]
        missing = [{labels_of[hit][0] for hit in hits} for _, hits in naming]
        missing = [labels for labels in missing if wanted not in labels]
        both = [labels for labels in missing if came in labels]
        assert list(map(int, counts)) == [len(both), len(missing), len(naming)]
        assert len(both) >= 2


@pytest.fixture
def by_instance(run: Path, tmp_path: Path) -> Path:
    """The run as if its queries had been read by the detector's boxes; in the first query nothing was found."""
    copy = tmp_path / run.name
    shutil.copytree(run, copy)
    draw, rankings = np.random.default_rng(0), copy / "rankings"
    lines = [line.split(",") for line in (rankings / "test.txt").read_text().splitlines()]
    ids, owners, boxes, scores, lists = [], [], [], [], []
    for row, (query, *items) in enumerate(lines):
        for number in range(1 + row % 4):
            ids.append(f"{query}.{number}")
            owners.append(query)
            x1, y1 = draw.random(2) * 0.5
            boxes.append([0, 0, 1, 1] if row == 0 else [x1, y1, x1 + 0.5, y1 + 0.5 * draw.random()])
            scores.append(0.0 if row == 0 else 0.5 + 0.5 * draw.random())
            lists.append(",".join([ids[-1], *items[number : number + 20]]))
    (rankings / "test-instances.txt").write_text("\n".join(lists) + "\n")
    columns = {"boxes": np.array(boxes, np.float32), "scores": np.array(scores, np.float32)}
    np.savez_compressed(rankings / "test-instances.npz", ids=np.array(ids), owners=np.array(owners), **columns)
    record = json.loads((copy / "metrics.json").read_text())
    for level, change in (("whole", -0.05), ("true", 0.125)):
        for key in ("mAP@10", "mAR@10", "coverage@10"):
            record["test"][f"{level}/{key}"] = record["test"][key] + change
            low_high = [-change, -change - 0.01, -change + 0.01]
            record["intervals"]["test"].setdefault(level, {})[key] = low_high
    detected = {"rows": len(ids), "mean": len(ids) / len(lines), "without": 1}
    true = {"rows": 40, "mean": 40 / len(lines), "without": 0}
    record |= {"level": "detected", "instances": {"test": {"detected": detected, "true": true}}}
    (copy / "metrics.json").write_text(json.dumps(record))
    return copy


def test_queries_are_shown_with_their_boxes_and_the_hits_of_each(by_instance: Path, tmp_path: Path) -> None:
    text = write_report(by_instance, str(tmp_path / "page.html")).read_text()
    instances = read_instances(by_instance / "rankings", "test")
    shown = list(instances.values())[:10]
    tags = PageReader(text).tags
    strips = [attributes for tag, attributes in tags if attributes.get("class") == "strip"]
    assert len(strips) == sum(map(len, shown))
    assert strips[1]["style"] == f"--box: {COLOURS[0]}"
    assert strips[2]["style"] == f"--box: {COLOURS[1]}"
    rectangles = [attributes for tag, attributes in tags if tag == "rect" and "stroke" in attributes]
    assert len(rectangles) == 2 * sum(map(len, shown[1:]))  # where nothing was found, no box
    assert text.count("no box found: the whole picture") == 1
    drawn = [attributes for tag, attributes in tags if tag == "image"]
    assert len(drawn) == len(shown)
    assert all(str(attributes["href"]).startswith("data:image/jpeg;base64,") for attributes in drawn)
    box = shown[1][0]
    assert float(str(rectangles[0]["x"])) == pytest.approx(box.box[0] * float(str(drawn[1]["width"])), abs=0.06)
    right_or_wrong = [attributes for _, attributes in tags if attributes.get("class") in ("right", "wrong")]
    assert len(right_or_wrong) == HITS_SHOWN * (len(shown) + len(strips))
    assert f"box, {box.score:.2f}" in text


def test_the_crop_of_a_box_is_never_empty() -> None:
    from PIL import Image

    image = Image.new("RGB", (40, 20))
    assert _crop(image, (0.25, 0.5, 0.75, 1.0)).size == (20, 10)
    assert _crop(image, (1.0, 1.0, 1.0, 1.0)).size == (1, 1)
    assert _crop(image, (0.0, 0.0, 0.001, 1.0)).size == (1, 20)


def test_the_page_has_the_table_of_levels(by_instance: Path, tmp_path: Path) -> None:
    text = write_report(by_instance, str(tmp_path / "page.html")).read_text()
    (table,) = re.findall(r"<h2 id=\"levels\">Queries read as one and by instance.*?</table>", text, flags=re.S)
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in table.split("<tr>")][2:]
    assert [row[0] for row in rows] == ["detected boxes (product)", "whole picture", "true boxes"]
    assert rows[1][1].endswith("<br><small>+0.050 [+0.040, +0.060]</small>")
    assert len(rows[1]) == 1 + 3
    assert "coverage@10" in table
    assert "1 queries without one are read whole" in table


def test_captions_are_escaped(by_instance: Path, shards: Path, tmp_path: Path) -> None:
    data = tmp_path / "data" / "synthetic"
    shutil.copytree(shards, data)
    for split in ("test", "gallery"):
        file = data / "annotations" / f"{split}.txt"
        lines = [line.split("#####") for line in file.read_text().splitlines()]
        attacked = ["#####".join([line[0], ATTACK, *line[2:4], f"{ATTACK}{line[4]}"]) for line in lines]
        file.write_text("\n".join(attacked) + "\n")
    config = by_instance / "config.yaml"
    config.write_text(config.read_text().replace(str(shards), str(data)))
    text = write_report(by_instance, str(tmp_path / "page.html")).read_text()
    assert text.count('class="strip"') > 10
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


def test_no_torch_is_imported(run: Path, tmp_path: Path) -> None:
    words = ["report", "--run", str(run), "--out", str(tmp_path / "page.html")]
    code = "import sys; from experiments.cli import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "TF-IDF" in (tmp_path / "page.html").read_text()
