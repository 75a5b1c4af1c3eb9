"""`ablate TABLE`: run what is missing of a table, one process per run; what is finished stays, the rest goes on.

The plan is made and checked before anything starts (`ablation_plan`), the processes are `run_pool`'s. A run is the
same `fit` that could be typed by hand, so it lives in the folder where `table` looks for it, and resumes by itself.
"""

from __future__ import annotations

import re
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.ablation_plan import (
    FINISHED,
    GOES_ON,
    IN_USE,
    RECORDED,
    AblationPlan,
    PlannedRun,
    plan_runs,
)
from experiments.cluster.options import LAUNCHERS, ClusterOptions, read_options
from experiments.embedded import build_if_missing
from experiments.errors import UsageError, nearest
from experiments.last_choice import remember
from experiments.parser import Parser
from experiments.recorded import runs_of
from experiments.row_check import check_rows
from experiments.run_pool import OUTPUT_FOLDER, End, Job, run_jobs
from experiments.table_options import add_choice, choice_of
from experiments.table_rows import choose_rows, open_table

SHOWN = ("val", "test")
Command = Callable[[PlannedRun], list[str]]


def fit_command(run: PlannedRun) -> list[str]:
    """The process of a run."""
    return [sys.executable, "-m", "experiments", *run.words]


def ablate_command(description: str, words: list[str], command: Command = fit_command) -> int:
    """Plan, and run unless only the plan is wanted.

    Args:
        command: What is started for a run.

    Returns:
        The exit code: 0 all finished, 1 a run failed, 128 + n stopped by signal n.
    """
    parser = Parser("ablate", description)
    parser.add_argument("table", metavar="TABLE", help="rows of experiments/ablations/<table>.yaml")
    add_choice(parser, where="all rows: ")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at the same time (default: 1)")
    parser.add_argument("--launch", metavar="slurm|local", help="submit the runs as jobs (docs/cluster.md)")
    parser.add_argument(
        "--cluster",
        action="append",
        default=[],
        metavar="FILE|KEY=VALUE",
        help="with --launch: what a job asks for, from a YAML file or one by one; may be repeated",
    )
    parser.add_argument("--recorded", action="store_true", help="runs of experiments/results count as finished")
    parser.add_argument("--dry", action="store_true", help="print the plan and stop")
    parser.add_argument("--runs", default="runs", metavar="DIR", help="where run folders are (default: runs)")
    _check_words(words)
    options = parser.parse(words)
    if options.jobs < 1:
        raise UsageError(f"--jobs {options.jobs}: at least 1 run at a time")
    cluster = _cluster_options(options.launch, options.cluster)
    table = open_table(options.table, choice_of(options))
    rows, here = choose_rows(table, options.rows), not (options.dry or options.launch)
    if not options.dry:
        build_if_missing(str(entry["data"]) for entry in table.entries if str(entry["label"]) in rows)
    plan = plan_runs(table, rows, Path(options.runs), here, runs_of() if options.recorded else None)
    _say(describe(plan, options.jobs, every_run=options.dry))
    if not options.dry and command is fit_command:
        check_rows(table, plan.missing)
    if not options.dry:
        remember(options.table, table.choice, Path(options.runs))
    if cluster is not None and plan.missing:
        from experiments.cluster.launch import Launch

        launch = Launch(plan, Path(options.runs), options.jobs, options.launch, cluster, command, _say)
        (launch.preview if options.dry else launch.submit)()
        return 0
    if options.dry:
        return 0
    return _run(plan, options.jobs, Path(options.runs) / OUTPUT_FOLDER, command, _table_command(options))


def _check_words(words: Sequence[str]) -> None:
    """Settings of a run are no words of this command."""
    for word in words:
        if re.match(r"--\w+\.\w", word):
            key, _, value = word.strip("-").partition("=")
            raise UsageError(
                f"{word}: what all rows set stands in the table's file, as `set: {{{key}: {value}}}` at its head "
                "(docs/ablations.md)"
            )


def _cluster_options(launcher: str | None, words: Sequence[str]) -> ClusterOptions | None:
    """What jobs ask for; None where nothing is launched."""
    if launcher is None:
        if words:
            raise UsageError("--cluster is for jobs: add --launch slurm")
        return None
    if launcher not in LAUNCHERS:
        raise UsageError(f"--launch {launcher}: {nearest(launcher, LAUNCHERS)}")
    return read_options(words, launcher)


