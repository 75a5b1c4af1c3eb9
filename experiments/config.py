"""Three layers make a run: base.yaml, the experiment, overlays for data and scale; then the command line.

Plain YAML, merged key by key; lists replace. An overlay says how much, never which class: it may not hold a
`class_path`. base.yaml and overlays may carry `tasks: {<task>: {...}}` and `experiments: {<name>: {...}}`, of which the
part of the current experiment's task applies, and over it the experiment's own. Nothing here imports torch, so a wrong
name is answered at once.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from experiments import machine, schema
from experiments.data_folder import DataFolder, find_data
from experiments.errors import UsageError, nearest
from experiments.tasks import DEFAULT_TASK, Task, task_named, task_names

HOME = Path(__file__).parent
NOT_EXPERIMENTS = {"base"}


class Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-4 as a number (YAML 1.1 wants 1.0e-4)."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


class Composition(NamedTuple):
    """A composed configuration and where it came from."""

    config: dict[str, Any]  # sections as LightningCLI takes them
    experiment: str
    scale: str
    data: DataFolder
    layers: tuple[str, ...]
    task: Task

    @property
    def region_set_hash(self) -> str | None:
        """Of the region set that is read, which is no part of the data hash; None where none is named."""
        entry = self.data.region_set(self.config)
        return str(entry["hash"]) if entry else None

    @property
    def seed(self) -> int:
        return int(self.config["seed_everything"])


def experiments() -> dict[str, Path]:
    """Experiment names and files."""
    return {file.stem: file for file in sorted(HOME.glob("*.yaml")) if file.stem not in NOT_EXPERIMENTS}


def overlays(kind: str) -> dict[str, Path]:
    """Names and files of the overlays of one kind, `data` or `scale`."""
    return {file.stem: file for file in sorted((HOME / kind).glob("*.yaml"))}


def compose(experiment: str, data: str, scale: str, seed: int | None, overrides: Sequence[str]) -> Composition:
    """Merge the layers and the command line, fill in what the shard folder says, and check every key.

    Args:
        data: Name of a data set or path of a shard folder.
        overrides: Command-line words such as `--model.lr=5e-5`.

    Raises:
        UsageError: On an unknown name or key, a value of the wrong type, or an overlay that changes a class.
        DataError: If the shards are missing or unreadable.
    """
    file = experiment_file(experiment)
    scales = overlays("scale")
    if scale not in scales:
        raise UsageError(f"unknown scale {scale!r}: {nearest(scale, scales)}")
    own = _read(file)
    task = _task(own)
    config = merge(base(task.name), own)
    settings = parse_overrides(overrides, config)
    check_keys(_with_words(merge(config, settings)))  # before the data: a typo should not wait for shards to be built
    folder = find_data(data, overlays("data"))

    files = [HOME / "base.yaml", file, folder.overlay, scales[scale]]
    for overlay in files[2:]:
        config = merge(config, _overlay(overlay, experiment, task.name))
    config = merge(merge(config, {"trainer": machine.launched_settings()}), settings)
    if seed is not None:
        config["seed_everything"] = seed
    layers = tuple(str(file.relative_to(HOME.parent)) for file in files)
    return finish(config, experiment, scale, folder, layers)


def experiment_file(name: str) -> Path:
    """The file of an experiment.

    Raises:
        UsageError: If there is none of that name.
    """
    known = experiments()
    if name not in known:
        raise UsageError(f"unknown experiment {name!r}: {nearest(name, known)}")
    return known[name]


def classes_of(experiment: str) -> dict[str, str]:
    """The class behind each section of an experiment's configuration."""
    return _classes(_read(experiment_file(experiment)))


def _classes(config: dict[str, Any]) -> dict[str, str]:
    chosen = {section: (config.get(section) or {}).get("class_path") for section in ("model", "data")}
    return {section: path for section, path in chosen.items() if path} | _task(config).fixed_classes


