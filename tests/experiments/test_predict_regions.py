"""`predict` of a detector: every picture's regions beside the shards, whole again after a kill, and read by a model."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.batch import DetectionBatch
from datamodules.manifest import read_manifest
from datamodules.region_set_writer import RegionSetWriter
from datamodules.regions import unpack_regions
from datamodules.shard_reader import read_shard
from datamodules.verify import verify
from experiments import predict_regions
from experiments.cli import main
from experiments.config import compose
from experiments.predict_regions import on_picture, regions_of
from lightning_modules import InstanceDetector
from lightning_modules.instance_detector import Proposals
from tests.experiments.conftest import SMALL
from tests.experiments.test_distributed_run import command

WIDTH = 256  # of the light network's features
SIZE = ("--model.image_size_px=64", "--model.proposals=40", "--model.num_regions=8", "--model.rois=16")
QUIET = ("--data.num_workers=0", "--data.eval_batch_size=16", "--trainer.accelerator=cpu")


@pytest.fixture(scope="module")
def checkpoint(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a detector that has learnt nothing yet: it finds boxes all over."""
    torch.manual_seed(0)
    arguments = compose("detector", str(shards), "tiny", 0, SIZE).config["model"]["init_args"]
    path = tmp_path_factory.mktemp("weights") / "random.ckpt"
    torch.save({"state_dict": InstanceDetector(**arguments).state_dict()}, path)
    return path


