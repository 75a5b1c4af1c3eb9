"""What a user can get wrong about data and devices, once everything is imported: one line and exit code 2."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from experiments.cli import main
from tests.experiments.conftest import fit_words


@pytest.fixture(autouse=True)
def without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a command that must end with code 2 and one line."""
    assert main(words) == 2
    error = capsys.readouterr().err.strip().splitlines()
    message = [line for line in error if line.startswith("error: ")]
    assert len(message) == 1
    return message[0]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("--trainer.devices=4097", "trainer.devices=4097: this machine has"),
        ("--data.batch_size=33", "data.batch_size=33"),
        ("--data.batch_size=0", "data.batch_size=0"),
        ("--model.objectives=[mlm, foo]", "'foo' is unknown"),
        ("--model.backbone=resnet_tinny", "unknown backbone 'resnet_tinny'"),
        ("--trainer.precision=13", "trainer.precision: expected"),
        ("--trainer.strategy=dpp", "strategy='dpp'"),
        ("--trainer.gradient_clip_algorithm=foo", "gradient_clip_algorithm"),
        ("--model.retrieval_feature=best", "retrieval_feature 'best'"),
        ("--model.retrieval_feature=product_bot", "did you mean 'product_both'?"),
        ("--model.objectives=[mlm,mmr]", "did you mean 'mrm'?"),
        ("--model.objectives=[]", "at least one objective"),
        ("--model.co_heads=3", "model.co_heads=3 does not divide model.width=32"),
        ("--model.visual_input=regions", "precomputed regions"),
        ("--model.tokenizer=no/such/tokenizer", "no/such/tokenizer"),
        ("--evaluation.rerank=101", "evaluation.rerank=101 must be between 0 (off) and evaluation.depth=100"),
        ("--evaluation.rerank=10", "CAPTURE has no matching head; evaluation.rerank must be 0"),
        ("--evaluation.ks=[5,50]", "checkpoint.monitor=val/mAP@10 is not measured by evaluation.ks=[5, 50]: add 10"),
        ("--checkpoint.monitor=val/map@10", "checkpoint.monitor=val/map@10 is no metric"),
        ("--checkpoint.filename=foo", "checkpoint.filename=foo: a run keeps the weights of its best interval"),
        ("--checkpoint.save_top_k=3", "leave checkpoint.save_top_k out"),
        ("--checkpoint.enable_version_counter=true", "leave checkpoint.enable_version_counter out"),
        ("--checkpoint.every_n_train_steps=5", "leave checkpoint.every_n_train_steps out"),
    ],
)
def test_a_wrong_value_is_one_line(
    setting: str, message: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(fit_words(shards, tmp_path, setting), capsys)
    assert list(tmp_path.iterdir()) == []  # nothing was started that leaves a folder


def test_a_missing_tar_is_named(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "synthetic"
    shutil.copytree(shards, copy)
    victim = next(copy.glob("gallery-*.tar"))
    victim.unlink()
    assert victim.name in refused(fit_words(copy, tmp_path / "runs"), capsys)


def test_a_tar_that_is_not_the_manifests_is_named(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "synthetic"
    shutil.copytree(shards, copy)
    victim = next(copy.glob("train-*.tar"))
    victim.write_bytes(victim.read_bytes()[:-1024])
    assert victim.name in refused(fit_words(copy, tmp_path / "runs"), capsys)
    assert main(["data", "verify", str(copy)]) == 1


def test_a_manifest_that_is_no_json_is_named(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "synthetic"
    shutil.copytree(shards, copy)
    (copy / "manifest.json").write_text("{")
    assert "manifest.json" in refused(fit_words(copy, tmp_path / "runs"), capsys)


def test_verify_is_content_with_sound_shards(shards: Path) -> None:
    assert main(["data", "verify", str(shards)]) == 0


def test_eval_refuses_shards_that_changed(
    run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / run.name
    shutil.copytree(run, copy)
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("data_hash: ", "data_hash: 0"))
    assert "the shards have changed" in refused(["eval", "--run", str(copy)], capsys)


def test_eval_refuses_a_run_without_checkpoint(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / run.name
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("*.ckpt"))
    assert "best.ckpt: missing" in refused(["eval", "--run", str(copy)], capsys)


def test_a_checkpoint_that_is_not_there_is_named(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["test", *fit_words(shards, tmp_path)[1:], "--ckpt_path", "none.ckpt"]
    assert "none.ckpt: no such file" in refused(words, capsys)


def test_a_broken_picture_is_skipped_counted_and_told(shards: Path, tmp_path: Path) -> None:
    """Training goes on without it; log and metrics.json say how many were left out, and why."""
    import hashlib
    import io
    import json
    import tarfile

    copy = tmp_path / "synthetic"
    shutil.copytree(shards, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    entry = manifest["splits"]["train"]["shards"][0]
    out = io.BytesIO()
    with tarfile.open(copy / entry["file"]) as source, tarfile.open(fileobj=out, mode="w") as target:
        broken = next(member.name for member in source if member.name.endswith(".jpg"))
        for member in source:
            content = source.extractfile(member).read()  # type: ignore[union-attr]
            if member.name == broken:
                content = content[: len(content) // 3]
                member.size = len(content)
            target.addfile(member, io.BytesIO(content))
    (copy / entry["file"]).write_bytes(out.getvalue())
    entry.update(bytes=len(out.getvalue()), sha256=hashlib.sha256(out.getvalue()).hexdigest())
    (copy / "manifest.json").write_text(json.dumps(manifest))

    assert main(fit_words(copy, tmp_path / "runs")) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    skipped = json.loads((folder / "metrics.json").read_text())["skipped"]
    (reason,) = skipped
    assert reason.startswith("training/")
    assert skipped[reason] >= 1
    assert f"{reason} {skipped[reason]}" in (folder / "log.txt").read_text()
