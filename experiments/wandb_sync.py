"""`sync`: upload what runs have logged offline, each segment once and in order.

W&B's own `wandb sync` does the upload, and its marks beside each log (`.wandb.synced`) are the record of what is
done. What it leaves to the caller is done here: a torn end of a log, at which it would stop; segments of which an
upload broke off, which it would append a second time; runs that are still being written; and telling whether it
worked, since its exit code does not.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.errors import UsageError
from experiments.last_choice import shown_choice
from experiments.parser import Parser
from experiments.run_lock import check_free
from experiments.runs import RunFolder, run_folder
from experiments.table_options import add_choice, choice_of
from experiments.table_rows import Choice, choose_rows, compose_row, open_table
from experiments.wandb_labels import table_folder
from experiments.wandb_segments import Segment, goes_on, read_records, segments, trim

Upload = Callable[[list[str]], str]


class Pending(NamedTuple):
    """What is to upload of one run."""

    folder: Path
    segments: list[Segment]  # in the order they were made; the first takes the place of what the server has, or goes on

    @property
    def command(self) -> list[str]:
        """`wandb sync` appends segments in the order of their start by itself."""
        return ["wandb", "sync", *(str(segment.folder) for segment in self.segments)]


def sync_command(description: str, words: list[str], upload: Upload | None = None) -> int:
    """Upload, or say what would be.

    Args:
        upload: Runs a command line and returns all it said.

    Returns:
        The exit code: 0 all that was to upload is, 1 something is not.
    """
    parser = Parser("sync", description)
    parser.add_argument("run", nargs="*", metavar="RUN", help="run folders")
    parser.add_argument("--table", metavar="NAME", help="the runs of a table, and the table itself if W&B has it")
    add_choice(parser)
    parser.add_argument("--runs", default="runs", metavar="DIR", help="with --table: where run folders are")
    parser.add_argument("--dry", action="store_true", help="print the commands and stop")
    options = parser.parse(words)
    if bool(options.run) == bool(options.table):
        raise UsageError("sync wants run folders (RUN=runs/<run_id>) or a table (TABLE=<name>), one of the two")
    choice = choice_of(options)
    if options.table:
        choice, _ = shown_choice(options.table, choice, Path(options.runs), words)
        folders = folders_of(options.table, choice, Path(options.runs))
    else:
        folders = [Path(word) for word in options.run]
        for folder in folders:
            if not folder.is_dir():
                raise UsageError(f"{folder}: no such run folder")
    return _sync(folders, options.dry, upload or _upload)


def folders_of(table: str, choice: Choice, home: Path) -> list[Path]:
    """The run folders of a table that are there, and what W&B has of the table itself."""
    file = open_table(table, choice)
    chosen = choose_rows(file, choice.rows)
    found = [
        run_folder(compose_row(entry, seed), home).root
        for entry in file.entries
        if str(entry["label"]) in chosen
        for seed in entry["seeds"]
    ]
    return [folder for folder in dict.fromkeys([*found, table_folder(home, table, choice)]) if folder.is_dir()]


def pending(folder: Path) -> Pending:
    """What is to upload of a run: its segments since it last started afresh, without those that are up already.

    An upload that broke off is begun again from the first segment, which takes the place of what the server has;
    appending to half a segment would tell its steps twice.
    """
    chain = [segment for segment in segments(folder) if any(True for _ in read_records(segment.log))]
    begin = max((n for n, segment in enumerate(chain) if not goes_on(segment)), default=0)
    chain = chain[begin:]
    first_open = next((n for n, segment in enumerate(chain) if not segment.uploaded), len(chain))
    broken = any(not segment.uploaded and segment.sync_state.exists() for segment in chain)
    if broken and not any(segment.online for segment in chain):
        first_open = 0
    return Pending(folder, [segment for segment in chain[first_open:] if not segment.online])


def _sync(folders: Sequence[Path], dry: bool, upload: Upload) -> int:
    failed, count, done, in_progress = [], 0, 0, 0
    for folder in folders:
        try:
            check_free(RunFolder(folder))
        except UsageError as in_use:
            print(f"left out: {in_use}", flush=True)
            in_progress += 1
            continue
        found = pending(folder)
        if not found.segments:
            done += 1
            continue
        count += 1
        print(shlex.join(found.command), flush=True)
        if not dry and (problem := _upload_run(found, upload)):
            failed.append(f"{folder}: {problem}")
    what = "to upload" if dry else "uploaded"
    told = [f"{count - len(failed)} {what}", f"{done} with nothing to upload"]
    told += [f"{number} {how}" for number, how in ((in_progress, "in use"), (len(failed), "failed")) if number]
    print(f"{len(folders)} run{'s' if len(folders) != 1 else ''}: {', '.join(told)}", flush=True)
    for line in failed:
        print(f"failed: {line}", flush=True)
    return 1 if failed else 0


def _upload_run(found: Pending, upload: Upload) -> str:
    """Why it did not work; empty if it did."""
    for segment in found.segments:
        _forget(segment)
        trim(segment)
    said = upload([sys.executable, "-m", *found.command])
    errors = [line for line in said.splitlines() if "ERROR" in line or "Not authenticated" in line]
    missing = [segment.folder.name for segment in found.segments if not segment.uploaded]
    if not errors and not missing:
        return ""
    for segment in found.segments:
        segment.synced.unlink(missing_ok=True)  # W&B marks also what the server refused
    account = "; an account is wanted: `wandb login`, or WANDB_API_KEY" if "Not authenticated" in said else ""
    return (errors or [f"{', '.join(missing)} did not arrive"])[-1].strip() + account


def _forget(segment: Segment) -> None:
    """Of an upload that broke off: where it began is asked anew."""
    segment.synced.unlink(missing_ok=True)
    segment.sync_state.unlink(missing_ok=True)


def _upload(command: list[str]) -> str:
    """Run a command, show what it says as it comes, and return it."""
    said = []
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout or ():
            print(f"  {line}", end="", flush=True)
            said.append(line)
    return "".join(said)
