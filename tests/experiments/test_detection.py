"""A detector's run from its command to its folder: the same life as a retrieval run, other numbers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from experiments import config
from experiments.cli import main
from experiments.history import read_history
from experiments.report import write_report
from tests.experiments.conftest import CONTRACT_KEYS
from tests.experiments.interruption import check_same_weights, stopped_at
from tests.experiments.square_pictures import SquarePictures
from tests.experiments.test_config import write_folder
from tests.experiments.test_distributed_run import ROOT, command

SQUARES = """
task: detection
model:
  class_path: lightning_modules.InstanceDetector
  init_args: {network: light, image_size_px: 64, rois: 16, proposals: 40, num_regions: 10, lr: 1.0e-3}
data:
  class_path: tests.experiments.square_pictures.SquarePictures
"""
SHORT = [
    *("--trainer.max_steps=6", "--data.batch_size=4", "--data.steps_per_epoch=3", "--trainer.accelerator=cpu"),
    *("--trainer.log_every_n_steps=2", "--trainer.enable_progress_bar=false"),
]


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A second detection experiment, `squares`, on pictures that cost nothing."""
    home = tmp_path_factory.mktemp("code") / "experiments"
    for file in config.HOME.rglob("*.yaml"):
        copy = home / file.relative_to(config.HOME)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(file.read_text())
    (home / "squares.yaml").write_text(SQUARES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "HOME", home)
        patch.setenv("WANDB_MODE", "disabled")
        yield


def words(data: Path, runs: Path, *more: str) -> list[str]:
    where = ["--data", str(data), "--runs", str(runs)]
    return ["fit", "--exp", "squares", "--scale", "tiny", *where, *SHORT, *more]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "synthetic", "synthetic")


