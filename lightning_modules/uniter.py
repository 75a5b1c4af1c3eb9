"""UNITER: one transformer over the tokens of the caption and the regions of the picture, side by side.

Source: Chen et al., "UNITER: UNiversal Image-TExt Representation Learning", ECCV 2020, arXiv 1909.11740; sizes, shares
of the objectives and optimiser are those of the released base configuration.

Differs:
    * `clr`, off by default, added to every step: CAPTURE's contrast between the pooled caption and the pooled picture,
      each encoded by the same transformer without the other. Nothing in the published objectives pulls two pictures of
      a product together. (As one of the objectives drawn, with half of the steps, it hardly left chance at `tiny`.)
    * The picture's regions start with the whole image (as in ViLBERT and CAPTURE), which stands for a picture encoded
      alone.
    * `matching_candidates` above 1: the unmatched caption is the hardest of several, by the model's own matching score;
      the paper mines hard negatives in fine-tuning only. A caption equal to the picture's own is never one, and a
      batch has half of its captions exchanged, not its pictures.
    * Matching is one logit with a sigmoid instead of two with a softmax, the same model.
    * Of the masked regions 90 % are hidden (released: all, and at least one word or region of each sample).
    * `wra` moves words and the closing token; the released code moves [CLS] as well.
    * Every detector class counts, background too; the released code leaves class 0 out of `mrc`.
    * Linear decay from the end of warm-up to 0 and gradient norm 1.0, as all models here.
    * `visual_input: grid` reads pixels through a backbone instead of stored region features.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from datamodules.batch import InputSpec, ProductBatch
from lightning_modules.errors import ModelError
from lightning_modules.layers.attention import NORM_EPS, PostNormLayer, check_heads
from lightning_modules.layers.embeddings import TextEmbedding, init_bert_style
from lightning_modules.layers.pooling import PositionPooling, StreamPooling, masked_mean
from lightning_modules.layers.regions import GlobalPooling, Regions
from lightning_modules.objectives.cross_modal_contrast import CrossModalContrast
from lightning_modules.objectives.draws import Draws
from lightning_modules.objectives.image_text_matching import ImageTextMatching, exchange_captions
from lightning_modules.objectives.masked_language_modelling import MaskedLanguageModelling
from lightning_modules.objectives.masked_region_classification import MaskedRegionClassification
from lightning_modules.objectives.masked_region_modelling import MaskedRegionModelling
from lightning_modules.objectives.word_region_alignment import WordRegionAlignment
from lightning_modules.region_text_module import OF_REGION_CLASSES, RegionTextModule
from lightning_modules.retrieval_module import check_objectives
from lightning_modules.stream_features import (
    MODALITIES,
    STREAM_CANDIDATES,
    Streams,
    read_stream,
    side_by_side,
    stream_features,
    stream_whitening,
)

# mlm; mrm: regression of the region feature (MRFR); mrc: the detector's best class; mrc_kl: its distribution; itm:
# matching; wra: word-region alignment; clr: contrast (see Differs)
OBJECTIVES = ("mlm", "mrm", "mrc", "mrc_kl", "itm", "wra", "clr")
# How often a step trains each, in proportion: the released `mix_ratio`.
SHARES = {"mlm": 2.0, "mrm": 1.0, "mrc": 1.0, "mrc_kl": 1.0, "itm": 2.0, "wra": 2.0}


class UNITER(RegionTextModule):
    """The published model; constructor defaults are the released base setting.

    Args:
        objectives: Any subset of mlm, mrm, mrc, mrc_kl, itm, wra, clr; one left out has no parameters. Each step trains
            one of them, drawn by its share and the same on all ranks; `wra` is computed with `itm` where both are
            chosen, as released, and `clr` in every step.
        shares: How often a step trains each objective but clr, in proportion, in the order of `objectives`; None = as
            published (mlm 2, itm 2, the others 1). That of `wra` does not count beside `itm`.
        region_classes: Classes of the detector whose scores the shards hold; for mrc and mrc_kl.
        matching_candidates: Captions among which `itm` takes its hard negative; 1 = any other one (published in
            pretraining). Each costs a forward pass without gradient.
        alignment_weight: Of `wra`.
        layers, heads, ffn: Of the transformer.
        output_width: Of the poolers that the contrast reads.
        text_pooling, image_pooling: What stands for a modality encoded alone, see CAPTURE.
        tokenizer, text_weights, vocab_size, mask_token_id, text_length, visual_input, num_regions, region_width,
        image_size_px, backbone, backbone_weights, global_pooling, region_norm, init_std, temperature, mlm_prob,
        mrm_prob, whitening_samples: As CAPTURE's. `text_weights` fills embeddings and the first layers.
        retrieval_feature: "first" is the fused first token (published); see `candidate_features`.

    Raises:
        ModelError: an unknown objective or feature; shares that do not fit; class scores that nothing delivers.
    """

    candidate_features = ("first", "pooled", "mean", "concat_mean", *STREAM_CANDIDATES)
    modalities: ClassVar = MODALITIES
    text_tower: ClassVar = ("network.text_embedding", "network.layers")

    def __init__(
        self,
        objectives: list[str] = ["mlm", "mrm", "mrc_kl", "itm", "wra"],  # noqa: B006  (read only)
        shares: list[float] | None = None,
        tokenizer: str = "bert-base-chinese",
        text_weights: str | None = None,
        vocab_size: int = 21128,
        mask_token_id: int = 103,
        text_length: int = 36,
        visual_input: Literal["regions", "grid"] = "regions",
        num_regions: int = 36,
        region_width: int = 2048,
        region_classes: int = 1601,
        image_size_px: int = 224,
        backbone: str = "resnet50",
        backbone_weights: str | None = None,
        width: int = 768,
        output_width: int = 512,
        max_positions: int = 512,
        layers: int = 12,
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
        matching_candidates: int = 1,
        alignment_weight: float = 0.1,
        retrieval_feature: str = "first",
        whitening_samples: int = 0,
        lr: float = 5e-5,
        weight_decay: float = 0.01,
        warmup_fraction: float = 0.05,
        pretrained_lr_scale: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.98),
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
            betas=betas,
        )
        self.save_hyperparameters()
        check_objectives(objectives, OBJECTIVES)
        self.tasks = _tasks(objectives, shares)
        self.network = SingleStreamTransformer(
            vocab_size, self.visual.region_width, width, max_positions, layers, heads, ffn, dropout, region_norm
        )
        self.text_pooling = PositionPooling(width, text_pooling)
        self.image_pooling = PositionPooling(width, image_pooling)
        self.text_pooler = nn.Linear(width, output_width)
        self.image_pooler = nn.Linear(width, output_width)
        chosen = set(objectives)
        self.mlm = (
            MaskedLanguageModelling(None, width, vocab_size, mask_token_id, mlm_prob) if "mlm" in chosen else None
        )
        self.mrm = self.mrc = self.mrc_kl = None
        if "mrm" in chosen:
            self.mrm = MaskedRegionModelling(None, width, self.visual.region_width, mrm_prob, tied=True)
        if "mrc" in chosen:
            self.mrc = MaskedRegionClassification(width, region_classes, "hard", mrm_prob)
        if "mrc_kl" in chosen:
            self.mrc_kl = MaskedRegionClassification(width, region_classes, "kl", mrm_prob)
        self.itm = ImageTextMatching(width, matching_candidates) if "itm" in chosen else None
        self.wra = WordRegionAlignment(alignment_weight) if "wra" in chosen else None
        self.clr = CrossModalContrast(temperature) if "clr" in chosen else None
        for name, part in self.named_children():
            if name != "visual":
                part.apply(partial(init_bert_style, std=init_std))
        self.uses_in_batch_negatives = self.clr is not None
        self.compares_samples = bool({"itm", "wra", "clr"} & chosen)
        self.whitening_samples = whitening_samples
        if whitening_samples:
            for modality in MODALITIES:
                self.whitening.update(stream_whitening(modality, width, output_width))

    def losses(self, batch: ProductBatch, draws: Draws) -> dict[str, Tensor]:
        """§3.2: one objective per step. Words are masked beside whole pictures, regions beside whole captions."""
        task = draws.choose(self.tasks)
        masks_regions = task in ("mrm", *OF_REGION_CLASSES)
        if masks_regions and self.clr is None:
            return self._masked_regions(task, batch, draws)
        regions = self.regions(batch)  # one pass of a backbone for all that reads whole pictures
        losses: dict[str, Tensor] = {}
        if self.clr is not None:
            streams = self._alone(batch.tokens_BT, batch.token_mask_BT, regions)
            losses["loss_clr"] = self.clr(streams.image.pooled_BD, streams.text.pooled_BD)
        if masks_regions:
            losses |= self._masked_regions(task, batch, draws, clean_BRD=regions.features_BRD[:, 1:])
        elif task == "mlm":
            losses |= self._masked_words(batch, draws, regions)
        elif task in ("itm", "wra"):
            losses |= self._matching(batch, draws, regions)
        return losses

    def _masked_words(self, batch: ProductBatch, draws: Draws, regions: Regions) -> dict[str, Tensor]:
        assert self.mlm is not None
        tokens_BT, targets_BT, at = self.mlm.mask(batch.tokens_BT, batch.token_mask_BT, draws)
        text_BTD, _ = self._fuse(tokens_BT, batch.token_mask_BT, regions)
        outputs_MD, targets_M = text_BTD.flatten(0, 1)[at.in_batch_M], targets_BT.flatten()[at.in_batch_M]
        return {"loss_mlm": self.mlm(outputs_MD, targets_M, self.network.text_embedding.word.weight)}

    def _masked_regions(
        self, task: str, batch: ProductBatch, draws: Draws, clean_BRD: Tensor | None = None
    ) -> dict[str, Tensor]:
        objective: Any = getattr(self, task)
        real_BR = self.visual.mask(batch)
        predicted_BR, hidden_BR, at = objective.mask(real_BR, draws)
        _, image_BRD = self._fuse(batch.tokens_BT, batch.token_mask_BT, self.regions(batch, hidden_BR), hidden_BR)
        outputs_MD = image_BRD[:, 1:].flatten(0, 1)[at.in_batch_M]  # the whole-image region is not predicted
        predicted_M = predicted_BR.flatten()[at.in_batch_M]
        if task in OF_REGION_CLASSES:
            scores_MC = self.class_scores(batch).flatten(0, 1)[at.in_batch_M]
            return {f"loss_{task}": objective(outputs_MD, scores_MC, predicted_M)}
        target_BRD, moments, about = self.regression_target(batch, clean_BRD)
        targets_MD = target_BRD.flatten(0, 1)[at.in_batch_M]
        feature_WD = self.network.region_embedding.feature.weight
        return about | {"loss_mrm": objective(outputs_MD, targets_MD, predicted_M, moments, feature_WD)}

    def _matching(self, batch: ProductBatch, draws: Draws, regions: Regions) -> dict[str, Tensor]:
        """`itm` and, on the same pairs, `wra`."""
        candidates = self.itm.candidates if self.itm is not None else 1
        score = partial(self._match_logit, regions=regions)
        tokens_BT, token_mask_BT, matched_B = exchange_captions(
            batch.tokens_BT, batch.token_mask_BT, draws, candidates, score
        )
        text_BTD, image_BRD = self._fuse(tokens_BT, token_mask_BT, regions)
        losses: dict[str, Tensor] = {}
        if self.itm is not None:
            pooled_BD = self.network.pooled(text_BTD)
            losses["loss_itm"] = self.itm(pooled_BD, matched_B)
            losses["_itm_accuracy"] = ((self.itm.score(pooled_BD.detach()) > 0) == matched_B).float().mean()
        if self.wra is not None:  # without [CLS] and the whole image, which stand for all
            masks = (token_mask_BT[:, 1:], regions.mask_BR[:, 1:])
            losses["loss_wra"] = self.wra(text_BTD[:, 1:], masks[0], image_BRD[:, 1:], masks[1], matched_B)
        return losses

    def _fuse(
        self, tokens_BT: Tensor, token_mask_BT: Tensor, regions: Regions, hidden_BR: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Fused states of text and image."""
        text_BTD = self.network.text_embedding(tokens_BT)
        image_BRD = self.network.embed_regions(regions, hidden_BR)
        return self.network.fuse(text_BTD, token_mask_BT, image_BRD, regions.mask_BR)

    def _alone(self, tokens_BT: Tensor, token_mask_BT: Tensor, regions: Regions) -> Streams:
        """Each modality through the transformer without the other."""
        words_BTD, regions_BRD = self.network.text_embedding(tokens_BT), self.network.embed_regions(regions)
        text_BTD = self.network(words_BTD, token_mask_BT)
        image_BRD = self.network(regions_BRD, regions.mask_BR)
        return Streams(
            read_stream(self.text_pooling, self.text_pooler, words_BTD, text_BTD, token_mask_BT),
            read_stream(self.image_pooling, self.image_pooler, regions_BRD, image_BRD, regions.mask_BR),
        )

    def _match_logit(self, tokens_BT: Tensor, token_mask_BT: Tensor, regions: Regions) -> Tensor:
        assert self.itm is not None
        text_BTD, _ = self._fuse(tokens_BT, token_mask_BT, regions)
        return self.itm.score(self.network.pooled(text_BTD))

    def match(self, queries: ProductBatch, items: ProductBatch) -> Tensor:
        """How well row i of the queries matches row i of the items: each one's caption with the other's picture.

        Returns:
            Sum of the two logits_B.
        """
        if self.itm is None:
            return super().match(queries, items)
        first_B = self._match_logit(queries.tokens_BT, queries.token_mask_BT, self.regions(items))
        return first_B + self._match_logit(items.tokens_BT, items.token_mask_BT, self.regions(queries))

    def embed(self, batch: ProductBatch) -> dict[str, Tensor]:
        regions = self.regions(batch)
        streams = self._alone(batch.tokens_BT, batch.token_mask_BT, regions)
        text_BTD, image_BRD = self._fuse(batch.tokens_BT, batch.token_mask_BT, regions)
        text_mean_BD = masked_mean(text_BTD, batch.token_mask_BT)
        image_mean_BD = masked_mean(image_BRD, regions.mask_BR)
        both_mask_BN = torch.cat([batch.token_mask_BT, regions.mask_BR], 1)
        return stream_features(streams, self.whiten(streams.by_name())) | {
            "first": text_BTD[:, 0],
            "pooled": self.network.pooled(text_BTD),
            "mean": masked_mean(torch.cat([text_BTD, image_BRD], 1), both_mask_BN),
            "concat_mean": side_by_side(text_mean_BD, image_mean_BD),
        }

    def unwhitened(self, batch: ProductBatch) -> dict[str, Tensor]:
        return self._alone(batch.tokens_BT, batch.token_mask_BT, self.regions(batch)).by_name()


