"""Takes the product off a single-product shot: along its outline where the ground is clear, else as a tile."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageFilter
from scipy.ndimage import binary_dilation, binary_erosion, binary_opening, gaussian_filter, label, maximum_filter

from datamodules.detection.shot_ground import Ground, find_ground, largest_channel

# Settings of ours, chosen on contact sheets of the demo catalogues.
CUT_PX = 160  # longest side of what is looked at; a larger photo gets the outline of its small copy
LEAST_PX = 16  # shortest side of that copy
MOST_SPREAD = 14.0  # grey levels the border strays from its model; more is a scene, not a ground
THRESHOLD = (10.0, 40.0)  # grey levels between ground and product, least and most
SPREADS = 2.5  # so many spreads of the border are still ground
SHADOW = (0.5, 1.02)  # brightness of a shadow relative to the ground it falls on
SHADOW_TINT = 0.07  # difference of the channels' relative brightness that a shadow may have
SOFT_STEP = 8.0  # grey levels a pixel: a shadow fades, the edge of a product does not
LEAST_WITHOUT_SHADOW = 0.7  # of the product's area with its shadow
AREA = (0.03, 0.9)  # of the photo, that a believable outline covers
LEAST_GROUND_BORDER = 0.55  # of the border; models are often cut by one edge, rarely by two
CORNER = 0.07  # of a side: badges sit in corners, products do not
LEAST_PART = 0.15  # of the largest part: what is smaller is a crumb or lettering
EDGE_STEP = 9.0  # grey levels a pixel, at an outline
LEAST_EDGE = 0.8  # of the outline, that runs along such a step
FEATHER_PX = 0.7


class CutOut(NamedTuple):
    """One product to paste."""

    pixels_HW4: np.ndarray  # uint8 RGBA; a tile's alpha is 255 everywhere, its edge is shaped when it is pasted
    kind: Literal["outline", "tile"]
    left_px: int = 0  # where it lay in its photo
    top_px: int = 0


def cut_out(photo: Image.Image) -> CutOut | None:
    """The product of an RGB photo.

    Returns:
        The outline where the border is clearly ground, the whole photo where it clearly is not (a shelf, a crate), and
        None where there is a ground, but the outline found on it is not to be believed (a white shirt on white).
    """
    small = photo.copy()
    small.thumbnail((CUT_PX, CUT_PX), Image.Resampling.BILINEAR)
    if min(small.size) < LEAST_PX:
        return None
    smooth_HW3 = np.asarray(small.filter(ImageFilter.BoxBlur(1)))
    smooth_3HW = np.ascontiguousarray(smooth_HW3.transpose(2, 0, 1), dtype=np.float32)
    ground = find_ground(smooth_3HW)
    if ground.spread > MOST_SPREAD:
        whole = photo.copy()
        whole.putalpha(255)
        return CutOut(np.asarray(whole), "tile")
    product_HW = _product(smooth_3HW, ground)
    if product_HW is None:
        return None
    # Feathered inwards, so that no fringe of the old ground comes along.
    alpha_HW = gaussian_filter(binary_erosion(product_HW, border_value=1).astype(np.float32), FEATHER_PX)
    alpha = Image.fromarray(np.round(255 * alpha_HW).astype(np.uint8)).resize(photo.size, Image.Resampling.BILINEAR)
    solid_HW = np.asarray(alpha) > 127
    rows, columns = np.flatnonzero(solid_HW.any(axis=1)), np.flatnonzero(solid_HW.any(axis=0))
    if not len(rows) or min(rows[-1] - rows[0], columns[-1] - columns[0]) < 5:
        return None
    cut = photo.copy()
    cut.putalpha(alpha)
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return CutOut(np.asarray(cut.crop(box)), "outline", box[0], box[1])


def _product(smooth_3HW: np.ndarray, ground: Ground) -> np.ndarray | None:
    """Mask of the product, None where it is not to be believed."""
    step_HW = _steps(smooth_3HW)
    like_ground_HW = ground.distance_HW <= np.clip(SPREADS * ground.spread, *THRESHOLD)
    shadow_HW = _in_shadow(smooth_3HW, ground.expected_3HW) & (step_HW <= SOFT_STEP)
    chosen_HW = with_shadow_HW = _main_parts(~_reached_from_border(like_ground_HW))
    without_HW = _main_parts(~_reached_from_border(like_ground_HW | shadow_HW))
    share = _share_along_edges(chosen_HW, step_HW)
    # Of a white shoe on white little is left when its shades are taken for shadow.
    is_shadow = with_shadow_HW is None or (
        without_HW is not None and without_HW.sum() >= LEAST_WITHOUT_SHADOW * with_shadow_HW.sum()
    )
    if is_shadow and (share_without := _share_along_edges(without_HW, step_HW)) >= share:
        chosen_HW, share = without_HW, share_without
    return chosen_HW if share >= LEAST_EDGE else None


def _main_parts(different_HW: np.ndarray) -> np.ndarray | None:
    """The product among what differs from the ground; None where its place or size is not that of a product."""
    parts_HW, number = label(binary_opening(different_HW))
    if not number:
        return None
    sizes = np.bincount(parts_HW.ravel(), minlength=number + 1)
    sizes[0] = 0
    kept = sizes >= LEAST_PART * sizes.max()
    for part in np.unique(_edge(parts_HW)):  # what comes in from outside beside the product is not part of it
        kept[part] &= sizes[part] == sizes.max()
    product_HW = kept[parts_HW]
    return product_HW if _is_well_placed(product_HW) else None


def _reached_from_border(open_HW: np.ndarray) -> np.ndarray:
    """The open pixels connected to the border through open ones: holes of a product are left to it."""
    parts_HW, number = label(open_HW)
    reached = np.zeros(number + 1, bool)
    reached[_edge(parts_HW)] = True
    reached[0] = False
    return reached[parts_HW]


def _in_shadow(pixels_3HW: np.ndarray, expected_3HW: np.ndarray) -> np.ndarray:
    """The ground's colour, only darker."""
    red_HW, green_HW, blue_HW = (pixels_3HW + 8) / (expected_3HW + 8)
    least_HW, most_HW = (bound(bound(red_HW, green_HW), blue_HW) for bound in (np.minimum, np.maximum))
    return (least_HW >= SHADOW[0]) & (most_HW <= SHADOW[1]) & (most_HW - least_HW <= SHADOW_TINT)


