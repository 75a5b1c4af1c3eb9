"""ViLBERT: a transformer for the caption, one for the picture, and co-attention between them.

Source: Lu et al., "ViLBERT: Pretraining Task-Agnostic Visiolinguistic Representations for Vision-and-Language Tasks",
NeurIPS 2019, arXiv 1908.02265; sizes are those of the released base configuration (six connections). Masked words and
regions are predicted on matched pairs only, as in its sequel "12-in-1", CVPR 2020, arXiv 1912.02315, §3.1.

Differs:
    * `clr`, off by default: CAPTURE's contrast between the pooled caption and the pooled picture, each through its own
      stream without connections. Nothing in the published objectives pulls two pictures of a product together.
    * `mrm`, off by default, regresses region features, for shards that hold no class scores.
    * Regions that overlap a masked one stay visible; "12-in-1" masks those above an IoU of 0.4 too.
    * A batch has half of its captions exchanged among its samples; a caption equal to the picture's own is no negative.
      `matching_candidates` above 1 takes the hardest of several.
    * Matching is one logit with a sigmoid instead of two with a softmax, the same model; nothing is dropped out between
      the product of both pooled vectors and this head (released: 10 %).
    * Linear decay from the end of warm-up to 0 and gradient norm 1.0, as all models here.
    * `visual_input: grid` reads pixels through a backbone instead of stored region features.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from datamodules.batch import InputSpec, ProductBatch
from lightning_modules.layers.attention import CoAttentionLayer, PostNormLayer, check_heads
from lightning_modules.layers.embeddings import RegionEmbedding, TextEmbedding, init_bert_style
from lightning_modules.layers.pooling import PositionPooling, StreamPooling, masked_mean
from lightning_modules.layers.regions import GlobalPooling, Regions
from lightning_modules.objectives.chosen import nothing_chosen
from lightning_modules.objectives.cross_modal_contrast import CrossModalContrast
from lightning_modules.objectives.draws import Draws
from lightning_modules.objectives.image_text_matching import ImageTextMatching
from lightning_modules.objectives.masked_language_modelling import NOT_MASKED, MaskedLanguageModelling
from lightning_modules.objectives.masked_region_classification import MaskedRegionClassification
from lightning_modules.objectives.masked_region_modelling import MaskedRegionModelling
from lightning_modules.region_text_module import RegionTextModule
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

# mlm; mrm: regression of region features; mrc_kl: the detector's class distribution; itm: matching; clr: contrast
OBJECTIVES = ("mlm", "mrm", "mrc_kl", "itm", "clr")


class ViLBERT(RegionTextModule):
    """The published model; constructor defaults are the released base setting.

    Args:
        objectives: Any subset of mlm, mrm, mrc_kl, itm, clr, summed; one left out has no parameters.
        region_classes: Classes of the detector whose scores the shards hold; for mrc_kl.
        matching_candidates: Captions among which `itm` takes its hard negative; 1 = any other one (published). Each
            costs a forward pass without gradient.
        width, image_width, cross_width: Of the text stream, of the visual stream, and of queries, keys, values between
            them; poolers of fused outputs have the last too.
        text_layers, image_layers, cross_layers: Each of the last `cross_layers` layers of a stream follows a
            connection; those before run first.
        output_width: Of the poolers that the contrast reads.
        text_pooling, image_pooling: What stands for a modality alone, see CAPTURE.
        tokenizer, text_weights, vocab_size, mask_token_id, text_length, visual_input, num_regions, region_width,
        image_size_px, backbone, backbone_weights, global_pooling, region_norm, init_std, temperature, mlm_prob,
        mrm_prob, whitening_samples: As CAPTURE's.
        retrieval_feature: "product_pooled", of the pooled fused outputs, is what matching reads.

    Raises:
        ModelError: an unknown objective or feature; class scores that nothing delivers.
    """

    candidate_features = ("product_pooled", "concat_first", "concat_mean", *STREAM_CANDIDATES)
    modalities: ClassVar = MODALITIES

    def __init__(
        self,
        objectives: list[str] = ["mlm", "mrc_kl", "itm"],  # noqa: B006  (read only; jsonargparse shows it as the default)
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
        image_width: int = 1024,
        cross_width: int = 1024,
        output_width: int = 512,
        max_positions: int = 512,
        text_layers: int = 12,
        text_heads: int = 12,
        text_ffn: int = 3072,
        image_layers: int = 6,
        image_heads: int = 8,
        image_ffn: int = 1024,
        cross_layers: int = 6,
        cross_heads: int = 8,
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
        retrieval_feature: str = "product_pooled",
        whitening_samples: int = 0,
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        warmup_fraction: float = 0.1,
        pretrained_lr_scale: float = 1.0,
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
        chosen = set(objectives)
        check_heads(text_layers, text_heads=text_heads, width=width)
        check_heads(image_layers, image_heads=image_heads, image_width=image_width)
        check_heads(cross_layers, cross_heads=cross_heads, cross_width=cross_width)
        self.network = TwoStreamTransformer(
            text=(vocab_size, width, max_positions, text_layers, text_heads, text_ffn),
            image=(self.visual.region_width, image_width, image_layers, image_heads, image_ffn),
            cross=(cross_width, cross_layers, cross_heads),
            dropout=dropout,
            region_norm=region_norm,
        )
        self.text_pooling = PositionPooling(width, text_pooling)
        self.image_pooling = PositionPooling(image_width, image_pooling)
        self.text_pooler = nn.Linear(width, output_width)
        self.image_pooler = nn.Linear(image_width, output_width)
        self.mlm = self.mrm = self.mrc_kl = self.itm = self.clr = None
        if "mlm" in chosen:
            self.mlm = MaskedLanguageModelling(None, width, vocab_size, mask_token_id, mlm_prob)
        if "mrm" in chosen:
            self.mrm = MaskedRegionModelling(None, image_width, self.visual.region_width, mrm_prob)
        if "mrc_kl" in chosen:
            self.mrc_kl = MaskedRegionClassification(image_width, region_classes, "kl", mrm_prob)
        if "itm" in chosen:
            self.itm = ImageTextMatching(cross_width, matching_candidates)
        for name, part in self.named_children():
            if name != "visual":
                part.apply(partial(init_bert_style, std=init_std))
        if "clr" in chosen:
            self.clr = CrossModalContrast(temperature)
        self.uses_in_batch_negatives = self.clr is not None
        self.compares_samples = self.clr is not None or self.itm is not None
        self.whitening_samples = whitening_samples
        if whitening_samples:
            self.whitening.update(stream_whitening("text", width, output_width))
            self.whitening.update(stream_whitening("image", image_width, output_width))

    def losses(self, batch: ProductBatch, draws: Draws) -> dict[str, Tensor]:
        """§2.2 and figure 3: one pass over captions, half of them exchanged, with words and regions masked."""
        losses: dict[str, Tensor] = {}
        clean = None
        if self.clr is not None:
            clean = self.regions(batch)
            streams = self._alone(batch, clean)
            losses["loss_clr"] = self.clr(streams.image.pooled_BD, streams.text.pooled_BD)
        if self.mlm is not None or self.mrm is not None or self.mrc_kl is not None or self.itm is not None:
            losses |= self._fused_losses(batch, draws, clean)
        return losses

    def _fused_losses(self, batch: ProductBatch, draws: Draws, clean: Regions | None) -> dict[str, Tensor]:
        """The objectives on fused outputs; `clean` are the regions with none hidden, where they are known already."""
        tokens_BT, token_mask_BT = batch.tokens_BT, batch.token_mask_BT
        matched_B = torch.ones_like(token_mask_BT[:, 0])
        if self.itm is not None:
            score = None
            if self.itm.candidates > 1:
                with torch.no_grad():
                    score = partial(self._match_logit, regions=self.regions(batch) if clean is None else clean)
            tokens_BT, token_mask_BT, matched_B = self.itm.exchange(tokens_BT, token_mask_BT, draws, score)
        in_text = in_image = nothing_chosen(len(tokens_BT), tokens_BT.device)
        if self.mlm is not None:
            tokens_BT, targets_BT, in_text = self.mlm.mask(tokens_BT, token_mask_BT, draws)
        regional = self.mrm or self.mrc_kl
        hidden_BR = None
        if regional is not None:
            predicted_BR, hidden_BR, in_image = regional.mask(self.visual.mask(batch), draws)
        regions = self.regions(batch, hidden_BR)
        text_BTD, image_BRD = self.network(tokens_BT, token_mask_BT, regions)

        losses: dict[str, Tensor] = {}
        if self.mlm is not None:
            outputs_MD = text_BTD.flatten(0, 1)[in_text.in_batch_M]
            targets_BT = torch.where(matched_B.unsqueeze(1), targets_BT, NOT_MASKED)
            targets_M = targets_BT.flatten()[in_text.in_batch_M]
            losses["loss_mlm"] = self.mlm(outputs_MD, targets_M, self.network.text_embedding.word.weight)
        if regional is not None:
            outputs_MD = image_BRD[:, 1:].flatten(0, 1)[in_image.in_batch_M]  # the whole image is not predicted
            predicted_M = (predicted_BR & matched_B.unsqueeze(1)).flatten()[in_image.in_batch_M]
        if self.mrm is not None:
            clean_BRD = None if clean is None else clean.features_BRD[:, 1:]
            target_BRD, moments, about = self.regression_target(batch, clean_BRD)
            targets_MD = target_BRD.flatten(0, 1)[in_image.in_batch_M]
            losses |= about | {"loss_mrm": self.mrm(outputs_MD, targets_MD, predicted_M, moments)}
        if self.mrc_kl is not None:
            scores_MC = self.class_scores(batch).flatten(0, 1)[in_image.in_batch_M]
            losses["loss_mrc_kl"] = self.mrc_kl(outputs_MD, scores_MC, predicted_M)
        if self.itm is not None:
            fused_BD = self.network.pooled(text_BTD, image_BRD)
            losses["loss_itm"] = self.itm(fused_BD, matched_B)
            losses["_itm_accuracy"] = ((self.itm.score(fused_BD.detach()) > 0) == matched_B).float().mean()
        return losses

    def _alone(self, batch: ProductBatch, regions: Regions) -> Streams:
        """Each stream without connections."""
        words_BTD, text_BTD, regions_BRD, image_BRD = self.network.alone(batch.tokens_BT, batch.token_mask_BT, regions)
        return Streams(
            read_stream(self.text_pooling, self.text_pooler, words_BTD, text_BTD, batch.token_mask_BT),
            read_stream(self.image_pooling, self.image_pooler, regions_BRD, image_BRD, regions.mask_BR),
        )

    def _match_logit(self, tokens_BT: Tensor, token_mask_BT: Tensor, regions: Regions) -> Tensor:
        assert self.itm is not None
        return self.itm.score(self.network.pooled(*self.network(tokens_BT, token_mask_BT, regions)))

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
        regions = self.regions(batch)  # one pass of a backbone for all
        streams = self._alone(batch, regions)
        text_BTD, image_BRD = self.network(batch.tokens_BT, batch.token_mask_BT, regions)
        text_mean_BD, image_mean_BD = (
            masked_mean(text_BTD, batch.token_mask_BT),
            masked_mean(image_BRD, regions.mask_BR),
        )
        return stream_features(streams, self.whiten(streams.by_name())) | {
            "product_pooled": self.network.pooled(text_BTD, image_BRD),
            "concat_first": side_by_side(text_BTD[:, 0], image_BRD[:, 0]),
            "concat_mean": side_by_side(text_mean_BD, image_mean_BD),
        }

    def unwhitened(self, batch: ProductBatch) -> dict[str, Tensor]:
        return self._alone(batch, self.regions(batch)).by_name()


class TwoStreamTransformer(nn.Module):
    """§2.1: two streams of BERT layers, the last ones of each following a connection by co-attention.

    Args:
        text: Vocabulary, width, positions, layers, heads and feed-forward width.
        image: Width of region features, width, layers, heads and feed-forward width.
        cross: Width, number and heads of the connections.
    """

    def __init__(
        self,
        text: tuple[int, int, int, int, int, int],
        image: tuple[int, int, int, int, int],
        cross: tuple[int, int, int],
        dropout: float,
        region_norm: bool,
    ) -> None:
        super().__init__()
        vocab_size, width, max_positions, text_layers, text_heads, text_ffn = text
        region_width, image_width, image_layers, image_heads, image_ffn = image
        cross_width, cross_layers, cross_heads = cross
        self.text_embedding = TextEmbedding(vocab_size, width, max_positions, dropout)
        self.region_embedding = RegionEmbedding(region_width, image_width, dropout, region_norm)
        self.text_layers = nn.ModuleList(
            PostNormLayer(width, text_heads, text_ffn, dropout) for _ in range(text_layers)
        )
        self.image_layers = nn.ModuleList(
            PostNormLayer(image_width, image_heads, image_ffn, dropout) for _ in range(image_layers)
        )
        self.connections = nn.ModuleList(
            CoAttentionLayer(width, cross_width, cross_heads, image_ffn, text_ffn, dropout, image_width)
            for _ in range(cross_layers)
        )
        self.text_pooler = nn.Linear(width, cross_width)
        self.image_pooler = nn.Linear(image_width, cross_width)

    def forward(self, tokens_BT: Tensor, token_mask_BT: Tensor, regions: Regions) -> tuple[Tensor, Tensor]:
        """Fused states of text and image; regions with the whole image first."""
        text_BTD = self.text_embedding(tokens_BT)
        image_BRD = self.region_embedding(regions.features_BRD, regions.boxes_BR5)
        count = len(self.connections)
        text_first, text_rest = _split(self.text_layers, count)
        image_first, image_rest = _split(self.image_layers, count)
        for layer in text_first:
            text_BTD = layer(text_BTD, token_mask_BT)
        for layer in image_first:
            image_BRD = layer(image_BRD, regions.mask_BR)
        for number, connection in enumerate(self.connections):
            image_BRD, text_BTD = connection(image_BRD, regions.mask_BR, text_BTD, token_mask_BT)
            for layer in image_rest[number : number + 1]:
                image_BRD = layer(image_BRD, regions.mask_BR)
            for layer in text_rest[number : number + 1]:
                text_BTD = layer(text_BTD, token_mask_BT)
        return text_BTD, image_BRD

    def alone(
        self, tokens_BT: Tensor, token_mask_BT: Tensor, regions: Regions
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embedded words and states of the text, embedded regions and states of the image, without connections."""
        words_BTD = text_BTD = self.text_embedding(tokens_BT)
        regions_BRD = image_BRD = self.region_embedding(regions.features_BRD, regions.boxes_BR5)
        for layer in self.text_layers:
            text_BTD = layer(text_BTD, token_mask_BT)
        for layer in self.image_layers:
            image_BRD = layer(image_BRD, regions.mask_BR)
        return words_BTD, text_BTD, regions_BRD, image_BRD

    def pooled(self, text_BTD: Tensor, image_BRD: Tensor) -> Tensor:
        """Element-wise product of both pooled first positions."""
        return torch.relu(self.text_pooler(text_BTD[:, 0])) * torch.relu(self.image_pooler(image_BRD[:, 0]))


def _split(layers: nn.ModuleList, last: int) -> tuple[list[nn.Module], list[nn.Module]]:
    """All but the last layers, and the last."""
    first = max(0, len(layers) - last)
    return list(layers)[:first], list(layers)[first:]
