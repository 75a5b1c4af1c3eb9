"""What a cluster wants to know of a job, from YAML files and the command line; checked before anything is submitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from experiments.errors import UsageError, nearest

LAUNCHERS = ("slurm", "local")


@dataclass(frozen=True)
class ClusterOptions:
    """Of one job, which is one run of a table. What is left out is the cluster's default.

    Args:
        time_min: Minutes after which a job is stopped and queued again to go on.
        nodes, tasks_per_node: A training process is started for each task, on each node.
        signal_delay_s: Seconds before the time limit at which a job is told to stop.
        max_requeues: How often a job may run into its time limit; preemption does not count.
        setup: Shell lines that a job begins with (modules, environment variables).
        srun_args: More words for srun.
        additional_parameters: Any other option of sbatch, by its name.
    """

    time_min: int | None = None
    nodes: int = 1
    tasks_per_node: int = 1
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    mem_gb: float | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    gres: str | None = None
    exclusive: bool | None = None
    signal_delay_s: int = 120
    max_requeues: int = 100
    setup: list[str] = field(default_factory=list)
    srun_args: list[str] = field(default_factory=list)
    additional_parameters: dict[str, Any] = field(default_factory=dict)

    def parameters(self, launcher: str, name: str, jobs: int) -> dict[str, Any]:
        """For `submitit.AutoExecutor.update_parameters`: what is set, those of one launcher by its name before theirs.

        Args:
            launcher: One of `LAUNCHERS`.
            name: Of the jobs, as the queue shows it.
            jobs: At work at the same time.
        """
        common = ["nodes", "tasks_per_node", "gpus_per_node", "cpus_per_task", "mem_gb"]
        slurm = ["partition", "account", "qos", "constraint", "exclude", "gres", "exclusive", "signal_delay_s"]
        slurm += ["setup", "srun_args", "additional_parameters"]
        wanted: dict[str, Any] = {"name": name, "timeout_min": self.time_min}
        wanted |= {key: getattr(self, key) for key in common}
        if launcher == "slurm":
            wanted |= {f"slurm_{key}": getattr(self, key) for key in slurm}
            wanted |= {"slurm_array_parallelism": jobs}
        else:
            wanted |= {"local_setup": self.setup}
        return {key: value for key, value in wanted.items() if value not in (None, [], {}) and value is not False}


_TYPES = get_type_hints(ClusterOptions)


def read_options(words: Sequence[str], launch: str) -> ClusterOptions:
    """Files and `key=value` settings in their order, later ones over earlier ones.

    Raises:
        UsageError: An unreadable file, an unknown key, a value of the wrong type or out of range, no time limit.
    """
    found: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if equals:
            found[key] = _checked(key, _yaml(text, f"--cluster {word}"), "--cluster")
            continue
        file = Path(word)
        if not file.is_file():
            raise UsageError(f"--cluster {word}: no such file, and no setting such as partition=gpu")
        content = _yaml(file.read_text(encoding="utf-8"), word)
        if not isinstance(content, dict):
            raise UsageError(f"{word}: expected a mapping such as partition: gpu")
        for key, value in content.items():
            found[str(key)] = _checked(str(key), value, word)
    options = ClusterOptions(**found)
    if options.time_min is None:
        raise UsageError(
            f"--launch {launch} wants a time limit: --cluster time_min=240, in minutes, or time_min in the file that "
            "--cluster names; a run that takes longer is queued again and goes on"
        )
    if options.signal_delay_s >= 60 * options.time_min:
        raise UsageError(
            f"cluster signal_delay_s={options.signal_delay_s} leaves nothing of time_min={options.time_min} "
            f"({60 * options.time_min} s): a job would be stopped as it starts"
        )
    return options


def _checked(key: str, value: Any, where: str) -> Any:
    """The value, if there is such a key and the value fits it."""
    if key not in _TYPES:
        hint = nearest(key, _TYPES)
        raise UsageError(f"{where}: unknown key {key!r}: {hint} (others of sbatch go below additional_parameters)")
    kind = _TYPES[key]
    if isinstance(kind, UnionType):  # with None, for what may be left out
        (kind,) = (choice for choice in get_args(kind) if choice is not type(None))
    plain = get_origin(kind) or kind
    fits = type(value) is plain or (plain is float and type(value) is int)
    if plain is str and type(value) in (int, float):
        value, fits = str(value), True  # partitions and accounts may be numbers
    if plain is list and fits:
        fits = all(isinstance(entry, str) for entry in value)
    if not fits:
        wanted = "list of lines" if plain is list else plain.__name__
        raise UsageError(f"{where}: {key} expects {wanted}, got {value!r}")
    least = 0 if key in ("gpus_per_node", "max_requeues") else 1
    if plain in (int, float) and value < least:
        raise UsageError(f"{where}: {key}={value}: should be at least {least}")
    return value


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise UsageError(f"{where}: not readable as YAML") from None
