"""`bench`: throughput and memory of loader, step, search and graph, each measured beside its bare counterpart."""

from __future__ import annotations

import importlib
import io
import json
from pathlib import Path
from typing import Any

from experiments.errors import UsageError, nearest
from experiments.output import say
from experiments.parser import Parser

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
}
# take longer than the step; of interest to who changes the step or the graph, or compares models
BY_NAME_ONLY = {"parts", "methods", "graph", "graph-losses", "instances", "sharded", "index"}
OF_INDEX = ("items", "nodes", "folder")  # arguments of one bench


def bench_command(words: list[str]) -> None:
    """Run the named benches, or all, and print a table each."""
    parser = Parser("bench", "throughput and memory, each beside its bare counterpart in the same run")
    parser.add_argument(
        "which",
        nargs="*",
        metavar="WHICH",
        help=f"{', '.join(BENCHES)} (default: all but {', '.join(sorted(BY_NAME_ONLY))})",
    )
    parser.add_argument("--out", metavar="F", help="also write the rows as JSON")
    parser.add_argument("--items", type=int, metavar="N", help="index: vectors to build it of")
    parser.add_argument("--nodes", type=int, metavar="N", help="index: machines of the projection")
    parser.add_argument("--folder", metavar="F", help="index: where it is built, and stays")
    options = parser.parse(words)
    of_index = {name: value for name in OF_INDEX if (value := getattr(options, name)) is not None}
    for name in options.which:
        if name not in BENCHES:
            raise UsageError(f"bench {name}: {nearest(name, BENCHES)}")
    if of_index and options.which != ["index"]:
        raise UsageError(f"--{next(iter(of_index))} is of the index alone: bench index --{next(iter(of_index))} …")
    found: dict[str, list[dict[str, Any]]] = {}
    for name in options.which or [name for name in BENCHES if name not in BY_NAME_ONLY]:
        module, function = BENCHES[name]
        found[name] = getattr(importlib.import_module(module), function)(**of_index)
        say(_render(name, found[name]))
    if options.out:
        from experiments.runs import write_text

        write_text(Path(options.out), json.dumps(found, indent=2) + "\n")


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
