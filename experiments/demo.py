"""The main job, end to end, on the embedded catalogue: shards, training, evaluation, table, report."""

from __future__ import annotations

import time
from pathlib import Path

from experiments.embedded import EMBEDDED, FOLDER, build_if_missing
from experiments.output import say
from experiments.parser import Parser, command_line


def demo_command(words: list[str]) -> None:
    """Run the demo; further words are settings of the run, as for `fit`."""
    parser = Parser("demo", "shards, training, evaluation, table and report on the embedded catalogue")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of weights, masks and data order (default: 0)")
    parser.add_argument("--runs", default="runs", metavar="DIR", help="where run folders are (default: runs)")
    options, settings = parser.parse_known_args(words)

    from experiments import config
    from experiments.report import write_report
    from experiments.run_commands import fit
    from experiments.runs import run_folder

    config.parse_overrides(settings)  # a typo is told before the shards are built
    clock = _Clock()
    build_if_missing((EMBEDDED,))  # as it is where it is there: runs may be of it
    clock.lap("shards")
    composition = config.compose("capture", str(FOLDER), "tiny", options.seed, settings)
    run = run_folder(composition, Path(options.runs))
    fit(composition, run, command_line("demo", words))
    clock.lap("training and evaluation")
    page = write_report(str(run.root), None)
    clock.lap("report")
    say(f"{clock.summary()}\nopen {page}")


class _Clock:
    """Seconds per step."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.laps: list[tuple[str, float]] = []

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps.append((name, now - self.started))
        self.started = now

    def summary(self) -> str:
        total = sum(seconds for _, seconds in self.laps)
        return "took " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in [*self.laps, ("in all", total)])
