"""Two views of a picture: what is drawn, what it does to pixels and regions, and that it is the same wherever drawn."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional as reference

from datamodules.batch import ProductBatch
from lightning_modules.layers import views
from lightning_modules.layers.views import Views
from lightning_modules.objectives import draws as draws_module
from lightning_modules.objectives.draws import Draws

SIZE_PX = 40


def _batch(images_B3HW: torch.Tensor | None = None, mask_BR: torch.Tensor | None = None) -> ProductBatch:
    rows = len(images_B3HW if images_B3HW is not None else mask_BR)  # type: ignore[arg-type]
    tokens_BT = torch.ones(rows, 3, dtype=torch.int64)
    return ProductBatch(torch.arange(rows), tokens_BT, tokens_BT > 0, images_B3HW=images_B3HW, region_mask_BR=mask_BR)


def _pictures(rows: int = 6) -> torch.Tensor:
    noise = torch.rand(rows, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 255
    return interpolate(noise, SIZE_PX, mode="nearest").byte()


def _pixels(batch: ProductBatch) -> torch.Tensor:
    assert batch.images_B3HW is not None
    return batch.images_B3HW


def _mask(batch: ProductBatch) -> torch.Tensor:
    assert batch.region_mask_BR is not None
    return batch.region_mask_BR


def test_views_follow_from_seed_and_step_and_differ_from_each_other() -> None:
    batch = _batch(_pictures())
    both = Views().two(batch, Draws(3, 5, "cpu"))
    assert torch.equal(_pixels(both), _pixels(Views().two(batch, Draws(3, 5, "cpu"))))
    first, second = _pixels(both).chunk(2)
    for other in (
        second,
        _pixels(Views().of(batch, Draws(3, 6, "cpu"))),
        _pixels(Views().of(batch, Draws(4, 5, "cpu"))),
    ):
        assert all((one - another).abs().mean() > 1 for one, another in zip(first, other, strict=True))
    assert torch.equal(both.index_B, torch.cat([batch.index_B, batch.index_B]))
    assert len(both.tokens_BT) == 12


def test_views_of_pictures_keep_shape_and_range() -> None:
    view = _pixels(Views(smallest_crop=0.05, jitter=1.0).of(_batch(_pictures(64)), Draws(0, 0, "cpu")))
    assert view.shape == (64, 3, SIZE_PX, SIZE_PX)
    assert view.dtype == torch.float32
    assert view.min() == 0
    assert view.max() == 255


def test_a_crop_is_a_box_of_the_picture_of_the_drawn_size() -> None:
    """Pictures whose red says x and whose green says y: a view tells what it shows."""
    rows, at = 400, (torch.arange(SIZE_PX) + 0.5) / SIZE_PX
    ramp = torch.stack([at.expand(SIZE_PX, -1), at[:, None].expand(-1, SIZE_PX), torch.zeros(SIZE_PX, SIZE_PX)]) * 255
    view = _pixels(Views(0.3, jitter=0).of(_batch(ramp.expand(rows, -1, -1, -1)), Draws(0, 0, "cpu"))) / 255
    x_BHW, y_BHW = view[:, 0], view[:, 1]
    assert (x_BHW - x_BHW[:, :1]).abs().max() < 1e-5  # upright: x is the same in every row, y in every column
    assert (y_BHW - y_BHW[:, :, :1]).abs().max() < 1e-5
    inner = slice(8, -8)  # of what lies at the border only the nearest pixel is known
    step_x = (x_BHW[:, 0, inner].diff(dim=1).mean(1)) * SIZE_PX
    step_y = (y_BHW[:, inner, 0].diff(dim=1).mean(1)) * SIZE_PX
    assert (x_BHW[:, 0, inner].diff(dim=1) * SIZE_PX - step_x[:, None]).abs().max() < 1e-3  # evenly spaced
    width, height = step_x.abs(), step_y
    assert (step_x < 0).float().mean() == pytest.approx(0.5, abs=0.08)  # mirrored
    assert height.min() > 0  # never upside down
    # A side longer than the picture is cut, so a crop may be smaller than drawn, by the longest side's 15 % at most.
    assert (width * height).min() > 0.3 * 0.86
    assert (width * height).mean() == pytest.approx(0.63, abs=0.03)
    assert max(width.max(), height.max()) < 1 + 1e-4
    assert (width / height).max() < 4 / 3 + 1e-3
    assert (width / height).min() > 3 / 4 - 1e-3
    centre = x_BHW[:, 0].mean(1)
    assert centre.std() > 0.03
    assert ((centre - width / 2 > -0.02) & (centre + width / 2 < 1.02)).all()  # inside the picture


def test_colour_jitter_is_torchvisions() -> None:
    images = _pictures(5).float()
    factors = torch.tensor([[1.0, 1, 1], [1.4, 1, 1], [1, 0.6, 1], [1, 1, 1.4], [0.7, 1.3, 0.6]])
    for found, image, (brightness, contrast, saturation) in zip(
        views._jittered(images, factors), images / 255, factors.tolist(), strict=True
    ):
        expected = reference.adjust_brightness(image, brightness)
        expected = reference.adjust_saturation(reference.adjust_contrast(expected, contrast), saturation)
        torch.testing.assert_close(found / 255, expected, atol=1e-3, rtol=0)


def test_a_view_of_regions_leaves_out_half_of_the_real_ones() -> None:
    real = torch.arange(9) < torch.arange(10).repeat(40)[:, None]  # 0 to 9 regions
    real = real[:, torch.randperm(9, generator=torch.Generator().manual_seed(0))]
    first, second = _mask(Views().two(_batch(mask_BR=real), Draws(0, 0, "cpu"))).chunk(2)
    for view in (first, second):
        assert not (view & ~real).any()
        assert torch.equal((real & ~view).sum(1), real.sum(1) // 2)
        assert torch.equal(view.any(1), real.any(1))  # never all of them
    several = real.sum(1) >= 4
    assert (first != second)[several].any(1).float().mean() > 0.6
    full = real.all(1)
    assert first[full].float().mean(0).std() < 0.15  # each of them alike: 5/9 of the time


@pytest.mark.parametrize("pictures", [True, False])
def test_each_rank_makes_the_views_of_its_rows(pictures: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = torch.rand(6, 5, generator=torch.Generator().manual_seed(0)) < 0.8
    whole = _batch(_pictures()) if pictures else _batch(mask_BR=mask)
    field = "images_B3HW" if pictures else "region_mask_BR"
    expected = getattr(Views().two(whole, Draws(1, 2, "cpu")), field).chunk(2)
    monkeypatch.setattr(draws_module, "world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(draws_module, "rank", lambda rank=rank: rank)
        rows = slice(2 * rank, 2 * rank + 2)
        found = getattr(Views().two(whole.rows(rows), Draws(1, 2, "cpu")), field).chunk(2)
        for one, every in zip(found, expected, strict=True):
            assert torch.equal(one, every[rows])


def test_stored_features_of_half_precision_are_doubled_under_bf16() -> None:
    features_BRD = torch.ones(3, 4, 6, dtype=torch.float16)
    batch = _batch(mask_BR=torch.ones(3, 4, dtype=torch.bool))._replace(features_BRD=features_BRD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        both = Views().two(batch, Draws(0, 0, "cpu"))
    assert both.features_BRD is not None
    assert both.features_BRD.shape == (6, 4, 6)
    assert both.features_BRD.dtype == torch.float16
