"""`ablate --launch`: the missing runs of a table as one array of jobs, none of them twice."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit

from experiments.ablation_plan import IN_USE, AblationPlan, PlannedRun
from experiments.cluster import records
from experiments.cluster.fit_job import FitJob
from experiments.cluster.options import ClusterOptions
from experiments.cluster.records import Submission
from experiments.config import HOME
from experiments.errors import UsageError
from experiments.run_pool import OUTPUT_FOLDER


@dataclass(frozen=True)
class Launch:
    """The missing runs of a table as jobs.

    Args:
        home: Where run folders are.
        jobs: At work at the same time.
        launcher: "slurm", or "local": submitit's own on this machine, whose jobs outlive this process.
        command: The process of a run.
    """

    plan: AblationPlan
    home: Path
    jobs: int
    launcher: str
    options: ClusterOptions
    command: Callable[[PlannedRun], list[str]]
    say: Callable[[str], None]

    def submit(self) -> None:
        """Submit what is neither finished, nor queued, nor in use; say what was, and how to go on from here.

        Raises:
            UsageError: There is no Slurm, it does not answer, or it refuses the jobs.
        """
        if lacking := _lacking(self.launcher):
            raise UsageError(f"--launch slurm: no {lacking} here; submit from a machine of the cluster")
        with _alone(self.home / records.HOME):
            waiting = self._to_submit()
            if waiting:
                self._submit(waiting)

    def preview(self) -> None:
        """Say what would be submitted, with what a job asks for, also where there is no Slurm.

        Raises:
            UsageError: Runs were submitted before, and Slurm does not answer what has become of them.
        """
        waiting = self._to_submit()
        self.say(f"{len(waiting)} would be submitted, {self.jobs} at a time" + (", each with" if waiting else ""))
        if waiting:
            asked = {key.removeprefix(f"{self.launcher}_"): value for key, value in self._parameters().items()}
            width = max(map(len, asked))
            for key, value in asked.items():
                self.say(f"  {key:<{width}}  {'; '.join(value) if isinstance(value, list) else value}")
            self.say(f"the first of them: {shlex.join(self.command(waiting[0]))}")
        if lacking := _lacking(self.launcher):
            self.say(f"no {lacking} here: submit from a machine of the cluster")

    def _to_submit(self) -> list[PlannedRun]:
        """Those of the missing runs that nobody is at or will be; about the others, and about failures, a line each."""
        by_id = {run.folder.run_id: run for run in self.plan.missing}
        found = {run_id: records.noted(self.home, run_id) for run_id in by_id}
        submitted = {run_id: submission for run_id, submission in found.items() if submission}
        alive = records.states(submitted)
        waiting = []
        for run_id, run in by_id.items():
            if run_id in alive:
                self.say(f"  submitted  {run.name}: job {submitted[run_id].job} is {alive[run_id].lower()}")
            elif run.state == IN_USE:
                self.say(f"  in use     {run.name}: another process is at work on {run.folder.root}")
            else:
                if run_id in submitted:
                    said, file = records.why_it_ended(self.home, run_id, submitted[run_id])
                    job = submitted[run_id].job
                    self.say(f"  ended      {run.name}: job {job}, before the run was finished: {said}\n    {file}")
                waiting.append(run)
        return waiting

    def _parameters(self) -> dict[str, Any]:
        return self.options.parameters(self.launcher, self.plan.table.file.stem, self.jobs)

    def _submit(self, runs: Sequence[PlannedRun]) -> None:
        logs = (self.home / records.HOME / self.plan.table.file.stem).resolve()
        outputs = self.home.resolve() / OUTPUT_FOLDER
        work = [FitJob(self.command(run), Path.cwd(), outputs / f"{run.folder.run_id}.txt") for run in runs]
        try:
            with _importable():
                executor = submitit.AutoExecutor(logs, self.launcher, slurm_max_num_timeout=self.options.max_requeues)
                executor.update_parameters(**self._parameters())
                with executor.batch():
                    submitted = [executor.submit(job) for job in work]
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError, OSError) as problem:
            raise UsageError(
                f"--launch {self.launcher}: the jobs were refused: {' '.join(str(problem).split())}"
            ) from problem
        for run, job in zip(runs, submitted, strict=True):
            submission = Submission(self.launcher, job.job_id, str(logs), socket.gethostname())
            records.note(self.home, run.folder.run_id, submission)
            self.say(f"  submitted  {run.name}: job {job.job_id}  {run.folder.root}")
        ids = sorted({job.job_id.partition("_")[0] for job in submitted})
        watch = f"squeue --jobs {','.join(ids)}" if self.launcher == "slurm" else f"ps {' '.join(ids)}"
        cancel = f"scancel {' '.join(ids)}" if self.launcher == "slurm" else f"kill -INT {' '.join(ids)}"
        self.say(
            f"{len(submitted)} submitted, {self.jobs} at a time\n"
            f"watch      {watch}\n"
            f"           tail -f {outputs / f'{runs[0].folder.run_id}.txt'}\n"
            f"logs       {logs}\n"
            f"cancel     {cancel}\n"
            "go on      the same command tells what has ended and why, and submits what is missing then"
        )


def _lacking(launcher: str) -> str | None:
    """A program of Slurm's that is not here; None if nothing is wanting."""
    wanted = ("sbatch", "srun", "squeue") if launcher == "slurm" else ()
    return next((name for name in wanted if not shutil.which(name)), None)


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
