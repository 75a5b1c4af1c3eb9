"""The pages as a browser shows them: from disk, without network, on a phone and in the dark."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from experiments import table_rows
from experiments.report import write_report
from experiments.table_page import write_table_report
from tests.experiments.browser import Browser, find_chromium
from tests.experiments.test_table_page import SET

CHROMIUM = find_chromium()
PHONE, DESK = (390, 844), (1280, 900)
LONG = "an-unbroken-label-of-a-stranger-" * 6
ATTACK = "<script>document.title = 'taken over'; console.error('x')</script><img src=http://localhost:1/x.png>"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(str(CHROMIUM), tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def run_page(run: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's page whose captions and labels are long, and markup."""
    home = tmp_path_factory.mktemp("page")
    data = home / "data" / "synthetic"
    shutil.copytree(shards, data)
    for split in ("test", "gallery"):
        file = data / "annotations" / f"{split}.txt"
        lines = [line.split("#####") for line in file.read_text().splitlines()]
        changed = ["#####".join([line[0], ATTACK + LONG, *line[2:4], f"{LONG}{ATTACK}{line[4]}"]) for line in lines]
        file.write_text("\n".join(changed) + "\n")
    copy = home / run.name
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("checkpoints", "wandb"))
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace(str(shards), str(data)))
    return write_report(copy, str(home / "run.html"))


@pytest.fixture(scope="module")
def table_page(run: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table's page with a title and a label of a stranger, and a row that has not been run."""
    home = tmp_path_factory.mktemp("page")
    rows = [{"label": LONG + ATTACK, "set": SET}, {"label": "later", "set": {**SET, "model.lr": 0.5}}]
    about = {"title": ATTACK + LONG, "data": str(shards), "base": LONG + ATTACK, "blocks": False, "rows": rows}
    (home / "ablations").mkdir()
    (home / "ablations" / "mine.yaml").write_text(json.dumps(about))  # JSON is YAML
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_rows, "HOME", home)
        return write_table_report("mine", "make report", homes=(run.parent,), out=str(home / "table.html"))


@pytest.fixture(params=["run_page", "table_page"])
def page(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(request.param))


def test_it_opens_from_disk_asks_for_nothing_and_runs_nothing(browser: Browser, page: Path) -> None:
    browser.open(page, *DESK)
    assert [url for url in browser.requests if not url.startswith("data:")] == [page.resolve().as_uri()]
    assert browser.complaints == []
    assert "taken over" not in browser.value("document.title").split("<script>")[0]
    assert browser.value("document.scripts.length") == 0
    assert browser.value("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert browser.value("document.images.length") > 0


@pytest.mark.parametrize("size", [PHONE, DESK])
def test_the_page_never_scrolls_sideways(browser: Browser, page: Path, size: tuple[int, int]) -> None:
    browser.open(page, *size)
    browser.value("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert browser.value("innerWidth") == size[0]
    assert browser.value("document.documentElement.scrollWidth") <= size[0]
    # Nothing is cut off either: what is wider than its box lies in one that scrolls.
    beyond = "[...document.querySelectorAll('main *, header *')].filter(one => !one.closest('.wide, .strip, svg'))"
    assert browser.value(f"{beyond}.filter(one => one.getBoundingClientRect().right > innerWidth + 1).length") == 0


@pytest.mark.parametrize("dark", [False, True])
def test_dark_mode_is_dark_with_light_text(browser: Browser, page: Path, dark: bool, tmp_path: Path) -> None:
    browser.open(page, *PHONE, dark=dark)
    style = "getComputedStyle(document.querySelector('{}')).{}"
    paper = brightness(browser.value(style.format("body", "backgroundColor")))
    assert paper < 40 if dark else paper > 250
    for place in ("p", "h2", "td", "a", "caption, .quiet, small"):
        assert abs(brightness(browser.value(style.format(place, "color"))) - paper) > 75, place
    # Drawings take the text's colour: axis labels are as bright as the text around them.
    text = browser.value("getComputedStyle(document.querySelector('.drawings svg text')).fill")
    assert abs(brightness(text) - paper) > 150
    with Image.open(browser.screenshot(tmp_path / "page.png")) as shot:
        greys = shot.convert("L").histogram()
    assert shot.size == PHONE
    assert sum(greys[:64] if dark else greys[192:]) > 0.5 * sum(greys)  # the paper
    assert sum(greys[128:] if dark else greys[:128]) > 0.01 * sum(greys)  # and something on it


def test_sections_are_reached_from_the_top(browser: Browser, page: Path) -> None:
    browser.open(page, *PHONE)
    links = "[...document.querySelectorAll('a[href^=\"#\"]')]"
    assert browser.value("document.querySelectorAll('nav a').length") == browser.value(
        "document.querySelectorAll('h2').length"
    )
    assert browser.value(f"{links}.every(one => document.getElementById(one.hash.slice(1)))")
    ids = "[...document.querySelectorAll('[id]')].map(one => one.id)"
    assert browser.value(f"{ids}.length === new Set({ids}).size")


def brightness(colour: str) -> float:
    """0 to 255, of `rgb(…)`."""
    red, green, blue = map(float, re.findall(r"[\d.]+", colour)[:3])
    return 0.299 * red + 0.587 * green + 0.114 * blue
