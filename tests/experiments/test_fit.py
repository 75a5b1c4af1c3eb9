"""A run from its command to its folder, and everything that must agree with its metrics.json."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.cli import main
from experiments.history import read_history
from tests.experiments.conftest import CONTRACT_KEYS


def test_the_folder_is_complete(run: Path, record: dict) -> None:
    assert set(CONTRACT_KEYS) <= set(record)
    assert record["run_id"] == run.name
    assert run.name.startswith("capture-synthetic-0-")
    files = ["config.yaml", "log.txt", "history.jsonl", "checkpoints/best.ckpt", "checkpoints/last.ckpt"]
    files += [f"rankings/{split}.{kind}" for split in ("val", "test", "test-same") for kind in ("txt", "npz")]
    assert [file for file in files if not (run / file).is_file()] == []
    assert record["steps"] == 6
    assert 0 < record["embedding_ms_per_item"] < 1000
    assert not [key for split in ("val", "test") for key in record[split] if "embedding" in key]  # clocks never compare


def test_both_splits_have_the_metrics_and_their_floors(record: dict) -> None:
    wanted = [
        f"{prefix}{name}@{k}"
        for prefix in ("", "textbook/")
        for name in ("mAP", "mAR", "Prec", "coverage")
        for k in (10, 50)
    ]
    for split in ("val", "test"):
        assert set(wanted) <= set(record[split])
        assert {"image/mAP@10", "text/mAP@10", "image->text/mAP@10"} <= set(record[split])
        assert set(record["floors"][split]) == {"random", "tfidf", "untrained"}
        assert set(record["intervals"][split]) == {"image", "text", "untrained", "tfidf", "random"}


def test_the_identical_product_has_its_numbers_and_floors(run: Path, record: dict) -> None:
    keys = {f"same/{name}@{k}" for name in ("mAP", "Prec") for k in (1, 5, 10)}
    prefixes = ("", "image/", "text/", "textbook/")
    for split in ("val", "test"):
        assert {prefix + key for prefix in prefixes for key in keys} <= set(record[split])
    assert record["same_seconds"] > 0
    assert record["same"]["queries"] + record["same"]["left_out"] == 72
    for floor in ("random", "tfidf", "untrained"):
        assert keys <= set(record["floors"]["test"][floor])
    with np.load(run / "rankings" / "test-same.npz") as stored:
        assert len(stored["query_ids"]) == record["same"]["queries"]
        for rival, of_metric in record["intervals"]["test"].items():
            mean, low, high = of_metric["same/mAP@10"]
            assert low <= mean <= high
            difference = stored["same/mAP@10"].mean() - stored[f"{rival}/same/mAP@10"].mean()
            assert mean == pytest.approx(difference)
    log = (run / "log.txt").read_text()
    assert f"the identical product: {record['same']['queries']} gallery items" in log
    assert "same/Prec@10" in log


def test_the_list_of_the_identical_product_scores_the_same_from_its_file(
    run: Path, record: dict, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gallery = str(shards / "annotations" / "gallery.txt")
    words = ["--ranking", str(run / "rankings" / "test-same.txt"), "--queries", gallery, "--gallery", gallery]
    assert main(["score", *words, "--same"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["missing"] == record["same"]["left_out"]
    assert answer["unscorable"] == 0
    for key in (key for key in answer if key.startswith("same/")):
        assert answer[key] == pytest.approx(record["test"][key])


def test_an_interval_is_around_its_difference(record: dict) -> None:
    mean, low, high = record["intervals"]["test"]["tfidf"]["mAP@10"]
    assert low <= mean <= high
    assert mean == pytest.approx(record["test"]["mAP@10"] - record["floors"]["test"]["tfidf"]["mAP@10"])


def test_per_query_scores_average_to_the_metrics(run: Path, record: dict) -> None:
    with np.load(run / "rankings" / "test.npz") as stored:
        assert stored["mAR@10"].mean() == pytest.approx(record["test"]["mAR@10"])
        assert stored["random/mAP@10"].mean() == pytest.approx(record["floors"]["test"]["random"]["mAP@10"])


def test_score_equals_the_metrics(
    run: Path, record: dict, shards: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    annotations = shards / "annotations"
    words = ["score", "--ranking", str(run / "rankings/test.txt"), "--queries", str(annotations / "test.txt")]
    for protocol, prefix in (("official", ""), ("textbook", "textbook/")):
        out = tmp_path / f"{protocol}.json"
        more = ["--gallery", str(annotations / "gallery.txt"), "--protocol", protocol, "--out", str(out)]
        assert main([*words, *more]) == 0
        scored = json.loads(capsys.readouterr().out)
        assert scored == json.loads(out.read_text())
        for key in (f"{name}@{k}" for name in ("mAP", "mAR", "Prec", "coverage") for k in (10, 100)):
            assert scored[key] == pytest.approx(record["test"][prefix + key], abs=1e-12)
        assert scored["unscorable"] == record["unscorable"]


def test_the_log_tells_layers_skips_and_floors(run: Path) -> None:
    log = (run / "log.txt").read_text()
    assert "experiments/scale/tiny.yaml" in log
    assert "skipped samples: none" in log
    assert "TF-IDF on captions" in log


def test_history_has_losses_and_validation_from_the_first_step(run: Path) -> None:
    rows = read_history(run / "history.jsonl")
    validated = [row["step"] for row in rows if "val/mAP@10" in row]
    assert validated[0] == 0
    assert len(validated) == 3
    assert any("test/floor/tfidf/mAP@10" in row for row in rows)


def test_wandb_writes_offline_below_the_run(run: Path) -> None:
    segments = list((run / "wandb").glob("offline-run-*"))
    assert len(segments) == 1
    assert run.name in segments[0].name
    (stored,) = segments[0].glob("*.wandb")
    assert stored.stat().st_size > 0
    assert list(segments[0].rglob("*.table.json"))


def test_the_checkpoint_brings_its_whitening(run: Path) -> None:
    state = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    fitted = {name: bool(value) for name, value in state.items() if name.endswith(".fitted")}
    assert len(fitted) == 6
    assert all(fitted.values())


def test_the_interval_line_tells_the_mean_loss(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of UNITER's steps, each of which trains another objective; without a whole interval it says how to get one."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    small = ["--model.width=32", "--model.output_width=16", "--model.image_size_px=32", "--model.whitening_samples=0"]
    short = ["--data.batch_size=8", "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1"]
    words = ["fit", "--exp", "uniter", "--scale", "tiny", "--data", str(shards), "--runs", str(tmp_path)]
    words += [*small, *short, "--evaluation.same=false", "--trainer.max_steps=5"]
    assert main([*words, "--data.steps_per_epoch=5"]) == 0
    (folder,) = tmp_path.iterdir()
    losses = [row["train/loss"] for row in read_history(folder / "history.jsonl") if "train/loss" in row]
    assert len(losses) == 5
    assert max(losses) - min(losses) > 0.1
    log = (folder / "log.txt").read_text()
    (told,) = re.findall(r"mean loss (\d+\.\d+)", log)
    assert float(told) == pytest.approx(sum(losses) / 5, abs=1e-4)
    assert "tested: step 5 of 5, best by val/mAP@10" in log
    trained = json.loads((folder / "metrics.json").read_text())["parameters"]
    assert f"UNITER: {trained / 1e6:.2f} million trained parameters" in log
    shutil.rmtree(folder)
    assert main([*words, "--data.steps_per_epoch=6"]) == 0
    (folder,) = tmp_path.iterdir()
    assert "no interval was completed in 5 steps" in (folder / "log.txt").read_text()
