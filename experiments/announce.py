"""What a run says before it starts: the layers it is made of, and every value that is not the published default."""

from __future__ import annotations

from typing import Any

from experiments import schema
from experiments.config import Composition
from experiments.runs import RunFolder


def announce(composition: Composition, run: RunFolder) -> str:
    """The layers and, per section, the final values that differ from the constructor's defaults."""
    lines = [
        f"run        {run.root}",
        f"layers     {' < '.join(composition.layers)} < command line",
        f"shards     {composition.data.path} (data hash {composition.data.data_hash}, {_counts(composition)})",
    ]
    fixed = composition.task.fixed_classes
    for section, content in composition.config.items():
        if section == "seed_everything":
            lines.append(f"seed       {content}")
            continue
        class_path = fixed.get(section) or content["class_path"]
        values = content if section in fixed else content.get("init_args", {})
        shown = [f"{key}={_short(value)}" for key, value in schema.differing(values, class_path).items()]
        if section not in fixed:
            shown.insert(0, class_path.rpartition(".")[2])
        if shown:
            lines.append(f"{section:<10} {' '.join(shown)}")
    return "\n".join(lines)


def _counts(composition: Composition) -> str:
    splits = composition.data.manifest["splits"]
    return ", ".join(f"{name} {entry['samples']}" for name, entry in splits.items())


def _short(value: Any) -> str:
    return str(value).replace(" ", "")
