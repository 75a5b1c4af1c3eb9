"""The words by which every command on a table chooses other data, scale or seeds than its file says, or some rows."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from experiments.table_rows import Choice, parse_seeds


def add_choice(parser: ArgumentParser, where: str = "with --table: ", rows: bool = True) -> None:
    """Add them.

    Args:
        where: Said before what each does: the word that they go with.
        rows: Also choose among the rows.
    """
    parser.add_argument("--data", metavar="NAME|FOLDER", help=f"{where}other data than its file's")
    parser.add_argument("--scale", metavar="NAME", help=f"{where}another scale")
    parser.add_argument("--seeds", metavar="0,1,2", help=f"{where}other seeds")
    if rows:
        parser.add_argument("--rows", metavar="A,B", help=f"{where}only the rows of these labels")


def choice_of(options: Namespace) -> Choice:
    """What was chosen.

    Raises:
        UsageError: If the seeds are no numbers.
    """
    return Choice(options.data, options.scale, parse_seeds(options.seeds), getattr(options, "rows", None))
