"""The baselines of one modality from shards to metrics, and again from their checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.cli import main

SMALL = [
    *("--model.width=32", "--model.output_width=16", "--model.whitening_samples=64"),
    *("--data.num_workers=0", "--data.batch_size=8", "--data.steps_per_epoch=2", "--trainer.max_steps=4"),
    *("--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.enable_progress_bar=false"),
]


@pytest.mark.parametrize(
    ("experiment", "own", "other", "more"),
    [("image_only", "image", "text", ["--model.image_size_px=32"]), ("text_only", "text", "image", [])],
)
def test_trained_and_evaluated_again(
    experiment: str, own: str, other: str, more: list[str], shards: Path, tmp_path: Path
) -> None:
    where = ["--data", str(shards), "--runs", str(tmp_path)]
    assert main(["fit", "--exp", experiment, "--scale", "tiny", *where, *SMALL, *more]) == 0
    (folder,) = tmp_path.iterdir()
    trained = json.loads((folder / "metrics.json").read_text())
    assert trained["steps"] == 4
    test = trained["test"]
    assert {f"feature/{own}_{name}/mAP@10" for name in ("stream", "whitened", "bag")} <= set(test)
    assert test[f"{own}/mAP@10"] == test["mAP@10"]
    assert not [key for key in test if key.startswith(f"{other}/") or "->" in key]
    assert {"untrained", "random", "tfidf"} <= set(trained["floors"]["test"])
    assert main(["eval", "--run", str(folder)]) == 0
    assert json.loads((folder / "metrics.json").read_text())["test"] == test
    assert main(["table", str(folder)]) == 0
    assert main(["report", "--run", str(folder)]) == 0


def test_captions_without_dropout_are_refused_before_anything_runs(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", "--exp", "text_only", "--scale", "tiny", "--data", str(shards), "--runs", str(tmp_path)]
    assert main([*words, *SMALL, "--model.dropout=0.0"]) == 2
    said = capsys.readouterr().err
    assert "model.dropout 0.0 must lie between 0 and 1" in said
    assert "Traceback" not in said
