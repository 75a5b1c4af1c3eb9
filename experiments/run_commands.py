"""The commands that compute with a model: fit, validate, test, predict and eval."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from experiments.errors import UsageError
from experiments.parser import Parser, command_line

DEFAULT_EXPERIMENT, DEFAULT_DATA, DEFAULT_SCALE = "capture", "product1m", "paper"


def _run_parser(command: str, description: str) -> Parser:
    parser = Parser(
        command,
        f"{description}. Settings of any class follow as --model.lr=5e-5, --data.batch_size=32, "
        "--trainer.devices=2, --evaluation.backend=faiss, --checkpoint.…",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_choice_options(parser)
    parser.add_argument("--runs", default="runs", metavar="DIR", help="where run folders are (default: runs)")
    if command == "fit":
        parser.add_argument("--fresh", action="store_true", help="delete an earlier run of the same id first")
        parser.add_argument("--table", metavar="NAME", help="table the run is made for: its group in W&B")
        parser.add_argument("--print_config", action="store_true", help="print the merged configuration and stop")
    else:
        parser.add_argument("--ckpt_path", metavar="FILE", help="checkpoint (default: the best one of the run)")
    if command == "predict":
        parser.add_argument("--name", metavar="SET", help="region set a detector writes (default: detected)")
        parser.add_argument("--fresh", action="store_true", help="write a region set of that name over")
    return parser


def _add_choice_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--exp", default=DEFAULT_EXPERIMENT, metavar="NAME", help="experiment (default: capture)")
    parser.add_argument(
        "--data", default=DEFAULT_DATA, metavar="NAME|FOLDER", help="data set or shard folder (default: product1m)"
    )
    parser.add_argument("--scale", metavar="NAME", help="paper, small or tiny (default: paper)")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of weights, masks and data order (default: 0)")


def _warn_of_scale(given: str | None) -> None:
    """The published sizes by oversight, on a machine without a GPU, are worth a word."""
    from experiments import machine

    if given is None and machine.rank() == 0 and platform.system() == "Linux" and not machine.visible_gpus():
        words = f"SCALE left out means {DEFAULT_SCALE}, the published sizes, and this machine shows no GPU"
        print(f"warning: {words}: SCALE=tiny (--scale tiny) is made for two CPU cores", file=sys.stderr)


def _keys_help(experiment: str) -> str:
    """Names that can be chosen and keys that can be set in an experiment, for --help."""
    from experiments import config, schema

    lines = [f"experiments: {', '.join(config.experiments())}"]
    lines += [f"{kind + ':':<12} {', '.join(config.overlays(kind))}" for kind in ("data", "scale")]
    for section, class_path in config.classes_of(experiment).items():
        name = f" ({class_path.rpartition('.')[2]}, --exp {experiment})" if section == "model" else ""
        lines.append(f"\n--{section}.*{name}: {', '.join(schema.signature(class_path))}")
    return "\n".join(lines)


def run_command(command: str, description: str, words: list[str]) -> int | None:
    """Run fit, validate, test or predict; the exit code."""
    parser = _run_parser(command, description)
    if {"-h", "--help"} & set(words):
        chosen, _ = parser.parse_known_args([word for word in words if word not in ("-h", "--help")])
        parser.epilog = _keys_help(chosen.exp)
    options, settings = parser.parse_known_args(words)
    from experiments import config, machine, slurm
    from experiments.embedded import build_if_missing
    from experiments.output import say
    from experiments.run_lock import check_free
    from experiments.runs import clear, run_folder
    from experiments.stop_signals import Stopped
    from experiments.tested_step import check_choice

    if command == "fit" and not options.print_config and machine.rank() == 0 and machine.layout().processes == 1:
        build_if_missing([options.data], before=lambda: config.parse_overrides(settings))
    composition = config.compose(options.exp, options.data, options.scale or DEFAULT_SCALE, options.seed, settings)
    _warn_of_scale(options.scale)
    run = run_folder(composition, Path(options.runs))
    if command == "fit" and options.print_config:
        print(config.dump(composition.config), end="")
        return 0
    if command == "predict":
        composition.task.predict(composition, Path(options.runs), options.ckpt_path, options.name, options.fresh)
        return 0
    if command != "fit":
        from experiments.evaluate import show_split

        split = "val" if command == "validate" else "test"
        say(json.dumps(show_split(composition, Path(options.runs), split, options.ckpt_path), indent=2))
        return 0
    machine.check_devices(composition.config["trainer"])
    check_choice(composition)
    if options.fresh and machine.rank() == 0:
        check_free(run)
        clear(run)
    try:
        fit(composition, run, command_line("fit", words), options.table, options.fresh)
    except Stopped as stop:
        if machine.rank() != 0 and (stop.together or machine.layout().processes == 1):
            return 0  # rank zero speaks for all: launchers kill it as soon as another rank ends with an error
        if machine.rank() == 0:
            slurm.requeue(stop.number)
        raise
    return 0


def fit(composition: Any, run: Any, command: str, table: str | None = None, fresh: bool = False) -> dict[str, Any]:
    """Train unless that is done already, and print the table either way.

    Args:
        fresh: Train anyway: what other ranks still see of an earlier run, rank zero deletes.
    """
    from experiments.announce import announce
    from experiments.output import note, say
    from experiments.run_lock import opened

    about = announce(composition, run)
    say(about)  # before torch is imported, so that a wrong layer is seen at once
    record = None if fresh else _finished(run)
    if record:
        say(f"finished already: {run.metrics} (--fresh trains again)\n{composition.task.render(record)}")
        if "WANDB_SWEEP_ID" in os.environ:  # its agent waits for numbers, also of settings that were tried before
            from experiments.wandb_logger import mirror_record

            mirror_record(run, composition, record, "training", table)
    else:
        with opened(run):
            from experiments.train import train

            note(f"{command}\n{about}")
            record = train(composition, run, command, table, fresh)
            say(composition.task.render(record))
    say(f"numbers    {run.metrics}\ncheckpoint {run.best}\nreport     make report RUN={run.root}")
    return record


def _finished(run: Any) -> dict[str, Any] | None:
    """The numbers of a finished run; one whose metrics.json is damaged goes on from its last checkpoint.

    Raises:
        UsageError: There is none to go on from: to start over would cost a finished run its weights.
    """
    from experiments.output import say

    try:
        found: dict[str, Any] | None = run.finished()
    except UsageError as problem:
        if not (run.last.is_file() or run.previous.is_file()):
            raise UsageError(
                f"{run.metrics}: damaged, and {run.last}, from which it would be written again, is missing: put a copy "
                "of either in its place, or train again with --fresh"
            ) from problem
        say(f"warning: {problem}")
        return None
    return found


def eval_command(description: str, words: list[str]) -> None:
    """Re-evaluate a run, or evaluate a model that needs no training."""
    parser = Parser("eval", description)
    parser.add_argument("--run", metavar="RUN", help="run folder whose best checkpoint is evaluated again")
    parser.add_argument("--exp", metavar="NAME", help="experiment to evaluate as it is built, nothing trained")
    parser.add_argument("--data", metavar="NAME|FOLDER", help="other data (default: the run's own)")
    parser.add_argument("--scale", metavar="NAME", help="with --exp (default: paper)")
    parser.add_argument("--seed", type=int, metavar="N", help="with --exp")
    parser.add_argument("--runs", default="runs", metavar="DIR", help="with --exp: where the run folder goes")
    options, settings = parser.parse_known_args(words)
    if (options.run is None) == (options.exp is None):
        raise UsageError("eval wants a run folder (RUN=runs/<run_id>) or an experiment (EXP=<name> DATA=<name>)")
    from experiments import config
    from experiments.evaluate import evaluate_run, evaluate_untrained

    command = command_line("eval", words)
    if options.run:
        evaluate_run(options.run, options.data, settings, command)
    else:
        data = options.data or DEFAULT_DATA
        composition = config.compose(options.exp, data, options.scale or DEFAULT_SCALE, options.seed, settings)
        _warn_of_scale(options.scale)
        evaluate_untrained(composition, Path(options.runs), command)
