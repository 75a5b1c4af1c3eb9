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

import json
from copy import deepcopy
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from typing_extensions import Self

from datamodules.batch import InputSpec, ProductBatch
from lightning_modules.clip_architectures import ARCHITECTURES
from lightning_modules.errors import ModelError
from lightning_modules.objectives.draws import Draws
from lightning_modules.objectives.image_text_contrast import ImageTextContrast
from lightning_modules.objectives.pairwise_sigmoid import PairwiseSigmoid
from lightning_modules.retrieval_module import RetrievalModule, check_objectives

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
            and `concat_8to1` count the caption four or eight times, `mean` adds them.
        lr, weight_decay, warmup_fraction, betas, adam_eps: Tables 18 and 19 of the paper, ViT-B/32; 2,000 steps of
            warm-up in 32 epochs of 400 million pairs, 32,768 at a time.

    Raises:
        ModelError: unknown architecture, tag, objective or feature; weights that cannot be had or do not fit.
    """

    candidate_features = ("concat", "mean", "concat_4to1", "concat_8to1")
    modalities: ClassVar = {"image": ("image",), "text": ("text",)}
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
        source = _source(architecture, pretrained)
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
        self.network = _build(source.name, config)
        # Read off at its closing token, a causal tower has seen the whole text and no padding; others see padding too.
        causal = "hf_model_name" not in text and not text.get("no_causal_mask", False)
        self.ignores_padding = causal and text.get("pool_type", "argmax") in ("argmax", "eos")
        self.spec = _input_spec(source, self.network, tokenizer, resize)
        for name in ("mean", "std"):
            pixels = torch.tensor(source.preprocessing[name]).view(1, 3, 1, 1) * 255
            self.register_buffer(f"pixel_{name}", pixels, persistent=False)
        self.infonce = ImageTextContrast() if "infonce" in objectives else None
        self.sigmoid = PairwiseSigmoid() if "sigmoid" in objectives else None
        self.source = source
        self.missing_weights = pretrained  # what still has to be read
        self.register_load_state_dict_post_hook(_has_weights)
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
        scale, bias = _load(self.network, self.source, self.missing_weights)
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
        image_BD, text_BD = (F.normalize(x.float(), dim=-1) for x in self.towers(batch))
        return {
            "image": image_BD,
            "text": text_BD,
            "concat": torch.cat([image_BD, text_BD], -1),
            "concat_4to1": torch.cat([image_BD, 2 * text_BD], -1),
            "concat_8to1": torch.cat([image_BD, 8**0.5 * text_BD], -1),
            "mean": (image_BD + text_BD) / 2,
        }


class _Source(NamedTuple):
    """An architecture and what goes with it."""

    name: str
    config: dict[str, Any]  # open_clip's model configuration
    preprocessing: dict[str, Any]  # open_clip's PreprocessCfg
    from_open_clip: bool  # a name of open_clip's, so that it knows tokenizer and tags

    @property
    def as_json(self) -> dict[str, Any]:
        """As an `open_clip_config.json` says it."""
        return {"model_cfg": deepcopy(self.config), "preprocess_cfg": deepcopy(self.preprocessing)}


def _source(architecture: str | dict[str, Any], pretrained: str | None) -> _Source:
    import open_clip
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    preprocessing: dict[str, Any] = asdict(PreprocessCfg())
    if isinstance(architecture, str) and not architecture.endswith(".json"):
        known = {*ARCHITECTURES, *open_clip.list_models()}
        if architecture not in known:
            raise ModelError(f"model.architecture {architecture!r} is unknown; near: {_near(architecture, known)}")
        own = architecture in ARCHITECTURES
        config = deepcopy(ARCHITECTURES[architecture]) if own else open_clip.get_model_config(architecture)
        name = architecture
        if pretrained:
            _check_pretrained(architecture, pretrained)
            tag = open_clip.get_pretrained_cfg(architecture, pretrained)
            if tag:
                config["quick_gelu"] = config.get("quick_gelu", False) or tag.get("quick_gelu", False)
            preprocessing = merge_preprocess_dict(preprocessing, tag or _preprocessing_of_all_tags(architecture))
    else:
        name = architecture if isinstance(architecture, str) else "of model.architecture"
        content = _read_json(architecture) if isinstance(architecture, str) else deepcopy(architecture)
        config = content.get("model_cfg", content)
        preprocessing = merge_preprocess_dict(preprocessing, content.get("preprocess_cfg") or {})
        own = True
    missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(config)
    if missing:
        raise ModelError(f"architecture {name}: no {', '.join(sorted(missing))}; see open_clip's model_configs")
    if "multimodal_cfg" in config:
        raise ModelError(f"architecture {name} is a CoCa, which has a decoder: choose a CLIP or SigLIP architecture")
    return _Source(name, config, preprocessing, not own)


def _check_pretrained(architecture: str, pretrained: str) -> None:
    """A tag of the architecture, or what can only be a file (whose presence matters when it is read)."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(architecture)
    path = Path(pretrained)
    if open_clip.is_pretrained_cfg(architecture, pretrained) or path.suffix or "/" in pretrained or path.is_file():
        return
    raise ModelError(
        f"model.pretrained {pretrained!r} is neither a file nor a tag of {architecture}; "
        + (f"tags: {_near(pretrained, tags, all_if_none=True)}" if tags else "open_clip has no weights for it")
    )


