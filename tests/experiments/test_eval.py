"""Commands on a finished run, or on an untrained model: eval, predict and test."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules import ProductBatch
from datamodules.catalogues import open_catalogue
from datamodules.write_shards import build
from experiments.cli import main
from experiments.evaluate import reopen
from experiments.runs import RunFolder
from lightning_modules import CAPTURE
from tests.experiments.conftest import CONTRACT_KEYS, fit_words


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """The finished run in another folder, to be damaged."""
    return Path(shutil.copytree(run, tmp_path / run.name, ignore=shutil.ignore_patterns("wandb")))


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


def test_a_run_is_evaluated_by_instance_in_a_folder_of_its_own(copy: Path, record: dict, tmp_path: Path) -> None:
    assert main(["eval", "--run", str(copy), "--data.instances=[true]"]) == 0
    assert json.loads((copy / "metrics.json").read_text()) == record
    (other,) = (folder for folder in tmp_path.iterdir() if folder != copy)
    now = json.loads((other / "metrics.json").read_text())
    assert now["level"] == record["level"] == "whole"  # true boxes are no headline
    assert {key: now["test"][key] for key in record["test"]} == record["test"]
    about = now["instances"]["test"]["true"]
    assert about == {"rows": about["rows"], "mean": round(about["rows"] / 12, 4), "without": 0}
    mean, low, high = now["intervals"]["test"]["true"]["coverage@10"]
    assert low <= mean <= high
    assert mean == pytest.approx(now["test"]["coverage@10"] - now["test"]["true/coverage@10"])
    with np.load(other / "rankings" / "test.npz") as stored:
        assert stored["true/mAR@10"].mean() == pytest.approx(now["test"]["true/mAR@10"])
    assert not (other / "rankings" / "test-instances.txt").exists()  # it belongs to the headline
    assert "true boxes" in (other / "log.txt").read_text()
    assert main(["eval", "--run", str(other)]) == 0  # a normal run folder


def test_eval_keeps_the_record_and_fails_when_numbers_differ(run: Path, tmp_path: Path) -> None:
    """Other weights than those that were tested: no list or score of theirs stands beside the recorded numbers."""
    copy = tmp_path / run.name
    shutil.copytree(run, copy)
    other_weights(copy / "checkpoints" / "best.ckpt")
    before = read_by_tables(copy)
    with pytest.raises(RuntimeError, match=r"/.+ differs from the recorded value"):
        main(["eval", "--run", str(copy)])
    assert read_by_tables(copy) == before
    now, recorded = (json.loads((copy / name).read_text()) for name in ("metrics-eval.json", "metrics.json"))
    assert now["test"]["mAP@10"] != recorded["test"]["mAP@10"]


def other_weights(checkpoint: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    for name, value in content["state_dict"].items():
        if name.endswith(".weight") and value.dim() > 1:
            value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(0)))
    torch.save(content, checkpoint)


def read_by_tables(folder: Path) -> dict[str, bytes]:
    files = [folder / "metrics.json", *(folder / "rankings").iterdir()]
    return {file.name: file.read_bytes() for file in files if file.is_file()}


def test_numbers_that_were_not_asked_for_are_no_difference_and_stay(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / run.name
    shutil.copytree(run, copy)
    before = read_by_tables(copy)
    assert main(["eval", "--run", str(copy), "--evaluation.same=false"]) == 0
    said = capsys.readouterr().out
    assert "equals what training reported" in said
    assert "recorded numbers were not asked for" in said
    assert read_by_tables(copy) == before
    assert "same/mAP@10" not in json.loads((copy / "metrics-eval.json").read_text())["test"]


def test_an_evaluation_does_not_end_a_training_that_was_interrupted(
    run: Path, record: dict, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / run.name
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("metrics.json", "rankings", "wandb"))
    assert main(["eval", "--run", str(copy)]) == 0
    said = capsys.readouterr().out
    assert "metrics.json: missing, the run did not finish; `make train` again continues it" in said
    assert "the run has not finished" in said
    assert not (copy / "metrics.json").exists()
    assert not (copy / "rankings").exists()
    shown = json.loads((copy / "metrics-eval.json").read_text())
    assert shown["test"] == record["test"]
    assert shown["steps"] in (3, 6)  # of the best checkpoint
    assert main(fit_words(shards, tmp_path)) == 0
    assert "finished already" not in capsys.readouterr().out
    assert json.loads((copy / "metrics.json").read_text())["steps"] == 6


def test_a_damaged_record_is_written_again_as_its_message_says(
    run: Path, copy: Path, record: dict, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "metrics.json").write_text((run / "metrics.json").read_text()[:100])
    assert main(["eval", "--run", str(copy)]) == 0
    assert (
        "the command that made the run writes it again, a training from its last checkpoint" in capsys.readouterr().out
    )
    assert main(fit_words(shards, tmp_path)) == 0
    assert "warning:" in capsys.readouterr().out
    again = json.loads((copy / "metrics.json").read_text())
    for key in ("test", "val", "floors", "intervals", "steps", "train_seconds", "skipped"):
        assert again[key] == record[key], key

    (copy / "metrics.json").write_text("{")
    for name in ("last.ckpt", "previous.ckpt"):
        (copy / "checkpoints" / name).unlink()
    best = (copy / "checkpoints" / "best.ckpt").read_bytes()
    assert main(fit_words(shards, tmp_path)) == 2
    assert "train again with --fresh" in capsys.readouterr().err
    assert (copy / "checkpoints" / "best.ckpt").read_bytes() == best


def test_damaged_scores_are_written_again_without_those_of_the_untrained_model(
    copy: Path, record: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = copy / "rankings" / "test.npz"
    scores.write_bytes(scores.read_bytes()[:1000])
    assert main(["eval", "--run", str(copy)]) == 0
    assert f"{scores} cannot be read: the untrained model's scores" in capsys.readouterr().out
    with np.load(scores) as stored:
        assert stored["mAP@10"].mean() == pytest.approx(record["test"]["mAP@10"])
        assert "untrained/mAP@10" not in stored.files
    assert json.loads((copy / "metrics.json").read_text())["floors"] == record["floors"]


def test_a_run_of_several_nodes_is_evaluated_on_one(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / run.name
    copy.mkdir()
    config = (run / "config.yaml").read_text()
    assert "  num_nodes: 1\n" in config
    (copy / "config.yaml").write_text(config.replace("  num_nodes: 1\n", "  num_nodes: 2\n"))
    assert reopen(RunFolder(copy), None, []).config["trainer"]["num_nodes"] == 1
    assert reopen(RunFolder(copy), None, ["--trainer.num_nodes=3"]).config["trainer"]["num_nodes"] == 3


def test_eval_on_other_data_uses_the_words_of_the_training(run: Path, record: dict, tmp_path: Path) -> None:
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


def test_seeds_evaluated_again_in_the_same_way_are_one_row_of_a_table() -> None:
    from experiments.evaluate import _without_seed

    assert _without_seed("capture-fashion-0-81ab3411") == _without_seed("capture-fashion-12-81ab3411")
    assert _without_seed("capture-fashion-0-81ab3411") != _without_seed("capture-fashion-0-00000000")
    assert _without_seed("imported") == "imported"


@pytest.mark.parametrize("content", [b"", b"PK", b"pickle"])
def test_a_checkpoint_that_cannot_be_trusted_is_one_line(
    copy: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    best = copy / "checkpoints" / "best.ckpt"
    best.unlink()
    best.write_bytes(content)
    if content == b"pickle":
        torch.save({"state_dict": Path("what torch would have to unpickle")}, best)
    assert main(["eval", "--run", str(copy)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "best.ckpt cannot be read" in line
    assert "--fresh" in line
    assert "weights_only" not in line
