"""What does an index on disk find, hold and cost? Measured on made-up vectors, then projected to 100 million items."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.errors import UsageError
from experiments.index_projection import MeasuredIndex, cells_for, project
from retrieval import rank
from retrieval.disk_index import PER_CENTRE, DiskIndex, Found, fill_index, merge_found, train_index

K = 10
CODE_BYTES = 64
PROBED, RESCORED = (1, 4, 16, 64), (0, 100)
BLOCK = 50_000
PER_LABEL = 50  # items that show the same product
PROJECTED = 100_000_000
_STATUS = Path("/proc/self/status")  # Linux only; elsewhere memory stays None


def bench_index(
    items: int = 1_000_000,
    nodes: int = 8,
    parts: int = 2,
    width: int = 256,
    queries: int = 500,
    folder: Path | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Build an index of `items` in `parts`, as on so many machines, and search it in a fresh process.

    Args:
        nodes: machines of the projection to 100 million.
        folder: where the index is built, and stays; None = in a temporary one.

    Returns: rows {"what", "figure", "unit", "how"}: measured ones, with recall@10 against the exact search, then the
        projection with its arithmetic. Times are CPU time of all threads: other work on the machine counts little.

    Raises: UsageError on too few items.
    """
    least = parts * PER_CENTRE * 256
    if items < least or nodes < 1:
        raise UsageError(f"bench index: --items at least {least:,} ({parts} parts), --nodes at least 1")
    with tempfile.TemporaryDirectory() as temporary:
        return _bench(Shop(items, width, seed), nodes, parts, queries, Path(folder or temporary))


