"""A run from its command to its folder, and everything that must agree with its metrics.json."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules import ProductBatch
from experiments.cli import main
from experiments.history import read_history
from lightning_modules import CAPTURE
from tests.experiments.conftest import fit_words

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


@pytest.fixture(scope="module")
def record(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


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


def test_a_finished_run_is_not_repeated(
    run: Path, shards: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    before = (run / "metrics.json").stat().st_mtime_ns
    assert main(fit_words(shards, run.parent)) == 0
    assert "finished already" in capsys.readouterr().out
    assert (run / "metrics.json").stat().st_mtime_ns == before


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


def test_eval_equals_training_to_the_last_digit(run: Path, record: dict, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--run", str(run)]) == 0
    assert "equals what training reported" in capsys.readouterr().out
    again = json.loads((run / "metrics.json").read_text())
    assert again["test"] == record["test"]
    assert again["val"] == record["val"]
    assert again["floors"] == record["floors"]
    assert again["intervals"] == record["intervals"]
    assert {key: again[key] for key in CONTRACT_KEYS} == {key: record[key] for key in CONTRACT_KEYS}


def test_a_run_recorded_without_the_identical_product_and_coverage_is_evaluated_with_them(
    run: Path, record: dict, tmp_path: Path
) -> None:
    copy = tmp_path / run.name
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("wandb", "test-same.*"))
    old = json.loads((copy / "metrics.json").read_text())
    del old["same"]
    for numbers in (old["val"], old["test"], *old["floors"]["test"].values()):
        for key in [key for key in numbers if "same/" in key or "coverage@" in key]:
            del numbers[key]
    (copy / "metrics.json").write_text(json.dumps(old))
    config = (copy / "config.yaml").read_text()
    assert "  same: true\n" in config
    (copy / "config.yaml").write_text(config.replace("  same: true\n", ""))
    assert main(["eval", "--run", str(copy)]) == 0
    now = json.loads((copy / "metrics.json").read_text())
    assert now["test"] == record["test"]
    assert now["floors"]["test"]["tfidf"] == record["floors"]["test"]["tfidf"]
    assert "same/mAP@10" not in now["floors"]["test"]["untrained"]  # that model is gone
    assert set(now["intervals"]["test"]["untrained"]) == {"mAP@10", "mAR@10"}
    assert (copy / "rankings" / "test-same.txt").is_file()


def test_the_checkpoint_brings_its_whitening(run: Path) -> None:
    state = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    fitted = {name: bool(value) for name, value in state.items() if name.endswith(".fitted")}
    assert len(fitted) == 6
    assert all(fitted.values())


def test_eval_keeps_the_record_and_fails_when_numbers_differ(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / run.name
    shutil.copytree(run, copy)
    recorded = json.loads((copy / "metrics.json").read_text())
    recorded["test"]["mAP@10"] += 0.01
    (copy / "metrics.json").write_text(json.dumps(recorded))
    with pytest.raises(RuntimeError, match=r"test/mAP@10 differs"):
        main(["eval", "--run", str(copy)])
    assert json.loads((copy / "metrics.json").read_text()) == recorded
    assert (copy / "metrics-eval.json").is_file()


def test_a_run_that_lost_its_end_goes_on_instead_of_starting_over(
    run: Path, record: dict, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    copy = tmp_path / run.name
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("metrics.json", "wandb"))
    assert main(fit_words(shards, tmp_path)) == 0
    again = json.loads((copy / "metrics.json").read_text())
    assert again["steps"] == 6
    assert again["test"] == record["test"]
    assert again["parameters"] == record["parameters"]
    log = (copy / "log.txt").read_text()
    resumed = log[log.index("going on from") :]
    assert "tested: step" in resumed
    assert "fill no interval" not in resumed  # all were evaluated, before the interruption
    assert "samples/s" not in resumed  # and no interval is told that was not trained


def test_a_run_stopped_in_its_second_interval_ends_with_the_same_weights(
    run: Path, record: dict, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from lightning_modules.callbacks.throughput import Throughput

    monkeypatch.setenv("WANDB_MODE", "disabled")
    start = Throughput.on_train_batch_start

    def stop(self: Throughput, trainer: Any, *more: Any) -> None:
        if trainer.global_step == 4:
            raise OSError("the machine is gone")
        start(self, trainer, *more)

    with monkeypatch.context() as patch:
        patch.setattr(Throughput, "on_train_batch_start", stop)
        with pytest.raises(OSError, match="the machine is gone"):
            main(fit_words(shards, tmp_path))
    assert not (tmp_path / run.name / "metrics.json").exists()
    assert main(fit_words(shards, tmp_path)) == 0

    def weights(folder: Path) -> dict[str, torch.Tensor]:
        return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]

    expected, found = weights(run), weights(tmp_path / run.name)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert json.loads((tmp_path / run.name / "metrics.json").read_text())["test"] == record["test"]
    log = (tmp_path / run.name / "log.txt").read_text()
    lines = [line for line in log[log.index("going on from") :].splitlines() if "samples/s" in line]
    assert len(lines) == 1
    assert re.search(r"step 6/6  mean loss \d+\.\d{4}  val/mAP@10 \d\.\d{4}", lines[0])


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


def test_same_seed_same_numbers_other_seed_others(
    run: Path, record: dict, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")

    def losses(folder: Path) -> list[tuple[float, float]]:
        return [
            (row["step"], row["train/loss"]) for row in read_history(folder / "history.jsonl") if "train/loss" in row
        ]

    for seed, same in ((0, True), (1, False)):
        assert main(fit_words(shards, tmp_path, f"--seed={seed}", "--trainer.log_every_n_steps=1")) == 0
        (folder,) = tmp_path.glob(f"capture-synthetic-{seed}-*")
        assert (json.loads((folder / "metrics.json").read_text())["test"] == record["test"]) is same
    first, second = (losses(next(tmp_path.glob(f"capture-synthetic-{seed}-*"))) for seed in (0, 1))
    assert len(first) == 6
    assert first != second


def test_eval_on_other_data_uses_the_words_of_the_training(run: Path, record: dict, tmp_path: Path) -> None:
    from datamodules.catalogues import open_catalogue
    from datamodules.write_shards import build

    sizes = {"num_train_singles": 8, "num_train_multis": 4, "num_gallery": 72, "num_val": 5, "num_test": 6}
    shop = open_catalogue("synthetic", None, seed=7, num_labels=24, image_size_px=40, **sizes)
    build(shop, tmp_path / "data" / "other", shard_size=32, progress=False)
    copy = tmp_path / "runs" / run.name
    shutil.copytree(run, copy)
    assert main(["eval", "--run", str(copy), "--data", str(tmp_path / "data" / "other")]) == 0
    (folder,) = [path for path in copy.parent.iterdir() if path != copy]
    found = json.loads((folder / "metrics.json").read_text())
    assert (found["data"], found["steps"], found["parameters"]) == ("other", record["steps"], record["parameters"])
    assert json.loads((copy / "metrics.json").read_text()) == record
    assert main(["eval", "--run", str(folder)]) == 0


def test_an_untrained_model_leaves_a_normal_run_folder(shards: Path, tmp_path: Path) -> None:
    words = ["eval", "--exp", "capture", "--data", str(shards), "--scale", "tiny", "--runs", str(tmp_path)]
    small = [word for word in fit_words(shards, tmp_path)[8:] if not word.startswith("--trainer.max")]
    assert main([*words, *[word for word in small if word.startswith("--model")]]) == 0
    (folder,) = tmp_path.iterdir()
    found = json.loads((folder / "metrics.json").read_text())
    assert found["steps"] == 0
    assert found["random_weights"] is True
    said = (folder / "log.txt").read_text()
    assert "CAPTURE starts from random weights here" in said
    assert "random weights, nothing trained" in said[said.index(folder.name) :]
    assert set(CONTRACT_KEYS) <= set(found)
    assert (folder / "rankings" / "test.txt").is_file()
    assert main(["eval", "--run", str(folder)]) == 0


def test_re_ranking_is_recorded_with_its_cost_and_evaluates_to_the_same(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def by_caption(self: CAPTURE, queries: ProductBatch, items: ProductBatch) -> torch.Tensor:
        return (self.encode(queries)["text"] * self.encode(items)["text"]).sum(-1)

    monkeypatch.setattr(CAPTURE, "match", by_caption)
    words = ["eval", "--exp", "capture", "--data", str(shards), "--scale", "tiny", "--runs", str(tmp_path)]
    small = [word for word in fit_words(shards, tmp_path)[8:] if word.startswith("--model")]
    assert main([*words, *small, "--evaluation.rerank=72"]) == 0  # the whole gallery
    assert "re-ranked" in capsys.readouterr().out
    (folder,) = tmp_path.iterdir()
    found = json.loads((folder / "metrics.json").read_text())
    cost = found["rerank"]
    assert (cost["depth"], cost["pairs"]) == (72, 12 * 72)
    assert cost["seconds"] > 0
    assert "--evaluation.rerank=72" in cost["command"]
    assert found["test"]["rerank/mAP@10"] == pytest.approx(found["test"]["text/mAP@10"], abs=0.02)  # near-ties apart
    mean = found["intervals"]["test"]["rerank"]["mAP@10"][0]
    assert mean == pytest.approx(found["test"]["mAP@10"] - found["test"]["rerank/mAP@10"])
    assert not any(key.startswith("rerank/") for key in found["val"])
    assert main(["eval", "--run", str(folder)]) == 0
    assert json.loads((folder / "metrics.json").read_text())["test"] == found["test"]
    capsys.readouterr()
    assert main(["eval", "--run", str(folder), "--evaluation.rerank=5"]) == 0  # other numbers, and no other embedding
    assert f"re-ranked: rerank/… under test in {folder}/metrics.json" in capsys.readouterr().out
    assert "--evaluation.rerank=5" in json.loads((folder / "metrics.json").read_text())["rerank"]["command"]


def test_predict_writes_unit_vectors_of_all_items(run: Path, shards: Path) -> None:
    assert main(["predict", *fit_words(shards, run.parent)[1:]]) == 0
    with np.load(run / "embeddings" / "gallery.npz") as stored:
        assert stored["ids"].tolist() == [line.split("#")[0] for line in (shards / "annotations/gallery.txt").open()]
        np.testing.assert_allclose(np.linalg.norm(stored["product"], axis=1), 1, rtol=1e-5)


def test_test_prints_the_metrics_of_the_best_checkpoint(
    run: Path, record: dict, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["test", *fit_words(shards, run.parent)[1:]]) == 0
    text = capsys.readouterr().out
    shown = json.loads(text[text.index("{") :])
    assert shown["mAP@10"] == record["test"]["mAP@10"]
