"""Where the nodes of a small graph go: connected groups apart, and no box on another. All lengths in inches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

GAP = 0.14  # between boxes of a group
MARGIN = 0.3  # around a group
ROUNDS = 400  # of pushing boxes apart; a few dozen suffice for 40
PAGE_RATIO = 2.0


class Size(NamedTuple):
    """Of a box or page."""

    width: float
    height: float


def place(
    rows: Sequence[int], pairs: Sequence[tuple[int, int]], sizes: dict[int, Size]
) -> tuple[list[list[int]], dict[int, tuple[float, float]], Size]:
    """Lay out each connected group by itself (Kamada-Kawai), push its boxes apart, and pack the groups on a page.

    Returns: The groups, largest first; the centre of each node's box; the page that holds them.
    """
    import networkx

    graph = networkx.Graph()
    graph.add_nodes_from(rows)
    graph.add_edges_from(pairs)
    groups = [sorted(group) for group in networkx.connected_components(graph)]
    groups.sort(key=lambda group: (-len(group), group))
    blocks = []
    for group in groups:
        box_M2 = np.array([sizes[row] for row in group])
        part = graph.subgraph(group)
        crowd = 1 + 0.2 * min(part.number_of_edges() / len(group), 4.0)  # many lines want room between the boxes
        stretch = crowd * np.sqrt(len(group)) * (box_M2.mean(0) * [0.55, 1.5] + [0.3, 0.1])
        centre_M2 = np.zeros((len(group), 2))
        if len(group) > 1:
            found = networkx.kamada_kawai_layout(part, weight=None)
            centre_M2 = np.array([found[row] for row in group]) * stretch
        blocks.append(_apart(centre_M2, box_M2 + GAP))
    corners, page = _packed(blocks)
    centres = {
        row: (float(x + left), float(y + bottom))
        for group, (centre_M2, _), (left, bottom) in zip(groups, blocks, corners, strict=True)
        for row, (x, y) in zip(group, centre_M2, strict=True)
    }
    return groups, centres, page


def _apart(centre_M2: np.ndarray, box_M2: np.ndarray) -> tuple[np.ndarray, Size]:
    """Boxes moved until none meets another, their lower left corner at the origin; and the room they take."""
    centre_M2 = centre_M2.copy()
    reach_MM2 = (box_M2[:, None] + box_M2[None]) / 2
    first, second = np.triu_indices(len(box_M2), 1)
    for _ in range(ROUNDS):
        overlap_P2 = reach_MM2[first, second] - np.abs(centre_M2[first] - centre_M2[second])
        meeting = np.flatnonzero((overlap_P2 > 1e-6).all(1))
        if not len(meeting):
            break
        for pair in meeting.tolist():
            a, b = first[pair], second[pair]
            apart_2 = centre_M2[b] - centre_M2[a]
            overlap_2 = reach_MM2[a, b] - np.abs(apart_2)
            if (overlap_2 <= 0).any():  # an earlier push has freed them
                continue
            axis = int(overlap_2[1] <= overlap_2[0])
            push = (overlap_2[axis] / 2 + 1e-4) * (1 if apart_2[axis] >= 0 else -1)
            centre_M2[a, axis] -= push
            centre_M2[b, axis] += push
    low_2 = (centre_M2 - box_M2 / 2).min(0)
    size_2 = (centre_M2 + box_M2 / 2).max(0) - low_2
    return centre_M2 - low_2, Size(float(size_2[0]), float(size_2[1]))


def _packed(blocks: Sequence[tuple[np.ndarray, Size]]) -> tuple[list[tuple[float, float]], Size]:
    """Lower left corners of the groups, on shelves from the top of a page wider than high."""
    rooms = [Size(size.width + MARGIN, size.height + MARGIN) for _, size in blocks]
    wanted = max([(PAGE_RATIO * sum(room.width * room.height for room in rooms)) ** 0.5, *(r.width for r in rooms)])
    corners: list[tuple[float, float]] = []
    left = top = shelf = widest = 0.0
    for room in sorted(range(len(rooms)), key=lambda number: -rooms[number].height):
        if left and left + rooms[room].width > wanted:
            top, left, shelf = top + shelf, 0.0, 0.0
        corners.append((left, top))
        left, shelf = left + rooms[room].width, max(shelf, rooms[room].height)
        widest = max(widest, left)
    page = Size(widest, top + shelf)
    order = sorted(range(len(rooms)), key=lambda number: -rooms[number].height)
    placed = dict(zip(order, corners, strict=True))
    half = MARGIN / 2
    turned = [
        (placed[number][0] + half, page.height - placed[number][1] - rooms[number].height + half)
        for number in range(len(rooms))
    ]
    return turned, page