class Shop(NamedTuple):
    """Unit vectors of products: noisy copies of a centre each, with fewer and fewer long axes, turned at random.

    A block is made anew whenever it is asked for, from its number and the seed.
    """

    items: int
    width: int
    seed: int

    def blocks(self, first: int, end: int) -> Iterator[np.ndarray]:
        """Items from a multiple of the block size on."""
        centres_LD, turn_DD = self._centres(), self._turn()
        for start in range(first, end, BLOCK):
            yield self._near(centres_LD, turn_DD, min(BLOCK, end - start), start // BLOCK + 1)

    def queries(self, num: int) -> np.ndarray:
        """Other pictures of the same products."""
        return self._near(self._centres(), self._turn(), num, 0)

    def _near(self, centres_LD: np.ndarray, turn_DD: np.ndarray, num: int, number: int) -> np.ndarray:
        generator = np.random.default_rng([self.seed, 1, number])
        label_N = generator.integers(0, len(centres_LD), num)
        rows_ND = centres_LD[label_N] + 0.7 * generator.standard_normal((num, self.width), np.float32)
        rows_ND = rows_ND @ turn_DD
        return rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)

    def _centres(self) -> np.ndarray:
        shape = (max(1, self.items // PER_LABEL), self.width)
        return np.random.default_rng([self.seed, 2]).standard_normal(shape, np.float32)

    def _turn(self) -> np.ndarray:
        """Scales axis i by 1/√(i + 1), and turns."""
        square = np.random.default_rng([self.seed, 3]).standard_normal((self.width, self.width))
        scale_D1 = 1 / np.sqrt(np.arange(1, self.width + 1))[:, None]
        return (scale_D1 * np.linalg.qr(square)[0]).astype(np.float32)


def _bench(shop: Shop, nodes: int, parts: int, num_queries: int, folder: Path) -> list[dict[str, Any]]:
    each = -(-shop.items // parts // BLOCK) * BLOCK  # whole blocks
    first_rows = list(range(0, shop.items, each))
    ends = [*first_rows[1:], shop.items]
    cells = min(cells_for(each), ends[0] // PER_CENTRE)
    trained, learnt = folder / "trained.faiss", min(ends[0], 2 * PER_CENTRE * max(cells, 256))
    sample_ND = np.concatenate(list(shop.blocks(0, min(ends[0], -(-learnt // BLOCK) * BLOCK))))[:learnt]
    train_seconds = _cpu_seconds(partial(train_index, trained, sample_ND, cells, CODE_BYTES, shop.seed))
    folders = [folder / f"part-{number}" for number in range(len(first_rows))]
    fill_seconds = 0.0
    for place, first, end in zip(folders, first_rows, ends, strict=True):
        making = _cpu_seconds(partial(deque, shop.blocks(first, end), maxlen=0))
        filling = _cpu_seconds(partial(fill_index, place, trained, shop.blocks(first, end)))
        fill_seconds += max(0.0, filling - making)
    query_QD = shop.queries(num_queries)
    true = _true_lists(shop, query_QD, ends)
    # In a process of its own: what building took is not what searching holds.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found, memory = pool.apply(_search, (folders, first_rows, query_QD))

    kept = shop.width * 4
    code = sum((place / "lists.ivfdata").stat().st_size for place in folders) / shop.items
    rows = [
        _row("vectors", shop.items, "", f"{len(folders)} parts, {shop.width} wide, codes of {CODE_BYTES} bytes"),
        _row("training", train_seconds, "core-s", f"{cells:,} cells, {learnt:,} vectors"),
        _row("filling", fill_seconds / shop.items * 1e6, "core-s a million", "assigning, coding, merging on disk"),
        _row("code on disk", code, "B a vector", "code and row number"),
        _row("vector on disk", kept, "B a vector", "float32, for exact scores"),
    ]
    rows += [_row(f"memory, {kind}", mb, "MB", "while searching") for kind, mb in memory.items()]
    for one in found:
        options = f"{one['probed']} cells" + (f", {one['rescored']} rescored" if one["rescored"] else "")
        first_part = _recall(one["first"], true[0])
        how = f"{first_part:.3f} among the first part's {ends[0]:,}"
        rows.append(_row(f"recall@{K}, {options}", _recall(one["all"], true[-1]), "", how))
        rows.append(_row(f"a query, {options}", one["ms"], "core-ms a part", f"{len(query_QD)} queries at a time"))
    last = found[-1]
    measured = MeasuredIndex(
        *(each, shop.width, cells, code, kept, fill_seconds * each / shop.items, last["probed"], last["ms"])
    )
    title = _row(f"{PROJECTED:,} items, {nodes} nodes", PROJECTED / nodes, "a node", "projected from one part; below")
    return [*rows, title, *project(measured, PROJECTED, nodes)]


def _search(
    folders: Sequence[Path], first_rows: Sequence[int], query_QD: np.ndarray
) -> tuple[list[dict[str, Any]], dict[str, float | None]]:
    """What each choice of options finds in the first part and in all, and what the process holds at the end."""
    import faiss  # noqa: F401  (their memory is not the index's)
    import torch  # noqa: F401

    parts, before = None, _memory_mb()
    found = []
    for rescored in RESCORED:
        for probed in PROBED:
            parts = parts or [DiskIndex(place) for place in folders]
            options = (K, min(probed, parts[0].num_cells), rescored)
            for part in parts:
                part.search(query_QD, *options)  # pages come from the disk outside the clock
            begin = time.process_time()
            lists = [part.search(query_QD, *options) for part in parts]
            ms = (time.process_time() - begin) * 1e3 / len(query_QD) / len(parts)
            together = merge_found(lists, first_rows, K)
            found.append({"probed": options[1], "rescored": rescored, "ms": ms, "first": lists[0], "all": together})
    after = _memory_mb()
    grown = {kind: after[kind] - before[kind] if after else None for kind in ("its own", "mapped files")}
    return found, grown


def _true_lists(shop: Shop, query_QD: np.ndarray, ends: Sequence[int]) -> list[Found]:
    """The exact lists among the items before each end."""
    best, lists, start = Found(np.zeros((len(query_QD), 0), np.int64), np.zeros((len(query_QD), 0), np.float32)), [], 0
    names = [f"q{row}" for row in range(len(query_QD))]
    for block_ND in shop.blocks(0, shop.items):
        ranking = rank(query_QD, block_ND, names, [f"{row:08d}" for row in range(len(block_ND))], K)
        best = merge_found([best, Found(ranking.index_QK, ranking.score_QK)], [0, start], K)
        start += len(block_ND)
        if start in ends:
            lists.append(best)
    return lists


def _recall(found: Found, true: Found) -> float:
    return float((found.index_QK[:, :, None] == true.index_QK[:, None]).any(1).mean())


def _cpu_seconds(run: Callable[[], Any]) -> float:
    begin = time.process_time()
    run()
    return time.process_time() - begin


def _memory_mb() -> dict[str, float]:
    """What the process alone holds, and what is mapped from files, which the system may take back."""
    try:
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        return {
            "its own": int(lines["RssAnon"].split()[0]) / 1024,
            "mapped files": int(lines["RssFile"].split()[0]) / 1024,
        }
    except (OSError, KeyError):
        return {}


def _row(what: str, figure: float | None, unit: str, how: str) -> dict[str, Any]:
    return {"what": what, "figure": figure, "unit": unit, "how": how}
