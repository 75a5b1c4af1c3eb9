"""Takes the product off a single-product shot: along its outline where the ground is clear, else as a tile."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageFilter
from scipy.ndimage import binary_erosion, binary_opening, gaussian_filter, label

from datamodules.detection.shot_ground import ground_distance

# Settings of ours, chosen on contact sheets of the three demo catalogues.
MOST_SPREAD = 14.0  # grey levels of the border around its model; more is a scene, not a ground
THRESHOLD = (10.0, 40.0)  # grey levels between ground and product, least and most
SPREADS = 2.5  # so many spreads of the border are still ground
AREA = (0.03, 0.9)  # of the photo, that a believable outline covers
LEAST_GROUND_BORDER = 0.55  # of the border; models are often cut by one edge, rarely by two
LEAST_PART = 0.15  # of the largest part: what is smaller is a badge, a crumb or lettering
FEATHER_PX = 0.7


class CutOut(NamedTuple):
    """One product to paste."""

    pixels_HW4: np.ndarray  # uint8 RGBA; a tile's alpha is 255 everywhere, its edge is shaped when it is pasted
    kind: Literal["outline", "tile"]


def cut_out(photo: Image.Image) -> CutOut | None:
    """The product of an RGB photo.

    Returns:
        The outline where the border is clearly ground, the whole photo where it clearly is not (a shelf, a crate), and
        None in between: there is a ground, but the outline found on it is not to be believed (a white shirt on white).
    """
    pixels_HW3 = np.asarray(photo, np.uint8)
    if min(pixels_HW3.shape[:2]) < 16:
        return None
    smooth_HW3 = np.asarray(photo.filter(ImageFilter.BoxBlur(1)), np.float32)
    distance_HW, spread = ground_distance(smooth_HW3)
    if spread > MOST_SPREAD:
        return CutOut(np.dstack((pixels_HW3, np.full(pixels_HW3.shape[:2], 255, np.uint8))), "tile")
    product_HW = _product(distance_HW > np.clip(SPREADS * spread, *THRESHOLD))
    if product_HW is None:
        return None
    # Feathered inwards, so that no fringe of the old ground comes along.
    alpha_HW = gaussian_filter(binary_erosion(product_HW, border_value=1).astype(np.float32), FEATHER_PX)
    rows, columns = np.flatnonzero((alpha_HW > 0.5).any(axis=1)), np.flatnonzero((alpha_HW > 0.5).any(axis=0))
    if not len(rows) or min(rows[-1] - rows[0], columns[-1] - columns[0]) < 5:
        return None
    rgba_HW4 = np.dstack((pixels_HW3, np.round(255 * alpha_HW).astype(np.uint8)))
    return CutOut(rgba_HW4[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy(), "outline")


def _product(different_HW: np.ndarray) -> np.ndarray | None:
    """What is not reached from the border through ground, holes filled, crumbs and badges left out."""
    parts_HW, number = label(~different_HW)
    reached = np.zeros(number + 1, bool)
    reached[_edge(parts_HW)] = True
    reached[0] = False
    product_HW = binary_opening(~reached[parts_HW], iterations=1)
    parts_HW, number = label(product_HW)
    if not number:
        return None
    sizes = np.bincount(parts_HW.ravel(), minlength=number + 1)
    sizes[0] = 0
    kept = sizes >= LEAST_PART * sizes.max()
    for part in np.unique(_edge(parts_HW)):
        kept[part] &= sizes[part] == sizes.max()
    product_HW = kept[parts_HW]
    believable = AREA[0] <= product_HW.mean() <= AREA[1] and 1 - _edge(product_HW).mean() >= LEAST_GROUND_BORDER
    return product_HW if believable else None


def _edge(values_HW: np.ndarray) -> np.ndarray:
    return np.concatenate((values_HW[0], values_HW[-1], values_HW[:, 0], values_HW[:, -1]))
