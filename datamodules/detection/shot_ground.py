"""How far each pixel of a product shot is from its ground, judged by the border of the picture alone.

The ground of a shop photo is plain, graded or cut by the edge of a table; its colour need not be white. Three models of
it are tried, and the one that explains best what it has not been fitted to wins:

* a quadratic surface through the border, outliers left out (plain and graded grounds);
* each row between its two ends (table edges, vertical gradients);
* each column between its two ends (horizontal gradients).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.ndimage import median_filter

_FITS = 4  # rounds of leaving out what the surface does not explain
_LEAST_SPREAD = 2.0  # grey levels; below that it is the codec's noise
_EXPLAINED = 65  # percentile of the border's residuals that is called the spread: a product may touch the rest


class Ground(NamedTuple):
    """What the border says of a shot."""

    expected_3HW: np.ndarray  # float32, RGB of the ground at each pixel
    distance_HW: (
        np.ndarray
    )  # float32, grey levels between a pixel and the ground there, in the channel they differ most
    spread: float  # grey levels the border itself strays from the model


def find_ground(pixels_3HW: np.ndarray) -> Ground:
    """Fit the ground to the border of a picture.

    Args:
        pixels_3HW: float32 RGB, 0 to 255, at least 16 px a side.
    """
    height, width = pixels_3HW.shape[1:]
    ring = max(2, min(height, width) // 48)
    surface_3HW = _surface(pixels_3HW, ring)
    surface_HW = largest_channel(pixels_3HW - surface_3HW)
    rows_3HW, rows_HW = _between_ends(pixels_3HW, ring)
    columns_3WH, columns_WH = _between_ends(np.ascontiguousarray(pixels_3HW.transpose(0, 2, 1)), ring)
    columns_3HW, columns_HW = columns_3WH.transpose(0, 2, 1), columns_WH.T
    models = (
        Ground(surface_3HW, surface_HW, _spread(surface_HW[_border(height, width, ring)])),
        Ground(rows_3HW, rows_HW, _spread(np.concatenate((rows_HW[:ring], rows_HW[-ring:])))),
        Ground(columns_3HW, columns_HW, _spread(np.concatenate((columns_HW[:, :ring], columns_HW[:, -ring:]), axis=1))),
    )
    return min(models, key=lambda model: model.spread)


def largest_channel(difference_3HW: np.ndarray) -> np.ndarray:
    """The largest channel's difference: a tint counts as much as a shade."""
    red_HW, green_HW, blue_HW = np.abs(difference_3HW)
    return np.maximum(np.maximum(red_HW, green_HW), blue_HW)


@lru_cache(maxsize=8)  # photos of one folder come in few sizes
def _border(height: int, width: int, ring: int) -> np.ndarray:
    border_HW = np.ones((height, width), bool)
    border_HW[ring:-ring, ring:-ring] = False
    return border_HW


@lru_cache(maxsize=8)
def _terms(height: int, width: int) -> np.ndarray:
    y_HW, x_HW = np.meshgrid(
        np.linspace(-1, 1, height, dtype=np.float32), np.linspace(-1, 1, width, dtype=np.float32), indexing="ij"
    )
    return np.stack((np.ones_like(x_HW), x_HW, y_HW, x_HW * y_HW, x_HW**2, y_HW**2))


def _surface(pixels_3HW: np.ndarray, ring: int) -> np.ndarray:
    """A quadratic in x and y for each channel, refitted to the border pixels it explains."""
    height, width = pixels_3HW.shape[1:]
    border_HW, terms_6HW = _border(height, width, ring), _terms(height, width)
    terms_6N, colours_3N = terms_6HW[:, border_HW], pixels_3HW[:, border_HW]
    # The first guess is one colour: a surface could bend itself towards a product that touches the border.
    residual_N = largest_channel(colours_3N - np.median(colours_3N, axis=1, keepdims=True))
    coefficients_36 = np.zeros((3, 6), np.float32)
    for _ in range(_FITS):
        kept_N = residual_N <= max(2.5 * float(np.median(residual_N)), 3 * _LEAST_SPREAD)
        terms_6K = terms_6N[:, kept_N]
        normal_66 = terms_6K @ terms_6K.T + 1e-3 * np.eye(6, dtype=np.float32)
        coefficients_36 = np.linalg.solve(normal_66, terms_6K @ colours_3N[:, kept_N].T).T
        residual_N = largest_channel(colours_3N - coefficients_36 @ terms_6N)
    return (coefficients_36 @ terms_6HW.reshape(6, -1)).reshape(3, height, width)


def _between_ends(pixels_3HW: np.ndarray, ring: int) -> tuple[np.ndarray, np.ndarray]:
    """What lies between the two ends of each row; distance of each pixel to it or to either end, the nearest.

    Either end alone counts as well because a badge in a corner spoils one of them.
    """
    height, width = pixels_3HW.shape[1:]
    length = max(3, height // 24) | 1  # px of the median along the border: a speck is not the ground
    left_3H1, right_3H1 = (
        median_filter(np.median(ends_3HN, axis=2), (1, length), mode="nearest")[..., None]
        for ends_3HN in (pixels_3HW[:, :, :ring], pixels_3HW[:, :, -ring:])
    )
    between_3HW = left_3H1 + (right_3H1 - left_3H1) * np.linspace(0, 1, width, dtype=np.float32)
    distance_HW = largest_channel(pixels_3HW - between_3HW)
    for end_3H1 in (left_3H1, right_3H1):
        np.minimum(distance_HW, largest_channel(pixels_3HW - end_3H1), out=distance_HW)
    return between_3HW, distance_HW


def _spread(residuals: np.ndarray) -> float:
    return max(_LEAST_SPREAD, float(np.percentile(residuals, _EXPLAINED)))