def _preprocessing_of_all_tags(architecture: str) -> dict[str, Any]:
    """How weights of this architecture want their pictures, where all known ones agree; else open_clip's default."""
    import open_clip

    keys = ("mean", "std", "interpolation", "resize_mode")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    found = [{key: open_clip.get_pretrained_cfg(architecture, tag).get(key) for key in keys} for tag in tags]
    return found[0] if found and all(one == found[0] for one in found) else {}


def _read_json(path: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"model.architecture {path}: no such file") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"model.architecture {path}: not readable as JSON ({error})") from None
    if not isinstance(content, dict):
        raise ModelError(f"model.architecture {path}: a JSON object is expected, as in open_clip's model_configs")
    return content


def _build(name: str, config: dict[str, Any]) -> nn.Module:
    """The towers with random weights; scale and bias belong to the objectives."""
    import open_clip

    config = deepcopy(config)
    if "timm_model_name" in config["vision_cfg"]:
        config["vision_cfg"]["timm_model_pretrained"] = False
    in_one_piece = not config.pop("custom_text", False)
    if "hf_model_name" in config["text_cfg"]:
        config["text_cfg"]["hf_model_pretrained"], in_one_piece = False, False
    try:
        network = (open_clip.CLIP if in_one_piece else open_clip.CustomTextCLIP)(**config)
    except Exception as error:  # whatever a tower objects to: a key, a size, a configuration it cannot fetch
        raise ModelError(f"architecture {name} cannot be built: {_said(error)}") from None
    del network.logit_scale, network.logit_bias
    return network


def _input_spec(source: _Source, network: Any, tokenizer: str | None, resize: str | None) -> InputSpec:
    text, size = source.config["text_cfg"], network.visual.image_size
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    if height != width:
        raise ModelError(
            f"architecture {source.name} takes pictures of {height}×{width} px; only squares are supported"
        )
    pool = text.get("pool_type", "argmax")
    if tokenizer is None:
        if not source.from_open_clip and text.get("hf_tokenizer_name"):
            raise ModelError(
                f"architecture {source.name} names the tokenizer {text['hf_tokenizer_name']}: give model.tokenizer, "
                "a Hugging Face name or folder, or open_clip:<architecture> of one that has the same"
            )
        tokenizer = f"open_clip:{source.name if source.from_open_clip else 'ViT-B-32'}"
    vocab_size = end_token_id = None
    if not source.from_open_clip or tokenizer != f"open_clip:{source.name}":  # else open_clip vouches for it
        vocab_size = network.vocab_size
        if "hf_model_name" not in text and pool in ("argmax", "eos"):
            end_token_id = text.get("eos_id", 2) if pool == "eos" else vocab_size - 1
    return InputSpec(
        tokenizer=tokenizer,
        text_length=text.get("context_length", 77),
        visual_input="grid",
        image_size_px=height,
        vocab_size=vocab_size,
        end_token_id=end_token_id,
        resize=resize or source.preprocessing["resize_mode"],
        interpolation=_interpolation(source.preprocessing["interpolation"]),
    )


def _interpolation(name: str) -> str:
    return name if name in ("bilinear", "bicubic") else "bicubic"  # "random" is of open_clip's training only


def _load(network: Any, source: _Source, pretrained: str) -> tuple[Tensor, Tensor | None]:
    """Fill the towers.

    Returns:
        The checkpoint's log scale, and its bias where it was trained by the sigmoid objective.
    """
    import open_clip

    file = _file_of(source.name, pretrained)
    # open_clip's reader expects a whole model; the loan ends below
    network.logit_scale, network.logit_bias = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
    try:
        open_clip.load_checkpoint(network, file)
        scale, bias = network.logit_scale.detach(), network.logit_bias.detach()
    except Exception as error:  # other names, other sizes, not a checkpoint at all
        raise ModelError(
            f"model.pretrained {file}: not a checkpoint of architecture {source.name} ({_said(error)}). Name the "
            "architecture it was trained with (model.architecture)"
        ) from None
    finally:
        del network.logit_scale, network.logit_bias
    return scale, bias if bias.item() else None  # open_clip puts 0 where there is none


def _file_of(architecture: str, pretrained: str) -> str:
    import open_clip

    if Path(pretrained).is_file():
        return pretrained
    tag = open_clip.get_pretrained_cfg(architecture, pretrained)
    if not tag:
        raise ModelError(f"model.pretrained {pretrained}: no such file")
    try:
        return str(open_clip.download_pretrained(tag))
    except Exception as error:  # no network, no such file any more, a full disk: one remedy
        where = tag.get("url") or f"https://huggingface.co/{tag.get('hf_hub', '').strip('/')}"
        raise ModelError(
            f"model.pretrained {pretrained!r}: the weights of {architecture} are not on this machine and could not be "
            f"fetched ({_said(error)}). Download them elsewhere ({where}) and give the file's path: "
            "--model.pretrained=path/to/file"
        ) from None


def _has_weights(module: nn.Module, incompatible_keys: Any) -> None:
    module.missing_weights = None  # type: ignore[assignment]


def _near(name: str, known: Any, all_if_none: bool = False) -> str:
    near = get_close_matches(name, sorted(known), 5, 0.4)
    return ", ".join(near or (sorted(known) if all_if_none else ["none (open_clip.list_models() lists them)"]))


def _said(error: Exception) -> str:
    """The first telling line of a long message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        lines = lines[1:]
    return (lines or [type(error).__name__])[0][:200]
