"""The detector: what it finds, what it refuses, and that company, mode and precision change nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn
from torchvision.ops import MultiScaleRoIAlign

from datamodules.batch import DetectionBatch
from lightning_modules import InstanceDetector, ModelError
from lightning_modules.proposal_recall import found_at

SIZE = 64


def squares(num_pictures: int = 4) -> DetectionBatch:
    """Grey pictures with two coloured squares each."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.full((num_pictures, 3, SIZE, SIZE), 200, dtype=torch.uint8)
    boxes = torch.zeros(num_pictures, 2, 4)
    for picture in range(num_pictures):
        for number, left in enumerate((2, 34)):
            side = 16 + int(12 * torch.rand((), generator=generator))
            top = int((SIZE - side) * torch.rand((), generator=generator))
            colour = (255 * torch.rand(3, generator=generator)).to(torch.uint8)
            pixels[picture, :, top : top + side, left : left + side] = colour[:, None, None]
            boxes[picture, number] = torch.tensor([left, top, left + side, top + side])
    return DetectionBatch(
        torch.arange(num_pictures),
        pixels,
        boxes,
        torch.ones(num_pictures, 2, dtype=torch.bool),
        torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(num_pictures, 4),
        torch.full((num_pictures, 2), SIZE),
        torch.tensor([0, 1]).expand(num_pictures, 2),
    )


def tiny_detector(**arguments: object) -> InstanceDetector:
    torch.manual_seed(0)
    settings: dict = {"network": "light", "image_size_px": SIZE, "rois": 32, "proposals": 40, "num_regions": 8}
    return InstanceDetector(**(settings | arguments))


@pytest.fixture(scope="module")
def trained() -> InstanceDetector:
    """Fitted to four pictures."""
    model = tiny_detector().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    batch = squares()
    for _ in range(90):
        optimizer.zero_grad()
        torch.stack(list(model.losses(batch).values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


def test_it_fits_a_batch(trained: InstanceDetector) -> None:
    batch = squares()
    for proposals, boxes_N4 in zip(trained.propose(batch), batch.boxes_BN4, strict=True):
        assert (found_at(proposals.boxes_R4, boxes_N4, 0.5) < 3).all()
        assert (proposals.scores_R[:-1] >= proposals.scores_R[1:]).all()
        assert proposals.features_RD.shape == (len(proposals.boxes_R4), trained.region_width)
        assert len(proposals.boxes_R4) <= trained.num_regions


def test_mode_precision_and_company_change_nothing(trained: InstanceDetector) -> None:
    batch = squares()
    trained.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        together = trained.propose(batch)
    assert trained.training
    trained.eval()
    alone = trained.propose(DetectionBatch._make(None if field is None else field[:1] for field in batch))
    torch.testing.assert_close(together[0].boxes_R4, alone[0].boxes_R4, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(together[0].features_RD, alone[0].features_RD, atol=1e-4, rtol=1e-4)
    assert together[0].features_RD.dtype == torch.float32


def test_features_of_given_boxes_are_those_of_the_proposals(trained: InstanceDetector) -> None:
    batch = squares()
    proposals = trained.propose(batch)
    given = trained.roi_features(batch, [picture.boxes_R4 for picture in proposals])
    for picture, features_RD in zip(proposals, given, strict=True):
        torch.testing.assert_close(picture.features_RD, features_RD)


def test_pictures_without_a_product_train_too() -> None:
    batch = squares()
    batch = batch._replace(box_mask_BN=torch.zeros_like(batch.box_mask_BN))
    losses = tiny_detector().train().losses(batch)
    assert all(torch.isfinite(value) for value in losses.values())


def test_the_contrast_between_regions_is_an_objective_with_parameters_of_its_own() -> None:
    plain, contrasting = tiny_detector(), tiny_detector(instance_weight=0.5)
    assert {name for name, _ in contrasting.named_parameters()} - {name for name, _ in plain.named_parameters()} == {
        "instance.project.weight",
        "instance.project.bias",
    }
    losses = contrasting.train().losses(squares())
    losses["loss_instance"].backward()
    assert contrasting.network.backbone.stem.weight.grad is not None
    assert "loss_instance" not in plain.train().losses(squares())
    with pytest.raises(ModelError, match="which cut-outs"):
        contrasting.losses(squares()._replace(cut_outs_BN=None))


def test_its_own_checkpoint_is_a_starting_point(trained: InstanceDetector, tmp_path: Path) -> None:
    file = tmp_path / "detector.ckpt"
    torch.save({"state_dict": trained.state_dict()}, file)
    model = tiny_detector(weights=str(file))
    model._device = torch.device("meta")  # as Lightning names a GPU in `setup`, before the weights are there
    model.setup("fit")
    assert torch.equal(model.network.rpn.head.cls_logits.weight, trained.network.rpn.head.cls_logits.weight)
    assert model.flops_per_sample > 0


def test_a_detector_of_other_classes_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "coco.pt"
    network = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=91)
    torch.save(network.state_dict(), file)
    model = tiny_detector(weights=str(file))
    with pytest.raises(ModelError, match=r"coco\.pt.*box_predictor\.cls_score\.weight knows 91 classes"):
        model.setup("fit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": "nowhere.ckpt"}, r"nowhere\.ckpt.*no such file"),
        ({"image_size_px": 100}, "multiple of 32"),
        ({"num_regions": 50}, "num_regions 50"),
        ({"backbone_weights": "DEFAULT"}, "trained from scratch"),
    ],
)
def test_bad_settings_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        tiny_detector(**arguments).setup("fit")


