"""`results`: keep a table's finished runs in the repository, and write the README's section of results again."""

from __future__ import annotations

from pathlib import Path

from experiments.config import HOME
from experiments.errors import UsageError
from experiments.parser import Parser, command_line
from experiments.table_options import add_choice, choice_of
from experiments.table_rows import Choice, open_table, read_plan


def results_command(description: str, words: list[str]) -> None:
    """Record a table where one is named; the README follows from what is recorded."""
    parser = Parser("results", description)
    parser.add_argument("--table", metavar="NAME", help="record this table of experiments/ablations/<name>.yaml first")
    add_choice(parser, rows=False)
    parser.add_argument("--runs", default="runs", metavar="DIR", help="where run folders are (default: runs)")
    options = parser.parse(words)
    if not options.table and (options.data or options.scale or options.seeds):
        raise UsageError("--data, --scale and --seeds choose runs of a table: name it with --table (make: TABLE=)")
    from experiments.recorded import RESULTS, homes, record_table
    from experiments.results_page import write_section

    if options.table:
        plan = read_plan(options.table, choice_of(options), homes(Path(options.runs), recorded=True))
        own = {str(entry["scale"]) for entry in open_table(options.table, Choice(options.data)).entries}
        scale = options.scale if own != {options.scale} else None
        record = record_table(plan, options.table, command_line("results", words), scale=scale)
        from experiments.table_plot import draw

        draw(plan, record.folder / "plot.svg")
        kept = len({run.run_id for row in plan.rows for run in row.runs})
        missing = sum(row.missing for row in plan.rows)
        told = f", {missing} missing" if missing else ""
        print(f"{record.folder}: {len(plan.rows)} rows, {kept} runs{told}")
    readme = HOME.parent / "README.md"
    write_section(readme, RESULTS)
    print(f"{readme}: the section of results is written")
