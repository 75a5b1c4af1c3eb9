"""Where several products go on one canvas: a loose grid, shifted and overlapping a little."""

from __future__ import annotations

import random

Slot = tuple[float, float, float, float]  # left, top, right, bottom in px

# Rows of products for each number of products; several choices where a shop would vary.
ROWS: dict[int, tuple[tuple[int, ...], ...]] = {
    1: ((1,),),
    2: ((2,), (2,), (1, 1)),
    3: ((3,), (1, 2), (2, 1)),
    4: ((2, 2), (2, 2), (1, 3)),
    5: ((2, 3), (3, 2)),
}
MAX_PRODUCTS = max(ROWS)


def place(rng: random.Random, number: int, size: tuple[int, int], overlap: float = 0.18) -> list[Slot]:
    """One slot per product.

    Args:
        number: of products, 1 to 5.
        size: width and height of the canvas in px.
        overlap: how far a slot may grow over its neighbours, as a fraction of its side.

    Returns:
        Slots in reading order, all inside the canvas.
    """
    width, height = size
    rows = rng.choice(ROWS[number])
    slots = []
    for row, columns in enumerate(rows):
        for column in range(columns):
            slot_w, slot_h = width / columns, height / len(rows)
            grow = rng.uniform(-0.05, overlap)
            shift_x, shift_y = rng.uniform(-0.05, 0.05) * slot_w, rng.uniform(-0.05, 0.05) * slot_h
            left = column * slot_w - grow * slot_w / 2 + shift_x
            top = row * slot_h - grow * slot_h / 2 + shift_y
            right, bottom = left + slot_w * (1 + grow), top + slot_h * (1 + grow)
            slots.append((max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom)))
    return slots