@pytest.fixture(autouse=True)
def no_sheet(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes as long as all the rest: once is enough."""
    if "sheet" not in request.node.name:
        monkeypatch.setattr(predict_regions, "write_sheet", lambda *where: None)


@pytest.fixture
def folder(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "synthetic"))


def words(folder: Path, checkpoint: Path, *more: str) -> list[str]:
    where = ["--data", str(folder), "--runs", str(folder.parent / "runs"), "--ckpt_path", str(checkpoint)]
    return ["predict", "--exp", "detector", "--scale", "tiny", *where, *SIZE, *QUIET, *more]


def sidecars(folder: Path) -> dict[str, bytes]:
    files = [*folder.glob("*-regions-*.tar"), folder / "manifest.json"]
    return {path.name: path.read_bytes() for path in files}


def test_it_writes_a_set_that_verifies_and_a_sheet(
    folder: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_manifest(folder)
    assert main(words(folder, checkpoint)) == 0
    manifest = read_manifest(folder)
    assert verify(folder) == []
    assert {**manifest, "region_sets": {}} == before
    entry = manifest["region_sets"]["detected"]
    assert (entry["about"]["run_id"], entry["about"]["image_size_px"], entry["max"]) == ("random.ckpt", 64, 8)
    assert entry["splits"]["val"]["truth"]
    assert entry["splits"]["test"]["truth"]
    assert not entry["splits"]["gallery"]["truth"]
    said = capsys.readouterr().out
    for split, part in entry["splits"].items():
        (line,) = [line.split() for line in said.splitlines() if line.startswith(f"{split} ")]
        mean = part["boxes"] / part["pictures"]
        assert line[1:] == [str(part["pictures"]), str(part["boxes"]), f"{mean:.2f}", str(part["without"])]
    assert "pictures/s" in said
    (sheet,) = (folder.parent / "runs").glob("detector-*/regions-detected.png")
    assert str(sheet) in said
    with Image.open(sheet) as image:
        assert image.width == 1200

    assert main(words(folder, checkpoint)) == 0
    assert "up to date" in capsys.readouterr().out
    assert read_manifest(folder) == manifest


def test_true_boxes_come_back_as_the_record_has_them(folder: Path, checkpoint: Path) -> None:
    assert main(words(folder, checkpoint)) == 0
    shard, sidecar = folder / "val-000000.tar", folder / "val-regions-detected-000000.tar"
    for sample in read_shard(shard, 0, sidecar, truth=True):
        boxes = json.loads(sample.members["json"])["boxes"]
        truth = unpack_regions(sample.members["truth.npz"])
        with Image.open(io.BytesIO(sample.members["jpg"])) as image:
            assert truth.size_hw == (image.height, image.width)
        assert np.allclose(truth.boxes_R4, boxes, atol=1e-2)
        assert (truth.scores_R == 1).all()


def test_killed_half_way_it_goes_on_to_the_same_bytes(
    folder: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed = Path(shutil.copytree(folder, tmp_path / "undisturbed" / "synthetic"))
    assert main(words(undisturbed, checkpoint)) == 0
    written: list[tuple[str, int]] = []
    write = RegionSetWriter.write

    def dying(self: RegionSetWriter, split: Any, number: int, rows: Any) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        write(self, split, number, rows)
        written.append((split, number))

    with monkeypatch.context() as patch:
        patch.setattr(RegionSetWriter, "write", dying)
        with pytest.raises(KeyboardInterrupt):
            main(words(folder, checkpoint))
    assert read_manifest(folder)["region_sets"] == {}
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*-regions-*")}
    assert len(kept) == 3
    assert main(words(folder, checkpoint)) == 0
    assert "3 of 6 shards are finished already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert sidecars(folder) == sidecars(undisturbed)
    assert not list(folder.glob(".*"))


def test_another_detector_under_the_name_needs_another_name_or_fresh(
    folder: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(folder, checkpoint)) == 0
    other = words(folder, checkpoint, "--model.min_score=0.5")
    assert main(other) == 2
    told = capsys.readouterr().err
    assert "min_score 0.3 -> 0.5. Give this one another name (--name), or write it over (--fresh)" in told
    assert main([*other, "--name", "few"]) == 0
    assert main([*other, "--fresh"]) == 0
    sets = read_manifest(folder)["region_sets"]
    assert sets["few"]["about"] == sets["detected"]["about"]
    assert sets["few"]["splits"]["val"]["boxes"] == sets["detected"]["splits"]["val"]["boxes"]
    assert verify(folder) == []


BROKEN = {
    "nan": ([[1.0, 1.0, float("nan"), 9.0]], 0.9, "nan"),
    "outside": ([[1.0, 1.0, 9.0, 999.0]], 0.9, "outside the picture"),
    "no area": ([[9.0, 1.0, 9.0, 9.0]], 0.9, "without area"),
    "score": ([[1.0, 1.0, 9.0, 9.0]], float("nan"), "'scores' hold nan"),
}


@pytest.mark.parametrize(("boxes", "score", "message"), BROKEN.values(), ids=BROKEN)
def test_a_detector_that_gives_no_boxes_of_the_picture_is_stopped_with_the_id(
    boxes: list[list[float]],
    score: float,
    message: str,
    folder: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = Proposals(torch.tensor(boxes), torch.full((len(boxes),), score), torch.ones(len(boxes), WIDTH))
    monkeypatch.setattr(InstanceDetector, "propose", lambda self, batch: [found] * len(batch.index_B))
    assert main(words(folder, checkpoint)) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "train-regions-detected-000000.tar, sample 'train-" in told
    assert not list(folder.glob("*-regions-*"))


def test_a_detector_that_finds_nothing_leaves_whole_pictures(
    folder: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = Proposals(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, WIDTH))
    monkeypatch.setattr(InstanceDetector, "propose", lambda self, batch: [none] * len(batch.index_B))
    assert main(words(folder, checkpoint)) == 0
    entry = read_manifest(folder)["region_sets"]["detected"]
    assert all(part["without"] == part["pictures"] for part in entry["splits"].values())
    assert (entry["max"], sum(part["boxes"] for part in entry["splits"].values())) == (1, 0)
    for sample in read_shard(folder / "gallery-000000.tar", 0, folder / "gallery-regions-detected-000000.tar"):
        regions = unpack_regions(sample.members["regions.npz"])
        height, width = regions.size_hw
        assert regions.boxes_R4.tolist() == [[0, 0, width, height]]
        assert regions.scores_R.tolist() == [0]
        assert np.abs(regions.features_RD).sum() > 0
    assert verify(folder) == []


def test_what_cannot_be_predicted_is_said_at_once(
    folder: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = words(folder, checkpoint)[: -len(SIZE + QUIET) - 2]
    assert main(nowhere) == 2
    assert "make train EXP=detector" in capsys.readouterr().err
    assert main(words(folder, checkpoint, "--name=a-b")) == 2
    assert "letters, digits and _" in capsys.readouterr().err
    (tmp_path / "no.ckpt").write_bytes(b"no weights")
    assert main(words(folder, tmp_path / "no.ckpt")) == 2
    assert "no.ckpt cannot be read" in capsys.readouterr().err
    torch.save({"state_dict": {"other.weight": torch.zeros(1)}}, tmp_path / "other.ckpt")
    assert main(words(folder, tmp_path / "other.ckpt")) == 2
    assert "no checkpoint of this InstanceDetector" in capsys.readouterr().err
    assert main(["predict", "--exp", "capture", "--scale", "tiny", "--data", str(folder), "--name", "x"]) == 2
    assert "--exp detector" in capsys.readouterr().err
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").write_text(json.dumps({**manifest, "pictures": False}), encoding="utf-8")
    assert main(words(folder, checkpoint)) == 2
    assert "holds no pictures" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").glob("*")), "nothing is left behind"


# ---- geometry ------------------------------------------------------------------------------------------------------


def test_a_detector_trained_with_other_words_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["predict", "--exp", "detector", "--scale", "tiny", "--data", str(folder)]
    asked += ["--runs", str(folder.parent / "runs"), *QUIET]
    assert main(asked) == 2
    assert "Train it with `make train EXP=detector" in capsys.readouterr().err
    other = folder.parent / "runs" / "detector-synthetic-0-0123abcd" / "checkpoints" / "best.ckpt"
    other.parent.mkdir(parents=True)
    other.touch()
    assert main(asked) == 2
    told = capsys.readouterr().err
    assert f"There is {other.parent.parent}, trained with other words" in told
    assert f"--ckpt_path {other}" in told


def test_boxes_move_back_through_the_letterbox_and_leave_its_margin() -> None:
    # 200 × 100 px on a square of 64: half a pixel of the square is 1.6 of the picture, 16 px of margin above.
    letterbox_4 = np.array([0.32, 0.32, 0, 16], np.float32)
    boxes_R4 = np.array([[0, 16, 64, 48], [32, 10, 64, 32], [5, 0, 20, 15], [5, 0, 20, 16.1]], np.float32)
    moved_R4, kept_R = on_picture(boxes_R4, letterbox_4, (100, 200), 64)
    assert kept_R.tolist() == [True, True, False, False], "of the last, a third of a pixel lies on the picture"
    assert np.allclose(moved_R4[:2], [[0, 0, 200, 100], [100, 0, 200, 50]], atol=1e-3)


def test_what_is_no_box_stays_for_the_writer_to_refuse() -> None:
    boxes_R4 = np.array([[0, 0, np.nan, 9], [9, 9, 9, 20], [0, 0, 9, 99], [-9, 0, 9, 9]], np.float32)
    moved_R4, kept_R = on_picture(boxes_R4, np.array([1, 1, 0, 0], np.float32), (64, 64), 64)
    assert kept_R.all()
    assert np.array_equal(moved_R4, boxes_R4, equal_nan=True)


def test_a_picture_without_proposals_gets_the_feature_of_all_of_it(checkpoint: Path) -> None:
    class Detector:
        image_size_px, device = 64, torch.device("cpu")
        asked: list[Any] = []  # noqa: RUF012

        def propose(self, batch: DetectionBatch) -> list[Proposals]:
            some = Proposals(torch.tensor([[8.0, 8, 40, 40]]), torch.tensor([0.7]), torch.ones(1, 3))
            return [some, Proposals(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, 3))]

        def roi_features(self, batch: DetectionBatch, boxes: list[torch.Tensor]) -> list[torch.Tensor]:
            self.asked.append((batch.index_B.tolist(), [one.tolist() for one in boxes]))
            return [torch.full((len(one), 3), 2.0) for one in boxes]

    batch = DetectionBatch(
        torch.tensor([4, 5]),
        torch.zeros(2, 3, 64, 64, dtype=torch.uint8),
        torch.tensor([[[16.0, 16, 48, 48]], [[0, 0, 0, 0]]]),
        torch.tensor([[True], [False]]),
        torch.tensor([[1.0, 1, 0, 0], [0.32, 0.32, 0, 16]]),
        torch.tensor([[64, 64], [100, 200]]),
    )
    detector = Detector()
    (some, truth), (none, no_truth) = regions_of(detector, batch, true_boxes=True)
    assert detector.asked[0] == ([5], [[[0.0, 16.0, 64.0, 48.0]]])
    assert no_truth is None
    assert truth is not None
    assert truth.boxes_R4.tolist() == [[16, 16, 48, 48]]
    assert (some.scores_R.tolist(), none.scores_R.tolist()) == ([np.float32(0.7)], [0])
    assert none.boxes_R4.tolist() == [[0, 0, 200, 100]]
    assert none.features_RD.tolist() == [[2, 2, 2]]
    assert len(regions_of(detector, batch, true_boxes=False)[0]) == 2


# ---- the whole way -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_two_processes_write_the_same_set(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    """With as many threads each: another number adds in another order."""
    alone = Path(shutil.copytree(folder, tmp_path / "alone" / "synthetic"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert main(words(alone, checkpoint)) == 0
    finally:
        torch.set_num_threads(threads)
    done = command(*words(folder, checkpoint, "--trainer.devices=2", "--trainer.strategy=ddp"))
    assert done.returncode == 0, done.stderr
    assert sidecars(folder) == sidecars(alone)


@pytest.mark.slow
def test_a_trained_detector_its_regions_and_a_model_of_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = folder.parent / "runs"
    where = ["--scale", "tiny", "--data", str(folder), "--runs", str(runs)]
    trained = [*SIZE, *QUIET, "--trainer.max_steps=10", "--data.steps_per_epoch=10", "--data.num_pasted=8"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        assert main(["fit", "--exp", "detector", *where, *trained]) == 0
        assert main(["predict", "--exp", "detector", *where, *trained]) == 0
        (detector,) = runs.iterdir()
        assert read_manifest(folder)["region_sets"]["detected"]["about"]["run_id"] == detector.name
        reading = ["--data.region_set=detected", "--model.visual_input=regions"]
        small = [word for word in SMALL if "max_steps" not in word and "image_size" not in word]
        assert main(["fit", "--exp", "capture", *where, *small, "--trainer.max_steps=10", *reading]) == 0
        (run,) = runs.glob("capture-*")
        record = json.loads((run / "metrics.json").read_text())
        sets = read_manifest(folder)["region_sets"]
        assert record["region_set"] == {"name": "detected", "hash": sets["detected"]["hash"]}
        assert record["skipped"] == {}
        capsys.readouterr()
        assert main(["eval", "--run", str(run)]) == 0
        assert "equals what training reported" in capsys.readouterr().out

        assert main(["predict", "--exp", "detector", *where, *trained, "--model.min_score=0.01", "--fresh", "--ckpt_path", str(detector / "checkpoints/best.ckpt")]) == 0  # fmt: skip # noqa: E501
        assert main(["eval", "--run", str(run)]) == 2
        assert "region set 'detected' has changed since the run" in capsys.readouterr().err
        assert main(["eval", "--run", str(run), "--data", str(folder)]) == 0
        assert len(list(runs.glob("capture-*"))) == 2, "numbers of other regions are another run's"
