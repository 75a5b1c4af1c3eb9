"""What a training sees over ranks × workers × shards × batch sizes × places to resume at, through the DataModule.

Each property has a fast test of few examples and a slow one of many, which also reads shards that lie on a web server.
"""

from __future__ import annotations

import shutil
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamodules.manifest import read_manifest
from datamodules.remote import link
from datamodules.shard_order import samples_of_pass
from datamodules.write_shards import build
from tests.datamodules.damage import damage_samples
from tests.datamodules.stream_ranks import Ranks
from tests.datamodules.tiny_catalogue import TinyCatalogue

_FAULTS = {"train.1": "caption", "train.2": "record", "train.9": "record"}

# samples, most of them in a shard -> one shard, two unequal ones, many unequal ones, many equal ones
_SHARDS = [(11, 20), (13, 7), (37, 5), (24, 2)]

shards = st.sampled_from(_SHARDS)
layouts = st.fixed_dictionaries(
    {
        "world_size": st.integers(1, 4),
        "num_workers": st.integers(1, 3),
        "batch_size": st.integers(1, 2),
        "seed": st.integers(0, 2),
    }
)
few = settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
many = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """(samples, shard size, kind) -> a folder: "whole", "damaged" or "linked" to a whole one on a web server."""
    home = tmp_path_factory.mktemp("folders")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(home)))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

    @cache
    def make(shard: tuple[int, int], kind: str = "whole") -> Path:
        num_samples, shard_size = shard
        out = home / f"{kind}-{num_samples}-{shard_size}"
        if kind == "whole":
            counts = {"train": num_samples, "val": 1, "test": 1, "gallery": 5}
            build(TinyCatalogue(counts, size_px=8), out, shard_size=shard_size, vocab_size=60, progress=False)
        elif kind == "damaged":
            damage_samples(make(shard), out, _FAULTS)
        else:
            link(f"http://127.0.0.1:{server.server_address[1]}/{make(shard).name}", out)
        return out

    yield make
    server.shutdown()
    server.server_close()


def _fits(shard: tuple[int, int], layout: dict[str, int]) -> bool:
    return layout["world_size"] * layout["batch_size"] <= shard[0]


