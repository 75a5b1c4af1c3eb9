"""CLIP: an image and a text tower trained by contrast alone, here open_clip's; the baseline that never fuses.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, arXiv
2103.00020; towers, weights, tokenizers and preprocessing are those of open_clip. The other objective is SigLIP's: Zhai
et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023, arXiv 2303.15343.

Differs:
    * The learning rate decays linearly instead of along a cosine.
    * Pictures are resized by torch's antialiased kernel (8 bits, as Pillow's), and JPEGs much larger than needed are
      decoded at a fraction of their size; margins of `resize: longest` are white. A picture that is more than four
      times longer than wide is cut to that before the crop. Training crops are the paper's (random along the longer
      side), not open_clip's RandomResizedCrop.
    * The product embedding has both modalities; the paper retrieves one by the other.
    * Released ResNet towers keep the statistics of their batch norms: a picture does not depend on its company, nor the
      loss on the number of processes. (From scratch they do: train those with `trainer.sync_batchnorm`.)
    * Weights named by a tag get the activation they were trained with (QuickGELU for OpenAI's), also where the
      architecture's name does not say so; open_clip only warns. For a file, name the architecture that has it
      (`ViT-B-32-quickgelu`).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from typing_extensions import Self

from datamodules.batch import InputSpec, ProductBatch
from lightning_modules.clip_source import build_towers, input_spec_of, load_towers, read_architecture, word_embedding
from lightning_modules.errors import ModelError
from lightning_modules.layers.pooling import masked_mean
from lightning_modules.layers.whitening import Whitening
from lightning_modules.objectives.draws import Draws
from lightning_modules.objectives.image_text_contrast import ImageTextContrast
from lightning_modules.objectives.pairwise_sigmoid import PairwiseSigmoid
from lightning_modules.retrieval_module import RetrievalModule, check_objectives
from lightning_modules.stream_features import side_by_side

OBJECTIVES = ("infonce", "sigmoid")


class CLIP(RetrievalModule):
    """Two towers that meet only in the loss.

    Args:
        architecture: A name open_clip lists (`open_clip.list_models()`), `tiny` or `small` (ours, for training from
            scratch), or a JSON file in open_clip's form: a model configuration, or the `open_clip_config.json` that
            lies beside weights on the Hugging Face hub.
        pretrained: A tag open_clip knows for the architecture, or a checkpoint file; None trains from scratch. Read
            when the model is first used, and not at all where a checkpoint of this project is loaded.
        objectives: Of `infonce` (CLIP's symmetric cross-entropy) and `sigmoid` (SigLIP's), summed.
        tokenizer: None for the one open_clip gives the architecture; else as `InputSpec` names it.
        vocab_size: Of another tokenizer; None = the architecture's.
        end_token_id: The closing token of another tokenizer, at which the text is read off. None = as the architecture
            does, which for CLIP is the largest id of the caption.
        text_length, image_size_px: None = the architecture's; position embeddings of weights are interpolated.
        resize: Which side of a picture fills the square (`InputSpec.resize`); None = as the weights were trained.
        retrieval_feature: `concat` puts both unit vectors side by side (its cosine is the mean of both), `concat_4to1`
            and `concat_8to1` count the caption four or eight times, `mean` adds them. `bag_and_stream…` are as the
            other methods': the caption's bag (the mean of its word vectors beside the text tower's output) beside the
            image tower's output, whitened where `whitening_samples` says so.
        whitening_samples: As CAPTURE's.
        lr, weight_decay, warmup_fraction, betas, adam_eps: Tables 18 and 19 of the paper, ViT-B/32; 2,000 steps of
            warm-up in 32 epochs of 400 million pairs, 32,768 at a time.

    Raises:
        ModelError: unknown architecture, tag, objective or feature; weights that cannot be had or do not fit.
    """

    candidate_features = (
        "concat",
        "mean",
        "concat_4to1",
        "concat_8to1",
        "bag_and_stream",
        "bag_and_stream_4to1",
        "bag_and_stream_8to1",
    )
    modalities: ClassVar = {
        "image": ("image_stream", "image_whitened"),
        "text": ("text_stream", "text_whitened", "text_bag"),
    }
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        architecture: str | dict[str, Any] = "ViT-B-32",
        pretrained: str | None = "openai",
        objectives: list[str] = ["infonce"],  # noqa: B006  (read only; jsonargparse shows it as the default)
        tokenizer: str | None = None,
        vocab_size: int | None = None,
        end_token_id: int | None = None,
        text_length: int | None = None,
        image_size_px: int | None = None,
        resize: Literal["longest", "shortest", "squash"] | None = None,
        retrieval_feature: str = "concat",
        whitening_samples: int = 0,
        lr: float = 5e-4,
        weight_decay: float = 0.2,
        warmup_fraction: float = 0.005,
        pretrained_lr_scale: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.98),
        adam_eps: float = 1e-6,
    ) -> None:
        super().__init__(retrieval_feature, lr, weight_decay, warmup_fraction, pretrained_lr_scale, betas, adam_eps)
        self.save_hyperparameters()
        check_objectives(objectives, OBJECTIVES)
        source = read_architecture(architecture, pretrained)
        if isinstance(architecture, str) and architecture.endswith(".json"):
            self.hparams["architecture"] = source.as_json  # a saved model needs no file beside it
        config, text = source.config, source.config["text_cfg"]
        if vocab_size is not None:
            text["vocab_size"] = vocab_size
        if end_token_id is not None:
            text |= {"pool_type": "eos", "eos_id": end_token_id}
        if text_length is not None:
            text["context_length"] = text_length
        if image_size_px is not None:
            config["vision_cfg"]["image_size"] = image_size_px
        self.network = build_towers(source.name, config)
        # Read off at its closing token, a causal tower has seen the whole text and no padding; others see padding too.
        causal = "hf_model_name" not in text and not text.get("no_causal_mask", False)
        self.ignores_padding = causal and text.get("pool_type", "argmax") in ("argmax", "eos")
        self.spec = input_spec_of(source, self.network, tokenizer, resize)
        for name in ("mean", "std"):
            pixels = torch.tensor(source.preprocessing[name]).view(1, 3, 1, 1) * 255
            self.register_buffer(f"pixel_{name}", pixels, persistent=False)
        self.whitening_samples = whitening_samples
        if whitening_samples:
            width = config["embed_dim"]
            self.whitening.update({name: Whitening(width, shrinkage=1.0) for name in ("pooled_text", "pooled_image")})
            self.whitening["words"] = Whitening(word_embedding(self.network).embedding_dim)
        self.infonce = ImageTextContrast() if "infonce" in objectives else None
        self.sigmoid = PairwiseSigmoid() if "sigmoid" in objectives else None
        self.source = source
        self.missing_weights = pretrained  # what still has to be read
        self.register_load_state_dict_post_hook(_has_weights)
        self.starts_trained = pretrained is not None
        if pretrained:
            self.pretrained_prefixes += ("network.",)
            self.train()

    def input_spec(self) -> InputSpec:
        return self.spec

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.pretrained_prefixes:
            for module in self.network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.load_weights()
        super().setup(stage)

    def load_weights(self) -> None:
        """Read the pretrained weights, once; nothing where a checkpoint has been loaded.

        Not in the constructor, so that a trained model can be loaded where its starting point is not at hand.
        """
        if self.missing_weights is None:
            return
        scale, bias = load_towers(self.network, self.source, self.missing_weights)
        self.missing_weights = None
        with torch.no_grad():  # an objective goes on with the scale of weights that were trained by it
            if self.infonce is not None and bias is None:
                self.infonce.log_scale.copy_(scale)
            if self.sigmoid is not None and bias is not None:
                self.sigmoid.log_scale.copy_(scale)
                self.sigmoid.bias.copy_(bias)

    def towers(self, batch: ProductBatch) -> tuple[Tensor, Tensor]:
        """Image_BD and text_BD, not normalised."""
        self.load_weights()
        if batch.images_B3HW is None:
            raise ModelError("CLIP needs pictures, which this batch does not hold")
        pixels_B3HW = (batch.images_B3HW.float() - self.pixel_mean) / self.pixel_std
        tokens_BT = batch.tokens_BT
        if self.ignores_padding:
            tokens_BT = tokens_BT * batch.token_mask_BT  # 0 is below every closing token
        network: Any = self.network
        return network.encode_image(pixels_B3HW), network.encode_text(tokens_BT)

    def losses(self, batch: ProductBatch, draws: Draws) -> dict[str, Tensor]:
        """Figure 3: both towers, then the objectives over the vectors of all ranks. Nothing is drawn."""
        image_BD, text_BD = self.towers(batch)
        losses: dict[str, Tensor] = {}
        for name, objective in (("infonce", self.infonce), ("sigmoid", self.sigmoid)):
            if objective is not None:
                losses[f"loss_{name}"] = objective(image_BD, text_BD)
                losses[f"_scale_{name}"] = objective.log_scale.detach().exp()
        return losses

    def embed(self, batch: ProductBatch) -> dict[str, Tensor]:
        vectors = self.unwhitened(batch)
        white = self.whiten(vectors)
        image_BD, text_BD = (F.normalize(vectors[name], dim=-1) for name in ("pooled_image", "pooled_text"))
        bag_BD = side_by_side(white["words"], white["pooled_text"])
        return {
            "image_stream": image_BD,
            "text_stream": text_BD,
            "image_whitened": white["pooled_image"],
            "text_whitened": white["pooled_text"],
            "text_bag": bag_BD,
            "concat": side_by_side(image_BD, text_BD),
            "concat_4to1": side_by_side(text_BD, image_BD, share=1 / 4),
            "concat_8to1": side_by_side(text_BD, image_BD, share=1 / 8),
            "mean": (image_BD + text_BD) / 2,
            "bag_and_stream": side_by_side(bag_BD, white["pooled_image"]),
            "bag_and_stream_4to1": side_by_side(bag_BD, white["pooled_image"], share=1 / 4),
            "bag_and_stream_8to1": side_by_side(bag_BD, white["pooled_image"], share=1 / 8),
        }

    def unwhitened(self, batch: ProductBatch) -> dict[str, Tensor]:
        image_BD, text_BD = (vectors_BD.float() for vectors_BD in self.towers(batch))
        words_BTD = word_embedding(self.network)(batch.tokens_BT)
        words_BD = masked_mean(words_BTD, batch.token_mask_BT).float()
        return {"words": words_BD, "pooled_text": text_BD, "pooled_image": image_BD}


def _has_weights(module: nn.Module, incompatible_keys: Any) -> None:
    module.missing_weights = None  # type: ignore[assignment]
