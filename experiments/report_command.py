"""The command `report`: a page of a run, or of a table."""

from __future__ import annotations

from pathlib import Path

from experiments.errors import UsageError
from experiments.parser import Parser, command_line
from experiments.table_options import add_choice, choice_of


def report_command(description: str, words: list[str]) -> None:
    """Write the page and print where it is.

    Raises:
        UsageError: If not exactly one of the two is asked for, or what is asked for is not there.
    """
    parser = Parser("report", description)
    parser.add_argument("--run", metavar="RUN", help="run folder")
    parser.add_argument("--table", metavar="NAME", help="rows of experiments/ablations/<name>.yaml")
    add_choice(parser)
    parser.add_argument("--runs", default="runs", metavar="DIR", help="with --table: where run folders are")
    parser.add_argument("--recorded", action="store_true", help="with --table: also runs of experiments/results")
    parser.add_argument("--out", metavar="F", help="the page (default: in reports, named by the run or the table)")
    options = parser.parse(words)
    if bool(options.run) == bool(options.table):
        raise UsageError("report wants a run folder (RUN=runs/<run_id>) or TABLE=<name>, one of the two")
    choice = choice_of(options)
    if options.run:
        if choice.words():
            raise UsageError(f"{choice}: a run is what it is; only TABLE=<name> has other runs to choose")
        from experiments.report import write_report

        print(write_report(options.run, options.out))
        return
    from experiments.last_choice import shown_choice
    from experiments.recorded import homes
    from experiments.table_page import write_table_report

    if not options.recorded:
        choice, words = shown_choice(options.table, choice, Path(options.runs), words)
    command, places = command_line("report", words), homes(Path(options.runs), options.recorded)
    print(write_table_report(options.table, command, choice, places, options.out))
