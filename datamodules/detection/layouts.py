"""Where products go on a picture: anywhere, in loose rows, or small ones around a large one."""

from __future__ import annotations

import math
from random import Random
from typing import NamedTuple


class Spot(NamedTuple):
    """Room for one product: centre and largest width and height, as fractions of the picture's sides."""

    x: float
    y: float
    width: float
    height: float


NUMBERS = (18, 28, 22, 16, 10, 6)  # weights of 1, 2, … products; further ones weigh as the last


def draw_number(rng: Random, most: int) -> int:
    """How many products a picture shows, 1 to `most`."""
    weights = [NUMBERS[min(number, len(NUMBERS) - 1)] for number in range(most)]
    return rng.choices(range(1, most + 1), weights)[0]


def lay_out(rng: Random, number: int) -> list[Spot]:
    """A spot for each of `number` products, in the order they are pasted (later ones cover earlier ones)."""
    if number == 1:
        side = rng.uniform(0.35, 1.02)
        return [Spot(_inside(rng, side), _inside(rng, side), side, side)]
    draw = rng.random()
    if draw < 0.5:
        return _rows(rng, number)
    if draw < 0.65 and number > 2:
        return _around(rng, number)
    return _anywhere(rng, number)


def _inside(rng: Random, side: float) -> float:
    """A centre for something of this side that stays inside, or hangs out a little."""
    if side >= 1:
        return 0.5
    return rng.uniform(side / 2 - 0.04, 1 - side / 2 + 0.04)


def _anywhere(rng: Random, number: int) -> list[Spot]:
    side = 1.15 / math.sqrt(number)
    spots = []
    for _ in range(number):
        own = min(0.9, side * math.exp(rng.uniform(-0.7, 0.25)))
        spots.append(Spot(_inside(rng, own), _inside(rng, own), own, own))
    return spots


def _rows(rng: Random, number: int) -> list[Spot]:
    """Rows of nearly equal length, one row or column for the few; the block may leave a margin."""
    # As square as the number allows, or the next.
    rows = min(number, 3, max(1, round(math.sqrt(number) + rng.uniform(-0.8, 0.8))))
    counts = [number // rows + (row < number % rows) for row in range(rows)]
    rng.shuffle(counts)
    upright = rng.random() < 0.8
    fill_x, fill_y = (1.0 if rng.random() < 0.5 else rng.uniform(0.75, 1.0) for _ in range(2))
    left, top = rng.uniform(0, 1 - fill_x), rng.uniform(0, 1 - fill_y)
    spots = []
    for row, columns in enumerate(counts):
        for column in range(columns):
            wide, high = fill_x / columns, fill_y / rows
            grow = rng.uniform(0.75, 1.2)
            x = left + (column + 0.5 + rng.uniform(-0.12, 0.12)) * wide
            y = top + (row + 0.5 + rng.uniform(-0.12, 0.12)) * high
            spot = Spot(x, y, min(1.0, wide * grow), min(1.0, high * grow))
            spots.append(spot if upright else Spot(spot.y, spot.x, spot.height, spot.width))
    rng.shuffle(spots)
    return spots


def _around(rng: Random, number: int) -> list[Spot]:
    """One large product, the others small and mostly beside it."""
    side = rng.uniform(0.5, 0.85)
    x, y = _inside(rng, side), _inside(rng, side)
    spots = [Spot(x, y, side, side)]
    small = rng.uniform(0.18, 0.38)
    for _ in range(number - 1):
        own = small * rng.uniform(0.8, 1.2)
        far = rng.uniform(0.5, 0.75) * (side + own)
        turn = rng.uniform(0, 2 * math.pi)
        beside_x, beside_y = (
            min(1 - own / 2, max(own / 2, value)) for value in (x + far * math.cos(turn), y + far * math.sin(turn))
        )
        spots.append(Spot(beside_x, beside_y, own, own))
    return spots
