"""CAPTURE: hybrid-stream transformer with masked multi-modal learning and cross-modal contrast.

Source: Zhan et al., "Product1M: Towards Weakly Supervised Instance-Level Product Retrieval via Cross-Modal
Pretraining", ICCV 2021, arXiv 2107.14572; sizes are those of the released configuration.

Differs:
    * In the co-transformer a sample sees its own mask (the released code tiled the masks of other samples).
    * AdamW with bias correction instead of BertAdam, decay on matrices only (released: inverted), global gradient
      clipping instead of per tensor.
    * Negatives of the contrast are those of all ranks, with the true gradient.
    * `visual_input: grid` reads pixels through a backbone instead of stored region features.
"""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor

from datamodules.batch import InputSpec, ProductBatch
from lightning_modules.capture_features import CANDIDATES, retrieval_features
from lightning_modules.capture_network import HybridStreamTransformer
from lightning_modules.errors import ModelError
from lightning_modules.layers.embeddings import init_bert_style
from lightning_modules.layers.pooling import StreamPooling
from lightning_modules.layers.regions import GlobalPooling, with_global
from lightning_modules.objectives.chosen import nothing_chosen
from lightning_modules.objectives.cross_modal_contrast import CrossModalContrast
from lightning_modules.objectives.draws import Draws
from lightning_modules.objectives.masked_language_modelling import MaskedLanguageModelling
from lightning_modules.objectives.masked_region_modelling import MaskedRegionModelling
from lightning_modules.official_weights import capture_arguments, load_translated, translate
from lightning_modules.region_text_module import RegionTextModule
from lightning_modules.retrieval_module import check_objectives
from lightning_modules.stream_features import MODALITIES, stream_whitening

OBJECTIVES = ("mlm", "mrm", "clr")


