"""img2dataset as it is, run apart, against a shop that answers badly."""

from __future__ import annotations

import json

from datamodules.catalogues.product1m import Product1MFiles
from datamodules.downloads.download import FAILURES_LIST, REPORT_FILE, download
from tests.datamodules.downloads.lists import write_lists
from tests.datamodules.tiny_shops import photo

CAUSES = {
    "gone": "url_not_found", "broken": "url_server_error", "busy": "url_rate_limited", "page": "html_page",
    "noise": "undecodable_picture", "empty": "empty_file", "cut": "url_truncated", "big": "oversized_file",
    "endless": "oversized_file", "silent": "url_timeout", "circle": "url_redirect_loop",
    "inside": "url_redirect_refused",
}  # fmt: skip


def test_every_answer_is_a_picture_or_counted_by_its_cause(tmp_path, shop, img2dataset):
    arriving = ("good", "mislabelled", "moved", "flaky")
    urls = {f"{what}-1": (f"{shop.url}/{what}/1", "") for what in (*CAUSES, *arriving)}
    urls |= {"second-1": (f"{shop.url}/gone/2", f"{shop.url}/good/2"), "nowhere-1": ("http://127.0.0.1:9/x", "")}
    raw = write_lists(tmp_path, shop.url, urls)
    report = download(Product1MFiles(str(raw)), img2dataset, max_bytes=1_000_000, progress=False)
    lines = [line.split("\t") for line in (raw / FAILURES_LIST).read_text(encoding="utf-8").splitlines()]
    failed = {item: cause for cause, item, _, _ in lines[1:]}
    assert failed == {f"{what}-1": cause for what, cause in CAUSES.items()} | {"nowhere-1": "url_unreachable"}
    for what in arriving:
        assert (raw / f"images/{what}-1.jpg").read_bytes() == photo(ord("1")), "bytes as they came"
    assert (raw / "images/second-1.jpg").read_bytes() == photo(ord("2"))
    assert shop.asked["/gone/1"] == 2, "one retry, and no second url to ask"
    assert sum(report.failed.values()) == len(failed)
    assert json.loads((raw / REPORT_FILE).read_text())["fetched"] == report.fetched == len(arriving) + 1 + 3
    assert not (raw / ".download").exists()


def test_the_number_of_threads_bounds_the_connections(tmp_path, shop, img2dataset):
    raw = write_lists(tmp_path, shop.url, {f"item{n}": (f"{shop.url}/lingering/{n}", "") for n in range(30)})
    two = img2dataset._replace(limits=img2dataset.limits._replace(threads=2))
    assert download(Product1MFiles(str(raw)), two, progress=False).failed == {}
    assert shop.most_at_once == 2
