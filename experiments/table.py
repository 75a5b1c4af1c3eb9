"""Runs of several seeds as one Markdown table, made from metrics.json and the per-query scores beside it. No torch.

A table's file (experiments/ablations/<name>.yaml) names a base and rows:

    title: CAPTURE on real photographs
    experiment: capture
    scale: tiny
    seeds: [0, 1, 2]
    rows:
      - {label: grocery, data: grocery}
      - {label: fashion, data: fashion, set: {model.lr: 5.0e-4}}

With `base: <label>` the rows are also compared with one of them, paired by seed and query.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from experiments.config import HOME, Loader, compose
from experiments.errors import UsageError, nearest
from experiments.runs import RunFolder, git_state, open_run, read_metrics, run_folder
from experiments.scoreboard import COLUMNS, ROWS, value_of
from retrieval.significance import paired_bootstrap

BOOTSTRAP_SAMPLES = 2000  # per interval; ten intervals a row, and a table should not keep anybody waiting
SPLIT = "test"
COMPARED = {"": "", "image only": "image/", "text only": "text/"}  # what rows are compared in: name -> prefix
KEYS = ("title", "experiment", "data", "scale", "seeds", "base", "rows")
ROW_KEYS = ("label", "experiment", "data", "scale", "seeds", "set")


class Row(NamedTuple):
    """One configuration: its label and its runs, one per seed."""

    label: str
    runs: list[RunFolder]
    records: list[dict[str, Any]]
    missing: int = 0  # seeds asked for and not run to the end


def make_table(runs: list[Path], table: str | None, command: str) -> str:
    """The table of the given run folders, or of a table's file, as Markdown.

    Raises:
        UsageError: If nothing is given, or a name, key or folder is unknown.
    """
    if bool(runs) == bool(table):
        raise UsageError("table wants run folders or TABLE=<name>, one of the two")
    title = ""
    base: Row | None = None
    if table:
        title, rows, base = _from_file(table)
    else:
        rows = _group(runs)
    parts = [f"### {title}\n\n"] if title else []
    if base:
        parts.append(_comparison(rows, base))
    parts += [_block(row) for row in rows]
    return "\n".join([*parts, _origin(rows, command)])


def _group(paths: list[Path]) -> list[Row]:
    """Runs that differ in their seed only are one row."""
    groups: dict[tuple[str, ...], Row] = {}
    for path in paths:
        run = open_run(path)
        record = read_metrics(run)
        key = tuple(str(record.get(name)) for name in ("experiment", "data", "scale", "config_hash"))
        row = groups.setdefault(key, Row(f"{key[0]} on {key[1]}, scale {key[2]}", [], []))
        if record["seed"] in [other["seed"] for other in row.records]:
            raise UsageError(f"{path}: seed {record['seed']} of {row.label} is given twice")
        row.runs.append(run)
        row.records.append(record)
    return list(groups.values())


def _from_file(name: str) -> tuple[str, list[Row], Row | None]:
    files = {file.stem: file for file in sorted((HOME / "ablations").glob("*.yaml"))}
    if name not in files:
        raise UsageError(f"unknown table {name!r}: {nearest(name, files)}")
    content = yaml.load(files[name].read_text(encoding="utf-8"), Loader)
    _check(content, KEYS, files[name])
    base = {"experiment": "capture", "scale": "tiny", "seeds": [0], **content}
    rows = []
    for entry in content["rows"]:
        _check(entry, ROW_KEYS, files[name])
        rows.append(_find_runs({**base, **entry}))
    labels, wanted = [row.label for row in rows], content.get("base")
    if wanted is None:
        return str(content.get("title", name)), rows, None
    if str(wanted) not in labels:
        raise UsageError(f"{files[name]}: base {wanted!r} is no row: {nearest(str(wanted), labels)}")
    return str(content.get("title", name)), rows, rows[labels.index(str(wanted))]


def _check(content: Any, known: tuple[str, ...], file: Path) -> None:
    if not isinstance(content, dict):
        raise UsageError(f"{file}: expected a mapping with {', '.join(known)}")
    for key in content:
        if key not in known:
            raise UsageError(f"{file}: unknown key {key}: {nearest(str(key), known)}")


def _find_runs(entry: dict[str, Any]) -> Row:
    row = Row(str(entry["label"]), [], [])
    settings = [
        f"--{key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in entry.get("set", {}).items()
    ]
    settings = [setting.removesuffix("\n").removesuffix("\n...") for setting in settings]
    missing = 0
    for seed in entry["seeds"]:
        composition = compose(entry["experiment"], entry["data"], entry["scale"], int(seed), settings)
        run = run_folder(composition, Path("runs"))
        record = run.finished()
        if record is None:
            missing += 1
            continue
        row.runs.append(run)
        row.records.append(record)
    return row._replace(missing=missing)


def _block(row: Row) -> str:
    """One configuration beside its floors: mean ± std over seeds and the paired interval over seeds × queries."""
    if not row.records:
        return f"**{row.label}**: no finished run\n"
    features = sorted({str(record.get("feature")) for record in row.records})
    seeds = ", ".join(str(record["seed"]) for record in row.records)
    head = f"**{row.label}** (n = {len(row.records)}, seed {seeds}; feature chosen on val: {', '.join(features)})"
    if row.missing:
        head += f"; {row.missing} run(s) missing"
    lines = [head, "", "| | " + " | ".join(f"{column} | product − this [95 %]" for column in COLUMNS) + " |"]
    lines.append("|---|" + "---:|---:|" * len(COLUMNS))
    for label, prefix in ROWS.items():
        cells = []
        for column in COLUMNS:
            cells.append(_mean_std([value_of(record, SPLIT, prefix, column) for record in row.records]))
            cells.append(_interval(row, prefix, column) if prefix else "")
        if any(cell not in ("–", "") for cell in cells):
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _mean_std(values: list[float | None]) -> str:
    found = [value for value in values if value is not None]
    if len(found) < len(values) or not found:
        return "–"  # never averaged over what happens to be there
    if len(found) == 1:
        return f"{found[0]:.4f}"
    return f"{statistics.fmean(found):.4f} ± {statistics.stdev(found):.4f}"


def _comparison(rows: list[Row], base: Row) -> str:
    """The rows side by side, each with its paired difference from the base row over the seeds both have."""
    measures = {f"{kind} {column}".strip(): prefix + column for kind, prefix in COMPARED.items() for column in COLUMNS}
    head = [f"{name} | {base.label} − this [95 %]" for name in measures]
    lines = ["| | n | " + " | ".join(head) + " |", "|---|---:|" + "---:|---:|" * len(measures)]
    for row in rows:
        cells = []
        for measure in measures.values():
            prefix, _, column = measure.rpartition("/")
            prefix = f"{prefix}/" if prefix else ""
            cells.append(_mean_std([value_of(record, SPLIT, prefix, column) for record in row.records]))
            cells.append("" if row is base else _difference(base, row, measure))
        lines.append(f"| {row.label} | {len(row.records)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _difference(base: Row, row: Row, measure: str) -> str:
    """Base minus row, paired by seed and query; – where no seed has finished in both or the queries differ."""
    found = []
    for seed in {record["seed"] for record in base.records} & {record["seed"] for record in row.records}:
        pair = [_scores(_run_of(side, seed), measure) for side in (base, row)]
        if pair[0] is None or pair[1] is None or not np.array_equal(pair[0][0], pair[1][0]):
            return "–"
        found.append((pair[0][1], pair[1][1]))
    if not found:
        return "–"
    ours, theirs = (np.stack(side) for side in zip(*found, strict=True))
    return "{:+.3f} [{:+.3f}, {:+.3f}]".format(*paired_bootstrap(ours, theirs, samples=BOOTSTRAP_SAMPLES)[:3])


def _run_of(row: Row, seed: int) -> RunFolder:
    return next(run for run, record in zip(row.runs, row.records, strict=True) if record["seed"] == seed)


def _scores(run: RunFolder, measure: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Query ids in order, and their scores."""
    file = run.rankings / f"{SPLIT}.npz"
    if not file.is_file():
        return None
    with np.load(file, allow_pickle=False) as stored:
        if measure not in stored.files:
            return None
        by_id = np.argsort(stored["query_ids"])  # the same order in every run
        return stored["query_ids"][by_id], stored[measure][by_id]


