"""The command line. Light on purpose: torch is imported by the commands that compute, after their words are checked.

Exit codes: 0 done; 2 wrong usage, configuration or missing input (one line, no traceback); 75 a training that was
stopped by SIGTERM, SIGUSR1 or SIGUSR2 and goes on when it is started again; 143 another command stopped by SIGTERM;
1 failure.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from experiments.errors import RunError, UsageError, nearest
from experiments.parser import Parser, command_line
from experiments.stop_signals import STOPPED_CODE, Stopped

RUN_COMMANDS = {
    "fit": "train, evaluate each interval, test the best checkpoint (LightningCLI)",
    "validate": "print the val metrics of a checkpoint",
    "test": "print the test metrics of a checkpoint",
    "predict": "write the embeddings of test queries and gallery, or the regions a detector finds",
}
TERMINATED = 128 + signal.SIGTERM  # as a shell says it
FULL = (errno.ENOSPC, errno.EDQUOT)  # no space left on the device, or of the quota
PACKAGES = ("datamodules", "experiments", "lightning_modules", "retrieval")
HOW_TO_INSTALL = "`make setup` installs it, and .venv/bin/python -m experiments … finds it (`make doctor`)"
COMMANDS = {
    **RUN_COMMANDS,
    "eval": "re-evaluate a run's best checkpoint, or a model that needs no training",
    "data": "build or verify a shard folder, add entities to it",
    "score": "score a ranking file against annotation files",
    "import-official": "a checkpoint of the authors' released code as a run folder",
    "ablate": "run what is missing of a table: its rows × seeds, one process per run",
    "table": "table and plot from the metrics.json of several runs: Markdown, LaTeX, CSV, PNG, SVG",
    "results": "keep a table's finished runs in the repository; the README's section of results follows from them",
    "report": "one static HTML page of a run or a table",
    "sync": "upload to W&B what runs have logged offline, each once and in order",
    "bench": "throughput and memory of loader, training step and search",
    "doctor": "versions, devices, vendor imports, and the remedy for what is broken",
    "demo": "shards, training, evaluation, table and report on the embedded catalogue",
}


def main(argv: Sequence[str]) -> int:
    """Run one command.

    Returns:
        The exit code; bugs come out as exceptions, so Python exits with 1 and a traceback.
    """
    words = list(argv)
    try:
        if not words or words[0] in ("-h", "--help"):
            print(_overview())
            return 0 if words else 2
        if words[0] not in COMMANDS:
            raise UsageError(f"unknown command {words[0]!r}: {nearest(words[0], COMMANDS)}")
        from experiments.output import to_terminal

        to_terminal()
        return int(_dispatch(words[0], words[1:]) or 0)
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return STOPPED_CODE
    except BaseException as problem:
        if stopped_from_outside(problem):
            print("stopped by SIGTERM; a training goes on from its last checkpoint", file=sys.stderr)
            return TERMINATED
        if isinstance(problem, ModuleNotFoundError) and (problem.name or "").partition(".")[0] not in PACKAGES:
            print(f"error: {sys.executable} has no {problem.name}: {HOW_TO_INSTALL}", file=sys.stderr)
            return 2
        if isinstance(problem, OSError) and problem.errno in FULL:
            print(f"error: {full_disk(problem)}", file=sys.stderr)
            return 1
        if isinstance(problem, RunError):
            print(f"error: {_shown(str(problem))}", file=sys.stderr)
            return 1
        if not is_user_error(problem):
            raise
        print(f"error: {_shown(one_line(problem))}", file=sys.stderr)
        return 2


def _shown(text: str) -> str:
    """A message, which may quote data and addresses, for a terminal."""
    from datamodules.redaction import printable, redacted

    return printable(redacted(text))


def full_disk(problem: OSError) -> str:
    """What is lost by a full disk, and what is not."""
    where = f"{problem.filename}: " if problem.filename else ""
    return (
        f"{where}{problem.strerror}; what was written before is kept. Make room and give the same command again: "
        "a training goes on after its last finished interval, one that was trained to the end is only evaluated"
    )


def stopped_from_outside(problem: BaseException | None) -> bool:
    """Whether SIGTERM ended this process or, as it goes to the whole group, one of its loader workers first."""
    while problem is not None:
        if type(problem).__name__ == "SIGTERMException" or "is killed by signal: Terminated" in str(problem):
            return True
        problem = problem.__cause__ or problem.__context__
    return False


def is_user_error(problem: BaseException) -> bool:
    """Whether an exception is meant for the user: each package has one such class, told here by name, unimported."""
    names = {"UsageError", "DataError", "RetrievalError", "ModelError"}
    names |= {"MisconfigurationException"}  # Lightning's own for the same purpose
    return type(problem).__name__ in names


def one_line(problem: BaseException) -> str:
    """The message itself: a loader worker wraps it in its traceback, whose last line it is."""
    text = str(problem).strip()
    wrapped = re.findall(r"^(?:[\w.]*\.)?(?:DataError|ModelError|RetrievalError|UsageError): (.+)", text, re.MULTILINE)
    if "DataLoader worker" in text and wrapped:
        return str(wrapped[-1])
    return " ".join(text.split())


def _dispatch(command: str, words: list[str]) -> int | None:
    if command in RUN_COMMANDS:
        from experiments.run_commands import run_command

        return run_command(command, RUN_COMMANDS[command], words)
    handlers = {"eval": _eval, "data": _data, "score": _score, "table": _table, "report": _report}
    handlers |= {"import-official": _import_official, "bench": _bench, "doctor": _doctor, "demo": _demo}
    handlers |= {"ablate": _ablate, "results": _results, "sync": _sync}
    return handlers[command](words)


def _eval(words: list[str]) -> None:
    from experiments.run_commands import eval_command

    eval_command(COMMANDS["eval"], words)


def _data(words: list[str]) -> int:
    from experiments.data_commands import data_command

    return data_command(words)


def _score(words: list[str]) -> None:
    parser = Parser("score", COMMANDS["score"])
    parser.add_argument("--ranking", required=True, metavar="F", help="official ranking list")
    parser.add_argument("--queries", required=True, metavar="Q", help="official annotation file of the queries")
    parser.add_argument("--gallery", required=True, metavar="G", help="official annotation file of the gallery")
    parser.add_argument("--protocol", default="official", help="official, official-2022-04-20 or textbook")
    parser.add_argument(
        "--same", action="store_true", help="identical-product task: own ids leave their lists, same/mAP@1|5|10"
    )
    parser.add_argument("--out", metavar="F", help="also write the JSON here")
    options = parser.parse(words)
    for name in ("ranking", "queries", "gallery"):
        if not os.path.isfile(getattr(options, name)):
            raise UsageError(f"--{name} {getattr(options, name)}: no such file")
    from experiments.runs import write_text
    from retrieval.score import score_files

    files = options.ranking, options.queries, options.gallery
    text = json.dumps(score_files(*files, options.protocol, options.same), indent=2)
    if options.out:
        write_text(Path(options.out), text + "\n")
    print(text)


def _import_official(words: list[str]) -> None:
    parser = Parser("import-official", COMMANDS["import-official"])
    parser.add_argument("--checkpoint", required=True, metavar="F", help="state dict in the authors' names")
    parser.add_argument("--config", required=True, metavar="C", help="their model configuration (JSON)")
    parser.add_argument("--cross-config", required=True, metavar="X", help="their co-transformer configuration (JSON)")
    parser.add_argument("--model", default="capture", metavar="NAME", help="capture (default) or ege_cmp")
    parser.add_argument("--out", required=True, metavar="RUN", help="the run folder to write")
    options = parser.parse(words)
    from experiments.import_official import import_official

    import_official(
        Path(options.checkpoint),
        Path(options.config),
        Path(options.cross_config),
        options.model,
        Path(options.out),
        command_line("import-official", words),
    )


def _ablate(words: list[str]) -> int:
    from experiments.ablate import ablate_command

    return ablate_command(COMMANDS["ablate"], words)


def _sync(words: list[str]) -> int:
    from experiments.wandb_sync import sync_command

    return sync_command(COMMANDS["sync"], words)


def _table(words: list[str]) -> None:
    from experiments.table_forms import add_form_arguments, chosen_form, chosen_plot
    from experiments.table_options import add_choice, choice_of

    parser = Parser("table", COMMANDS["table"])
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folders")
    parser.add_argument("--table", metavar="NAME", help="rows of experiments/ablations/<name>.yaml")
    add_choice(parser)
    parser.add_argument(
        "--runs", dest="home", default="runs", metavar="DIR", help="with --table: where run folders are"
    )
    parser.add_argument("--recorded", action="store_true", help="with --table: also runs of experiments/results")
    add_form_arguments(parser)
    options = parser.parse(words)
    form, plot = chosen_form(options.format, options.out), chosen_plot(options.plot, options.metric)
    from experiments.last_choice import shown_choice
    from experiments.recorded import homes
    from experiments.table import make_table

    runs, choice, home = [Path(run) for run in options.runs], choice_of(options), Path(options.home)
    if not options.recorded:
        choice, words = shown_choice(options.table, choice, home, words)
    command = command_line("table", words)
    make = partial(make_table, runs, options.table, command, choice, homes(home, options.recorded))
    text = make(form, plot, options.metric)
    if options.out:
        from experiments.runs import write_text

        write_text(Path(options.out), text)
    print(text, end="")
    if options.wandb:
        from experiments.wandb_artifacts import log_table
        from experiments.wandb_labels import table_folder

        folder, forms = table_folder(home, options.table or "runs", choice), {"md": "md", "tex": "latex", "csv": "csv"}
        texts = {ending: text if name == form else make(name) for ending, name in forms.items()}
        log_table(folder, options.table or "runs", texts, plot, command)


def _results(words: list[str]) -> None:
    from experiments.results_command import results_command

    results_command(COMMANDS["results"], words)


def _report(words: list[str]) -> None:
    from experiments.report_command import report_command

    report_command(COMMANDS["report"], words)


def _bench(words: list[str]) -> None:
    from experiments.bench import bench_command

    bench_command(words)


def _doctor(words: list[str]) -> int:
    Parser("doctor", COMMANDS["doctor"]).parse(words)
    from experiments.doctor import doctor

    return doctor()


def _demo(words: list[str]) -> None:
    from experiments.demo import demo_command

    demo_command(words)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = ["usage: python -m experiments COMMAND …   (COMMAND --help tells more)\n"]
    return "\n".join([*lines, *(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())])
