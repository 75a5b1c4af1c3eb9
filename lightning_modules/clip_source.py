"""What open_clip knows of an architecture: configuration, preprocessing, tokenizer and weights."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from datamodules.batch import InputSpec
from lightning_modules.clip_architectures import ARCHITECTURES
from lightning_modules.errors import ModelError
from lightning_modules.weights_file import reason_of


class Architecture(NamedTuple):
    """An architecture and what goes with it."""

    name: str
    config: dict[str, Any]  # open_clip's model configuration
    preprocessing: dict[str, Any]  # open_clip's PreprocessCfg
    from_open_clip: bool  # a name of open_clip's, so that it knows tokenizer and tags

    @property
    def as_json(self) -> dict[str, Any]:
        """As an `open_clip_config.json` says it."""
        return {"model_cfg": deepcopy(self.config), "preprocess_cfg": deepcopy(self.preprocessing)}


def read_architecture(architecture: str | dict[str, Any], pretrained: str | None) -> Architecture:
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
    return Architecture(name, config, preprocessing, not own)


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


def build_towers(name: str, config: dict[str, Any]) -> nn.Module:
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


def input_spec_of(source: Architecture, network: Any, tokenizer: str | None, resize: str | None) -> InputSpec:
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


def load_towers(network: Any, source: Architecture, pretrained: str) -> tuple[Tensor, Tensor | None]:
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
            f"model.pretrained {file}: not a checkpoint of architecture {source.name} ({_why(error)}). Name the "
            "architecture it was trained with (model.architecture)"
        ) from None
    finally:
        del network.logit_scale, network.logit_bias
    return scale, bias if bias.item() else None  # open_clip puts 0 where there is none


def word_embedding(network: Any) -> nn.Embedding:
    """The table that the text tower looks its tokens up in."""
    text = getattr(network, "text", network)  # a tower of its own, or all in one piece
    return text.token_embedding if hasattr(text, "token_embedding") else text.transformer.get_input_embeddings()


def _file_of(architecture: str, pretrained: str) -> str:
    import open_clip

    if Path(pretrained).is_file():
        return pretrained
    tag = open_clip.get_pretrained_cfg(architecture, pretrained)
    if not tag:
        raise ModelError(f"model.pretrained {pretrained}: no such file")
    try:
        with _without_retries_told():
            return str(open_clip.download_pretrained(tag))
    except Exception as error:  # no network, no such file any more, a full disk: one remedy
        where = tag.get("url") or f"https://huggingface.co/{tag.get('hf_hub', '').strip('/')}"
        raise ModelError(
            f"model.pretrained {pretrained!r}: the weights of {architecture} are not on this machine and could not be "
            f"fetched ({_said(error)}). Download them elsewhere ({where}) and give the file's path: "
            f"--model.pretrained=path/to/file{_with_activation(architecture, tag)}"
        ) from None


def _with_activation(architecture: str, tag: dict[str, Any]) -> str:
    """What to add for a file, which does not say that its weights were trained with QuickGELU, as their tag does."""
    import open_clip

    named = f"{architecture}-quickgelu"
    needed = tag.get("quick_gelu", False) and not open_clip.get_model_config(architecture).get("quick_gelu", False)
    return f" --model.architecture={named}" if needed and named in open_clip.list_models() else ""


@contextmanager
def _without_retries_told() -> Iterator[None]:
    """A hub that cannot be reached is told once, by whoever catches it, and not at each of its attempts."""
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)
    try:
        yield
    finally:
        hub.setLevel(level)


def _near(name: str, known: Any, all_if_none: bool = False) -> str:
    near = get_close_matches(name, sorted(known), 5, 0.4)
    return ", ".join(near or (sorted(known) if all_if_none else ["none (open_clip.list_models() lists them)"]))


def _why(error: Exception) -> str:
    return reason_of(error) if isinstance(error, pickle.UnpicklingError) else _said(error)


def _said(error: Exception) -> str:
    """The first telling line of a long message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        lines = lines[1:]
    return (lines or [type(error).__name__])[0][:200]