def _task(config: dict[str, Any]) -> Task:
    """What a configuration is about; one that does not say is about retrieval."""
    return task_named(config.get("task", DEFAULT_TASK))


def base(task: str = DEFAULT_TASK) -> dict[str, Any]:
    """What every run of a task has in common."""
    file = HOME / "base.yaml"
    content = _read(file)
    return merge(content, _part(content, "tasks", task, task_names(), file))


def finish(
    config: dict[str, Any], experiment: str, scale: str, folder: DataFolder, layers: Sequence[str]
) -> Composition:
    """Fill in what follows from the rest (folder, seed, the shards' tokenizer), then check every key.

    Args:
        config: The merged sections; `task` beside them leaves it and is the composition's.
    """
    config = _with_words(config)
    config["data"].setdefault("init_args", {}).update(folder=str(folder.path), seed=config["seed_everything"])
    arguments = config["model"].setdefault("init_args", {})
    known = schema.signature(config["model"]["class_path"])
    tokenizer = arguments.get("tokenizer", known["tokenizer"].default if "tokenizer" in known else None)
    if tokenizer == "shards":
        arguments.update({key: value for key, value in folder.tokenizer_arguments().items() if key in known})
    check_keys(config)
    _take_region_width(config, folder)
    task = _task(config)
    config.pop("task", None)
    return Composition(config, experiment, scale, folder, tuple(layers), task)


def _take_region_width(config: dict[str, Any], folder: DataFolder) -> None:
    """The width of a region set's features, for a model that reads them and was not told another one.

    Raises:
        DataError: There is no such set.
    """
    entry = folder.region_set(config)
    known, arguments = schema.signature(config["model"]["class_path"]), config["model"]["init_args"]
    reads = arguments.get("visual_input", known["visual_input"].default if "visual_input" in known else None)
    if entry and "region_width" in known and reads == "regions":
        arguments.setdefault("region_width", int(entry["width"]))


