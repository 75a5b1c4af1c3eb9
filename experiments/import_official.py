"""A checkpoint of the authors' released code as a run folder, to be evaluated like any other run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from experiments.config import base, dump, merge
from experiments.errors import UsageError, nearest
from experiments.output import say
from experiments.runs import RunFolder, atomic, git_state, write_json, write_text

MODELS = {"capture": "lightning_modules.CAPTURE", "ege_cmp": "lightning_modules.EGECMP"}
NEEDED = {"capture": "region features", "ege_cmp": "region features and entities"}


def import_official(
    checkpoint: Path, config: Path, cross_config: Path, model: str, out: Path, command: str
) -> RunFolder:
    """Convert the checkpoint; the run folder has `steps: 0`, as nothing was trained here.

    Args:
        checkpoint: State dict in the authors' names: safetensors, or what torch.save wrote.
        config, cross_config: Their two JSON configurations.
        out: The run folder; must not exist or be empty.

    Raises:
        UsageError: a file is missing or unreadable, the model is unknown, `out` is taken, or the checkpoint does not
            fit: a key is missing or unknown, or sizes contradict each other. Nothing is written then.
    """
    if model not in MODELS:
        raise UsageError(f"--model {model!r} is unknown: {nearest(model, MODELS)}")
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"--out {out}: exists already; name another folder or delete it")
    configurations = [_json(path) for path in (config, cross_config)]
    state = _state_dict(checkpoint)

    import lightning_modules
    from lightning_modules.errors import ModelError
    from lightning_modules.official_weights import translate

    try:
        imported = getattr(lightning_modules, MODELS[model].rpartition(".")[2]).from_official(state, *configurations)
    except ModelError as problem:
        raise UsageError(f"{checkpoint}: {problem}; is it a checkpoint of --model {model}?") from None
    except KeyError as problem:
        raise UsageError(f"{config} and {cross_config} lack {problem}, which the head counts come from") from None
    run = RunFolder(out)
    _write(run, imported, model, command)
    ignored = sorted(
        {re.sub(r"\.\d+\.", ".*.", key).rsplit(".", 1)[0] for key in translate(state, entities=model == "ege_cmp")[1]}
    )
    say(f"{run.root}: {sum(p.numel() for p in imported.parameters()) / 1e6:.1f} million parameters, steps 0")
    say(f"ignored, as nothing is to be read from them: {', '.join(ignored) if ignored else 'nothing'}")
    say(f"next: make eval RUN={run.root} DATA=<a shard folder with {NEEDED[model]}>")
    return run


def _write(run: RunFolder, model: Any, name: str, command: str) -> None:
    import lightning
    import torch

    arguments = dict(model.hparams)
    with atomic(run.best) as temporary:
        content = {
            "state_dict": model.state_dict(),
            "hyper_parameters": arguments,
            "selected_features": dict(model.selected_features),
            "pytorch-lightning_version": lightning.__version__,
            "epoch": 0,
            "global_step": 0,
        }
        torch.save(content, temporary)
    about = {"experiment": name, "scale": "paper", "data": None, "data_hash": None, "layers": [command]}
    sections = {
        "model": {"class_path": MODELS[name], "init_args": arguments},
        "data": {"class_path": "datamodules.Product1M", "init_args": {"folder": "data/product1m"}},
        "trainer": {"max_steps": 0, "logger": False},
    }
    write_text(run.config, dump({"run": about, **merge(base(), sections)}))
    record = {"run_id": run.run_id, "experiment": name, "steps": 0, "command": command, "git": git_state()}
    write_json(run.metrics, record)  # no splits: it has not been evaluated on anything


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise UsageError(f"{path}: not readable as JSON ({problem})") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path}: expected a JSON object")
    return found


def _state_dict(path: Path) -> dict[str, Any]:
    """Tensors by name; nothing else in the file is ever unpickled."""
    if not path.is_file():
        raise UsageError(
            f"--checkpoint {path}: {'is a folder, give a file in it' if path.is_dir() else 'no such file'}"
        )
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # whatever bytes that are no checkpoint make the readers raise
        lines = re.sub(r"\x1b\[\d*m", "", str(problem)).strip().splitlines() or [type(problem).__name__]
        reason = lines[0].partition(". ")[0]
        raise UsageError(f"{path}: not a checkpoint of tensors only ({reason}); save its state_dict alone") from None
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise UsageError(f"{path}: expected a mapping of names to tensors; save its state_dict alone")
    return found
