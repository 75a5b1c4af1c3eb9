"""`data build product1m` from lists alone, and `data link`, as typed; a stand-in leaves the files of img2dataset."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from datamodules.errors import DataError
from experiments.data_commands import data_command
from experiments.errors import UsageError
from tests.datamodules.downloads.lists import write_lists
from tests.datamodules.downloads.shop_server import open_shop

STAND_IN = f"""#!{sys.executable}
import json, pathlib, sys, urllib.request
settings = json.loads(pathlib.Path(sys.argv[-1]).read_text())
arguments = settings["arguments"]
assert arguments["disable_all_reencoding"] and arguments["thread_count"] == 3
out = pathlib.Path(arguments["output_folder"])
(out / "00000").mkdir(parents=True)
failures = []
for row, line in enumerate(open(arguments["url_list"])):
    try:
        body = urllib.request.urlopen(json.loads(line)["url"]).read()
        (out / "00000" / f"{{row:08d}}.jpg").write_bytes(body)
    except OSError as error:
        failures.append(json.dumps([row, str(error)]))
pathlib.Path(settings["failures"]).write_text("\\n".join(failures))
(out / "00000_stats.json").touch()
"""


@pytest.fixture
def raw(tmp_path):
    with open_shop() as shop:
        urls = {f"item{n}": (f"{shop.url}/good/{n}", "") for n in range(5)}
        urls |= {"late": (f"{shop.url}/page/a", f"{shop.url}/good/a"), "never": (f"{shop.url}/gone/b", "")}
        yield write_lists(tmp_path / "raw", shop.url, urls)


def _interpreter(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "python"
    path.write_text(text)
    path.chmod(0o755)
    return path


def _build(raw: Path, out: Path, *more: object) -> int:
    words = ["build", "product1m", "--raw", raw, "--out", out, "--workers", 1, "--vocab-size", 60, "--no-entities"]
    return data_command([str(word) for word in (*words, *more)])


def test_lists_alone_become_verified_shards(tmp_path, raw, caplog):
    caplog.set_level(logging.INFO)
    python = _interpreter(tmp_path, STAND_IN)
    assert _build(raw, tmp_path / "out", "--img2dataset", python, "--threads", 3) == 0
    said = caplog.text
    assert "pictures 0 there, 9 fetched of 10 listed; failed: url_not_found 1" in said
    assert "train    6 samples in 1 shards, skipped: url_not_found 1" in said
    assert "download-failures.tsv" in said
    assert "skipped.tsv" in said
    assert data_command(["verify", str(tmp_path / "out")]) == 0
    python.unlink()
    assert _build(raw, tmp_path / "out") == 0, "what failed before is not asked for again"


def test_a_downloader_that_breaks_is_one_message_with_both_ways_on(tmp_path, raw):
    python = _interpreter(tmp_path, f"#!{sys.executable}\nraise SystemExit('no space left')\n")
    with pytest.raises(DataError, match=r"no space left.*same command.*--no-download"):
        _build(raw, tmp_path / "out", "--img2dataset", python)


def test_without_download_only_what_is_there_is_built(tmp_path, raw):
    with pytest.raises(DataError, match=r"not one usable training sample.*missing_picture"):
        _build(raw, tmp_path / "out", "--no-download")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["grocery", "--threads", "3"], "--threads"),
        (["grocery", "--no-download"], "--no-download"),
        (["product1m", "--no-download", "--retry-failed"], "--retry-failed"),
        (["product1m", "--threads", "0"], "--threads 0"),
        (["product1m", "--img2dataset", "nowhere"], "--img2dataset nowhere"),
    ],
)
def test_options_that_make_no_sense_are_refused_first(words, named):
    with pytest.raises(UsageError, match=named):
        data_command(["build", *words])


def test_a_linked_folder_says_what_lies_elsewhere(tmp_path, caplog):
    from datamodules.write_shards import build
    from tests.datamodules.tiny_catalogue import TinyCatalogue

    caplog.set_level(logging.INFO)
    there = tmp_path / "there"
    build(TinyCatalogue({"train": 6, "val": 2, "test": 2, "gallery": 2}), there, vocab_size=60, progress=False)
    assert data_command(["link", f"pipe:cat {there}/{{}}", "--out", str(tmp_path / "here"), "--cache"]) == 0
    assert "4 shards" in caplog.text
    assert data_command(["verify", str(tmp_path / "here")]) == 0