def describe(plan: AblationPlan, jobs: int, every_run: bool = True) -> str:
    """The plan as text: runs, rows that share one, and how long it will take."""
    lines = [f"{plan.table.title}: {len(plan.runs)} runs, {len(plan.runs) - len(plan.missing)} of them finished"]
    width = max(len(run.name) for run in plan.runs)
    lines += [
        f"  {run.state:<8}  {run.name:<{width}}  {run.folder.root}{_detail(run)}" for run in plan.runs if every_run
    ]
    lines += [
        f"{' and '.join(run.labels)} are the same run with seed {run.seed}, run once: {run.folder.root}"
        for run in plan.shared
    ]
    if plan.missing:
        lines.append(f"{len(plan.missing)} to run, {jobs} at a time: {_time(plan.missing, jobs)}")
    return "\n".join(lines)


def _detail(run: PlannedRun) -> str:
    steps = f"evaluated at step {run.step} of {run.max_steps}" if run.state in (GOES_ON, IN_USE) and run.step else ""
    time = (
        f"about {_duration(run.seconds)}" if run.state not in (FINISHED, RECORDED) and run.seconds is not None else ""
    )
    told = ", ".join(filter(None, [steps, time]))
    return f"  ({told})" if told else ""


def _time(runs: Sequence[PlannedRun], jobs: int) -> str:
    """An estimate: evaluation and start-up come on top, as does what other work on the machine takes."""
    known = [run.seconds for run in runs if run.seconds is not None]
    unknown = len(runs) - len(known)
    if not known:
        return "time unknown, as no run of the same experiment, data and scale has finished yet"
    total = _duration(max(sum(known) / jobs, max(known)))
    more = f" for {len(known)} of them, unknown for {unknown} whose like has not finished yet" if unknown else ""
    return f"about {total}{more}, by the training times of finished runs"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _run(plan: AblationPlan, jobs: int, outputs: Path, command: Command, then: str) -> int:
    runs = plan.missing
    work = [Job(command(run), outputs / f"{run.folder.run_id}.txt") for run in runs]
    failed: dict[int, str] = {}
    stopped: list[int] = []

    def start(number: int) -> None:
        run = runs[number]
        _say(f"[{number + 1}/{len(runs)}] started   {run.name}  {run.folder.root}{_detail(run)}")

    def end(number: int, how: End) -> None:
        run = runs[number]
        head = f"[{number + 1}/{len(runs)}]"
        record = run.folder.finished() if how.code == 0 else None
        if record:
            _say(f"{head} finished  {run.name}  {_numbers(record)}{how.seconds:.0f} s")
        elif how.stopped:
            stopped.append(number)
            _say(f"{head} stopped   {run.name}  {how.seconds:.0f} s")
        else:
            failed[number] = how.why(work[number].output) if how.code else f"ended without {run.folder.metrics}"
            _say(f"{head} failed    {run.name}  {how.seconds:.0f} s  {failed[number]}")

    signal_number = run_jobs(work, jobs, start, end) if runs else 0
    if failed:
        _say(f"{len(failed)} of {len(runs)} runs failed:")
        for number in sorted(failed):
            _say(f"  {runs[number].name}: {failed[number]}\n    {work[number].output}")
    if signal_number:
        _say("stopped; the same command goes on, each run from its last checkpoint")
        return 128 + signal_number
    if failed:
        _say("the same command runs these again, and nothing else")
        return 1
    _say(f"all runs of the plan are finished: {then}")
    return 0


def _numbers(record: dict[str, object]) -> str:
    """val and test mAP@10 and the time trained; a task without them is told by its time alone."""
    words = []
    for split in SHOWN:
        found = record.get(split)
        value = found.get("mAP@10") if isinstance(found, dict) else None
        words += [f"{split}/mAP@10 {value:.4f}"] if value is not None else []
    trained = record.get("train_seconds")
    words += [f"trained {trained:.0f} s"] if isinstance(trained, (int, float)) else []
    return "".join(f"{word}  " for word in words)


def _table_command(options: Namespace) -> str:
    """What shows the numbers."""
    words = [f"TABLE={options.table}"]
    words += [f"{key.upper()}={shlex.quote(value)}" for key, value in choice_of(options).words().items()]
    where = options.runs
    more = [] if where == "runs" else [f"--runs {where}"]
    more += ["--recorded"] if options.recorded else []
    return " ".join(["make table", *words, *([f"ARGS='{' '.join(more)}'"] if more else [])])


def _say(text: str) -> None:
    print(text, flush=True)