def _steps(pixels_3HW: np.ndarray) -> np.ndarray:
    """Grey levels a pixel by which the picture changes, along the steeper axis and in the channel that changes most."""
    step_HW = np.zeros(pixels_3HW.shape[1:], np.float32)
    step_HW[1:-1] = largest_channel(pixels_3HW[:, 2:] - pixels_3HW[:, :-2]) / 2
    across_HW = largest_channel(pixels_3HW[:, :, 2:] - pixels_3HW[:, :, :-2]) / 2
    step_HW[:, 1:-1] = np.maximum(step_HW[:, 1:-1], across_HW)
    return step_HW


def _is_well_placed(product_HW: np.ndarray) -> bool:
    height, width = product_HW.shape
    corner_h, corner_w = max(1, round(CORNER * height)), max(1, round(CORNER * width))
    in_corner = any(
        product_HW[rows, columns].any()
        for rows in (slice(corner_h), slice(-corner_h, None))
        for columns in (slice(corner_w), slice(-corner_w, None))
    )
    of_border = _edge(product_HW).mean()
    return not in_corner and AREA[0] <= product_HW.mean() <= AREA[1] and of_border <= 1 - LEAST_GROUND_BORDER


def _share_along_edges(product_HW: np.ndarray | None, step_HW: np.ndarray) -> float:
    """Share of the outline with a step of brightness or colour beside it; 0 without a product."""
    if product_HW is None:
        return 0.0
    outline_HW = binary_dilation(product_HW) & ~product_HW
    return float((maximum_filter(step_HW, 3)[outline_HW] >= EDGE_STEP).mean())


def _edge(values_HW: np.ndarray) -> np.ndarray:
    return np.concatenate((values_HW[0], values_HW[-1], values_HW[:, 0], values_HW[:, -1]))
