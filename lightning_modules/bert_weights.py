"""Initialisation of a text stream from any Hugging Face BERT."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.errors import ModelError
from lightning_modules.layers.attention import PostNormLayer
from lightning_modules.layers.embeddings import TextEmbedding
from lightning_modules.objectives.masked_language_modelling import MaskedLanguageModelling
from lightning_modules.weights_file import reason_of


def read_bert(name: str) -> dict[str, Tensor]:
    """State dict of a BERT for pretraining, by name or local path, without `bert.` before encoder and embeddings."""
    from transformers import AutoModelForPreTraining  # slow to import, needed here only

    try:
        state = AutoModelForPreTraining.from_pretrained(name, trust_remote_code=False).state_dict()
    except Exception as error:  # network, cache, format, a pickle: many kinds, one remedy
        raise ModelError(
            f"text_weights {name!r} could not be loaded ({reason_of(error)}); give the folder of a "
            "downloaded BERT (config.json and its weights), or null to start from scratch"
        ) from None
    return {key.removeprefix("bert."): value for key, value in state.items()}


def start_text_tower(model: nn.Module, tower: tuple[str, str], mlm: MaskedLanguageModelling | None, name: str) -> None:
    """Fill a model's text embedding and layers, named by their paths, from a BERT, and its MLM head if it has one."""
    embedding, layers = (model.get_submodule(path) for path in tower)
    assert isinstance(embedding, TextEmbedding)
    assert isinstance(layers, nn.ModuleList)
    load_text_stream(read_bert(name), embedding, layers, mlm, name)


def load_text_stream(
    state: dict[str, Tensor],
    embedding: TextEmbedding,
    layers: nn.ModuleList,
    mlm: MaskedLanguageModelling | None,
    where: str,
) -> None:
    """Copy embeddings, the first `len(layers)` layers and, where the checkpoint has one, the MLM transform and bias.

    Source: CAPTURE's released scripts, whose text stream starts from bert-base-chinese.

    Raises:
        ModelError: a tensor is missing or has another shape; nothing is copied then.
    """
    copies: list[tuple[Tensor, str, Any]] = []

    def plan(target: nn.Module, names: dict[str, Any]) -> None:
        parameters = dict(target.named_parameters())
        copies.extend((parameters[ours], ours, theirs) for ours, theirs in names.items())

    plan(
        embedding,
        {
            "word.weight": "embeddings.word_embeddings.weight",
            "position.weight": "embeddings.position_embeddings.weight",
            "segment.weight": "embeddings.token_type_embeddings.weight",
            "norm.weight": "embeddings.LayerNorm.weight",
            "norm.bias": "embeddings.LayerNorm.bias",
        },
    )
    for number, layer in enumerate(layers):
        assert isinstance(layer, PostNormLayer)
        plan(layer, _layer_names(f"encoder.layer.{number}"))
    if mlm is not None and "cls.predictions.transform.dense.weight" in state:
        plan(
            mlm,
            {
                "transform.weight": "cls.predictions.transform.dense.weight",
                "transform.bias": "cls.predictions.transform.dense.bias",
                "norm.weight": "cls.predictions.transform.LayerNorm.weight",
                "norm.bias": "cls.predictions.transform.LayerNorm.bias",
                "bias": "cls.predictions.bias",
            },
        )
    values = [(target, _value(state, names, target, where)) for target, _, names in copies]
    with torch.no_grad():
        for target, value in values:
            target.copy_(value)


def _layer_names(stem: str) -> dict[str, Any]:
    pairs = {
        "out": "attention.output.dense",
        "norm": "attention.output.LayerNorm",
        "feed_forward.up": "intermediate.dense",
        "feed_forward.down": "output.dense",
        "feed_forward.norm": "output.LayerNorm",
    }
    names: dict[str, Any] = {
        f"{ours}.{leaf}": f"{stem}.{theirs}.{leaf}" for ours, theirs in pairs.items() for leaf in ("weight", "bias")
    }
    for leaf in ("weight", "bias"):  # one matrix for query, key and value
        names[f"query_key_value.{leaf}"] = [f"{stem}.attention.self.{x}.{leaf}" for x in ("query", "key", "value")]
    return names


def _value(state: dict[str, Tensor], names: str | list[str], target: Tensor, where: str) -> Tensor:
    parts = [names] if isinstance(names, str) else names
    missing = [name for name in parts if name not in state]
    if missing:
        raise ModelError(f"text_weights {where!r}: no tensor {missing[0]!r}; has it as many layers as text_layers?")
    value = torch.cat([state[name] for name in parts])
    if len(parts) == 1 and parts[0].endswith("position_embeddings.weight"):
        value = value[: len(target)]  # a shorter table is a prefix of the longer one
    if value.shape != target.shape:
        raise ModelError(
            f"text_weights {where!r}: {parts[0]!r} has shape {tuple(value.shape)}, the model's is "
            f"{tuple(target.shape)}; set width, text_ffn and vocab_size to the checkpoint's"
        )
    return value
