"""How far each pixel of a product shot is from its ground, judged by the border of the picture alone.

The ground of a shop photo is plain, graded or cut by the edge of a table; its colour need not be white. Three models of
it are tried, and the one that explains best what it has not been fitted to wins:

* a quadratic surface through the border, outliers left out (plain and graded grounds);
* each row between its two ends (table edges, vertical gradients);
* each column between its two ends (horizontal gradients).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.ndimage import median_filter

_FITS = 4  # rounds of leaving out what the surface does not explain
_LEAST_SIGMA = 2.0  # grey levels; below that it is the codec's noise
_EXPLAINED = 65  # percentile of the border's residuals that is called the spread: a product may touch the rest


class GroundDistance(NamedTuple):
    """What the border says of a shot."""

    distance_HW: np.ndarray  # float32, grey levels between a pixel and the ground expected there
    spread: float  # grey levels the border itself strays from the model


def ground_distance(pixels_HW3: np.ndarray) -> GroundDistance:
    """Fit the ground to the border of a picture.

    Args:
        pixels_HW3: RGB 0 to 255, any dtype, at least 8 px a side.
    """
    pixels_HW3 = np.asarray(pixels_HW3, np.float32)
    height, width = pixels_HW3.shape[:2]
    ring = max(2, min(height, width) // 48)
    surface_HW = _norm(pixels_HW3 - _surface(pixels_HW3, ring))
    rows_HW = _between_ends(pixels_HW3, ring)
    columns_HW = _between_ends(pixels_HW3.transpose(1, 0, 2), ring).T
    upper_lower = np.concatenate((rows_HW[:ring].ravel(), rows_HW[-ring:].ravel()))
    left_right = np.concatenate((columns_HW[:, :ring].ravel(), columns_HW[:, -ring:].ravel()))
    models = (
        (_spread(surface_HW[_border(height, width, ring)]), surface_HW),
        (_spread(upper_lower), rows_HW),
        (_spread(left_right), columns_HW),
    )
    spread, distance_HW = min(models, key=lambda model: model[0])
    return GroundDistance(distance_HW, spread)


def _border(height: int, width: int, ring: int) -> np.ndarray:
    border_HW = np.ones((height, width), bool)
    border_HW[ring:-ring, ring:-ring] = False
    return border_HW


def _surface(pixels_HW3: np.ndarray, ring: int) -> np.ndarray:
    """A quadratic in x and y for each channel, refitted to the border pixels it explains."""
    height, width = pixels_HW3.shape[:2]
    y_HW, x_HW = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms_HW6 = np.stack((np.ones_like(x_HW), x_HW, y_HW, x_HW * y_HW, x_HW**2, y_HW**2), axis=-1).astype(np.float32)
    border_HW = _border(height, width, ring)
    terms_N6, colours_N3 = terms_HW6[border_HW], pixels_HW3[border_HW]
    # The first guess is one colour: a surface could bend itself towards a product that touches the border.
    residual_N = _norm(colours_N3 - np.median(colours_N3, axis=0))
    coefficients_63 = np.zeros((6, 3), np.float32)
    for _ in range(_FITS):
        kept_N = residual_N <= max(2.5 * float(np.median(residual_N)), 3 * _LEAST_SIGMA)
        normal_66 = terms_N6[kept_N].T @ terms_N6[kept_N] + 1e-3 * np.eye(6, dtype=np.float32)
        coefficients_63 = np.linalg.solve(normal_66, terms_N6[kept_N].T @ colours_N3[kept_N])
        residual_N = _norm(colours_N3 - terms_N6 @ coefficients_63)
    return terms_HW6 @ coefficients_63


def _between_ends(pixels_HW3: np.ndarray, ring: int) -> np.ndarray:
    """Distance of each pixel to the ends of its row or to what lies between them, whichever is nearest."""
    height, width = pixels_HW3.shape[:2]
    length = max(3, height // 24) | 1  # px of the median along the border: a speck is not the ground
    left_H13 = median_filter(np.median(pixels_HW3[:, :ring], axis=1), (length, 1), mode="nearest")[:, None]
    right_H13 = median_filter(np.median(pixels_HW3[:, -ring:], axis=1), (length, 1), mode="nearest")[:, None]
    share_1W1 = np.linspace(0, 1, width, dtype=np.float32)[None, :, None]
    between_HW3 = left_H13 + (right_H13 - left_H13) * share_1W1
    # Either end alone as well: a badge in a corner spoils one of them.
    return np.minimum(
        _norm(pixels_HW3 - between_HW3), np.minimum(_norm(pixels_HW3 - left_H13), _norm(pixels_HW3 - right_H13))
    )


def _norm(difference: np.ndarray) -> np.ndarray:
    """The largest channel's difference: a tint counts as much as a shade."""
    return np.abs(difference).max(axis=-1)


def _spread(residuals: np.ndarray) -> float:
    return max(_LEAST_SIGMA, float(np.percentile(residuals, _EXPLAINED)))