@pytest.fixture(scope="module")
def detection_run(patched: Any, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("detection")
    assert main(words(data, runs)) == 0
    (folder,) = runs.iterdir()
    return folder


@pytest.fixture(scope="module")
def record(detection_run: Path) -> dict[str, Any]:
    return dict(json.loads((detection_run / "metrics.json").read_text()))


def test_the_record_has_the_keys_of_every_run_and_the_numbers_of_its_own(
    detection_run: Path, record: dict[str, Any]
) -> None:
    assert set(CONTRACT_KEYS) - {"embedding_ms_per_item"} <= set(record)
    assert (record["task"], record["metric_version"], record["unscorable"]) == ("detection", "detection", 0)
    assert record["steps"] == 6
    assert record["samples_per_second"] > 0
    assert record["throughput"]["mfu"] > 0
    assert record["cut_outs"] == {"source": "train", "outline": 3, "tile": 5}
    recalls = {f"recall@{k}/IoU{iou}" for k in (1, 10, 36) for iou in (50, 75)}
    for split in ("val", "pasted", "test"):
        assert recalls | {"proposals", "pictures"} <= set(record[split])
        assert record[split]["pictures"] == 8
    assert "floors" not in record
    files = ("config.yaml", "log.txt", "history.jsonl", "checkpoints/best.ckpt", "checkpoints/last.ckpt")
    assert [file for file in files if not (detection_run / file).is_file()] == []


def test_the_log_tells_recalls_after_each_interval_and_the_table_at_the_end(detection_run: Path) -> None:
    log = (detection_run / "log.txt").read_text()
    lines = [line for line in log.splitlines() if "samples/s" in line]
    assert len(lines) == 2
    for name in ("pasted/recall@10/IoU50", "pasted/recall@10/IoU75", "val/recall@10/IoU50", "val/recall@10/IoU75"):
        assert name in lines[0]
    assert "best by pasted/recall@10/IoU75" in log  # true boxes choose nothing
    assert "untrained" not in log
    table = log[log.index("· detection") :]
    cut = "Single products of the train split: 3 cut by outline, 5 taken as a tile"
    for row in ("test queries", "val queries", "pasted", cut):
        assert row in table


def test_history_has_losses_and_recalls(detection_run: Path, record: dict[str, Any]) -> None:
    rows = read_history(detection_run / "history.jsonl")
    assert [row["step"] for row in rows if "pasted/recall@10/IoU75" in row] == [2, 5]
    assert any("train/loss" in row for row in rows)
    (final,) = [row for row in rows if "test/recall@10/IoU50" in row]
    assert final["test/recall@10/IoU50"] == record["test"]["recall@10/IoU50"]


def test_a_finished_run_is_not_repeated(detection_run: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(data, detection_run.parent)) == 0
    said = capsys.readouterr().out
    assert "finished already" in said
    assert "pasted, held-out" in said


def test_eval_equals_training(
    detection_run: Path, record: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / detection_run.name
    shutil.copytree(detection_run, copy)
    assert main(["eval", "--run", str(copy)]) == 0
    count = sum(len(record[split]) for split in ("val", "pasted", "test"))
    assert f"equals what training reported: {count} numbers" in capsys.readouterr().out
    again = json.loads((copy / "metrics.json").read_text())
    assert again == record
    again["pasted"]["recall@10/IoU50"] += 0.5
    (copy / "metrics.json").write_text(json.dumps(again))
    with pytest.raises(RuntimeError, match="pasted/recall@10/IoU50 differs"):
        main(["eval", "--run", str(copy)])


def test_on_other_data_the_record_still_says_what_was_trained_on(
    detection_run: Path, record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / detection_run.name
    shutil.copytree(detection_run, copy)
    other = write_folder(tmp_path / "other", "other", data_hash="fedcba9876543210")
    monkeypatch.setattr(SquarePictures, "cut_outs", {"source": "gallery", "outline": 1, "tile": 0})
    assert main(["eval", "--run", str(copy), "--data", str(other)]) == 0
    (found,) = (json.loads(file.read_text()) for file in tmp_path.glob("squares-other-*/metrics.json"))
    assert (found["data"], found["steps"]) == ("other", 6)
    assert found["cut_outs"] == record["cut_outs"]


def test_another_least_score_gives_numbers_of_another_run(
    detection_run: Path, record: dict[str, Any], tmp_path: Path
) -> None:
    copy = tmp_path / detection_run.name
    shutil.copytree(detection_run, copy)
    assert main(["eval", "--run", str(copy), "--evaluation.min_score=0"]) == 0
    (other,) = (folder for folder in tmp_path.glob("squares-*") if folder != copy)
    found = json.loads((other / "metrics.json").read_text())["test"]
    assert found["recall@36/IoU50"] == record["test"]["recall@36/IoU50"]
    assert found["proposals"] > record["test"]["proposals"]
    assert json.loads((copy / "metrics.json").read_text()) == record


def test_a_run_stopped_in_its_second_interval_ends_with_the_same_weights(
    detection_run: Path, data: Path, record: dict[str, Any], tmp_path: Path
) -> None:
    with stopped_at(4):
        main(words(data, tmp_path))
    assert main(words(data, tmp_path)) == 0
    check_same_weights(detection_run, tmp_path / detection_run.name)
    assert json.loads((tmp_path / detection_run.name / "metrics.json").read_text())["test"] == record["test"]


def test_validate_prints_both_kinds_of_pictures(
    detection_run: Path, data: Path, record: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", *words(data, detection_run.parent)[1:]]) == 0
    text = capsys.readouterr().out
    shown = json.loads(text[text.index("{") :])
    assert shown["recall@10/IoU50"] == record["val"]["recall@10/IoU50"]
    assert shown["pasted/recall@10/IoU50"] == record["pasted"]["recall@10/IoU50"]


def test_the_page_shows_numbers_curves_and_configuration(detection_run: Path, tmp_path: Path) -> None:
    page = write_report(detection_run, str(tmp_path / "page.html")).read_text()
    for wanted in ("Products found", "pasted, held-out cut-outs", "recall@36", "class_path", "Data and environment"):
        assert wanted in page
    assert "TF-IDF" not in page
    assert page.count("<svg") == 2


def test_detectors_have_a_table_of_their_own_and_stand_in_no_other(
    detection_run: Path, record: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["table", str(detection_run)]) == 0
    table = capsys.readouterr().out
    (line,) = [line for line in table.splitlines() if "test queries" in line]
    assert f"{record['test']['recall@10/IoU50']:.4f}" in line
    assert record["command"] in table
    other = tmp_path / "capture-squares-0-1"
    shutil.copytree(detection_run, other)
    (other / "metrics.json").write_text(json.dumps(record | {"task": "retrieval"}))
    assert main(["table", str(detection_run), str(other)]) == 2
    assert "detection runs have no retrieval metrics" in capsys.readouterr().err


def real_words(shards: Path, runs: Path, *more: str) -> list[str]:
    """The words of a short training of the project's own detector on the small shop."""
    where = ["--data", str(shards), "--runs", str(runs)]
    small = ["--model.image_size_px=64", "--model.rois=16", "--model.proposals=40", "--model.num_regions=10"]
    small += ["--data.num_cut_outs=40", "--data.num_pasted=12", "--data.num_workers=1"]
    return ["fit", "--exp", "detector", "--scale", "tiny", *where, *SHORT, *small, *more]


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_two_processes_write_one_run_that_one_process_reproduces(shards: Path, tmp_path: Path) -> None:
    done = command(*real_words(shards, tmp_path, "--trainer.devices=2", "--trainer.strategy=ddp"))
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.iterdir()
    record = json.loads((folder / "metrics.json").read_text())
    assert record["hardware"]["devices"] == 2
    assert [record[split]["pictures"] for split in ("pasted", "val", "test")] == [12, 9, 12]
    assert record["cut_outs"]["source"] == "train"
    assert record["cut_outs"]["outline"] + record["cut_outs"]["tile"] > 0

    done = command("eval", "--run", str(folder), "--trainer.devices=1", "--trainer.strategy=auto")
    assert done.returncode == 0, done.stderr
    assert "equals what training reported" in done.stdout


@pytest.mark.slow
def test_a_killed_training_goes_on_with_the_pictures_it_would_have_seen(shards: Path, tmp_path: Path) -> None:
    """SIGKILL in the second interval, from outside: nothing is told in advance."""
    done = command(*real_words(shards, tmp_path / "whole"))
    assert done.returncode == 0, done.stderr
    line = [sys.executable, "-m", "experiments", *real_words(shards, tmp_path / "killed")]
    environment = {**os.environ, "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(line, cwd=ROOT, env=environment, start_new_session=True) as process:
        deadline = time.monotonic() + 300
        while not list(tmp_path.glob("killed/*/checkpoints/last.ckpt")):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    (killed,) = (tmp_path / "killed").iterdir()
    assert not (killed / "metrics.json").exists()
    done = command(*real_words(shards, tmp_path / "killed"))
    assert done.returncode == 0, done.stderr
    assert "going on from" in done.stdout
    (whole,) = (tmp_path / "whole").iterdir()
    check_same_weights(whole, killed)
    records = [json.loads((folder / "metrics.json").read_text()) for folder in (whole, killed)]
    for split in ("pasted", "val", "test"):
        assert records[0][split] == records[1][split]


def test_the_page_shows_the_sheets_of_the_region_sets(detection_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / detection_run.name
    shutil.copytree(detection_run, copy)
    (copy / "regions-few.png").write_bytes(b"a picture")
    page = write_report(str(copy), str(tmp_path / "page.html")).read_text()
    assert "Region set “few”" in page
    assert "data:image/png;base64,YSBwaWN0dXJl" in page
    assert "Region set" not in write_report(str(detection_run), str(tmp_path / "other.html")).read_text()
