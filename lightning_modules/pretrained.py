"""Models as a folder of safetensors and JSON: nothing in it is ever unpickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lightning_modules.errors import ModelError

if TYPE_CHECKING:
    from lightning_modules.retrieval_module import RetrievalModule

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def save(model: RetrievalModule, folder: str | Path) -> None:
    """Write `model.safetensors` and `config.json` (class, constructor arguments, selected features)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "class": type(model).__name__,
        "arguments": dict(model.hparams),
        "selected_features": model.selected_features,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / WEIGHTS)


def load(model_class: type[RetrievalModule], folder: str | Path) -> RetrievalModule:
    """The model in eval mode.

    Raises:
        ModelError: a file is missing or unreadable, or the folder holds another class; nothing is half-loaded.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ModelError(f"{folder / name}: no such file; give a folder written by save_pretrained")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        state = load_file(folder / WEIGHTS)
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise ModelError(f"{folder}: unreadable ({error}); save the model again") from None
    if config.get("class") != model_class.__name__:
        raise ModelError(f"{folder} holds a {config.get('class')}, not a {model_class.__name__}")
    model = model_class(**config["arguments"])
    missing, unexpected = model.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise ModelError(f"{folder / WEIGHTS}: missing {missing[:3]}, unexpected {unexpected[:3]}")
    model.selected_features = dict(config["selected_features"])
    return model.eval()
