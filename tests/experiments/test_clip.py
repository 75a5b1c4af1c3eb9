"""CLIP from weights on disk: evaluated as it is, fine-tuned, and evaluated again."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from experiments.cli import main

CONFIG: dict[str, Any] = {  # CLIP's own tokenizer on towers of width 32
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an architecture and a checkpoint, as if downloaded."""
    import open_clip
    import torch

    folder = tmp_path_factory.mktemp("released")
    torch.manual_seed(0)
    torch.save(open_clip.CLIP(**deepcopy(CONFIG)).state_dict(), folder / "weights.pt")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def _words(released: Path, shards: Path, runs: Path, *more: str) -> list[str]:
    model = [f"--model.architecture={released}/config.json", f"--model.pretrained={released}/weights.pt"]
    machine = ["--trainer.accelerator=cpu", "--trainer.precision=32-true", "--trainer.logger=false"]
    sizes = ["--data.num_workers=0", "--data.batch_size=8", "--data.steps_per_epoch=2", "--trainer.max_steps=4"]
    return ["--exp", "clip", "--data", str(shards), "--runs", str(runs), *model, *machine, *sizes, *more]


def test_zero_shot_then_fine_tuning_then_evaluation_again(released: Path, shards: Path, tmp_path: Path) -> None:
    assert main(["eval", *_words(released, shards, tmp_path / "zero")]) == 0
    (folder,) = (tmp_path / "zero").iterdir()
    zero = json.loads((folder / "metrics.json").read_text())
    assert zero["steps"] == 0
    assert {"mAP@10", "image/mAP@10", "text->image/mAP@10", "feature/mean/mAP@10"} <= set(zero["test"])
    assert zero["test"]["false_negatives_per_batch"] == pytest.approx(8 * 7 * 2 / 71)  # 24 labels on 72 items

    assert main(["fit", *_words(released, shards, tmp_path / "tuned")]) == 0
    (folder,) = (tmp_path / "tuned").iterdir()
    tuned = json.loads((folder / "metrics.json").read_text())
    assert tuned["steps"] == 4
    # the untrained model of a fine-tuning is the released one
    assert tuned["floors"]["test"]["untrained"]["mAP@10"] == pytest.approx(zero["test"]["mAP@10"])

    (released / "weights.pt").rename(released / "moved.pt")  # a trained run needs its starting point no more
    assert main(["eval", "--run", str(folder)]) == 0


def test_a_tokenizer_that_does_not_fit_is_told_before_anything_runs(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", "--exp", "clip", "--scale", "tiny", "--data", str(shards), "--runs", str(tmp_path)]
    changes = ["--model.tokenizer=open_clip:ViT-B-32", "--model.vocab_size=500"]
    assert main([*words, "--trainer.accelerator=cpu", *changes]) == 2
    said = capsys.readouterr().err
    assert "Tokenizer 'open_clip:ViT-B-32' has vocab_size 49408, the model 500" in said
    assert "Traceback" not in said
