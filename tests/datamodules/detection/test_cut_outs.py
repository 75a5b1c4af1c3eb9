"""Cutting products out by their ground."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from datamodules.detection.cut_outs import CutOut, cut_out
from tests.datamodules.detection.tiny_shots import scene, shot


def _box(cut: CutOut | None) -> tuple[int, int, int, int]:
    assert cut is not None
    height, width = cut.pixels_HW4.shape[:2]
    return cut.left_px, cut.top_px, cut.left_px + width, cut.top_px + height


@given(st.integers(0, 10_000), st.sampled_from([(64, 64), (120, 90), (90, 200), (320, 240)]))
def test_a_block_on_a_graded_ground_is_cut_along_its_outline(seed: int, size_px: tuple[int, int]) -> None:
    picture, box = shot(seed, size_px)
    cut = cut_out(picture)
    assert cut is not None
    assert cut.kind == "outline"
    tolerance = 3 * max(size_px) / 160 if max(size_px) > 160 else 3
    assert np.abs(np.subtract(_box(cut), box)).max() <= tolerance
    height, width = cut.pixels_HW4.shape[:2]
    assert (cut.pixels_HW4[height // 4 : -height // 4, width // 4 : -width // 4, 3] == 255).all(), "no holes"


@pytest.mark.parametrize("ground", [(255, 255, 255), (250, 240, 200), (40, 60, 200), (15, 15, 15)])
def test_the_ground_need_not_be_white(ground: tuple[int, int, int]) -> None:
    picture = Image.new("RGB", (100, 100), ground)
    ImageDraw.Draw(picture).ellipse((30, 20, 69, 79), fill=(200, 40, 60))
    assert np.abs(np.subtract(_box(cut_out(picture)), (30, 20, 70, 80))).max() <= 2


def test_the_edge_of_a_table_is_not_a_product() -> None:
    picture = Image.new("RGB", (100, 100), (230, 225, 220))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 70, 99, 99), fill=(120, 90, 60))
    draw.rectangle((35, 20, 64, 89), fill=(20, 60, 160))
    assert np.abs(np.subtract(_box(cut_out(picture)), (35, 20, 65, 90))).max() <= 2


@pytest.mark.parametrize("seed", range(5))
def test_a_scene_is_a_whole_tile(seed: int) -> None:
    picture = scene(seed)
    cut = cut_out(picture)
    assert cut is not None
    assert cut.kind == "tile"
    assert (cut.pixels_HW4[..., :3] == np.asarray(picture)).all()
    assert (cut.pixels_HW4[..., 3] == 255).all()


def test_what_is_not_to_be_believed_is_left_out() -> None:
    white = Image.new("RGB", (80, 80), (250, 250, 250))
    assert cut_out(white) is None, "nothing there"
    everywhere = white.resize((160, 160))
    ImageDraw.Draw(everywhere).rectangle((4, 4, 155, 155), fill=(30, 30, 30))
    assert cut_out(everywhere) is None, "all of the picture"
    faint = white.copy()
    ImageDraw.Draw(faint).ellipse((20, 20, 60, 60), fill=(238, 238, 238))
    assert cut_out(faint) is None, "an outline hardly to be seen"
    assert cut_out(Image.new("RGB", (9, 80))) is None, "too narrow"


def test_a_badge_in_a_corner_is_no_product() -> None:
    picture = Image.new("RGB", (100, 100), (240, 240, 240))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((40, 30, 69, 84), fill=(20, 60, 160))
    draw.ellipse((0, 0, 18, 18), fill=(220, 20, 20))
    assert np.abs(np.subtract(_box(cut_out(picture)), (40, 30, 70, 85))).max() <= 2
