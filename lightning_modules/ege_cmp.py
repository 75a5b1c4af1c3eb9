"""EGE-CMP: CAPTURE with a third stream for the caption's entities, and a graph of entities that ranks their vectors.

Source: Dong et al., "Entity-Graph Enhanced Cross-Modal Pretraining for Instance-level Product Retrieval",
arXiv 2206.08842; sizes are those of the released configuration.

Differs:
    * The two ranking losses train the embedding layer (released: on detached vectors, so that they trained nothing, and
      with every entity of a caption given the vector of the last); see `objectives/node_ranking.py`.
    * The graph is sparse (released: N × N); see `entity_graph/`.
    * Masked regions are regressed to their features, once (released: label and target were exchanged, features cast to
      integers, and the loss added twice).
    * Retrieval features are computed without masks (released: with 15 % of tokens masked).
    * What stands under `Differs:` in `capture.py`.
"""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from datamodules.batch import InputSpec, ProductBatch
from lightning_modules.ege_features import CANDIDATES, ege_features, to_whiten
from lightning_modules.ege_network import (
    EntityStreamTransformer,
    Fusion,
    ThreeMasks,
    ThreeRead,
    ThreeStreams,
)
from lightning_modules.entity_graph.graph import EntityGraph
from lightning_modules.errors import ModelError
from lightning_modules.layers.embeddings import init_bert_style
from lightning_modules.layers.pooling import StreamPooling, weighted_sum
from lightning_modules.layers.regions import GlobalPooling, Regions, with_global
from lightning_modules.objectives.chosen import Chosen, nothing_chosen
from lightning_modules.objectives.cross_modal_contrast import CrossModalContrast
from lightning_modules.objectives.draws import Draws
from lightning_modules.objectives.masked_language_modelling import MaskedLanguageModelling, MaskedTokens
from lightning_modules.objectives.masked_region_modelling import MaskedRegionModelling
from lightning_modules.objectives.node_ranking import NodeRanking
from lightning_modules.objectives.related_entities import Negatives
from lightning_modules.objectives.subgraph_ranking import SubgraphRanking
from lightning_modules.official_weights import capture_arguments, load_translated, translate
from lightning_modules.region_text_module import RegionTextModule
from lightning_modules.retrieval_module import check_objectives
from lightning_modules.stream_features import MODALITIES, stream_whitening

MASKED = ("mlm", "mlm_entity", "mrm")
OBJECTIVES = (*MASKED, "clr", "node", "subgraph")


