"""`bench`: throughput and memory of loader, step, search and graph, each measured beside its bare counterpart.

`scale` has no counterpart: it measures what a million pairs take.
"""

from __future__ import annotations

import importlib
import io
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from experiments.errors import UsageError, nearest
from experiments.machine import describe
from experiments.output import say
from experiments.parser import Parser
from experiments.runs import git_state, write_text
from experiments.table_origin import commit

# name -> (module, function); each returns rows, {column: value}
BENCHES = {
    "loader": ("experiments.bench_loader", "bench_loader"),
    "step": ("experiments.bench_step", "bench_step"),
    "parts": ("experiments.bench_step", "bench_parts"),
    "methods": ("experiments.bench_methods", "bench_methods"),
    "search": ("experiments.bench_search", "bench_search"),
    "sharded": ("experiments.bench_sharded", "bench_sharded"),
    "instances": ("experiments.bench_instances", "bench_instances"),
    "index": ("experiments.bench_index", "bench_index"),
    "graph": ("experiments.bench_graph", "bench_graph"),
    "graph-losses": ("experiments.bench_methods", "bench_graph_losses"),
    "scale": ("experiments.bench_scale", "bench_scale"),
}
# take longer than the step; of interest to who changes the step or the graph, or compares models
BY_NAME_ONLY = {"parts", "methods", "graph", "graph-losses", "instances", "sharded", "index", "scale"}
OPTIONS = {"scale": ("folder", "pairs"), "index": ("folder", "items", "nodes")}  # of one bench alone, by its name


def bench_command(words: list[str]) -> None:
    """Run the named benches, or all, and print a table each."""
    parser = Parser("bench", "throughput and memory, each beside its bare counterpart in the same run")
    parser.add_argument(
        "which",
        nargs="*",
        metavar="WHICH",
        help=f"{', '.join(BENCHES)} (default: all but {', '.join(sorted(BY_NAME_ONLY))})",
    )
    parser.add_argument("--out", metavar="F", help="also write the rows as JSON, with machine and commit")
    parser.add_argument(
        "--folder", type=Path, metavar="D", help="scale: a shard folder, built if it is not there; index: built here"
    )
    parser.add_argument("--pairs", type=int, metavar="N", help="scale: pairs in that folder (default: Product1M's)")
    parser.add_argument("--items", type=int, metavar="N", help="index: vectors to build it of")
    parser.add_argument("--nodes", type=int, metavar="N", help="index: machines of the projection")
    options = parser.parse(words)
    for name in options.which:
        if name not in BENCHES:
            raise UsageError(f"bench {name}: {nearest(name, BENCHES)}")
    chosen = options.which or [name for name in BENCHES if name not in BY_NAME_ONLY]
    own = _own_options(options, chosen)
    where = {"hardware": describe(), "git": git_state()}
    found: dict[str, Any] = {}
    for name in chosen:
        module, function = BENCHES[name]
        found[name] = getattr(importlib.import_module(module), function)(**own)
        say(_render(name, found[name]))
    say(f"on {where['hardware']['cpu']}, {where['hardware']['cores']} cores, at {commit(where['git'])}")
    if options.out:
        write_text(Path(options.out), json.dumps({**found, **where}, indent=2) + "\n")


def _own_options(options: Namespace, chosen: list[str]) -> dict[str, Any]:
    """What was given for one bench alone, which must then be the only one."""
    given = {key: getattr(options, key) for keys in OPTIONS.values() for key in keys}
    given = {key: value for key, value in given.items() if value is not None}
    allowed = OPTIONS.get(chosen[0], ()) if len(chosen) == 1 else ()
    for key in given:
        if key not in allowed:
            takers = " or ".join(f"`bench {name}`" for name, keys in OPTIONS.items() if key in keys)
            raise UsageError(f"--{key} is an option of {takers} alone")
    return given


def _render(title: str, rows: list[dict[str, Any]]) -> str:
    from rich.console import Console
    from rich.table import Table

    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if isinstance(rows[0].get(column), str) else "right")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    buffer = io.StringIO()
    Console(file=buffer, width=118).print(table)
    return buffer.getvalue().rstrip()


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)
