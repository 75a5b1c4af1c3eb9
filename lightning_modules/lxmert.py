"""LXMERT: language, object and cross-modality encoders, pretrained by masked prediction and matching; a baseline.

Source: Tan & Bansal, "LXMERT: Learning Cross-Modality Encoder Representations from Transformers", EMNLP 2019, arXiv
1908.07490, and its released code.

Differs:
    * Question answering is left out: it needs annotated questions.
    * Of a detector's labels the class is predicted, not the attributes, and only for masked regions; feature and class
      have a head each. The feature is regressed by the squared error (§3.1.2; released: Huber's).
    * Of the masked regions 90 % are hidden (released: 80 %, and 10 % get another picture's feature).
    * The whole-image region stands before the others, where the published objects begin at once.
    * Other captions come from the global batch and never read like the sample's own (`ImageTextMatching`).
    * `clr`, not among the default objectives: CAPTURE's contrast, between language and object encoder before the two
      meet, on captions and pictures that are neither exchanged nor masked.
    * Tokenizer, length of captions and regions are CAPTURE's, so that methods read the same.
    * AdamW with bias correction, decay on matrices only.
    * `visual_input: grid` reads pixels through a backbone instead of stored region features.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from datamodules.batch import InputSpec, ProductBatch
from lightning_modules.layers.embeddings import init_bert_style
from lightning_modules.layers.pooling import StreamPooling, masked_mean
from lightning_modules.layers.regions import GlobalPooling, Regions, with_global
from lightning_modules.lxmert_network import Crossed, CrossModalityTransformer
from lightning_modules.objectives.cross_modal_contrast import CrossModalContrast
from lightning_modules.objectives.draws import Draws
from lightning_modules.objectives.image_text_matching import ImageTextMatching
from lightning_modules.objectives.masked_language_modelling import MaskedLanguageModelling
from lightning_modules.objectives.masked_region_classification import MaskedRegionClassification
from lightning_modules.objectives.masked_region_modelling import MaskedRegionModelling
from lightning_modules.objectives.masked_regions import MaskedRegions, mask_regions
from lightning_modules.region_text_module import RegionTextModule
from lightning_modules.retrieval_module import check_objectives
from lightning_modules.stream_features import (
    MODALITIES,
    STREAM_CANDIDATES,
    Streams,
    side_by_side,
    stream_features,
    stream_whitening,
)

OBJECTIVES = ("mlm", "mrm", "mrc", "itm", "clr")


class LXMERT(RegionTextModule):
    """Constructor defaults are the published setting, with CAPTURE's inputs. Arguments not named here are CAPTURE's.

    Args:
        objectives: Of mlm, mrm (the region's feature), mrc (its class as a detector has it), itm (does the caption
            belong to the picture?) and clr, summed; one left out has no parameters.
        text_weights: As CAPTURE's. None, from scratch, is published (§3.3).
        region_classes: Classes of the detector whose scores the shards hold; for mrc.
        text_layers, image_layers, cross_layers: Depths of language, object and cross-modality encoder (9|5|5).
        heads, ffn: Of every layer.
        output_width: Of the pooled streams, which clr contrasts and which the stream features are made of.
        mrm_prob: Masking rate of mrm and mrc, which predict the same regions.
        region_norm: Whether feature and box of a region pass a LayerNorm each (published).
        retrieval_feature: Of the cross-modality encoder "first" (its output at the text's first position, published as
            what stands for both), "pooled" (the same through the pooler that itm reads), "concat_first" (first text
            position beside the whole image), "mean" (over all positions of both); or of the streams, as CAPTURE's.

    Raises:
        ModelError: mrc without a detector's classes; unknown objective or feature.
    """

    candidate_features = ("first", "pooled", "concat_first", "mean", *STREAM_CANDIDATES)
    modalities: ClassVar = MODALITIES

    def __init__(
        self,
        objectives: list[str] = ["mlm", "mrm", "mrc", "itm"],  # noqa: B006  (read only; jsonargparse shows it)
        tokenizer: str = "bert-base-chinese",
        text_weights: str | None = None,
        vocab_size: int = 21128,
        mask_token_id: int = 103,
        text_length: int = 36,
        visual_input: Literal["regions", "grid"] = "regions",
        num_regions: int = 36,
        region_width: int = 2048,
        region_classes: int = 1600,
        image_size_px: int = 224,
        backbone: str = "resnet50",
        backbone_weights: str | None = None,
        width: int = 768,
        output_width: int = 512,
        max_positions: int = 512,
        text_layers: int = 9,
        image_layers: int = 5,
        cross_layers: int = 5,
        heads: int = 12,
        ffn: int = 3072,
        dropout: float = 0.1,
        init_std: float = 0.02,
        text_pooling: StreamPooling = "first",
        image_pooling: StreamPooling = "first",
        global_pooling: GlobalPooling = "mean",
        region_norm: bool = True,
        temperature: float = 0.07,
        mlm_prob: float = 0.15,
        mrm_prob: float = 0.15,
        retrieval_feature: str = "first",
        whitening_samples: int = 0,
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        warmup_fraction: float = 0.05,
        pretrained_lr_scale: float = 0.1,
    ) -> None:
        spec = InputSpec(
            tokenizer,
            text_length,
            visual_input,
            num_regions,
            region_width,
            image_size_px,
            vocab_size,
            mask_token_id,
            region_classes=region_classes,
        )
        super().__init__(
            objectives,
            spec,
            backbone,
            backbone_weights,
            global_pooling,
            text_weights,
            retrieval_feature=retrieval_feature,
            lr=lr,
            weight_decay=weight_decay,
            warmup_fraction=warmup_fraction,
            pretrained_lr_scale=pretrained_lr_scale,
        )
        self.save_hyperparameters()
        check_objectives(objectives, OBJECTIVES)
        self.mrm_prob = mrm_prob
        self.network = CrossModalityTransformer(
            vocab_size=vocab_size,
            region_width=self.visual.region_width,
            width=width,
            output_width=output_width,
            max_positions=max_positions,
            text_layers=text_layers,
            image_layers=image_layers,
            cross_layers=cross_layers,
            heads=heads,
            ffn=ffn,
            dropout=dropout,
            init_std=init_std,
            text_pooling=text_pooling,
            image_pooling=image_pooling,
            region_norm=region_norm,
        )
        self.mlm = self.mrm = self.mrc = self.itm = self.clr = None
        if "mlm" in objectives:
            self.mlm = MaskedLanguageModelling(None, width, vocab_size, mask_token_id, mlm_prob)
        if "mrm" in objectives:
            self.mrm = MaskedRegionModelling(None, width, self.visual.region_width, mrm_prob)
        if "mrc" in objectives:  # weighted by the detector's confidence, as released
            self.mrc = MaskedRegionClassification(width, region_classes, "hard", mrm_prob, weight_by_confidence=True)
        if "itm" in objectives:
            self.itm = ImageTextMatching(width)
        for objective in (self.mlm, self.mrm, self.mrc, self.itm):
            if objective is not None:
                objective.apply(partial(init_bert_style, std=init_std))
        if "clr" in objectives:
            self.clr = CrossModalContrast(temperature)
        self.whitening_samples = whitening_samples
        if whitening_samples:
            for modality in MODALITIES:
                self.whitening.update(stream_whitening(modality, width, output_width))
        self.uses_in_batch_negatives = self.clr is not None
        self.compares_samples = self.itm is not None or self.clr is not None

    def losses(self, batch: ProductBatch, draws: Draws) -> dict[str, Tensor]:
        """§3.1: one pass over exchanged and masked inputs serves all but the contrast, which reads clean streams."""
        losses: dict[str, Tensor] = {}
        clean = None
        if self.clr is not None:
            clean = self.visual(batch)
            whole = with_global(clean, self.global_pooling, batch)
            streams = self.network.streams(batch.tokens_BT, batch.token_mask_BT, whole)
            losses["loss_clr"] = self.clr(streams.image.pooled_BD, streams.text.pooled_BD)
        if any(objective is not None for objective in (self.mlm, self.mrm, self.mrc, self.itm)):
            losses |= self._crossed_losses(batch, draws, clean)
        return losses

    def _crossed_losses(self, batch: ProductBatch, draws: Draws, clean: Regions | None) -> dict[str, Tensor]:
        """The objectives on the cross-modality encoder. As released, both masked ones read mismatched pairs as well."""
        losses: dict[str, Tensor] = {}
        tokens_BT, token_mask_BT = batch.tokens_BT, batch.token_mask_BT
        if self.itm is not None:
            tokens_BT, token_mask_BT, matched_B = self.itm.exchange(tokens_BT, token_mask_BT, draws)
        if self.mlm is not None:
            tokens_BT, targets_BT, in_text = self.mlm.mask(tokens_BT, token_mask_BT, draws)
        masked = None
        if self.mrm is not None or self.mrc is not None:
            masked = mask_regions(self.visual.mask(batch), self.mrm_prob, draws)
        hidden_BR = None if masked is None else masked.hidden_BR
        regions = self.regions(batch, hidden_BR)
        crossed = self._cross(self.network.streams(tokens_BT, token_mask_BT, regions), token_mask_BT, regions.mask_BR)

        if self.mlm is not None:
            outputs_MD = crossed.text_BTD.flatten(0, 1)[in_text.in_batch_M]
            targets_M = targets_BT.flatten()[in_text.in_batch_M]
            losses["loss_mlm"] = self.mlm(outputs_MD, targets_M, self.network.text_embedding.word.weight)
        if masked is not None:
            losses |= self._region_losses(batch, masked, crossed, clean)
        if self.itm is not None:
            pooled_BD = self.network.pool(crossed.text_BTD)
            losses["loss_itm"] = self.itm(pooled_BD, matched_B)
            losses["_itm_accuracy"] = ((self.itm.score(pooled_BD.detach()) > 0) == matched_B).float().mean()
        return losses

    def _region_losses(
        self, batch: ProductBatch, masked: MaskedRegions, crossed: Crossed, clean: Regions | None
    ) -> dict[str, Tensor]:
        """§3.1.2, masked object prediction: what the masked regions hold, by feature and by class."""
        losses: dict[str, Tensor] = {}
        places_M = masked.chosen.in_batch_M
        outputs_MD = crossed.image_BRD[:, 1:].flatten(0, 1)[places_M]  # the whole-image region stands first
        predicted_M = masked.predicted_BR.flatten()[places_M]
        if self.mrm is not None:
            clean_BRD = None if clean is None else clean.features_BRD
            target_BRD, moments, about = self.regression_target(batch, clean_BRD)
            targets_MD = target_BRD.flatten(0, 1)[places_M]
            losses |= about | {"loss_mrm": self.mrm(outputs_MD, targets_MD, predicted_M, moments)}
        if self.mrc is not None:
            losses["loss_mrc"] = self.mrc(outputs_MD, self.class_scores(batch).flatten(0, 1)[places_M], predicted_M)
        return losses

    def _cross(self, streams: Streams, token_mask_BT: Tensor, region_mask_BR: Tensor) -> Crossed:
        return self.network.cross(streams.text.states_BND, token_mask_BT, streams.image.states_BND, region_mask_BR)

    def embed(self, batch: ProductBatch) -> dict[str, Tensor]:
        regions = self.regions(batch)
        streams = self.network.streams(batch.tokens_BT, batch.token_mask_BT, regions)
        crossed = self._cross(streams, batch.token_mask_BT, regions.mask_BR)
        first_BD, whole_image_BD = crossed.text_BTD[:, 0], crossed.image_BRD[:, 0]
        both_mask_BN = torch.cat([batch.token_mask_BT, regions.mask_BR], 1)
        return stream_features(streams, self.whiten(streams.by_name())) | {
            "first": first_BD,
            "pooled": self.network.pool(crossed.text_BTD),
            "concat_first": side_by_side(first_BD, whole_image_BD),
            "mean": masked_mean(torch.cat(list(crossed), 1), both_mask_BN),
        }

    def unwhitened(self, batch: ProductBatch) -> dict[str, Tensor]:
        regions = self.regions(batch)
        return self.network.streams(batch.tokens_BT, batch.token_mask_BT, regions).by_name()

    def match(self, queries: ProductBatch, items: ProductBatch) -> Tensor:
        """Logit_B that caption and picture match, of the query's caption with the item's picture plus the reverse.

        Inputs:
            queries, items: Batches of equal length; row i is compared with row i.

        Raises:
            ModelError: the model was built without itm.
        """
        if self.itm is None:
            return super().match(queries, items)
        asked, offered = (self.regions(batch) for batch in (queries, items))
        query = self.network.streams(queries.tokens_BT, queries.token_mask_BT, asked)
        item = self.network.streams(items.tokens_BT, items.token_mask_BT, offered)
        there = self._cross(Streams(query.text, item.image), queries.token_mask_BT, offered.mask_BR)
        back = self._cross(Streams(item.text, query.image), items.token_mask_BT, asked.mask_BR)
        pool, score = self.network.pool, self.itm.score
        return score(pool(there.text_BTD)) + score(pool(back.text_BTD))
