"""What a gallery of 100 million items needs, by the arithmetic from an index that was measured."""

from __future__ import annotations

from typing import Any, NamedTuple

MB, GB = 2**20, 2**30


class MeasuredIndex(NamedTuple):
    """One part of a gallery, as it was built and searched; seconds and milliseconds are of one core."""

    vectors: int
    width: int
    cells: int
    code_bytes: float  # on disk for each vector: code and row number
    kept_bytes: float  # on disk for each vector: the vector itself
    fill_seconds: float  # of all its vectors
    num_probed: int
    search_ms: float  # of a query, with so many cells searched


def project(measured: MeasuredIndex, items: int, nodes: int) -> list[dict[str, Any]]:
    """Rows {"what", "figure", "unit", "how"} for `items` over `nodes` machines, each with a part of its own.

    Bytes are per vector and carry over. Filling compares each vector with every cell's centre, so it is taken to grow
    with the cells, which is too much where coding weighs; a search to grow with the vectors in the cells it reads.
    Recall is not projected: it falls as the gallery grows.
    """
    part = -(-items // nodes)
    cells = cells_for(part)
    each = measured.code_bytes + measured.kept_bytes
    fill = measured.fill_seconds / measured.vectors * cells / measured.cells
    in_cell, was_in_cell = part / cells, measured.vectors / measured.cells
    search = measured.search_ms * in_cell / was_in_cell
    centres = cells * measured.width * 4

    def row(what: str, figure: float, unit: str, how: str) -> dict[str, Any]:
        return {"what": what, "figure": figure, "unit": unit, "how": how}

    return [
        row("disk, all nodes", items * each / GB, "GB", f"{items:,} × {each:.1f} B"),
        row("disk of a node", part * each / GB, "GB", f"{part:,} × {each:.1f} B; twice the codes while it is built"),
        row(
            "codes of a node", part * measured.code_bytes / GB, "GB", f"{part:,} × {measured.code_bytes:.1f} B, mapped"
        ),
        row("centres of a node", centres / MB, "MB", f"{cells:,} cells × {measured.width} × 4 B, always in memory"),
        row(
            "filling a node",
            part * fill / 3600,
            "core-hours",
            f"{part:,} × {fill * 1e6:.0f} µs = {measured.fill_seconds:.0f} s / {measured.vectors:,} "
            f"× {cells:,} / {measured.cells:,} cells",
        ),
        row(
            f"a query on a node, {measured.num_probed} cells",
            search,
            "core-ms",
            f"{measured.search_ms:.2f} ms × {in_cell:.0f} / {was_in_cell:.0f} vectors in a cell; pages in memory",
        ),
    ]


def cells_for(vectors: int) -> int:
    """The power of two at or below 4·√N."""
    return 1 << max(0, int(4 * vectors**0.5).bit_length() - 1)
