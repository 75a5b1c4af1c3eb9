"""The bench of a million pairs, at a size for tests: every pair is counted, and a wrong count is seen."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from datamodules.catalogues.million import Million
from datamodules.write_shards import build
from experiments.bench import bench_command
from experiments.bench_scale import PassCount, bench_scale, stream_one_pass
from experiments.errors import UsageError
from experiments.process_usage import cpu_seconds, proportional_mb

_PAIRS = 600


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scale") / "million"
    build(Million(num_pairs=_PAIRS, image_size_px=16), folder, shard_size=50, vocab_size=800, progress=False)
    return folder


def test_a_pass_is_streamed_and_every_pair_counted(folder: Path) -> None:
    found = {row["what"]: row["value"] for row in stream_one_pass(folder)}
    assert found["training pairs"] == len(Million(num_pairs=_PAIRS).plan("train"))
    assert found["pairs never seen in the pass"] == found["pairs seen more than once"] == found["pairs skipped"] == 0
    for who in ("main process", "worker 1", "worker 2"):
        assert found[f"memory of {who}, last third"] > 10


def test_pairs_left_out_or_doubled_are_noticed() -> None:
    count = PassCount([3, 2], seed=0, num_workers=1)
    assert count.add(0, np.array([0, 1, 1]))
    assert not count.add(1, np.array([3, 4, 2])), "five pairs are a pass; the sixth is of the next one"
    assert count.seen_N.tolist() == [1, 2, 0, 1, 1]


def test_what_does_not_fit_is_told(folder: Path) -> None:
    with pytest.raises(UsageError, match=f"holds {_PAIRS} pairs, not 20"):
        bench_scale(folder, pairs=20)
    with pytest.raises(UsageError, match="--pairs is an option of `bench scale` alone"):
        bench_command(["search", "--pairs", "20"])


def test_a_process_that_is_gone_has_no_figures() -> None:
    assert proportional_mb(os.getpid()) > 10
    for figure in (proportional_mb, cpu_seconds):
        with pytest.raises(UsageError, match="Linux only"):
            figure(2**30)


@pytest.mark.slow
def test_the_whole_command_at_twenty_thousand_pairs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    words = ["scale", "--folder", str(tmp_path / "million"), "--pairs", "20000", "--out", str(out)]
    bench_command(words)
    found = json.loads(out.read_text())
    figures = {row["what"]: row["value"] for row in found["scale"]}
    assert figures["pairs"] == 20_000
    assert figures["pairs never seen in the pass"] == figures["pairs seen more than once"] == 0
    assert found["hardware"]["cores"] == os.cpu_count()
    assert "all in order" in capfd.readouterr().out
    bench_command(words)
    assert "building" not in {row["what"] for row in json.loads(out.read_text())["scale"]}
