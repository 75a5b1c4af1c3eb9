"""Weights of strangers: a payload in the file is refused with one error that names the file, and never runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.errors import UsageError
from experiments.runs import RunFolder
from lightning_modules.errors import ModelError
from tests.security.payload import Payload


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "ran"


def _given(path: Path) -> Any:
    from experiments.evaluate import checkpoint_of

    return checkpoint_of(RunFolder(path.parent), str(path))


def _own_best(path: Path) -> Any:
    from experiments.evaluate import checkpoint_of

    run = RunFolder(path.parent)
    run.checkpoints.mkdir()
    path.rename(run.best)
    return checkpoint_of(run, None)


def _resumed(path: Path) -> Any:
    from experiments.checkpoint_files import resume_point

    run = RunFolder(path.parent)
    run.checkpoints.mkdir()
    path.rename(run.last)
    return resume_point(run)


def _imported(path: Path) -> Any:
    from experiments.import_official import _state_dict

    return _state_dict(path)


def _detector(path: Path) -> Any:
    from lightning_modules.instance_detector import read_detector

    return read_detector(str(path))


def _backbone(path: Path) -> Any:
    from lightning_modules.layers.visual_backbone import build_backbone

    return build_backbone("resnet18", str(path))


def _clip(path: Path) -> Any:
    from lightning_modules import CLIP

    return CLIP(architecture=_TINY_CLIP, pretrained=str(path), tokenizer="shards").load_weights()


_TINY_CLIP = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1},
}


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("read", [_given, _own_best, _resumed, _imported, _detector, _backbone, _clip])
def test_a_payload_in_a_checkpoint_is_refused_and_does_not_run(
    read: Callable[[Path], Any], as_zip: bool, tmp_path: Path, mark: Path
) -> None:
    path = tmp_path / "evil.ckpt"
    content = {"state_dict": {"weight": torch.ones(2)}, "callbacks": {}, "global_step": 1, "extra": Payload(mark)}
    torch.save(content, path, _use_new_zipfile_serialization=as_zip)
    with pytest.raises((UsageError, ModelError)) as error:
        read(path)
    assert any(name in str(error.value) for name in ("evil.ckpt", "best.ckpt", "last.ckpt"))
    assert "weights_only" not in str(error.value), "nobody is told to trust the file"
    assert not mark.exists()


def test_a_payload_in_the_folder_of_a_bert_is_refused_and_does_not_run(tmp_path: Path, mark: Path) -> None:
    from lightning_modules.bert_weights import read_bert

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = {"model_type": "bert", "vocab_size": 20, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save({"bert.embeddings.word_embeddings.weight": Payload(mark)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="could not be loaded"):
        read_bert(str(tmp_path))
    assert not mark.exists()


def test_code_that_lies_beside_a_model_is_not_run(tmp_path: Path, mark: Path) -> None:
    from lightning_modules.bert_weights import read_bert

    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForPreTraining": "evil.Evil"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="could not be loaded"):
        read_bert(str(tmp_path))
    assert not mark.exists()