def test_weights_of_something_else_are_no_detector(tmp_path: Path) -> None:
    file = tmp_path / "other.pt"
    torch.save({"layer.weight": torch.zeros(2)}, file)
    with pytest.raises(ModelError, match="no Faster R-CNN"):
        tiny_detector(weights=str(file)).setup("fit")


def test_a_file_that_is_no_checkpoint_is_told_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "hello.pt"
    file.write_text("hello")
    with pytest.raises(ModelError, match=r"hello\.pt.*no checkpoint that torch can read"):
        tiny_detector(weights=str(file)).setup("fit")


def test_a_backbone_of_another_network_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "coco.pt"
    network = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=91)
    torch.save(network.state_dict(), file)
    with pytest.raises(ModelError, match=r"coco\.pt' do not fit resnet50"):
        InstanceDetector(image_size_px=64, backbone_weights=str(file))


def test_the_paper_network_has_the_published_parts() -> None:
    model = InstanceDetector(image_size_px=64, rois=16, proposals=50)
    assert model.region_width == 1024
    losses = model.train().losses(squares(2))
    assert set(losses) == {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}


def test_boxes_are_computed_in_float32_under_bf16() -> None:
    """A bf16 number between 32 and 64 is a multiple of a quarter; at 800 px it would be one of 4 px."""
    model, dtypes = tiny_detector().train(), set()

    def look(module: torch.nn.Module, arguments: tuple, found: tuple) -> None:
        maps, candidates, _, targets = arguments
        dtypes.update(x.dtype for x in (*maps.values(), *candidates, *(target["boxes"] for target in targets)))

    model.network.roi_heads.register_forward_hook(look)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.losses(squares())
    assert dtypes == {torch.float32}
    full = model.losses(squares())
    assert losses.keys() == full.keys()
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize(("enabled", "warn_only", "inside"), [(True, True, False), (True, False, True)])
def test_pooling_is_the_kernel_s_own_where_determinism_is_only_preferred(
    enabled: bool, warn_only: bool, inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, torchvision compiles another version where deterministic algorithms are enabled."""
    model, seen = tiny_detector(), []
    pool = model.network.roi_heads.box_roi_pool

    def look(*arguments: object) -> torch.Tensor:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return torch.zeros(1)

    monkeypatch.setattr(MultiScaleRoIAlign, "forward", look)
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
    try:
        pool({}, [], [])
        assert torch.are_deterministic_algorithms_enabled() is enabled
        assert torch.is_deterministic_algorithms_warn_only_enabled() is warn_only
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen == [inside]