def _interval(row: Row, prefix: str, column: str) -> str:
    if len(row.records) == 1:
        stored = row.records[0].get("intervals", {}).get(SPLIT, {}).get(prefix.rstrip("/"), {}).get(column)
        return "{:+.3f} [{:+.3f}, {:+.3f}]".format(*stored) if stored else "–"
    pairs = [(_scores(run, column), _scores(run, prefix + column)) for run in row.runs]
    if any(ours is None or theirs is None for ours, theirs in pairs):
        return "–"
    ours, theirs = (np.stack([pair[side][1] for pair in pairs if pair[side]]) for side in (0, 1))  # type: ignore[index]
    return "{:+.3f} [{:+.3f}, {:+.3f}]".format(*paired_bootstrap(ours, theirs, samples=BOOTSTRAP_SAMPLES)[:3])


def _origin(rows: list[Row], command: str) -> str:
    """Where the numbers come from: commands, commits, hardware."""
    records = [record for row in rows for record in row.records]
    lines = [
        f"Fractions, official definition, {SPLIT} split; ± is the standard deviation over seeds; intervals are paired"
    ]
    lines.append(f"bootstraps over seeds × queries. Table made by `{command}` at {_commit(git_state())}.")
    for text in sorted({f"`{record['command']}` at {_commit(record['git'])}" for record in records}):
        lines.append(f"* {text}")
    machines = sorted({_machine(record["hardware"]) for record in records})
    lines += [f"* on {machine}" for machine in machines]
    return "\n".join(lines) + "\n"


def _commit(git: dict[str, Any]) -> str:
    commit = str(git.get("commit") or "no commit")[:10]
    return f"{commit} with uncommitted changes" if git.get("dirty") else commit


def _machine(hardware: dict[str, Any]) -> str:
    gpus = ", ".join(hardware.get("gpus") or [])
    return f"{hardware.get('cpu')}, {hardware.get('cores')} cores" + (f", {gpus}" if gpus else "")
