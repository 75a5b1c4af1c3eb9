"""A class-agnostic detector of products, trained on copy-and-paste pictures only: where is a product, not which one.

Source: Zhan et al., ICCV 2021, arXiv 2107.14572, §3.2: a region proposal network pretrained on pseudo-labels from
copy-and-paste of single-product pictures (never released; its settings are not known). The network is Faster R-CNN (Ren
et al., arXiv 1506.01497) as torchvision has it, with two classes: a product, or ground.

Differs:
    * `light`: a small residual pyramid from scratch, few anchors, RoIs and proposals, for two CPU cores.
    * AdamW with warm-up and linear decay, as all models here.
    * `instance_weight` adds a contrast between regions of the same cut-out and all others. A detector that only tells
      products from ground has no reason to tell them apart, and its features are what retrieval models read. The
      paper's features come from a detector of 1,600 named classes; this one needs no name.
    * Losses are averaged over the pictures of a process; under DDP gradients are averaged over processes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign
from typing_extensions import Self

from datamodules.batch import DetectionBatch
from lightning_modules.distributed import alone
from lightning_modules.errors import ModelError
from lightning_modules.full_precision import full_precision
from lightning_modules.layers.detection_backbone import LightPyramid, resnet50_pyramid
from lightning_modules.layers.regions import PIXEL_MEAN, PIXEL_STD
from lightning_modules.objectives.instance_contrast import InstanceContrast
from lightning_modules.trained_module import TrainedModule
from lightning_modules.weights_file import read_weights

NUM_CLASSES = 2  # a product, or ground
_CLASS_WEIGHT = "roi_heads.box_predictor.cls_score.weight"


class Proposals(NamedTuple):
    """What was found in one picture, best first. R may be 0."""

    boxes_R4: Tensor  # px of the square, x1 y1 x2 y2
    scores_R: Tensor  # probability of a product
    features_RD: Tensor  # of the region of interest, fp32


class InstanceDetector(TrainedModule):
    """Boxes of products with a score and a feature each.

    Args:
        network: "resnet50_fpn" (the paper recipe) or "light".
        image_size_px: Side of the square pictures.
        weights: A detector to start from: a checkpoint of this class, or a state dict of the network. It must know one
            class; None = none.
        backbone_weights: ImageNet weights of ResNet-50 by torchvision's name, or a file; None trains from scratch.
        num_regions: Most proposals per picture.
        min_score: Proposals below are dropped.
        nms_iou: Of two proposals that overlap more, the better one stays.
        rois: Regions of interest per picture that the box head is trained on.
        proposals: Of the region proposal network, per picture, after its own suppression.
        instance_weight: Of the contrast between regions (`InstanceContrast`); 0 = none, without parameters.
        instance_temperature: τ of that contrast.

    Raises:
        ModelError: weights of another network, or of a detector that knows other classes.
    """

    def __init__(
        self,
        network: Literal["resnet50_fpn", "light"] = "resnet50_fpn",
        image_size_px: int = 800,
        weights: str | None = None,
        backbone_weights: str | None = None,
        num_regions: int = 36,
        min_score: float = 0.05,
        nms_iou: float = 0.5,
        rois: int = 512,
        proposals: int = 1000,
        instance_weight: float = 0.0,
        instance_temperature: float = 0.1,
        lr: float = 1e-4,
        weight_decay: float = 1e-4,
        warmup_fraction: float = 0.05,
        pretrained_lr_scale: float = 0.1,
    ) -> None:
        super().__init__(lr, weight_decay, warmup_fraction, pretrained_lr_scale)
        self.save_hyperparameters()
        if image_size_px % 32:
            raise ModelError(f"model.image_size_px {image_size_px} must be a multiple of 32, the coarsest stride")
        if not 1 <= num_regions <= proposals:
            raise ModelError(f"model.num_regions {num_regions} must lie between 1 and model.proposals={proposals}")
        if backbone_weights and network == "light":
            raise ModelError("model.network 'light' is trained from scratch: leave model.backbone_weights empty")
        self.image_size_px, self.num_regions = image_size_px, num_regions
        common: dict[str, Any] = {
            "min_size": image_size_px,
            "max_size": image_size_px,
            "image_mean": PIXEL_MEAN,
            "image_std": PIXEL_STD,
            "box_score_thresh": min_score,
            "box_nms_thresh": nms_iou,
            "box_detections_per_img": num_regions,
            "box_batch_size_per_image": rois,
            "rpn_pre_nms_top_n_train": 2 * proposals,
            "rpn_pre_nms_top_n_test": proposals,
            "rpn_post_nms_top_n_train": proposals,
            "rpn_post_nms_top_n_test": proposals,
            "_skip_resize": True,  # pictures come as squares of the right size
        }
        self.network = _light(common) if network == "light" else _resnet50(common, backbone_weights)
        if backbone_weights:
            self.pretrained_prefixes = ("network.backbone.body.",)
        self.region_width = _width(self.network)
        self.instance_weight = instance_weight
        self.instance = InstanceContrast(self.region_width, instance_temperature) if instance_weight else None
        self.missing_weights = weights

    def setup(self, stage: str) -> None:
        if stage == "fit":
            if self.missing_weights:
                self.load_state_dict(self.state_dict() | read_detector(self.missing_weights))
                self.missing_weights = None  # a second fit goes on with what it has
            self._count_flops()

    def losses(self, batch: DetectionBatch) -> dict[str, Tensor]:
        """The four losses of Faster R-CNN, each averaged over the batch: objectness and boxes of both stages.

        With `instance_weight` also the contrast between the true regions.
        """
        boxes = [boxes_N4[mask_N] for boxes_N4, mask_N in zip(batch.boxes_BN4, batch.box_mask_BN, strict=True)]
        targets = [{"boxes": b, "labels": torch.ones(len(b), dtype=torch.int64, device=b.device)} for b in boxes]
        images, targets = self.network.transform(list(batch.images_B3HW.float() / 255), targets)
        maps = self.network.backbone(images.tensors)
        # torchvision computes boxes in the dtype of the maps, and to bf16 places beyond 512 px are 4 px apart.
        with torch.autocast(images.tensors.device.type, enabled=False):
            maps = {name: map_BDHW.float() for name, map_BDHW in maps.items()}
            candidates, of_proposals = self.network.rpn(images, maps, targets)
            _, of_boxes = self.network.roi_heads(maps, candidates, images.image_sizes, targets)
            losses: dict[str, Tensor] = {**of_proposals, **of_boxes}
            if self.instance is not None:
                if batch.cut_outs_BN is None:
                    raise ModelError("model.instance_weight: this batch does not say which cut-outs its boxes show")
                features_MD = torch.cat(self._features(maps, boxes, images))
                losses["loss_instance"] = self.instance_weight * self.instance(
                    features_MD, batch.cut_outs_BN[batch.box_mask_BN]
                )
        return losses

    @torch.no_grad()
    def propose(self, batch: DetectionBatch) -> list[Proposals]:
        """Proposals of each picture; dropout-free, in fp32, whatever mode and precision training runs in."""
        with _Evaluating(self):
            images, maps = self._maps(batch)
            candidates, _ = self.network.rpn(images, maps)
            found, _ = self.network.roi_heads(maps, candidates, images.image_sizes)
            boxes = [picture["boxes"] for picture in found]
            features = self._features(maps, boxes, images)
        return [
            Proposals(picture["boxes"], picture["scores"], features_RD)
            for picture, features_RD in zip(found, features, strict=True)
        ]

    @torch.no_grad()
    def roi_features(self, batch: DetectionBatch, boxes: list[Tensor]) -> list[Tensor]:
        """Features of given boxes (px of the square), one R×D per picture, as `propose` gives them."""
        with _Evaluating(self):
            images, maps = self._maps(batch)
            return self._features(maps, boxes, images)

    def _maps(self, batch: DetectionBatch) -> tuple[ImageList, dict[str, Tensor]]:
        images, _ = self.network.transform(list(batch.images_B3HW.float() / 255))
        return images, self.network.backbone(images.tensors)

    def _features(self, maps: dict[str, Tensor], boxes: list[Tensor], images: ImageList) -> list[Tensor]:
        heads = self.network.roi_heads
        features_RD = heads.box_head(heads.box_roi_pool(maps, boxes, images.image_sizes))
        return list(features_RD.split([len(boxes_R4) for boxes_R4 in boxes]))

    def training_step(self, batch: DetectionBatch, batch_idx: int) -> Tensor:
        losses = self.losses(batch)
        total = torch.stack(list(losses.values())).sum()
        size = len(batch.index_B)
        self.log_dict({f"train/{name}": value.detach() for name, value in losses.items()}, batch_size=size)
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=size)
        return total

    def validation_step(self, batch: DetectionBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        return {"proposals": self.propose(batch)}

    def test_step(self, batch: DetectionBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        return {"proposals": self.propose(batch)}

    def _count_flops(self) -> None:
        """Operations of a training step on a random picture; each rank does so for itself."""
        batch = _example(self.image_size_px, self.weights_device)
        training = self.training
        self.train()
        with alone(), torch.random.fork_rng(devices=[]), torch.enable_grad(), FlopCounterMode(display=False) as counter:
            torch.stack(list(self.losses(batch).values())).sum().backward()
        self.zero_grad(set_to_none=True)
        self.train(training)
        self.flops_per_sample = counter.get_total_flops() / len(batch.index_B)


class _RoIPool(MultiScaleRoIAlign):
    """torchvision's pooling by its own kernel, also where deterministic algorithms are preferred.

    Preferred (`trainer.deterministic: warn`), torchvision would compile another version of it on a GPU, which wants a C
    compiler there and, as reckoned but not measured, gigabytes at the paper's size. Demanded (`true`), it still does.
    """

    def forward(self, *arguments: Any) -> Tensor:
        enabled = torch.are_deterministic_algorithms_enabled()
        if not (enabled and torch.is_deterministic_algorithms_warn_only_enabled()):
            return super().forward(*arguments)
        torch.use_deterministic_algorithms(False)
        try:
            return super().forward(*arguments)
        finally:
            torch.use_deterministic_algorithms(True, warn_only=True)


class _Evaluating:
    """Eval mode and true float32, for the time of a `with` block."""

    def __init__(self, module: lightning.LightningModule) -> None:
        self.module, self.training = module, module.training
        self.precision = full_precision(module.device)

    def __enter__(self) -> Self:
        self.module.eval()
        self.precision.__enter__()
        return self

    def __exit__(self, *problem: Any) -> None:
        self.precision.__exit__(*problem)
        self.module.train(self.training)


def read_detector(path: str) -> dict[str, Tensor]:
    """The state dict of a detector's file, in this class's names.

    Args:
        path: A checkpoint of `InstanceDetector`, or a state dict of the network alone (torchvision's names).

    Raises:
        ModelError: no such file, no detector, or one that knows other classes than a product.
    """
    if not Path(path).is_file():
        raise ModelError(f"model.weights {path!r}: no such file; give a checkpoint of a detector, or leave it empty")
    stored = read_weights(path, "model.weights")
    state = stored.get("state_dict", stored) if isinstance(stored, dict) else {}
    if not any(key.startswith("network.") for key in state):
        state = {f"network.{key}": value for key, value in state.items()}
    state = {key: value for key, value in state.items() if key.startswith("network.")}  # an objective starts anew
    head = state.get(f"network.{_CLASS_WEIGHT}")
    if head is None:
        raise ModelError(f"model.weights {path!r}: no {_CLASS_WEIGHT} in it, so it is no Faster R-CNN detector")
    if len(head) != NUM_CLASSES:
        raise ModelError(
            f"model.weights {path!r}: {_CLASS_WEIGHT} knows {len(head)} classes, this detector {NUM_CLASSES} (a "
            "product, or ground); leave model.weights empty: a ResNet-50 can start from ImageNet's weights "
            "(model.backbone_weights=IMAGENET1K_V2)"
        )
    return state


def _light(common: dict[str, Any]) -> FasterRCNN:
    """128-px pictures on a CPU: three maps, nine anchors for each cell of theirs, a small box head."""
    backbone = LightPyramid()
    scale = common["min_size"] / 128
    sizes = tuple((round(side * scale),) for side in (24, 48, 90))
    pool = _RoIPool(["0", "1", "2"], output_size=5, sampling_ratio=2, canonical_scale=round(80 * scale))
    return FasterRCNN(
        backbone,
        **common,
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        rpn_batch_size_per_image=128,
        box_roi_pool=pool,
        box_head=TwoMLPHead(backbone.out_channels * 25, 256),
        box_predictor=FastRCNNPredictor(256, NUM_CLASSES),
    )


def _resnet50(common: dict[str, Any], weights: str | None) -> FasterRCNN:
    pool = _RoIPool(["0", "1", "2", "3"], output_size=7, sampling_ratio=2)  # torchvision's default in numbers
    return FasterRCNN(resnet50_pyramid(weights), NUM_CLASSES, **common, box_roi_pool=pool)


def _width(network: FasterRCNN) -> int:
    return int(network.roi_heads.box_predictor.cls_score.in_features)


def _example(size_px: int, device: torch.device) -> DetectionBatch:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 3, size_px, size_px, generator=generator)
    box_4 = torch.tensor([0.2, 0.2, 0.7, 0.7]) * size_px
    batch = DetectionBatch(
        torch.arange(2),
        (pixels * 255).to(torch.uint8),
        box_4.expand(2, 1, 4).clone(),
        torch.ones(2, 1, dtype=torch.bool),
        torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(2, 4),
        torch.full((2, 2), size_px),
        torch.zeros(2, 1, dtype=torch.int64),
    )
    return DetectionBatch._make(None if field is None else field.to(device) for field in batch)