def _check_passes(folder: Path, layout: dict[str, int]) -> None:
    """Each sample once in each pass over all ranks and workers; all ranks have as many batches, all of them full."""
    ranks = Ranks(folder, **layout)
    counts = [entry["samples"] for entry in read_manifest(folder)["splits"]["train"]["shards"]]
    assert len({data.steps_per_epoch for data in ranks.modules}) == 1
    num_workers, consumers = layout["num_workers"], layout["world_size"] * layout["num_workers"]
    share = partial(samples_of_pass, layout["seed"], counts, num_consumers=consumers)
    shares = [[share(one, pass_number=number) for number in (0, 1)] for one in range(consumers)]
    most = -(-max(map(sum, shares)) // layout["batch_size"])  # batches of a worker
    seen: dict[int, Counter[int]] = {0: Counter(), 1: Counter()}
    for rank, batches in enumerate(ranks.take(most * num_workers)):
        assert {len(rows) for rows in batches} == {layout["batch_size"]}
        for worker in range(num_workers):
            rows = [row for batch in batches[worker::num_workers] for row in batch]
            first, second = shares[rank * num_workers + worker]
            seen[0].update(rows[:first])
            seen[1].update(rows[first : first + second])
    assert seen[0] == seen[1] == Counter(range(sum(counts)))


def _check_resuming(folder: Path, layout: dict[str, int], stops: list[int]) -> None:
    """Killed after so many batches each time, a training sees exactly what it would have seen, on every rank."""
    until = max(stops) + 4
    whole = Ranks(folder, **layout).take(until)
    ranks = Ranks(folder, **layout)
    parts = [ranks.take(stops[0])]
    for before, after in pairwise([*stops, until]):
        ranks = Ranks(folder, **layout, state=ranks.state())
        parts.append(ranks.take(after - before))
    assert [list(chain(*of_rank)) for of_rank in zip(*parts, strict=True)] == whole


def _check_another_layout(folder: Path, before: dict[str, int], after: dict[str, int], stop: int) -> None:
    """From the mean position on it is the stream of the new layout; counts of skipped samples are kept."""
    old = Ranks(folder, **before)
    old.take(stop)
    state = old.state()
    consumers = after["world_size"] * after["num_workers"]
    mean = sum(sum(rank) for rank in state["positions"]) // consumers
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        new = Ranks(folder, **after, state=state)
    same = all(before[key] == after[key] for key in ("world_size", "num_workers"))
    assert any("mean position" in str(one.message) for one in told) != same
    skipped = sum((data.skipped for data in new.modules), Counter())
    assert skipped == sum((data.skipped for data in old.modules), Counter())
    if same:
        return
    there = {**state, "positions": [[mean] * after["num_workers"]] * after["world_size"]}
    there["skipped"] = [{}] * after["world_size"]
    assert new.take(5) == Ranks(folder, **after, state=there).take(5)


@few
@given(shard=shards, layout=layouts)
def test_each_pass_holds_each_sample_once(folder_of: Callable[..., Path], shard: Any, layout: dict[str, int]) -> None:
    if _fits(shard, layout):
        _check_passes(folder_of(shard), layout)


@few
@given(shard=shards, layout=layouts, stops=st.lists(st.integers(1, 30), min_size=1, max_size=3, unique=True))
def test_what_is_resumed_again_and_again_goes_on_exactly(
    folder_of: Callable[..., Path], shard: Any, layout: dict[str, int], stops: list[int]
) -> None:
    if _fits(shard, layout):
        _check_resuming(folder_of(shard, "damaged"), layout, sorted(stops))


@few
@given(shard=shards, before=layouts, after=layouts, stop=st.integers(1, 30))
def test_other_ranks_and_workers_go_on_from_the_mean_position(
    folder_of: Callable[..., Path], shard: Any, before: dict[str, int], after: dict[str, int], stop: int
) -> None:
    after = {**after, "seed": before["seed"]}
    if _fits(shard, before) and _fits(shard, after):
        _check_another_layout(folder_of(shard, "damaged"), before, after, stop)


@pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset opens http addresses with curl")
def test_shards_on_a_web_server_keep_the_order_and_resume(folder_of: Callable[..., Path]) -> None:
    shard, layout = (13, 7), {"world_size": 2, "num_workers": 2, "batch_size": 2, "seed": 1}
    _check_resuming(folder_of(shard, "linked"), layout, [3])
    assert Ranks(folder_of(shard, "linked"), **layout).take(6) == Ranks(folder_of(shard), **layout).take(6)


@pytest.mark.slow
@many
@given(shard=shards, layout=layouts)
def test_each_pass_holds_each_sample_once_in_many_layouts(
    folder_of: Callable[..., Path], shard: Any, layout: dict[str, int]
) -> None:
    if _fits(shard, layout):
        _check_passes(folder_of(shard), layout)


@pytest.mark.slow
@many
@given(shard=shards, layout=layouts, stops=st.lists(st.integers(1, 30), min_size=1, max_size=3, unique=True))
def test_resuming_goes_on_exactly_in_many_layouts(
    folder_of: Callable[..., Path], shard: Any, layout: dict[str, int], stops: list[int]
) -> None:
    if _fits(shard, layout):
        _check_resuming(folder_of(shard, "damaged"), layout, sorted(stops))


@pytest.mark.slow
@many
@given(shard=shards, before=layouts, after=layouts, stop=st.integers(1, 30))
def test_many_changes_of_ranks_and_workers(
    folder_of: Callable[..., Path], shard: Any, before: dict[str, int], after: dict[str, int], stop: int
) -> None:
    after = {**after, "seed": before["seed"]}
    if _fits(shard, before) and _fits(shard, after):
        _check_another_layout(folder_of(shard, "damaged"), before, after, stop)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset opens http addresses with curl")
@settings(many, max_examples=25)
@given(shard=st.sampled_from([(11, 20), (13, 7)]), layout=layouts, stop=st.integers(1, 6))
def test_shards_on_a_web_server_in_many_layouts(
    folder_of: Callable[..., Path], shard: Any, layout: dict[str, int], stop: int
) -> None:
    if _fits(shard, layout):
        _check_passes(folder_of(shard, "linked"), layout)
        _check_resuming(folder_of(shard, "linked"), layout, [stop])
