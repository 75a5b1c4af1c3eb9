"""Pasted pictures: boxes, occlusion, determinism."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from datamodules.detection.cut_outs import CutOut, cut_out
from datamodules.detection.grounds import KINDS, ground
from datamodules.detection.layouts import draw_number, lay_out
from datamodules.detection.paste import LEAST_SEEN, paste_picture
from tests.datamodules.detection.tiny_shots import scene, shot

PHOTOS = [np.asarray(scene(seed)) for seed in range(3)]


def _cut_outs() -> list[CutOut]:
    found = [cut_out(shot(seed)[0]) for seed in range(6)] + [cut_out(scene(seed)) for seed in range(3)]
    thin = CutOut(np.full((4, 90, 4), 255, np.uint8), "outline")  # a belt
    speck = CutOut(np.full((6, 6, 4), 255, np.uint8), "outline")
    return [*(cut for cut in found if cut is not None), thin, speck]


CUT_OUTS = _cut_outs()


@given(st.integers(0, 2**40), st.integers(32, 160), st.integers(1, 9))
def test_every_box_is_tight_inside_the_picture_and_mostly_seen(seed: int, size_px: int, most: int) -> None:
    picture = paste_picture(Random(seed), CUT_OUTS, PHOTOS, size_px, most)
    assert picture.pixels_SS3.shape == (size_px, size_px, 3)
    assert picture.pixels_SS3.dtype == np.uint8
    boxes_N4 = picture.boxes_N4
    assert len(boxes_N4) == len(picture.seen_N) <= most
    assert (boxes_N4[:, :2] < boxes_N4[:, 2:]).all()
    assert (boxes_N4 >= 0).all()
    assert (boxes_N4 <= size_px).all()
    assert (picture.seen_N >= LEAST_SEEN).all()
    assert (picture.seen_N <= 1).all()


@given(st.integers(0, 2**40))
def test_a_picture_is_a_function_of_its_seed(seed: int) -> None:
    first, again = (paste_picture(Random(seed), CUT_OUTS, PHOTOS, 64, 5) for _ in range(2))
    assert (first.pixels_SS3 == again.pixels_SS3).all()
    assert (first.boxes_N4 == again.boxes_N4).all()


def test_pictures_differ_and_nearly_all_show_products() -> None:
    pictures = [paste_picture(Random(seed), CUT_OUTS, PHOTOS, 64, 6) for seed in range(200)]
    assert len({picture.pixels_SS3.tobytes() for picture in pictures}) == 200
    numbers = [len(picture.boxes_N4) for picture in pictures]
    assert {1, 2, 3, 4, 5} <= set(numbers)
    assert numbers.count(0) <= 2


def test_a_box_is_where_the_product_is() -> None:
    # One pure colour that no ground, badge or jitter makes: 255 green, the others 0.
    green = np.zeros((40, 30, 4), np.uint8)
    green[..., 1] = green[..., 3] = 255
    found = 0
    for seed in range(150):
        picture = paste_picture(Random(seed), [CutOut(green, "outline")], [], 96, 1)
        red_SS, green_SS, blue_SS = np.moveaxis(picture.pixels_SS3.astype(int), -1, 0)
        shown_SS = (green_SS > 150) & (red_SS < 90) & (blue_SS < 90)
        x1, y1, x2, y2 = picture.boxes_N4[0].astype(int)
        outside_SS = shown_SS.copy()
        outside_SS[max(0, y1 - 2) : y2 + 2, max(0, x1 - 2) : x2 + 2] = False
        if outside_SS.any():  # a green ground
            continue
        found += 1
        rows, columns = np.flatnonzero(shown_SS.any(axis=1)), np.flatnonzero(shown_SS.any(axis=0))
        tight = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        assert np.abs(np.subtract(tight, (x1, y1, x2, y2))).max() <= 3, seed
    assert found > 120


def test_products_are_never_mirrored() -> None:
    # Red on the left, blue on the right, whatever the turn and the shear.
    pixels_HW4 = np.full((40, 60, 4), 255, np.uint8)
    pixels_HW4[:, :30, :3] = (230, 0, 0)
    pixels_HW4[:, 30:, :3] = (0, 0, 230)
    for seed in range(100):
        picture = paste_picture(Random(seed), [CutOut(pixels_HW4, "outline")], [], 96, 1)
        x1, y1, x2, y2 = picture.boxes_N4[0].astype(int)
        part_HW3 = picture.pixels_SS3[y1:y2, x1:x2].astype(int)
        redness = part_HW3[..., 0] - part_HW3[..., 2]
        half = redness.shape[1] // 2
        assert redness[:, :half].mean() > redness[:, -half:].mean(), seed


@given(st.integers(0, 2**40), st.integers(1, 12))
def test_a_layout_has_a_spot_for_each_product(seed: int, number: int) -> None:
    spots = lay_out(Random(seed), number)
    assert len(spots) == number
    for spot in spots:
        assert 0 < spot.width <= 1.02
        assert 0 < spot.height <= 1.02
        assert -0.2 <= spot.x <= 1.2
        assert -0.2 <= spot.y <= 1.2
    assert 1 <= draw_number(Random(seed), number) <= number


@pytest.mark.parametrize("photos", [PHOTOS, []])
def test_grounds_are_of_many_kinds_and_of_the_size_asked_for(photos: list[np.ndarray]) -> None:
    grounds = [ground(Random(seed), (40, 30), photos) for seed in range(20 * len(KINDS))]
    assert all(isinstance(picture, Image.Image) and picture.size == (40, 30) for picture in grounds)
    assert {picture.mode for picture in grounds} == {"RGB"}
    spreads = [float(np.asarray(picture).std(axis=(0, 1)).max()) for picture in grounds]
    assert 0.1 < np.mean(np.array(spreads) == 0) < 0.6, "some are plain, most are not"
