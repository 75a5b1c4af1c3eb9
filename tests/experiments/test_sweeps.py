"""Sweep files: what W&B's own agent makes of them is a command that this project takes."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from experiments.cli import main
from experiments.config import HOME, compose
from experiments.run_commands import _run_parser
from experiments.runs import config_hash
from tests.experiments.conftest import SMALL

SWEEPS = sorted((HOME / "sweeps").glob("*.yaml"))


def agent_command(sweep: dict[str, Any], chosen: dict[str, Any]) -> list[str]:
    """As `wandb agent` builds it for one draw of the parameters."""
    command = {"args": {key: {"value": value} for key, value in chosen.items()}, "program": sweep["program"]}
    parts = create_sweep_command_args(command) | {"interpreter": [sys.executable], "env": ["/usr/bin/env"]}
    words: list[str] = []
    for word in create_sweep_command(sweep["command"]):
        words += parts[word[2:-1]] if word.startswith("${") else [word]
    return words


def draws(sweep: dict[str, Any]) -> list[dict[str, Any]]:
    """Each value of each parameter at least once."""
    values = {key: about.get("values") or [about["min"], about["max"]] for key, about in sweep["parameters"].items()}
    longest = max(map(len, values.values()))
    found = [list(itertools.islice(itertools.cycle(choice), longest)) for choice in values.values()]
    return [dict(zip(values, draw, strict=True)) for draw in zip(*found, strict=True)]


def on(shards: Path, words: list[str]) -> list[str]:
    """The words after `python -m experiments`, on other data."""
    start = words.index("experiments") + 1
    return [f"--data={shards}" if word.startswith("--data=") else word for word in words[start:]]


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_every_parameter_reaches_the_configuration(file: Path, shards: Path) -> None:
    sweep = yaml.safe_load(file.read_text(encoding="utf-8"))
    hashes = set()
    for chosen in draws(sweep):
        words = agent_command(sweep, chosen)
        assert words[:4] == ["/usr/bin/env", sys.executable, "-m", "experiments"]
        options, settings = _run_parser("fit", "").parse_known_args(on(shards, words)[1:])
        composition = compose(options.exp, options.data, options.scale, options.seed, settings)
        for key, value in chosen.items():
            section, name = key.split(".")
            part = composition.config[section]
            assert part.get("init_args", part)[name] == value
        hashes.add(config_hash(composition))
    assert len(hashes) == len(draws(sweep))  # each a run of its own


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_a_sweep_tunes_what_a_run_logs_on_val(file: Path, record: dict) -> None:
    metric = yaml.safe_load(file.read_text(encoding="utf-8"))["metric"]
    split, _, name = metric["name"].partition("/")
    assert split == "val"
    assert name in record["val"]
    assert metric["goal"] == "maximize"


@pytest.mark.slow
@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_the_agents_command_trains(file: Path, shards: Path, tmp_path: Path) -> None:
    sweep = yaml.safe_load(file.read_text(encoding="utf-8"))
    small = [word for word in SMALL if word.split("=")[0].strip("-") not in sweep["parameters"]]
    for chosen in draws(sweep):
        words = on(shards, agent_command(sweep, chosen))
        assert main([*words, *small, "--trainer.max_steps=2", "--data.steps_per_epoch=2", f"--runs={tmp_path}"]) == 0
    records = [json.loads(found.read_text()) for found in tmp_path.glob("*/metrics.json")]
    assert [record["steps"] for record in records] == [2] * len(draws(sweep))