def _with_words(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with `[true]` read as a word where words are meant; it is not changed itself."""
    config = dict(config)
    for section in ("model", "data"):
        chosen = config.get(section) or {}
        if chosen.get("class_path") and isinstance(chosen.get("init_args"), dict):
            config[section] = chosen | {"init_args": schema.as_words(chosen["init_args"], chosen["class_path"])}
    return config


def check_keys(config: dict[str, Any]) -> None:
    """Raise `UsageError` for the first key no class knows or value its type cannot hold."""
    task = _task(config)
    for section in ("model", "data"):
        if "class_path" not in (config.get(section) or {}):
            raise UsageError(f"no {section}.class_path: the experiment file must name the class")
    for section, values in config.items():
        if section == "task":
            continue
        if section not in task.sections:
            raise UsageError(f"unknown key {section}: {nearest(section, task.sections)}")
        if section == "seed_everything":
            if type(values) is not int or values < 0:
                raise UsageError(f"seed_everything expects an integer of 0 or more, got {values!r}")
        elif not isinstance(values, dict):
            raise UsageError(f"{section} expects keys below it, got {values!r}")
        elif section in task.fixed_classes:
            schema.check(section, values, task.fixed_classes[section])
        else:
            extra = set(values) - {"class_path", "init_args"}
            if extra:
                raise UsageError(f"unknown key {section}.{extra.pop()}: keys of the class go below init_args")
            schema.check(section, values.get("init_args", {}), values["class_path"])


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` over `below`: mappings key by key, everything else replaced. Neither input is changed."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = merge(under if isinstance(under, dict) else {}, value) if isinstance(value, dict) else value
    return merged


def parse_overrides(words: Sequence[str], config: dict[str, Any] | None = None) -> dict[str, Any]:
    """`--model.lr=5e-5 --trainer.devices 2` as a nested mapping; model.* and data.* go below init_args.

    Args:
        config: What the settings are for; it tells which section a name without one belongs in.
    """
    found: dict[str, Any] = {}
    words = list(words)
    while words:
        word = words.pop(0)
        key, equals, text = word.partition("=")
        if not key.startswith("--") or len(key) < 3:
            raise UsageError(f"unexpected argument {word!r}: settings look like --model.lr=5e-5")
        if not equals:
            if not words or words[0].startswith("--"):
                raise UsageError(f"{key} has no value: write {key}=VALUE")
            text = words.pop(0)
        found = merge(found, _nested(key[2:], _value(key, text), config or {}))
    return found


def _nested(key: str, value: Any, config: dict[str, Any]) -> dict[str, Any]:
    path = key.split(".")
    sections = _task(config).sections
    if key == "task":
        raise UsageError("--task: what an experiment is about stands in its file; choose another with --exp")
    if path[0] not in sections:
        homes = [f"--{name}.{key}" for name, known in _classes(config).items() if key in schema.signature(known)]
        if homes:
            raise UsageError(f"unknown key {key}: did you mean {' or '.join(homes)}?")
        raise UsageError(f"unknown key {key}: {nearest(path[0], [*sections, *OPTION_NAMES])}")
    if path[0] in ("model", "data"):
        if path[-1] == "class_path" or len(path) == 1:
            raise UsageError(f"{key} chooses a class: that is what an experiment file is for (--exp)")
        path = [path[0], "init_args", *(path[2:] if path[1] == "init_args" else path[1:])]
        if key in ("data.seed", "data.folder"):
            raise UsageError(f"--{key} follows from {'--seed' if path[-1] == 'seed' else '--data'}: set that instead")
    for name in reversed(path):
        value = {name: value}
    return value


OPTION_NAMES = ("exp", "data", "scale", "seed", "runs", "fresh", "config", "ckpt_path", "print_config", "name", "table")


def _value(key: str, text: str) -> Any:
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError:
        raise UsageError(f"{key}: {text!r} is not readable as a YAML value") from None


@functools.lru_cache(maxsize=64)  # a table composes the same files for each of its runs
def _parsed(text: str) -> Any:
    return yaml.load(text, Loader)


def _read(file: Path) -> dict[str, Any]:
    try:
        found = copy.deepcopy(_parsed(file.read_text(encoding="utf-8")))
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise UsageError(f"{file}{line}: not readable as YAML: {getattr(problem, 'problem', problem)}") from None
    if found is not None and not isinstance(found, dict):
        raise UsageError(f"{file}: expected a mapping of sections at the top level")
    return found or {}


def _overlay(file: Path, experiment: str, task: str = DEFAULT_TASK) -> dict[str, Any]:
    """An overlay's common keys, over them the task's part, over that the current experiment's."""
    content = _read(file)
    of_task = _part(content, "tasks", task, task_names(), file)
    of_experiment = _part(content, "experiments", experiment, experiments(), file)
    chosen = merge(merge(content, of_task), of_experiment)
    if "task" in chosen:
        raise UsageError(f"{file}: an overlay may not change the task: write an experiment file instead")
    path = _find_key(chosen, "class_path")
    if path:
        raise UsageError(f"{file}: an overlay may not change a class ({path}): write an experiment file instead")
    return chosen


def _part(content: dict[str, Any], kind: str, name: str, known: Iterable[str], file: Path) -> dict[str, Any]:
    """Take the parts by task or by experiment out of a file's content; the one of `name`."""
    parts = content.pop(kind, None) or {}
    unknown = sorted(set(parts) - set(known))
    if unknown:
        what = kind.removesuffix("s")
        raise UsageError(f"{file}: {kind}.{unknown[0]}: unknown {what}, {nearest(unknown[0], known)}")
    return parts.get(name) or {}


def _find_key(tree: Any, wanted: str) -> str | None:
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key == wanted:
                return wanted
            below = _find_key(value, wanted)
            if below:
                return f"{key}.{below}"
    return None


def dump(config: dict[str, Any]) -> str:
    """A configuration as YAML text."""
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=110)
