"""From lists with urls to pictures on disk: second url, shared urls, interruptions, and the shards that follow."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from datamodules.catalogues.product1m import Product1MFiles
from datamodules.catalogues.record import SPLITS
from datamodules.downloads.download import FAILURES_LIST, download, wants_download
from datamodules.downloads.failures import Failures, cause_of
from datamodules.errors import DataError
from datamodules.verify import verify
from datamodules.write_shards import build
from tests.datamodules.downloads.conftest import StandIn
from tests.datamodules.downloads.lists import write_lists
from tests.datamodules.tiny_shops import SHARED, photo


def _download(raw: Path, fetch: StandIn, **options):
    return download(Product1MFiles(str(raw)), fetch, progress=False, **options)


def _good(shop, number: int) -> dict[str, tuple[str, str]]:
    return {f"item{n}": (f"{shop.url}/good/{n}", f"{shop.url}/good/other") for n in range(number)}


def test_the_second_url_is_asked_only_where_the_first_fails(tmp_path, shop):
    urls = _good(shop, 3) | {
        "late": (f"{shop.url}/page/a", f"{shop.url}/good/a"),
        "never": (f"{shop.url}/page/b", f"{shop.url}/gone/b"),
        "only": ("", f"{shop.url}/good/c"),
        "none": ("", "pictures/none.jpg"),
    }
    raw = write_lists(tmp_path, shop.url, urls)
    report = _download(raw, StandIn())
    assert shop.asked["/good/other"] == 0
    assert (raw / "images/late.jpg").read_bytes() == photo(ord("a"))
    assert (raw / "images/only.jpg").read_bytes() == photo(ord("c"))
    assert report.failed == {"no_url": 1, "url_not_found": 1}, "the last answer counts"
    assert (report.listed, report.fetched, report.without_url) == (10, 8, 1)
    assert (raw / FAILURES_LIST).read_text().splitlines()[2].startswith("url_not_found\tnever\t2\tHTTP Error 404")


def test_a_url_of_two_items_is_fetched_once_and_counted(tmp_path, shop):
    raw = write_lists(tmp_path, shop.url, {name: (f"{shop.url}/good/same", "") for name in ("one", "two")})
    report = _download(raw, StandIn())
    assert report.shared_urls == 2
    assert shop.asked["/good/same"] == 1
    assert (raw / "images/one.jpg").read_bytes() == (raw / "images/two.jpg").read_bytes() == photo(sum(b"same"))


def test_pictures_that_are_there_and_failures_of_before_are_left_alone(tmp_path, shop):
    raw = write_lists(tmp_path, shop.url, _good(shop, 2) | {"bad": (f"{shop.url}/gone/x", "")})
    (raw / "images").mkdir()
    (raw / "images/item0.png").write_bytes(photo(5))
    assert _download(raw, StandIn()).there == 1
    assert shop.asked["/good/0"] == 0
    again = StandIn()
    _download(raw, again)
    assert again.fetched == []
    _download(raw, again, retry_failed=True)
    assert again.fetched == [f"{shop.url}/gone/x"]
    assert wants_download(Product1MFiles(str(raw)))


@pytest.mark.parametrize("stop_after", [0, 4, 9, 14])
def test_a_killed_download_goes_on_and_ends_the_same(tmp_path, shop, stop_after):
    urls = _good(shop, 9) | {f"bad{n}": (f"{shop.url}/page/{n}", f"{shop.url}/good/x{n}") for n in range(3)}
    killed = StandIn(stop_after)
    raw = write_lists(tmp_path, shop.url, urls)
    with pytest.raises(KeyboardInterrupt):
        _download(raw, killed, block_size=5)
    arrived = {path.name for path in (raw / "images").glob("*.jpg")}
    _download(raw, killed, block_size=5)
    assert len(list((raw / "images").glob("*.jpg"))) == 15
    assert (raw / "images/bad2.jpg").read_bytes() == photo(sum(b"x2"))
    assert all(shop.asked[f"/good/{n}"] == 1 for n in range(9) if f"item{n}.jpg" in arrived)
    assert list(Failures(raw)) == []


def test_a_kill_while_bodies_are_filed_loses_none(tmp_path, shop, monkeypatch):
    raw = write_lists(tmp_path, shop.url, _good(shop, 3) | {"bad": (f"{shop.url}/gone/x", "")})
    record = Failures.record
    monkeypatch.setattr(Failures, "record", lambda self, failures: _die() if failures else record(self, failures))
    with pytest.raises(KeyboardInterrupt):
        _download(raw, StandIn())
    monkeypatch.undo()
    again = StandIn()
    report = _download(raw, again)
    assert again.fetched == [], "the bodies had come"
    assert report.failed == {"url_not_found": 1}
    assert len(list((raw / "images").glob("*.jpg"))) == 6


def _die() -> None:
    raise KeyboardInterrupt


def test_work_that_was_not_finished_is_no_failure_of_the_picture(tmp_path, shop):
    raw = write_lists(tmp_path, shop.url, _good(shop, 2))

    def stops_early(url_list, folder, told):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "failures.jsonl").touch()

    with pytest.raises(DataError, match="Run the command again"):
        _download(raw, stops_early)
    assert list(Failures(raw)) == []
    assert _download(raw, StandIn()).failed == {}


def test_shards_are_equal_and_say_why_each_item_is_missing(tmp_path, shop):
    urls = _good(shop, 12) | {f"bad{n}": (f"{shop.url}/gone/{n}", "") for n in range(7)}
    raw = write_lists(tmp_path / "raw", shop.url, urls)
    _download(raw, StandIn())
    options = {"shard_size": 4, "vocab_size": 60, "progress": False}
    manifest = build(Product1MFiles(str(raw)), tmp_path / "shards", workers=2, **options)
    train = manifest["splits"]["train"]
    assert [shard["samples"] for shard in train["shards"]] == [4, 4, 4]
    assert train["skipped"] == {"url_not_found": 7}
    lines = (tmp_path / "shards/skipped.tsv").read_text(encoding="utf-8").splitlines()
    assert {tuple(line.split("\t")[:3]) for line in lines[1:]} == {
        ("train", "url_not_found", f"bad{n}") for n in range(7)
    }
    assert verify(tmp_path / "shards") == []
    shutil.copy(raw / "images/item0.jpg", raw / "images/bad0.jpg")
    grown = build(Product1MFiles(str(raw)), tmp_path / "shards", **options)
    assert grown["splits"]["train"]["samples"] == 13, "a picture that came later is noticed"


def test_causes_of_messages():
    assert cause_of("HTTP Error 410: Gone") == "url_not_found"
    assert cause_of("<urlopen error [Errno -2] Name or service not known>") == "url_unreachable"
    assert cause_of("<urlopen error timed out>") == "url_timeout"
    assert cause_of("something new") == "url_failed"


@pytest.mark.skipif(not (SHARED / "product1m").is_dir(), reason="the real Product1M lists are not in ../shared")
def test_the_real_lists_give_two_urls_for_each_picture(tmp_path):
    """Their own train and gallery lists are not there; val and test stand in for them under other ids."""
    for split, source, labels in (("dev", "dev", 1), ("test", "test", 1), ("train", "dev", 0), ("gallery", "test", 1)):
        text = (SHARED / f"product1m/product1m_{source}_ossurl_v2.txt").read_text(encoding="utf-8").splitlines()
        prefix = "" if split == source else "x"
        lines = [prefix + "#####".join(line.split("#####")[: 4 + labels]) for line in text]
        (tmp_path / f"product1m_{split}_ossurl_v2.txt").write_text("\n".join(lines), encoding="utf-8")
    catalogue = Product1MFiles(str(tmp_path))
    assert [len(catalogue.plan(split)) for split in SPLITS] == [2673, 2673, 6547, 6547]
    assert all(catalogue.plan("val").absent_N)
    tried: list[int] = []

    def offline(url_list, folder, told):
        rows = url_list.read_text().splitlines()
        tried.append(len(rows))
        (folder / "bodies").mkdir(parents=True)
        for first in range(0, len(rows), 1000):
            (folder / f"bodies/{first // 1000:05d}_stats.json").touch()
        failures = "".join(f'[{row}, "<urlopen error no network>"]\n' for row in range(len(rows)))
        (folder / "failures.jsonl").write_text(failures)

    report = download(catalogue, offline, progress=False, block_size=8000)
    assert (report.listed, report.without_url, report.failed) == (18440, 0, {"url_unreachable": 18440})
    assert sum(tried[:2]) < 18440, "val's pictures are asked for once, though two items have each"