class CAPTURE(RegionTextModule):
    """The published model; constructor defaults are the released setting.

    Args:
        objectives: Any subset of mlm, mrm, clr; one left out has no parameters.
        tokenizer: "shards" for the one stored with the data, else a Hugging Face name or path.
        text_weights: A Hugging Face BERT (name or path) that the text stream starts from when training begins: its
            embeddings and first `text_layers` layers, which train at `pretrained_lr_scale` × lr, and its MLM transform.
        vocab_size, mask_token_id: The tokenizer's; filled from the shard folder when `tokenizer` is "shards".
        text_length: Tokens per caption, [CLS] and [SEP] included.
        visual_input: "regions" (features stored in the shards) or "grid" (cells of a backbone's map, from pixels).
        num_regions: Most regions per picture, the whole-image one not counted.
        region_width: Width of stored region features; with "grid" the backbone's width counts.
        image_size_px, backbone, backbone_weights: For "grid" only.
        width, output_width: Inner width of all streams; width of the pooled outputs.
        *_layers, *_heads, *_ffn, cross_width: Depths and sizes (§4.2; self|cross|co = 4|4|6).
        dropout: In the BERT-style layers and at the co-transformer's input.
        text_pooling, image_pooling: What CLR and the stream features read of a stream: "first" (its first position,
            published), the "mean" over positions, or the mean weighted by a learned "attention", which then weights the
            bags too. From scratch at width 128 the first position of the text is nearly the same vector for every
            caption, and the contrast stayed at chance for 100 to 400 steps; with the mean it left within 150. Attention
            lets a brand count more than "free shipping".
        global_pooling: What the whole-image region holds: the "mean" of all regions' features (published) or their
            "max" per dimension. The maximum of a picture of several products is near the union of theirs, however
            small each is shown; a mean of grid cells is mostly background.
        region_norm: Whether embedded regions pass a LayerNorm (published). Without it their length is learned: in a
            mean over grid cells a product can count more than background.
        init_std: Standard deviation of initial weights. 0.02 suits width 768 with a pretrained text stream; at width
            128 from scratch it leaves all captions within a cosine of 0.9999, and the contrast takes long to start:
            1/sqrt(width) is the better choice there.
        temperature: τ of the contrast.
        mlm_prob, mrm_prob: Masking rates.
        retrieval_feature: See `candidate_features`; the authors' is "product_both".
        whitening_samples: Training pictures that the whitening of bags and pooled streams is learned from, before each
            validation and without labels; 0 leaves them as they are. Some multiple of `width`.
        fused_share: Share of each batch of which a masked copy goes through cross layers and co-transformer, which
            only MLM and MRM need; these two are weighted by it, as losses summed per sample are. Below 1 the contrast
            reads the whole batch unmasked; at 1 (published) it reads what they read. Without the contrast, or without
            both of these two, every sample is read whatever the share.
    """

    candidate_features = CANDIDATES
    modalities: ClassVar = MODALITIES

    def __init__(
        self,
        objectives: list[str] = list(OBJECTIVES),  # noqa: B006  (read only; jsonargparse shows it as the default)
        tokenizer: str = "bert-base-chinese",
        text_weights: str | None = None,
        vocab_size: int = 21128,
        mask_token_id: int = 103,
        text_length: int = 36,
        visual_input: Literal["regions", "grid"] = "regions",
        num_regions: int = 36,
        region_width: int = 2048,
        image_size_px: int = 224,
        backbone: str = "resnet50",
        backbone_weights: str | None = None,
        width: int = 768,
        output_width: int = 512,
        max_positions: int = 512,
        text_layers: int = 4,
        text_heads: int = 12,
        text_ffn: int = 3072,
        image_layers: int = 4,
        image_heads: int = 8,
        image_ffn: int = 1024,
        cross_layers: int = 4,
        cross_heads: int = 8,
        cross_width: int = 512,
        co_layers: int = 6,
        co_heads: int = 8,
        dropout: float = 0.1,
        init_std: float = 0.02,
        text_pooling: StreamPooling = "first",
        image_pooling: StreamPooling = "first",
        global_pooling: GlobalPooling = "mean",
        region_norm: bool = True,
        temperature: float = 0.07,
        mlm_prob: float = 0.15,
        mrm_prob: float = 0.15,
        retrieval_feature: str = "product_both",
        whitening_samples: int = 0,
        fused_share: float = 1.0,
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        warmup_fraction: float = 0.1,
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
        if not 0 < fused_share <= 1:
            raise ModelError(f"model.fused_share {fused_share} must lie in (0, 1]")
        self.fused_share = fused_share
        self.network = HybridStreamTransformer(
            vocab_size=vocab_size,
            region_width=self.visual.region_width,
            width=width,
            output_width=output_width,
            max_positions=max_positions,
            text_layers=text_layers,
            text_heads=text_heads,
            text_ffn=text_ffn,
            image_layers=image_layers,
            image_heads=image_heads,
            image_ffn=image_ffn,
            cross_layers=cross_layers,
            cross_heads=cross_heads,
            cross_width=cross_width,
            co_layers=co_layers,
            co_heads=co_heads,
            dropout=dropout,
            init_std=init_std,
            text_pooling=text_pooling,
            image_pooling=image_pooling,
            region_norm=region_norm,
        )
        self.mlm = self.mrm = self.clr = None
        if "mlm" in objectives:
            self.mlm = MaskedLanguageModelling(output_width, width, vocab_size, mask_token_id, mlm_prob)
            self.mlm.apply(partial(init_bert_style, std=init_std))
        if "mrm" in objectives:
            self.mrm = MaskedRegionModelling(output_width, width, self.visual.region_width, mrm_prob)
            self.mrm.apply(partial(init_bert_style, std=init_std))
        if "clr" in objectives:
            self.clr = CrossModalContrast(temperature)
        self.whitening_samples = whitening_samples
        if whitening_samples:
            for modality in MODALITIES:
                self.whitening.update(stream_whitening(modality, width, output_width))
        self.uses_in_batch_negatives = self.compares_samples = self.clr is not None

    @classmethod
    def from_official(cls, state_dict: dict[str, Tensor], config: dict, cross_config: dict) -> CAPTURE:
        """The model of a checkpoint made with the authors' released code, in eval mode.

        Args:
            state_dict: Their names and tensors.
            config, cross_config: Their two JSON configurations, for the head counts.

        Raises:
            ModelError: a key is unknown or missing, or sizes contradict each other; nothing is half-loaded.
        """
        ours, _ = translate(state_dict)
        model = cls(**capture_arguments(ours, config, cross_config))
        load_translated(model, ours)
        return model.eval()

    def losses(self, batch: ProductBatch, draws: Draws) -> dict[str, Tensor]:
        """§4.3: mask both inputs, run the network, and sum the objectives.

        The contrast is computed on the same inputs, masked as they are, as in the released code, unless `fused_share`
        says that not all of the batch is masked.
        """
        batch_size = len(batch.tokens_BT)
        both = self.clr is not None and (self.mlm is not None or self.mrm is not None)
        n = math.ceil(self.fused_share * batch_size) if both else batch_size
        part = batch.rows(slice(n))
        tokens_BT, in_text = part.tokens_BT, nothing_chosen(n, part.tokens_BT.device)
        if self.mlm is not None:
            tokens_BT, targets_BT, in_text = self.mlm.mask(tokens_BT, part.token_mask_BT, draws)
        hidden_BR, in_image = None, nothing_chosen(n, part.tokens_BT.device)
        if self.mrm is not None:
            predicted_BR, hidden_BR, in_image = self.mrm.mask(self.visual.mask(part), draws)
        regions = self.regions(part, hidden_BR)
        masked = self.network.streams(tokens_BT, part.token_mask_BT, regions)

        # Either all samples that the contrast reads are masked or none: with both kinds in a batch, a masked caption
        # could only belong to a masked picture (docs/tiny.md shows what that shortcut cost).
        contrasted, clean = masked, None
        if self.clr is not None and n < batch_size:
            clean = self.visual(batch)
            whole = with_global(clean, self.global_pooling, batch)
            contrasted = self.network.streams(batch.tokens_BT, batch.token_mask_BT, whole)

        # Losses are summed per sample: an objective that reads a share of the samples weighs that share.
        share = n / batch_size
        losses: dict[str, Tensor] = {}
        if self.mlm is not None or self.mrm is not None:
            read = (in_text.position_BK, in_image.position_BK + 1)  # the whole-image region stands first
            fused = self.network.fuse(
                masked.text.states_BND, part.token_mask_BT, masked.image.states_BND, regions.mask_BR, read
            )
        if self.mlm is not None:
            outputs_MD = fused.text_BTD.flatten(0, 1)[in_text.in_grid_M]
            targets_M = targets_BT.flatten()[in_text.in_batch_M]
            losses["loss_mlm"] = share * self.mlm(outputs_MD, targets_M, self.network.text_embedding.word.weight)
        if self.mrm is not None:
            target_BRD, moments, about = self.regression_target(part, None if clean is None else clean.features_BRD[:n])
            outputs_MD = fused.image_BRD.flatten(0, 1)[in_image.in_grid_M]
            targets_MD, predicted_M = (x.flatten(0, 1)[in_image.in_batch_M] for x in (target_BRD, predicted_BR))
            losses |= about | {"loss_mrm": share * self.mrm(outputs_MD, targets_MD, predicted_M, moments)}
        if self.clr is not None:
            losses["loss_clr"] = self.clr(contrasted.image.pooled_BD, contrasted.text.pooled_BD)
        return losses

    def embed(self, batch: ProductBatch) -> dict[str, Tensor]:
        regions = self.regions(batch)
        streams, fused = self.network(batch.tokens_BT, batch.token_mask_BT, regions)
        return retrieval_features(streams, fused, self.whiten(streams.by_name()), batch.token_mask_BT, regions.mask_BR)

    def unwhitened(self, batch: ProductBatch) -> dict[str, Tensor]:
        regions = self.regions(batch)
        return self.network.streams(batch.tokens_BT, batch.token_mask_BT, regions).by_name()
