"""The rows of a table: which configurations, read from a table's file or from run folders, and their finished runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from datamodules.errors import DataError
from experiments.config import HOME, Composition, Loader, compose
from experiments.errors import UsageError, nearest
from experiments.runs import RunFolder, open_run, read_metrics, run_folder
from experiments.scoreboard import COLUMNS, LEVEL_COLUMNS
from experiments.tasks import DEFAULT_TASK, task_of

KEYS = (
    "title",
    "experiment",
    "data",
    "scale",
    "seeds",
    "set",
    "base",
    "rows",
    "published_source",
    "costs",
    "blocks",
    "columns",
)
# In the identical-product task, which has cut-offs of its own, a query has one product: no mAR, no coverage.
COLUMN = re.compile(r"(mAP|mAR|Prec|coverage)@[1-9]\d*|same/(mAP|Prec)@(1|5|10)")
ROW_KEYS = ("label", "experiment", "data", "scale", "seeds", "set", "published", "own_feature", "feature")
RUNS = Path("runs")
DEFAULTS: dict[str, Any] = {"experiment": "capture", "scale": "tiny", "seeds": [0]}


class Choice(NamedTuple):
    """What a command says over a table's file; None: as the file has it."""

    data: str | None = None
    scale: str | None = None
    seeds: tuple[int, ...] | None = None
    rows: str | None = None  # labels with commas between, as typed: only these

    def for_all_rows(self) -> dict[str, Any]:
        """What is said of every row."""
        found = {"data": self.data, "scale": self.scale, "seeds": self.seeds}
        return {key: value for key, value in found.items() if value is not None}

    def words(self) -> dict[str, str]:
        """What is said, each as a command line has it."""
        found = {"data": self.data, "scale": self.scale, "seeds": self.seeds and ",".join(map(str, self.seeds))}
        return {key: value for key, value in {**found, "rows": self.rows}.items() if value}

    def __str__(self) -> str:
        return ", ".join(f"{key} {value}" for key, value in self.words().items())


AS_IN_FILE = Choice()


class TableFile(NamedTuple):
    """A table's file, and its rows with everything they have from the file's head and from the command filled in."""

    file: Path
    content: dict[str, Any]
    entries: list[dict[str, Any]]
    choice: Choice

    @property
    def title(self) -> str:
        """Of the file, with the data and the scale that its rows have in common, and with seeds that were chosen."""
        title = str(self.content.get("title", self.file.stem))
        common = [{str(entry[key]) for entry in self.entries} for key in ("data", "scale")]
        words = [Path(found.pop()).name for found in common if len(found) == 1]
        seeds = f" [seeds {', '.join(map(str, self.choice.seeds))}]" if self.choice.seeds else ""
        return (f"{title}: {', '.join(words)}" if words else title) + seeds


class Row(NamedTuple):
    """One configuration: its label and its runs, one per seed."""

    label: str
    runs: list[RunFolder]
    records: list[dict[str, Any]]
    missing: int = 0  # seeds asked for and not run to the end
    published: dict[str, float] | None = None  # metric -> the paper's number
    own_feature: str | None = None  # the candidate that is the paper's own retrieval feature
    feature: str | None = None  # the candidate whose numbers the row shows; None = the feature chosen on val
    entry: dict[str, Any] | None = None  # what the table's file says of it


class Plan(NamedTuple):
    """What a table shows."""

    rows: list[Row]
    title: str = ""
    base: Row | None = None  # the others are compared with it
    published_source: str | None = None
    costs: bool = False
    blocks: bool = True  # each row also beside its own floors
    columns: tuple[str, ...] = COLUMNS  # metrics shown


def group_runs(paths: list[Path]) -> Plan:
    """Runs that differ in their seed only are one row; where queries were read by instance, coverage is shown too."""
    groups: dict[tuple[str, ...], Row] = {}
    for path in paths:
        run = open_run(path)
        record = read_metrics(run)
        _check_task(record, path)
        key = tuple(str(record.get(name)) for name in ("experiment", "data", "scale", "config_hash"))
        row = groups.setdefault(key, Row(f"{key[0]} on {key[1]}, scale {key[2]}", [], []))
        if record["seed"] in [other["seed"] for other in row.records]:
            raise UsageError(f"{path}: seed {record['seed']} of {row.label} is given twice")
        row.runs.append(run)
        row.records.append(record)
    by_instance = any(record.get("instances") for row in groups.values() for record in row.records)
    return Plan(list(groups.values()), columns=LEVEL_COLUMNS if by_instance else COLUMNS)