def _tasks(objectives: list[str], shares: list[float] | None) -> dict[str, float]:
    """What a step may train, and how often; matching and alignment are one task, and the contrast is in all."""
    drawn = [name for name in objectives if name != "clr"]
    if shares is not None and len(shares) != len(drawn):
        raise ModelError(f"model.shares: {shares} must hold one number for each of {drawn}")
    if shares and not (min(shares) > 0 and sum(shares) < float("inf")):
        raise ModelError(f"model.shares: {shares} must be numbers above 0; leave an objective out instead")
    tasks = dict(zip(drawn, shares or [SHARES[name] for name in drawn], strict=True))
    if "itm" in tasks:
        tasks.pop("wra", None)
    return tasks or {"": 1.0}


class SingleStreamTransformer(nn.Module):
    """§3.1: embeddings of words and regions, and one transformer over both; a BERT where there is only text."""

    def __init__(
        self,
        vocab_size: int,
        region_width: int,
        width: int,
        max_positions: int,
        layers: int,
        heads: int,
        ffn: int,
        dropout: float,
        region_norm: bool,
    ) -> None:
        super().__init__()
        check_heads(layers, heads=heads, width=width)
        self.text_embedding = TextEmbedding(vocab_size, width, max_positions, dropout)
        self.region_embedding = RegionWithSizeEmbedding(region_width, width, dropout, region_norm)
        self.layers = nn.ModuleList(PostNormLayer(width, heads, ffn, dropout) for _ in range(layers))
        self.pooler = nn.Linear(width, width)

    def embed_regions(self, regions: Regions, hidden_BR: Tensor | None = None) -> Tensor:
        """Regions, the whole-image one first, as the second segment of BERT's two; hidden_BR does not count it."""
        if hidden_BR is not None:
            hidden_BR = torch.cat([hidden_BR.new_zeros(len(hidden_BR), 1), hidden_BR], 1)
        segment_D = self.text_embedding.segment(regions.mask_BR.new_ones((), dtype=torch.int64))
        return self.region_embedding(regions.features_BRD, regions.boxes_BR5, segment_D, hidden_BR)

    def forward(self, x_BND: Tensor, mask_BN: Tensor) -> Tensor:
        for layer in self.layers:
            x_BND = layer(x_BND, mask_BN)
        return x_BND

    def fuse(
        self, text_BTD: Tensor, token_mask_BT: Tensor, image_BRD: Tensor, region_mask_BR: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Embedded text and image side by side through the layers: their states."""
        both_BND = self(torch.cat([text_BTD, image_BRD], 1), torch.cat([token_mask_BT, region_mask_BR], 1))
        length = text_BTD.shape[1]
        return both_BND[:, :length], both_BND[:, length:]

    def pooled(self, text_BTD: Tensor) -> Tensor:
        """BERT's pooler on the first token."""
        return torch.tanh(self.pooler(text_BTD[:, 0]))


class RegionWithSizeEmbedding(nn.Module):
    """LN(LN(Linear(feature)) + LN(Linear(box)) + segment), box = x1, y1, x2, y2, width, height, area.

    A learned vector is added to a hidden region's feature, which is zero (of a grid: a cell without its pixels).
    Source: §3.1 and the released `UniterImageEmbeddings`. Without `norm` none of the three norms is there.
    """

    def __init__(self, region_width: int, width: int, dropout: float, norm: bool) -> None:
        super().__init__()
        self.feature = nn.Linear(region_width, width)
        self.box = nn.Linear(7, width)
        self.hidden = nn.Parameter(torch.zeros(region_width))
        norms = (nn.LayerNorm(width, eps=NORM_EPS) if norm else nn.Identity() for _ in range(3))
        self.feature_norm, self.box_norm, self.norm = norms
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, regions_BRD: Tensor, boxes_BR5: Tensor, segment_D: Tensor, hidden_BR: Tensor | None = None
    ) -> Tensor:
        if hidden_BR is not None:
            regions_BRD = regions_BRD + self.hidden * hidden_BR.unsqueeze(-1).to(regions_BRD.dtype)
        corners_BR4, area_BR1 = boxes_BR5[..., :4], boxes_BR5[..., 4:]
        boxes_BR7 = torch.cat([corners_BR4, corners_BR4[..., 2:] - corners_BR4[..., :2], area_BR1], -1)
        embedded_BRD = self.feature_norm(self.feature(regions_BRD)) + self.box_norm(self.box(boxes_BR7))
        return self.dropout(self.norm(embedded_BRD + segment_D))