class EGECMP(RegionTextModule):
    """The published model; constructor defaults are the released setting.

    Args:
        objectives: Any subset of mlm, mlm_entity (of the entity stream), mrm, clr, node, subgraph; one left out has no
            parameters, and without the last two there is no graph.
        num_entities, entity_length: Most entities per caption, and tokens of their stream: [CLS] e1 [SEP] e2 [SEP] ...
        fusion: What the entities meet first, and what then reads them into the third stream: the "text" (released), or
            the "image" in its place (`EntityStreamTransformer` says how).
        temperature: τ of the contrast, which is the sum of image against text and image against entities.
        graph_method: How similar two entities are: "adagae", learned by an adaptive graph auto-encoder (published), or
            the "cosine" of their embedding-layer vectors.
        graph_rounds, graph_steps: Of the auto-encoder at each rebuilding.
        graph_margin: By which unrelated entities must lie farther than related ones.
        graph_negatives: Whether unrelated entities come from the "batch" (of all ranks, released) or the "table".
        ranked_entities: Most entities per sample that each ranking loss reads, on average over the batch; where more
            have a positive, a random choice of these (released: all). Each costs 13 embedded entities, which on a GPU
            is most of what the graph adds to a step.
        retrieval_feature: See `candidate_features`; the authors' is "concat_co", [v ; t].
        fused_share: Share of each batch of which a masked copy goes through cross layers and co-transformer, which only
            the masked objectives need. Otherwise as CAPTURE's.
        tokenizer and all others: As CAPTURE's.
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
        num_entities: int = 15,
        entity_length: int = 36,
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
        fusion: Fusion = "text",
        text_pooling: StreamPooling = "first",
        image_pooling: StreamPooling = "first",
        global_pooling: GlobalPooling = "mean",
        region_norm: bool = True,
        temperature: float = 0.07,
        mlm_prob: float = 0.15,
        mrm_prob: float = 0.15,
        graph_method: Literal["adagae", "cosine"] = "adagae",
        graph_rounds: int = 10,
        graph_steps: int = 50,
        graph_margin: float = 0.2,
        graph_negatives: Negatives = "batch",
        ranked_entities: int = 4,
        retrieval_feature: str = "concat_co",
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
            num_entities=num_entities,
            entity_length=entity_length,
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
        if num_entities < 1 or entity_length < 2:
            raise ModelError(
                f"model.num_entities {num_entities} must be at least 1 and model.entity_length {entity_length} at "
                "least 2 ([CLS] and [SEP]); a model without entities is CAPTURE (EXP=capture)"
            )
        if fusion not in ("text", "image"):
            raise ModelError(f"model.fusion {fusion!r} is unknown; known: text, image")
        self.fused_share = fused_share
        self.network = EntityStreamTransformer(
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
            fusion=fusion,
            text_pooling=text_pooling,
            image_pooling=image_pooling,
            region_norm=region_norm,
        )
        self.mlm = self.mlm_entity = self.mrm = self.clr = self.node = self.subgraph = self.graph = None
        tokens = (output_width, width, vocab_size, mask_token_id, mlm_prob)
        if "mlm" in objectives:
            self.mlm = MaskedLanguageModelling(*tokens)
            self.mlm.apply(partial(init_bert_style, std=init_std))
        if "mlm_entity" in objectives:
            self.mlm_entity = MaskedLanguageModelling(*tokens, shared=self.mlm)
            self.mlm_entity.apply(partial(init_bert_style, std=init_std))
        if "mrm" in objectives:
            self.mrm = MaskedRegionModelling(output_width, width, self.visual.region_width, mrm_prob)
            self.mrm.apply(partial(init_bert_style, std=init_std))
        if "clr" in objectives:
            self.clr = CrossModalContrast(temperature)
        if "node" in objectives:
            self.node = NodeRanking(graph_margin, graph_negatives, ranked_entities)
        if "subgraph" in objectives:
            self.subgraph = SubgraphRanking(graph_margin, graph_negatives, ranked_entities)
        ranks = self.node is not None or self.subgraph is not None
        if ranks:
            self.graph = EntityGraph(graph_method, graph_rounds, graph_steps)
        self.whitening_samples = whitening_samples
        if whitening_samples:
            for modality in (*MODALITIES, "entity"):
                self.whitening.update(stream_whitening(modality, width, output_width))
        self.compares_samples = self.clr is not None
        self.uses_in_batch_negatives = self.clr is not None or (ranks and graph_negatives == "batch")

    @classmethod
    def from_official(cls, state_dict: dict[str, Tensor], config: dict, cross_config: dict) -> EGECMP:
        """The model of a checkpoint made with the authors' released code, in eval mode.

        Its region decoder of width 1 is left out: ours, of the features' width, starts at zero. There is no graph in
        such a checkpoint.

        Args:
            state_dict: Their names and tensors.
            config, cross_config: Their two JSON configurations, for the head counts.

        Raises:
            ModelError: a key is unknown or missing, or sizes contradict each other; nothing is half-loaded.
        """
        ours, _ = translate(state_dict, entities=True)
        model = cls(**capture_arguments(ours, config, cross_config))
        own = model.state_dict()
        ours |= {name: value for name, value in own.items() if name.startswith("graph.")}
        for name in ("mrm.decoder.weight", "mrm.decoder.bias"):
            ours.setdefault(name, torch.zeros_like(own[name]))
        load_translated(model, ours)
        return model.eval()

    def node_features(self, tokens_ML: Tensor) -> Tensor:
        """vectors_MD of entities: the mean of what the embedding layer makes of their tokens, with gradient.

        Inputs:
            tokens_ML: int, without [CLS], with [SEP], padded with 0. They stand where they do in the entity stream of a
                caption whose only entity this is: behind [CLS].
        """
        real_ML = tokens_ML != 0
        weight_ML = real_ML / real_ML.sum(1, keepdim=True).clamp(min=1)
        return weighted_sum(self.network.text_embedding(tokens_ML.long(), first=1), weight_ML)

    def losses(self, batch: ProductBatch, draws: Draws) -> dict[str, Tensor]:
        """Mask all three inputs, run the network, and sum the objectives.

        The contrast is computed on the same inputs, masked as they are, as in the released code, unless `fused_share`
        says that not all of the batch is masked.
        """
        losses: dict[str, Tensor] = {}
        if self.clr is not None or self._masks:
            losses |= self._network_losses(batch, draws)
        for name, ranking in (("node", self.node), ("subgraph", self.subgraph)):
            if ranking is not None:
                losses |= self._ranking(name, ranking, batch, draws)
        return losses

    @property
    def _masks(self) -> bool:
        return not (self.mlm is None and self.mlm_entity is None and self.mrm is None)

    def _network_losses(self, batch: ProductBatch, draws: Draws) -> dict[str, Tensor]:
        batch_size = len(batch.tokens_BT)
        n = math.ceil(self.fused_share * batch_size) if self.clr is not None and self._masks else batch_size
        part = batch.rows(slice(n))
        entities = read_entities(part)
        text = _masked(self.mlm, part.tokens_BT, part.token_mask_BT, draws)
        entity = _masked(self.mlm_entity, entities.tokens_BT, entities.mask_BT, draws, separated=True)
        hidden_BR, in_image = None, nothing_chosen(n, part.tokens_BT.device)
        if self.mrm is not None:
            predicted_BR, hidden_BR, in_image = self.mrm.mask(self.visual.mask(part), draws)
        regions = self.regions(part, hidden_BR)
        masks = ThreeMasks(part.token_mask_BT, regions.mask_BR, entities.mask_BT)
        masked = self.network.streams(text.tokens_BT, masks.text_BT, regions, entity.tokens_BT, masks.entity_BT)

        # As in CAPTURE: either all samples that the contrast reads are masked or none.
        contrasted, clean = masked, None
        if n < batch_size:
            clean = self.visual(batch)
            contrasted = self._streams(batch, with_global(clean, self.global_pooling, batch))

        share = n / batch_size  # losses are summed per sample: one that reads a share of the samples weighs that share
        losses: dict[str, Tensor] = {}
        if self._masks:
            # The whole-image region stands first.
            read = ThreeRead(text.chosen.position_BK, in_image.position_BK + 1, entity.chosen.position_BK)
            fused = self.network.fuse(masked, masks, read)
        words_VD = self.network.text_embedding.word.weight
        if self.mlm is not None:
            losses["loss_mlm"] = share * self.mlm(*_predicted(fused.text_BTD, text), words_VD)
        if self.mlm_entity is not None:
            losses["loss_mlm_entity"] = share * self.mlm_entity(*_predicted(fused.entity_BTD, entity), words_VD)
        if self.mrm is not None:
            target_BRD, moments, about = self.regression_target(part, None if clean is None else clean.features_BRD[:n])
            outputs_MD = fused.image_BRD.flatten(0, 1)[in_image.in_grid_M]
            targets_MD, predicted_M = (x.flatten(0, 1)[in_image.in_batch_M] for x in (target_BRD, predicted_BR))
            losses |= about | {"loss_mrm": share * self.mrm(outputs_MD, targets_MD, predicted_M, moments)}
        if self.clr is not None:
            losses["loss_clr"] = self.contrast(contrasted)
        return losses

    def contrast(self, streams: ThreeStreams) -> Tensor:
        """Image against text plus image against entities."""
        assert self.clr is not None
        image_BD = streams.image.pooled_BD
        return self.clr(image_BD, streams.text.pooled_BD) + self.clr(image_BD, streams.entity.pooled_BD)

    def _ranking(
        self, name: str, ranking: NodeRanking | SubgraphRanking, batch: ProductBatch, draws: Draws
    ) -> dict[str, Tensor]:
        """A ranking loss, 0 until the graph is built, and the share of the batch's entities that it could rank."""
        graph, entities = self.graph, read_entities(batch)
        assert graph is not None
        if not graph.is_built:  # a gradient of 0 all the same: that is how what a loss trains is found
            nothing = 0 * self.node_features(entities.tokens_BT[:1, :1]).sum()
            return {f"loss_{name}": nothing, f"_{name}_share": nothing.detach()}

        def vectors(rows_M: Tensor) -> Tensor:
            return self.node_features(graph.tokens_NL[rows_M])

        loss, share = ranking(entities.rows_BE, graph.neighbours, vectors, draws)
        return {f"loss_{name}": loss, f"_{name}_share": share}

    def _streams(self, batch: ProductBatch, regions: Regions) -> ThreeStreams:
        entities = read_entities(batch)
        return self.network.streams(batch.tokens_BT, batch.token_mask_BT, regions, entities.tokens_BT, entities.mask_BT)

    def embed(self, batch: ProductBatch) -> dict[str, Tensor]:
        regions = self.regions(batch)
        streams = self._streams(batch, regions)
        masks = ThreeMasks(batch.token_mask_BT, regions.mask_BR, read_entities(batch).mask_BT)
        return ege_features(streams, self.network.fuse(streams, masks), self.whiten(to_whiten(streams)), masks)

    def unwhitened(self, batch: ProductBatch) -> dict[str, Tensor]:
        return to_whiten(self._streams(batch, self.regions(batch)))


