"""What the methods share that read a caption beside the regions of its picture: CAPTURE, UNITER, ViLBERT and LXMERT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from datamodules.batch import InputSpec, ProductBatch
from lightning_modules.bert_weights import start_text_tower
from lightning_modules.errors import ModelError
from lightning_modules.layers.regions import GlobalPooling, Regions, build_visual_input, with_global
from lightning_modules.objectives.masked_language_modelling import MaskedLanguageModelling
from lightning_modules.objectives.masked_region_modelling import Moments, region_moments
from lightning_modules.retrieval_module import RetrievalModule

OF_REGION_CLASSES = ("mrc", "mrc_kl")  # objectives that predict what a detector recognised


class RegionTextModule(RetrievalModule):
    """Regions with the whole image first, a text tower that may start from a BERT, targets of masked regions.

    Args:
        objectives: Those chosen; only the ones about region classes are looked at.
        spec: What batches must hold; its `region_classes` count only if an objective needs them.
        backbone, backbone_weights: Of a "grid".
        global_pooling: What the whole-image region holds.
        text_weights: A Hugging Face BERT (name or path) that `text_tower` starts from when training begins.
        optimisation: As RetrievalModule's.

    Raises:
        ModelError: an objective about region classes, and nothing that could deliver them.
    """

    text_tower: ClassVar = ("network.text_embedding", "network.text_layers")
    mlm: MaskedLanguageModelling | None

    def __init__(
        self,
        objectives: Sequence[str],
        spec: InputSpec,
        backbone: str,
        backbone_weights: str | None,
        global_pooling: GlobalPooling,
        text_weights: str | None,
        **optimisation: Any,
    ) -> None:
        super().__init__(**optimisation)
        self.spec = _with_classes_wanted(objectives, spec)
        self.visual = build_visual_input(
            spec.visual_input, spec.region_width, backbone, spec.image_size_px, backbone_weights
        )
        self.global_pooling: GlobalPooling = global_pooling
        self.text_weights = text_weights
        if backbone_weights:
            self.pretrained_prefixes += ("visual.backbone.",)
        if text_weights:
            self.pretrained_prefixes += tuple(f"{name}." for name in self.text_tower)

    def input_spec(self) -> InputSpec:
        return self.spec

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.text_weights:
            # Here and not in the constructor: a checkpoint that is loaded needs no BERT at hand.
            start_text_tower(self, self.text_tower, self.mlm, self.text_weights)
            self.text_weights = None  # a second fit goes on with what it has
        super().setup(stage)

    def regions(self, batch: ProductBatch, hidden_BR: Tensor | None = None) -> Regions:
        """The batch's regions behind the whole image; hidden_BR does not count the latter."""
        return with_global(self.visual(batch, hidden_BR), self.global_pooling, batch)

    def regression_target(
        self, batch: ProductBatch, clean_BRD: Tensor | None = None
    ) -> tuple[Tensor, Moments | None, dict[str, Tensor]]:
        """What `mrm` predicts.

        Args:
            clean_BRD: The features with none hidden, where they are known already.

        Returns:
            Features_BRD, their moments if the target is to be standardised, and what is worth logging of them.
        """
        with torch.no_grad():
            target_BRD = self.visual.features(batch) if clean_BRD is None else clean_BRD
        if not self.visual.standardise_target:
            return target_BRD, None, {}
        moments = region_moments(target_BRD, self.visual.mask(batch))
        return target_BRD, moments, {"_mrm_target_variance": moments.variance_D.mean()}  # near 0 = they have collapsed

    @staticmethod
    def class_scores(batch: ProductBatch) -> Tensor:
        """What `mrc` and `mrc_kl` predict: the detector's scores_BRC."""
        if batch.class_scores_BRC is None:
            raise ModelError(
                "model.objectives: mrc and mrc_kl need class scores, which this batch does not hold; train on region "
                "shards with class_scores (docs/regions.md) or leave them out"
            )
        return batch.class_scores_BRC


def _with_classes_wanted(objectives: Sequence[str], spec: InputSpec) -> InputSpec:
    wanted = [name for name in objectives if name in OF_REGION_CLASSES]
    if not wanted:
        return spec._replace(region_classes=0)
    if spec.visual_input == "grid" or spec.region_classes < 1:
        grid = spec.visual_input == "grid"
        why = "model.visual_input is 'grid'" if grid else f"model.region_classes is {spec.region_classes}"
        rest = ",".join(name for name in objectives if name not in OF_REGION_CLASSES)
        raise ModelError(
            f"model.objectives: {wanted[0]} needs a detector's class scores, but {why}. Train on region shards with "
            "class_scores (docs/regions.md) and set model.region_classes to their number, or do without "
            f"(model.objectives=[{rest or 'mrm'}])"
        )
    return spec
