"""One small shard folder and one short training, shared by the tests of this package."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import table_rows
from experiments.cli import main
from tests.experiments.ablation_stub import ROWS, STUB

# A network small enough to train in seconds; everything else is the tiny scale.
SMALL = [
    *("--model.width=32", "--model.output_width=16", "--model.text_ffn=32", "--model.image_ffn=32"),
    *("--model.cross_width=16", "--model.image_size_px=32", "--data.num_workers=0", "--data.batch_size=8"),
    "--model.whitening_samples=64",
    *(
        "--data.steps_per_epoch=3",
        "--trainer.max_steps=6",
        "--trainer.accelerator=cpu",
        "--trainer.log_every_n_steps=2",
    ),
]

CONTRACT_KEYS = [
    "run_id",
    "experiment",
    "data",
    "data_hash",
    "scale",
    "seed",
    "git",
    "config_hash",
    "metric_version",
    "command",
    "hardware",
    "steps",
    "parameters",
    "train_seconds",
    "embedding_ms_per_item",
    "skipped",
    "unscorable",
    "val",
    "test",
]


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic shop with 24 labels, and the entities of its captions."""
    from datamodules.catalogues import open_catalogue
    from datamodules.entities import add_entities
    from datamodules.entity_sources import MinedSource, MiningRules
    from datamodules.write_shards import build

    folder = tmp_path_factory.mktemp("data") / "synthetic"
    sizes = {"num_train_singles": 20, "num_train_multis": 12, "num_gallery": 72, "num_val": 9, "num_test": 12}
    catalogue = open_catalogue("synthetic", None, num_labels=24, image_size_px=40, **sizes)
    build(catalogue, folder, shard_size=32, progress=False)
    add_entities(folder, MinedSource(MiningRules(min_captions=2)), progress=False)
    return folder


def fit_words(shards: Path, runs: Path, *more: str) -> list[str]:
    """The words of a short training."""
    where = ["--data", str(shards), "--runs", str(runs)]
    return ["fit", "--exp", "capture", "--scale", "tiny", *where, *SMALL, *more]


@pytest.fixture(scope="session")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, with W&B offline."""
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_API_KEY", "WANDB_PROJECT"):
            patch.delenv(name, raising=False)
        patch.setenv("WANDB_MODE", "offline")
        assert main(fit_words(shards, runs)) == 0
    (folder,) = runs.iterdir()
    return folder


@pytest.fixture(scope="module")
def record(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where tables are read from and runs go."""
    (tmp_path / "ablations").mkdir()
    monkeypatch.setattr(table_rows, "HOME", tmp_path)
    (tmp_path / "stub.py").write_text(STUB)
    return tmp_path


@pytest.fixture
def write(home: Path, shards: Path) -> Callable[..., None]:
    """Write the table `mine`."""

    def write_table(rows: str = ROWS, **head: object) -> None:
        about = {"title": "Mine", "data": str(shards), "scale": "tiny", "seeds": [0, 1], **head}
        text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in about.items())
        (home / "ablations" / "mine.yaml").write_text(f"{text}rows:{rows}")

    return write_table


@pytest.fixture(autouse=True)
def _without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    """Off where a test is not about it: nobody's account hears of tests."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