class Entities(NamedTuple):
    """The entities of a batch's captions: their stream's tokens, which of these are real, and rows of the table."""

    tokens_BT: Tensor
    mask_BT: Tensor
    rows_BE: Tensor


def read_entities(batch: ProductBatch) -> Entities:
    """Those of a batch.

    Raises:
        ModelError: it holds none.
    """
    tokens_BT, mask_BT, rows_BE = batch.entity_tokens_BT, batch.entity_token_mask_BT, batch.entities_BE
    if tokens_BT is None or mask_BT is None or rows_BE is None:
        raise ModelError(
            "EGECMP reads the captions' entities, which this batch does not hold; add them to the shards with "
            "`python -m experiments data entities`"
        )
    return Entities(tokens_BT, mask_BT, rows_BE)


def _masked(
    mlm: MaskedLanguageModelling | None, tokens_BT: Tensor, mask_BT: Tensor, draws: Draws, separated: bool = False
) -> MaskedTokens:
    """Tokens with some replaced, or as they are without the objective."""
    if mlm is None:
        return MaskedTokens(tokens_BT, tokens_BT, nothing_chosen(len(tokens_BT), tokens_BT.device))
    return mlm.mask(tokens_BT, mask_BT, draws, separated)


def _predicted(outputs_BKD: Tensor, masked: MaskedTokens) -> tuple[Tensor, Tensor]:
    """The outputs at the chosen places, and the tokens to predict there."""
    where: Chosen = masked.chosen
    return outputs_BKD.flatten(0, 1)[where.in_grid_M], masked.targets_BT.flatten()[where.in_batch_M]