def read_plan(name: str, choice: Choice = AS_IN_FILE, homes: Sequence[Path] = (RUNS,)) -> Plan:
    """A table's file and the finished runs of its rows.

    Args:
        choice: With some of its rows, of which the first is the base where the file's own is not among them.
        homes: Where run folders are; a run that has finished in several is taken from the first.

    Raises:
        UsageError: If there is no such table, or a key, base row, number or feature is wrong.
    """
    table = open_table(name, choice)
    content = table.content
    chosen = choose_rows(table, choice.rows)
    rows = [_find_runs(entry, table.file, homes) for entry in table.entries if str(entry["label"]) in chosen]
    labels, base = [row.label for row in rows], content.get("base")
    if base is not None and str(base) not in labels:
        base = labels[0]
    return Plan(
        rows,
        table.title,
        None if base is None else rows[labels.index(str(base))],
        content.get("published_source"),
        bool(content.get("costs", False)),
        bool(content.get("blocks", True)),
        tuple(content.get("columns", COLUMNS)),
    )


def table_files() -> dict[str, Path]:
    """Names and files of all tables."""
    return {file.stem: file for file in sorted((HOME / "ablations").glob("*.yaml"))}


def open_table(name: str, choice: Choice = AS_IN_FILE) -> TableFile:
    """The file of a table by its name.

    Raises:
        UsageError: If there is no such table, or its file is wrong as far as that can be told without its runs.
    """
    files = table_files()
    if name not in files:
        raise UsageError(f"unknown table {name!r}: {nearest(name, files)}")
    content = read_file(files[name])
    entries = [{**complete(content, entry), **choice.for_all_rows()} for entry in content["rows"]]
    for entry in entries:
        if "data" not in entry:
            raise UsageError(f"{files[name]}: {entry['label']}: no data: name it there or as DATA=<name> (--data)")
    return TableFile(files[name], content, entries, choice)


def choose_rows(table: TableFile, text: str | None) -> list[str]:
    """The labels that `a,b` names; None: all. A label may have commas itself.

    Raises:
        UsageError: If there is no such row.
    """
    known = [str(entry["label"]) for entry in table.entries]
    if text is None:
        return known
    chosen, words = [], text.split(",")
    while words:
        ends = [end for end in range(len(words), 0, -1) if ",".join(words[:end]).strip() in known]
        if not ends:
            raise UsageError(f"--rows: {table.file.stem} has no row {words[0].strip()!r}: {nearest(words[0], known)}")
        chosen.append(",".join(words[: ends[0]]).strip())
        words = words[ends[0] :]
    return chosen


def complete(content: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """A row with what its file says for all rows, their `set` taken together; the row's own comes on top."""
    return {**DEFAULTS, **content, **row, "set": {**(content.get("set") or {}), **(row.get("set") or {})}}


def row_settings(entry: dict[str, Any]) -> list[str]:
    """What a row sets, as words of a command line: `--model.lr=0.0005`."""
    settings = [
        f"--{key}={yaml.safe_dump(value, default_flow_style=True, width=10_000)}"
        for key, value in (entry.get("set") or {}).items()
    ]
    return [setting.removesuffix("\n").removesuffix("\n...") for setting in settings]


def compose_row(entry: dict[str, Any], seed: int) -> Composition:
    """The configuration of a row's run with one of its seeds.

    Raises:
        UsageError: On an unknown name or key, a value of the wrong type, or an experiment that no table shows.
    """
    words = row_settings(entry)
    composition = compose(str(entry["experiment"]), str(entry["data"]), str(entry["scale"]), seed, words)
    if composition.task.name != DEFAULT_TASK:
        raise UsageError(
            f"{entry['experiment']}: {composition.task.name} has no retrieval metrics, so no table shows it"
        )
    return composition


def parse_seeds(text: str | None) -> tuple[int, ...] | None:
    """`0,1,2` as a command line has it; None where it says nothing.

    Raises:
        UsageError: If a word is no number of 0 or more, or comes twice.
    """
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if not (word.isascii() and word.isdigit()):
            raise UsageError(f"--seeds {text}: {word!r} is no seed: write numbers of 0 or more, as in 0,1,2")
    seeds = tuple(map(int, words))
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds {text}: a seed is given twice")
    return seeds


def read_file(file: Path) -> dict[str, Any]:
    """The content of a table's file, checked as far as it can be without its runs."""
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader)
    except yaml.YAMLError as problem:
        raise UsageError(f"{file}: not readable as YAML: {' '.join(str(problem).split())}") from None
    _check_keys(content, KEYS, file)
    if not isinstance(content.get("rows") or [], list):
        raise UsageError(f"{file}: rows: expected a list of rows such as {{label: all}}, got {content['rows']!r}")
    for entry in content.get("rows") or []:
        _check_keys(entry, ROW_KEYS, file)
        if "label" not in entry:
            raise UsageError(f"{file}: a row has no label: {entry}")
        _check_run(entry, file, f"{entry['label']}: ")
        _check_published(entry, content, file)
    _check_run(content, file)
    _check_columns(content.get("columns", list(COLUMNS)), file)
    labels, base = [str(entry["label"]) for entry in content.get("rows") or []], content.get("base")
    if not labels:
        raise UsageError(f"{file}: rows: wants at least one row")
    twice = [label for label in labels if labels.count(label) > 1]
    if twice:
        raise UsageError(f"{file}: two rows are called {twice[0]!r}: rows are told by their labels")
    if base is not None and str(base) not in labels:
        raise UsageError(f"{file}: base {base!r} is no row: {nearest(str(base), labels)}")
    compared = [key for key in ("costs", "published_source") if content.get(key)]
    compared += [] if content.get("blocks", True) else ["blocks: false"]
    for key in ("own_feature", "feature"):
        compared += [key] if any(entry.get(key) for entry in content["rows"]) else []
    if base is None and compared:
        raise UsageError(f"{file}: {compared[0]} wants a base row, with which the rows are compared: base: {labels[0]}")
    if content.get("blocks", True) and any(entry.get("feature") for entry in content["rows"]):
        raise UsageError(f"{file}: rows with a feature share the floors of their run: blocks: false")
    return dict(content)


