"""TextOnly: captions alone, the floor that every fused model must clear; a contrast of two dropout masks.

Source: unsupervised SimCSE, Gao et al., "SimCSE: Simple Contrastive Learning of Sentence Embeddings", EMNLP 2021, arXiv
2104.08821; the backbone is the text stream of the fused models, at the depth of BERT-base.

Differs:
    * The contrast is SimCLR's: 2B rows, each against all other 2B − 1 vectors. SimCSE's has B rows, a first view
      against the second views of all.
    * The pooled vector is the stream's own, ReLU of a linear layer, also in retrieval; SimCSE has a tanh layer of full
      width and leaves it out when it embeds. `text_bag` is what lies before it.
    * Captions of 36 tokens as for all methods here (32).
    * Negatives of the contrast are those of all ranks, with the true gradient.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from datamodules.batch import InputSpec, ProductBatch
from lightning_modules.bert_weights import start_text_tower
from lightning_modules.errors import ModelError
from lightning_modules.layers.attention import check_heads
from lightning_modules.layers.embeddings import TextEmbedding
from lightning_modules.layers.pooling import StreamPooling
from lightning_modules.objectives.cross_modal_contrast import CrossModalContrast
from lightning_modules.objectives.draws import Draws
from lightning_modules.retrieval_module import RetrievalModule, check_objectives
from lightning_modules.single_stream import SingleStream
from lightning_modules.stream_features import MODALITIES, by_name, modality_features, stream_whitening

OBJECTIVES = ("view",)


class TextOnly(RetrievalModule):
    """CAPTURE's text stream, trained without any picture; shards need to hold none.

    Args:
        objectives: ["view"]: each caption goes through the network twice, with other dropout masks, and the two vectors
            are each other's positive.
        tokenizer, vocab_size, text_length: As CAPTURE's.
        text_weights: A Hugging Face BERT (name or path) that embeddings and layers start from when training begins;
            SimCSE's default. None starts from scratch, which wants a higher `lr`.
        width, output_width, max_positions, text_layers, text_heads, text_ffn: BERT-base's sizes; width of the pooled
            vector.
        dropout: All that the two views of a caption differ in, hence not 0.
        init_std, text_pooling: As CAPTURE's; "first" is SimCSE's.
        temperature: τ of the contrast.
        retrieval_feature: "text_stream" is the contrasted vector; see `stream_features.py` for the others.
        whitening_samples: Training captions that the whitening is learned from; 0 leaves vectors as they are.
        lr, weight_decay, warmup_fraction: The released script's for BERT-base at batch 64: 3e-5 decaying linearly from
            the first step, no weight decay.
    """

    candidate_features = MODALITIES["text"]
    modalities: ClassVar = {"text": MODALITIES["text"]}

    def __init__(
        self,
        objectives: list[str] = ["view"],  # noqa: B006  (read only; jsonargparse shows it as the default)
        tokenizer: str = "bert-base-chinese",
        text_weights: str | None = None,
        vocab_size: int = 21128,
        text_length: int = 36,
        width: int = 768,
        output_width: int = 512,
        max_positions: int = 512,
        text_layers: int = 12,
        text_heads: int = 12,
        text_ffn: int = 3072,
        dropout: float = 0.1,
        init_std: float = 0.02,
        text_pooling: StreamPooling = "first",
        temperature: float = 0.05,
        retrieval_feature: str = "text_stream",
        whitening_samples: int = 0,
        lr: float = 3e-5,
        weight_decay: float = 0.0,
        warmup_fraction: float = 0.0,
        pretrained_lr_scale: float = 1.0,
    ) -> None:
        super().__init__(retrieval_feature, lr, weight_decay, warmup_fraction, pretrained_lr_scale)
        self.save_hyperparameters()
        check_objectives(objectives, OBJECTIVES)
        if not 0 < dropout < 1:
            raise ModelError(
                f"model.dropout {dropout} must lie between 0 and 1: the two views of a caption differ in nothing else "
                "(SimCSE takes 0.1)"
            )
        self.spec = InputSpec(tokenizer, text_length, "none", vocab_size=vocab_size)
        embedding = TextEmbedding(vocab_size, width, max_positions, dropout)
        check_heads(text_layers, text_heads=text_heads, width=width)
        self.network = SingleStream(
            embedding, width, output_width, text_layers, text_heads, text_ffn, dropout, text_pooling, init_std
        )
        self.view = CrossModalContrast(temperature)
        self.whitening_samples = whitening_samples
        if whitening_samples:
            self.whitening.update(stream_whitening("text", width, output_width))
        self.text_weights = text_weights
        if text_weights:
            self.pretrained_prefixes += ("network.embedding.", "network.layers.")

    def input_spec(self) -> InputSpec:
        return self.spec

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.text_weights:
            # Here and not in the constructor: a checkpoint that is loaded needs no BERT at hand.
            start_text_tower(self, ("network.embedding", "network.layers"), None, self.text_weights)
            self.text_weights = None  # a second fit goes on with what it has
        super().setup(stage)

    def losses(self, batch: ProductBatch, draws: Draws) -> dict[str, Tensor]:
        """§3: both views in one pass, in which every row has its own dropout masks. Nothing else is drawn."""
        mask_NT, tokens_NT = (torch.cat([x, x]) for x in (batch.token_mask_BT, batch.tokens_BT))  # N = 2B
        first_BD, second_BD = self.network(mask_NT, tokens_NT).pooled_BD.chunk(2)
        return {"loss_view": self.view(first_BD, second_BD)}

    def embed(self, batch: ProductBatch) -> dict[str, Tensor]:
        stream = self.network(batch.token_mask_BT, batch.tokens_BT)
        return modality_features("text", stream, self.whiten(by_name("text", stream)))

    def unwhitened(self, batch: ProductBatch) -> dict[str, Tensor]:
        return by_name("text", self.network(batch.token_mask_BT, batch.tokens_BT))
