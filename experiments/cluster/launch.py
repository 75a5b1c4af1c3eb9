"""`ablate --launch`: the missing runs of a table as one array of jobs, none of them twice."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import submitit

from experiments.ablation_plan import IN_USE, AblationPlan, PlannedRun
from experiments.cluster import records
from experiments.cluster.fit_job import FitJob
from experiments.cluster.options import ClusterOptions
from experiments.cluster.records import Submission
from experiments.config import HOME
from experiments.errors import UsageError
from experiments.run_pool import OUTPUT_FOLDER


def launch(
    plan: AblationPlan,
    home: Path,
    jobs: int,
    launcher: str,
    options: ClusterOptions,
    command: Callable[[PlannedRun], list[str]],
    say: Callable[[str], None],
) -> None:
    """Submit what is neither finished, nor queued, nor in use; say what was, and how to go on from here.

    Args:
        home: Where run folders are.
        jobs: At work at the same time.
        launcher: "slurm", or "local": submitit's own on this machine, whose jobs outlive this process.
        command: The process of a run.

    Raises:
        UsageError: There is no Slurm, it does not answer, or it refuses the jobs.
    """
    if lacking := _lacking(launcher):
        raise UsageError(f"--launch slurm: no {lacking} here; submit from a machine of the cluster")
    with _alone(home / records.HOME):
        waiting = _to_submit(plan.missing, home, say)
        if waiting:
            _submit(waiting, plan.table.file.stem, home, jobs, launcher, options, command, say)


def preview(
    plan: AblationPlan,
    home: Path,
    jobs: int,
    launcher: str,
    options: ClusterOptions,
    command: Callable[[PlannedRun], list[str]],
    say: Callable[[str], None],
) -> None:
    """Say what `launch` would submit, with what a job asks for, also where there is no Slurm; arguments are its own.

    Raises:
        UsageError: Runs were submitted before, and Slurm does not answer what has become of them.
    """
    waiting = _to_submit(plan.missing, home, say)
    say(f"{len(waiting)} would be submitted, {jobs} at a time" + (", each with" if waiting else ""))
    if waiting:
        parameters = options.parameters(launcher, plan.table.file.stem, jobs)
        asked = {key.removeprefix(f"{launcher}_"): value for key, value in parameters.items()}
        width = max(map(len, asked))
        for key, value in asked.items():
            say(f"  {key:<{width}}  {'; '.join(value) if isinstance(value, list) else value}")
        say(f"the first of them: {shlex.join(command(waiting[0]))}")
    if lacking := _lacking(launcher):
        say(f"no {lacking} here: submit from a machine of the cluster")


def _lacking(launcher: str) -> str | None:
    """A program of Slurm's that is not here; None if nothing is wanting."""
    wanted = ("sbatch", "srun", "squeue") if launcher == "slurm" else ()
    return next((name for name in wanted if not shutil.which(name)), None)


def _to_submit(runs: Sequence[PlannedRun], home: Path, say: Callable[[str], None]) -> list[PlannedRun]:
    """Those of the missing runs that nobody is at or will be; about the others, and about failures, a line each."""
    by_id = {run.folder.run_id: run for run in runs}
    found = {run_id: records.noted(home, run_id) for run_id in by_id}
    submitted = {run_id: submission for run_id, submission in found.items() if submission}
    alive = records.states(submitted)
    waiting = []
    for run_id, run in by_id.items():
        if run_id in alive:
            say(f"  submitted  {run.name}: job {submitted[run_id].job} is {alive[run_id].lower()}")
        elif run.state == IN_USE:
            say(f"  in use     {run.name}: another process is at work on {run.folder.root}")
        else:
            if run_id in submitted:
                said, file = records.why_it_ended(home, run_id, submitted[run_id])
                job = submitted[run_id].job
                say(f"  ended      {run.name}: job {job}, before the run was finished: {said}\n    {file}")
            waiting.append(run)
    return waiting


def _submit(
    runs: Sequence[PlannedRun],
    table: str,
    home: Path,
    jobs: int,
    launcher: str,
    options: ClusterOptions,
    command: Callable[[PlannedRun], list[str]],
    say: Callable[[str], None],
) -> None:
    logs = (home / records.HOME / table).resolve()
    outputs = home.resolve() / OUTPUT_FOLDER
    work = [FitJob(command(run), Path.cwd(), outputs / f"{run.folder.run_id}.txt") for run in runs]
    try:
        with _importable():
            executor = submitit.AutoExecutor(logs, launcher, slurm_max_num_timeout=options.max_requeues)
            executor.update_parameters(**options.parameters(launcher, table, jobs))
            with executor.batch():
                submitted = [executor.submit(job) for job in work]
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError, OSError) as problem:
        raise UsageError(f"--launch {launcher}: the jobs were refused: {' '.join(str(problem).split())}") from problem
    for run, job in zip(runs, submitted, strict=True):
        submission = Submission(launcher, job.job_id, str(logs), socket.gethostname())
        records.note(home, run.folder.run_id, submission)
        say(f"  submitted  {run.name}: job {job.job_id}  {run.folder.root}")
    ids = sorted({job.job_id.partition("_")[0] for job in submitted})
    watch = f"squeue --jobs {','.join(ids)}" if launcher == "slurm" else f"ps {' '.join(ids)}"
    cancel = f"scancel {' '.join(ids)}" if launcher == "slurm" else f"kill -INT {' '.join(ids)}"
    say(
        f"{len(submitted)} submitted, {jobs} at a time\n"
        f"watch      {watch}\n"
        f"           tail -f {outputs / f'{runs[0].folder.run_id}.txt'}\n"
        f"logs       {logs}\n"
        f"cancel     {cancel}\n"
        "go on      the same command tells what has ended and why, and submits what is missing then"
    )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two commands at once would both find a run unsubmitted."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def _importable() -> Iterator[None]:
    """A job reads this package from here, wherever the command was typed; schedulers hand the environment on."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HOME.parent), *filter(None, [before])])
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
