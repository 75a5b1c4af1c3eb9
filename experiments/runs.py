"""A run owns one folder, and its name says what it is: runs/<experiment>-<data>-<seed>-<hash>/.

The hash covers what decides the numbers (model, objectives, optimiser, data options, shards), not how or where they
are computed (devices, workers, loggers, paths), so the same run asked for twice is found, not repeated.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from experiments import schema, tested_step
from experiments.config import HOME, Composition
from experiments.errors import UsageError, nearest

# Of the trainer only what changes the numbers; of the data everything but these.
TRAINER_KEYS = (
    "max_steps",
    "max_epochs",
    "max_time",
    "min_steps",
    "min_epochs",
    "limit_train_batches",
    "limit_val_batches",
    "limit_test_batches",
    "overfit_batches",
    "fast_dev_run",
    "check_val_every_n_epoch",
    "val_check_interval",
    "precision",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
)
NOT_IDENTITY = {"data": {"folder", "num_workers", "pin_memory", "eval_batch_size"}, "evaluation": {"backend"}}
# Sections that leave the numbers of a run that nothing happens to as they are.
NO_IDENTITY = ("speed", "non_finite", "ranks")
YOUNGER = ("checkpoint", "graph_refresh")  # part of the identity than some runs, whose ids must stay
SAME_FILE = "test-same"  # lists and per-query scores of the identical-product task, among a run's rankings


class RunFolder(NamedTuple):
    """Where a run's files are."""

    root: Path

    @property
    def run_id(self) -> str:
        return self.root.name

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.json"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def best(self) -> Path:
        return self.checkpoints / "best.ckpt"

    @property
    def last(self) -> Path:
        return self.checkpoints / "last.ckpt"

    @property
    def previous(self) -> Path:
        """The checkpoint before the last."""
        return self.checkpoints / "previous.ckpt"

    @property
    def rankings(self) -> Path:
        return self.root / "rankings"

    @property
    def non_finite(self) -> Path:
        """Steps whose loss or gradient was not finite, if there were any."""
        return self.root / "non_finite.jsonl"

    @property
    def graph(self) -> Path:
        """Without its ending: the picture is there as .png and .svg."""
        return self.root / "graph"

    @property
    def log(self) -> Path:
        return self.root / "log.txt"

    @property
    def history(self) -> Path:
        return self.root / "history.jsonl"

    def finished(self) -> dict[str, Any] | None:
        """The run's metrics if it ran to its end."""
        found = read_metrics(self) if self.metrics.is_file() else {}
        return found if "test" in found else None


def config_hash(composition: Composition, extra: dict[str, Any] | None = None) -> str:
    """16 hex characters over everything that decides a run's numbers, its seed and name apart."""
    config = composition.config
    identity: dict[str, Any] = {"data_hash": composition.data.data_hash, **(extra or {})}
    for section in ("model", "data"):
        class_path, arguments = config[section]["class_path"], config[section].get("init_args", {})
        arguments = {
            k: _content(v) for k, v in arguments.items() if k not in NOT_IDENTITY.get(section, set()) | {"seed"}
        }
        identity[section] = [class_path, schema.differing(arguments, class_path)]
        if section == "model" and "num_entities" in schema.signature(class_path):
            identity["entities"] = composition.data.entities_hash
        if section == "data" and composition.region_set_hash is not None:
            identity["region_set"] = composition.region_set_hash
    for section, class_path in composition.task.fixed_classes.items():
        values = {k: v for k, v in config.get(section, {}).items() if k not in NOT_IDENTITY.get(section, set())}
        if section == "trainer":
            values = {k: v for k, v in values.items() if k in TRAINER_KEYS}
        differing = schema.differing(values, class_path)
        if section == "checkpoint":
            differing = tested_step.choice(config, composition.task)
        if section in NO_IDENTITY or (section in YOUNGER and not differing):
            continue
        identity[section] = differing
    text = json.dumps(identity, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _content(value: Any) -> Any:
    """A tokenizer's folder counts by what is in it, not by where it lies."""
    file = Path(value) / "tokenizer.json" if isinstance(value, str) and "/" in value else None
    return hashlib.sha256(file.read_bytes()).hexdigest() if file and file.is_file() else value


def run_folder(composition: Composition, home: Path, extra: dict[str, Any] | None = None) -> RunFolder:
    """The folder a composed configuration belongs in; nothing is created."""
    data = re.sub(r"[^A-Za-z0-9_.]+", "_", composition.data.name)
    digest = config_hash(composition, extra)[:8]
    return RunFolder(home / f"{composition.experiment}-{data}-{composition.seed}-{digest}")


def open_run(path: str | Path) -> RunFolder:
    """An existing run folder.

    Raises:
        UsageError: If there is none at `path`, with the nearest name beside it.
    """
    root = Path(path)
    if not (root / "config.yaml").is_file():
        siblings = [p.parent.name for p in root.parent.glob("*/config.yaml")]
        what = "has no config.yaml, so it is no run folder" if root.is_dir() else "no such run folder"
        raise UsageError(f"{root}: {what}; {nearest(root.name, siblings)}")
    return RunFolder(root)


WRITTEN_AGAIN = "the command that made the run writes it again, a training from its last checkpoint"


def read_metrics(run: RunFolder) -> dict[str, Any]:
    """A run's metrics.json.

    Raises:
        UsageError: If it is missing or unreadable.
    """
    try:
        found = json.loads(run.metrics.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{run.metrics}: missing, the run did not finish; `make train` again continues it") from None
    except (ValueError, RecursionError) as problem:
        raise UsageError(f"{run.metrics}: not readable as JSON ({problem}); {WRITTEN_AGAIN}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{run.metrics}: not a JSON object; {WRITTEN_AGAIN}")
    return found


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an error.

    A reader sees the old file or the new one, and neither a full disk nor a loss of power leaves half of one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files nobody else may read
        _to_disk(temporary)  # a name can reach the disk before what it stands for
        os.replace(temporary, path)
        _to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file in one piece."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file in one piece."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def clear(run: RunFolder) -> None:
    """Delete a run folder to start it afresh."""
    shutil.rmtree(run.root, ignore_errors=True)


CODE_FOLDERS = ("lightning_modules", "datamodules", "experiments", "retrieval")
# As git's pathspecs. What a row of a table sets stands in its run's own configuration.
NOT_CODE = (":(exclude)*.md", ":(exclude)experiments/results", ":(exclude)experiments/ablations")


def git_state(here: Path = HOME.parent) -> dict[str, Any]:
    """Commit of the working tree at `here`, and whether the code differs from it; {"commit": None} where there is none.

    It differs if tracked files do, or if a model, an experiment or an overlay lies there that was never added.
    Documents, recorded results and tables do not count: no run reads them.
    """

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    status = git("status", "--porcelain", "--untracked-files=no", "--", ".", *NOT_CODE) if commit else None
    new = git("ls-files", "--others", "--exclude-standard", "--", *CODE_FOLDERS, *NOT_CODE) if commit else None
    added = [name for name in (new or "").splitlines() if name.strip('"').endswith((".py", ".yaml"))]
    return {"commit": commit, "dirty": bool(status or added)}