def _check_keys(content: Any, known: tuple[str, ...], file: Path) -> None:
    if not isinstance(content, dict):
        raise UsageError(f"{file}: expected a mapping with {', '.join(known)}")
    for key in content:
        if key not in known:
            raise UsageError(f"{file}: unknown key {key}: {nearest(str(key), known)}")


def _check_run(part: dict[str, Any], file: Path, where: str = "") -> None:
    """Seeds and settings, of a row or of the file's head."""
    seeds = part.get("seeds", [0])
    numbers = isinstance(seeds, list) and seeds and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not numbers or len(set(seeds)) < len(seeds):
        raise UsageError(f"{file}: {where}seeds: expected a list of different numbers of 0 or more, got {seeds!r}")
    settings = part.get("set") or {}
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise UsageError(f"{file}: {where}set: expected keys and values such as {{model.lr: 5.0e-5}}, got {settings!r}")


def _check_columns(columns: Any, file: Path) -> None:
    """A misspelt metric would be a column of dashes, which reads as missing runs."""
    wanted = "a list of metrics such as mAP@10, mAR@10, coverage@10 or same/mAP@10"
    if not isinstance(columns, list) or not columns or len(set(map(str, columns))) < len(columns):
        raise UsageError(f"{file}: columns: expected {wanted}, each once; got {columns!r}")
    for column in columns:
        if not COLUMN.fullmatch(str(column)):
            raise UsageError(f"{file}: columns: {column!r} is no metric: expected {wanted}")


def _check_published(entry: dict[str, Any], content: dict[str, Any], file: Path) -> None:
    published = entry.get("published", {})
    for key, value in published.items() if isinstance(published, dict) else [("published", published)]:
        if not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise UsageError(f"{file}: {entry['label']}: published {key} must be a fraction, got {value!r}")
    if published and not content.get("published_source"):
        raise UsageError(f"{file}: published numbers want a published_source that says where they stand")


def _find_runs(entry: dict[str, Any], file: Path, homes: Sequence[Path]) -> Row:
    row = Row(str(entry["label"]), [], [], 0, *(entry.get(key) for key in ("published", "own_feature", "feature")))
    missing = 0
    for seed in entry["seeds"]:
        try:
            composition = compose_row(entry, seed)
        except (UsageError, DataError) as problem:
            raise UsageError(f"{file}: {row.label}: {problem}") from problem
        run, record = first_finished([run_folder(composition, home) for home in homes])
        if record is None:
            missing += 1
            continue
        _check_task(record, run.root)
        row.runs.append(run)
        row.records.append(record)
    _check_features(row, file)
    return row._replace(missing=missing, entry=entry)


def first_finished(places: Sequence[RunFolder]) -> tuple[RunFolder, dict[str, Any] | None]:
    """The first of a run's possible folders in which it has finished, and its numbers; else the first, and None."""
    return next(((run, record) for run in places if (record := run.finished())), (places[0], None))


def _check_task(record: dict[str, Any], where: Path) -> None:
    if task_of(record).name != DEFAULT_TASK:
        raise UsageError(
            f"{where}: {record['task']} runs have no retrieval metrics, so they stand in no table with runs that have"
        )


def _check_features(row: Row, file: Path) -> None:
    """A misspelt candidate would be an empty cell, which reads as a missing run."""
    for record in row.records:
        known = {key.split("/")[1] for key in record["test"] if key.startswith("feature/")}
        for key, name in (("own_feature", row.own_feature), ("feature", row.feature)):
            if name and known and name not in known:
                raise UsageError(f"{file}: {row.label}: {key} {name}: {nearest(name, known)}")
