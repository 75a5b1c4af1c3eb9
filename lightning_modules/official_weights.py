"""Names of the authors' released state dicts, translated to ours.

Source: repositories zhanxlin/Product1M and Xiaodongsuper/Entity-Graph-Enhanced-…; in their cross layers suffix 1 is the
image role and suffix 2 the text role.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.errors import ModelError

# Present in released checkpoints and read by no forward pass, or tied to another weight.
UNUSED = re.compile(
    r"biOutput\.q_dense[12]\.|cross_encoder\.pooler\.|^cls\.predictions\.decoder\.weight$|embeddings\.position_ids$"
)
_REGION_DECODER = "cls.imagePredictions.decoder."

_SELF_LAYER = {
    "attention.self.query": "query_key_value[0]",
    "attention.self.key": "query_key_value[1]",
    "attention.self.value": "query_key_value[2]",
    "attention.output.dense": "out",
    "attention.output.LayerNorm": "norm",
    "intermediate.dense": "feed_forward.up",
    "output.dense": "feed_forward.down",
    "output.LayerNorm": "feed_forward.norm",
}
_CROSS_LAYER = {
    f"{theirs}{number}": f"{stream}_{ours}"
    for number, stream in ((1, "image"), (2, "text"))
    for theirs, ours in (
        ("biattention.query", "query_key_value[0]"),
        ("biattention.key", "query_key_value[1]"),
        ("biattention.value", "query_key_value[2]"),
        ("biOutput.dense", "out"),
        ("biOutput.LayerNorm", "norm"),
    )
} | {
    f"{letter}_{theirs}": f"{stream}_feed_forward.{ours}"
    for letter, stream in (("v", "image"), ("t", "text"))
    for theirs, ours in (("intermediate.dense", "up"), ("output.dense", "down"), ("output.LayerNorm", "norm"))
}
_CO_LAYER = {
    "attn.in_proj_": "query_key_value.",
    "attn.out_proj": "out",
    "ln_1": "attention_norm",
    "ln_2": "mlp_norm",
    "mlp.c_fc": "up",
    "mlp.c_proj": "down",
}
_STEMS = {
    "bert.encoder.layer": ("network.text_layers", _SELF_LAYER),
    "bert.encoder.v_layer": ("network.image_layers", _SELF_LAYER),
    "bert.encoder.c_layer": ("network.cross_layers", _CROSS_LAYER),
    "bert.cross_encoder.transformer.resblocks": ("network.co_layers", _CO_LAYER),
}
_SINGLE = {
    "bert.embeddings.word_embeddings": "network.text_embedding.word",
    "bert.embeddings.position_embeddings": "network.text_embedding.position",
    "bert.embeddings.token_type_embeddings": "network.text_embedding.segment",
    "bert.embeddings.LayerNorm": "network.text_embedding.norm",
    "bert.v_embeddings.image_embeddings": "network.region_embedding.feature",
    "bert.v_embeddings.image_location_embeddings": "network.region_embedding.box",
    "bert.v_embeddings.LayerNorm": "network.region_embedding.norm",
    "bert.encoder.t_pooler.dense": "network.text_pooler",
    "bert.encoder.v_pooler.dense": "network.image_pooler",
    "bert.cross_encoder.embeddings.position_embeddings": "network.co_position",
    "bert.t_fc.dense": "network.text_output",
    "bert.v_fc.dense": "network.image_output",
    "cls.t_fc": "mlm.back",
    "cls.predictions.transform.dense": "mlm.transform",
    "cls.predictions.transform.LayerNorm": "mlm.norm",
    "cls.predictions.bias": "mlm.bias",
    "cls.v_fc": "mrm.back",
    "cls.imagePredictions.transform.dense": "mrm.transform",
    "cls.imagePredictions.transform.LayerNorm": "mrm.norm",
    "cls.imagePredictions.decoder": "mrm.decoder",
}
# Only in EGE-CMP's.
_OF_ENTITIES = {
    "bert.entity_fc.dense": "network.guide_output",
    "cls.pv_fc": "mlm_entity.back",
}


def _rename(key: str, single: Mapping[str, str]) -> str | None:
    if key in single:  # a bare parameter
        return single[key]
    module, _, leaf = key.rpartition(".")
    if module in single:
        return f"{single[module]}.{leaf}"
    found = re.fullmatch(r"(.+?)\.(\d+)\.(.+)", key)
    if found and found[1] in _STEMS:
        stem, inner = _STEMS[found[1]]
        for theirs, ours in inner.items():
            rest = found[3].removeprefix(theirs)
            if rest != found[3] and (rest.startswith(".") or theirs.endswith("_")):
                return f"{stem}.{found[2]}.{ours}{rest}"
    return None


def official_name(name: str) -> str:
    """The released name of one of our weights, for messages; of a stacked query, key and value the first."""
    for theirs, ours in (_SINGLE | _OF_ENTITIES).items():
        if name == ours or name.startswith(f"{ours}."):
            return theirs + name[len(ours) :]
    for stem, (ours_stem, inner) in _STEMS.items():
        found = re.fullmatch(rf"{re.escape(ours_stem)}\.(\d+)\.(.+)", name)
        for theirs, ours in inner.items() if found else ():
            ours = ours.partition("[")[0]
            if found and found[2].startswith(ours):
                return f"{stem}.{found[1]}.{theirs}{found[2][len(ours) :]}"
    return name


def translate(state_dict: dict[str, Tensor], entities: bool = False) -> tuple[dict[str, Tensor], list[str]]:
    """Our names and tensors for a released state dict, and the keys it holds that nothing reads.

    Query, key and value matrices become one (rows in this order). Prefix `module.` of DataParallel is removed.

    Args:
        entities: The state dict is EGE-CMP's. Its region decoder may have been trained with a width of 1, that of the
            label where the feature was meant, and then decodes nothing: it is left out.

    Raises:
        ModelError: a key is neither known nor known to be unused.
    """
    names = _SINGLE | _OF_ENTITIES if entities else _SINGLE
    ours: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    ignored: list[str] = []
    for full_key, tensor in state_dict.items():
        key = full_key.removeprefix("module.")
        if UNUSED.search(key) or (entities and key.startswith(_REGION_DECODER) and len(tensor) == 1):
            ignored.append(key)
            continue
        name = _rename(key, names)
        if name is None:
            raise ModelError(f"official checkpoint: key {full_key!r} belongs to no part of this model")
        stacked = re.search(r"\[(\d)\]", name)
        if stacked:
            parts.setdefault(name.replace(stacked[0], ""), {})[int(stacked[1])] = tensor
        else:
            ours[name] = tensor
    for name, three in parts.items():
        if sorted(three) != [0, 1, 2]:
            raise ModelError(f"official checkpoint: query, key or value of {name!r} is missing")
        ours[name] = torch.cat([three[i] for i in range(3)])
    return ours, ignored


def capture_arguments(state: dict[str, Tensor], config: dict[str, Any], cross_config: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments of CAPTURE, or of EGE-CMP, for a translated state dict.

    Sizes come from the tensors, since the configurations state some wrongly (`v_target_size`) and ignore others
    (`cross_config.num_hidden_layers`); only head counts, which no tensor shows, come from the configurations.
    """

    def tensor(key: str) -> Tensor:
        if key not in state:
            raise ModelError(f"official checkpoint: key {official_name(key)!r} is missing")
        return state[key]

    def depth(stem: str) -> int:
        found = {int(key[len(stem) + 1 :].split(".")[0]) for key in state if key.startswith(stem + ".")}
        return max(found, default=-1) + 1

    def rows(key: str, otherwise: int) -> int:
        return state[key].shape[0] if key in state else otherwise

    vocab_size, width = tensor("network.text_embedding.word.weight").shape
    return {
        "vocab_size": vocab_size,
        "region_width": tensor("network.region_embedding.feature.weight").shape[1],
        "width": width,
        "output_width": tensor("network.text_pooler.weight").shape[0],
        "max_positions": tensor("network.text_embedding.position.weight").shape[0],
        "text_layers": depth("network.text_layers"),
        "image_layers": depth("network.image_layers"),
        "cross_layers": depth("network.cross_layers"),
        "co_layers": depth("network.co_layers"),
        "text_ffn": rows("network.text_layers.0.feed_forward.up.weight", int(config["intermediate_size"])),
        "image_ffn": rows("network.image_layers.0.feed_forward.up.weight", int(config["v_intermediate_size"])),
        "cross_width": rows("network.cross_layers.0.image_query_key_value.weight", 3 * int(config["bi_hidden_size"]))
        // 3,
        "text_heads": int(config["num_attention_heads"]),
        "image_heads": int(config["v_num_attention_heads"]),
        "cross_heads": int(config["bi_num_attention_heads"]),
        "co_heads": int(cross_config["num_attention_heads"]),
    }


def load_translated(model: nn.Module, ours: dict[str, Tensor]) -> None:
    """Fill a model of fitting size from a translated state dict.

    Raises:
        ModelError: a key is missing or unexpected; it is named as released.
    """
    missing, unexpected = model.load_state_dict(ours, strict=False)
    if missing or unexpected:
        names = [official_name(name) for name in (missing or unexpected)]
        raise ModelError(
            f"official checkpoint: {'missing' if missing else 'unexpected'} key {names[0]!r}"
            + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        )
