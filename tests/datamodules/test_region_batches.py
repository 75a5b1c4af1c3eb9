"""Regions on their way into a batch: a wrong setting stops the run, a damaged sample is skipped in training only."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules import DataError, InputSpec, Product1M
from datamodules.manifest import file_sha256
from datamodules.regions import Regions, best_regions
from datamodules.verify import verify
from datamodules.write_shards import build
from tests.datamodules.tiny_catalogue import TinyCatalogue, tiny_regions, tiny_scored_regions

SPEC = InputSpec(visual_input="regions", region_width=8, num_regions=4, text_length=10)
COUNTS = {"train": 24, "val": 5, "test": 7, "gallery": 6}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("regions")
    build(TinyCatalogue(COUNTS, size_px=8), folder, vocab_size=60, progress=False, pictures=False, regions=tiny_regions)
    return folder


def _with(sound: Path, folder: Path, split: str, changes: dict[str, Any] | bytes) -> Path:
    """A copy in which the regions of a split's third sample are others; the manifest agrees with the bytes."""
    shutil.copytree(sound, folder)
    path = folder / f"{split}-000000.tar"
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            if name == "000000002.regions.npz":
                data = changes if isinstance(changes, bytes) else _changed(data, changes)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    shard = manifest["splits"][split]["shards"][0]
    shard["sha256"], shard["bytes"] = file_sha256(path), path.stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def _changed(data: bytes, changes: dict[str, Any]) -> bytes:
    with np.load(io.BytesIO(data)) as arrays:
        content = {name: arrays[name] for name in arrays} | changes
    content = {name: array for name, array in content.items() if array is not None}
    buffer = io.BytesIO()
    np.savez(buffer, **content)
    return buffer.getvalue()


def _features(value: float, dtype: Any = np.float16) -> np.ndarray:
    features = np.ones((3, 8), dtype)
    features[1, 2] = value
    return features


def _boxes(*first: float) -> np.ndarray:
    return np.array([first, (0, 0, 20, 20), (0, 0, 40, 40)], np.float32)


DAMAGED = {
    "nan": ({"features": _features(np.nan)}, "non_finite_regions", "'features' of region 1 hold NaN"),
    "inf": ({"features": _features(-np.inf)}, "non_finite_regions", "'features' of region 1 hold NaN"),
    "beyond float16": ({"features": _features(7e4, np.float32)}, "non_finite_regions", "beyond ±65504"),
    "nan box": ({"boxes": _boxes(0, np.nan, 9, 9)}, "non_finite_regions", "'boxes' row 0"),
    "outside": ({"boxes": _boxes(0, 0, 9, 99)}, "misplaced_boxes", "outside the picture of 40 × 40 px"),
    "inverted": ({"boxes": _boxes(9, 0, 0, 9)}, "misplaced_boxes", "inverted"),
    "size 0": ({"size": np.array([0, 40])}, "malformed_regions", "'size' is 0 × 40"),
    "rows": ({"boxes": _boxes(0, 0, 9, 9)[:2]}, "malformed_regions", "differ in R"),
    "torn": (b"PK\x03\x04", "malformed_regions", "not readable"),
}


def _data(folder: Path, spec: InputSpec = SPEC, **options: Any) -> Product1M:
    data = Product1M(str(folder), **{"batch_size": 4, "eval_batch_size": 4, "num_workers": 0, **options})
    data.use_input_spec(spec)
    return data


@pytest.mark.parametrize(("changes", "reason", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damage_is_skipped_in_training_fatal_in_evaluation_and_found_by_verify(
    changes: Any, reason: str, message: str, sound: Path, tmp_path: Path
) -> None:
    data = _data(_with(sound, tmp_path / "train", "train", changes), batch_size=23, steps_per_epoch=2)
    data.setup("fit")
    batches = list(data.train_dataloader())
    rows = {row for batch in batches for row in batch.index_B.tolist()}
    assert data.skipped[reason] >= 1
    assert rows == set(range(24)) - {2}
    for batch in batches:
        assert np.isfinite(batch.features_BRD.numpy()).all()
        assert (batch.features_BRD[:, 3] == 0).all(), "the skipped sample left nothing behind"

    folder = _with(sound, tmp_path / "val", "val", changes)
    evaluation = _data(folder)
    evaluation.setup("validate")
    with pytest.raises(DataError) as caught:
        list(evaluation.val_dataloader()[0])
    assert f"{folder / 'val-000000.tar'}, sample 'val.2': .regions.npz: " in str(caught.value)
    assert message in str(caught.value)
    assert "build again" in str(caught.value)

    (problem,) = (problem for problem in verify(folder) if "regions.npz" in problem)
    assert problem.startswith(f"{folder / 'val-000000.tar'}, sample 'val.2': .regions.npz: {reason}: ")
    assert message in problem


@pytest.mark.parametrize(
    ("changes", "told", "found"),
    [
        ({"features": np.ones((3, 9), np.float16)}, "features are 9 wide, the model takes region_width=8", "9 wide"),
        (
            {"features": np.ones((5, 8), np.float16), "boxes": np.tile(_boxes(0, 0, 9, 9)[:1], (5, 1))}
            | {"scores": np.ones(5)},
            "5 boxes, the model takes num_regions=4",
            "5 regions, the manifest says 3 at most",
        ),
    ],
)
def test_a_wrong_width_or_number_stops_training_too(
    changes: dict[str, Any], told: str, found: str, sound: Path, tmp_path: Path
) -> None:
    folder = _with(sound, tmp_path / "train", "train", changes)
    data = _data(folder, batch_size=24)
    data.setup("fit")
    with pytest.raises(DataError, match=rf"train-000000\.tar, sample 'train\.\d+', \.regions\.npz: {told}"):
        list(data.train_dataloader())
    assert any(found in problem and "build again" in problem for problem in verify(folder))


def test_of_more_regions_than_are_to_be_read_the_best_are_in_their_order(scored: Path, tmp_path: Path) -> None:
    """Class scores go with them."""
    folder = _with(scored, tmp_path / "train", "train", {"scores": np.array([0.2, 0.9, 0.5], np.float32)})
    spec = SPEC._replace(region_classes=6)
    whole, part = (
        next(iter(_data(folder, spec=spec, batch_size=24, max_regions=most).train_dataloader())) for most in (None, 2)
    )
    assert torch.equal(whole.index_B, part.index_B)
    assert set(whole.region_mask_BR.sum(-1).tolist()) == {3}
    assert set(part.region_mask_BR.sum(-1).tolist()) == {2}
    for row, item in enumerate(whole.index_B.tolist()):
        kept = [1, 2] if item == 2 else [0, 1]  # all others have equal scores
        for field in ("features_BRD", "boxes_BR5", "class_scores_BRC"):
            assert torch.equal(getattr(part, field)[row, :2], getattr(whole, field)[row, kept])
            assert not getattr(part, field)[row, 2:].any()


def test_the_best_regions_are_kept_by_score() -> None:
    boxes_R4 = np.arange(16, dtype=np.float32).reshape(4, 4)
    scores_R = np.array([0.2, 0.9, 0.1, 0.9], np.float32)
    regions = Regions(boxes_R4, boxes_R4[:, :1], scores_R, (20, 20))
    for num, kept in {1: [1], 2: [1, 3], 3: [0, 1, 3], 4: [0, 1, 2, 3], 9: [0, 1, 2, 3]}.items():
        found = best_regions(regions, num)
        assert np.array_equal(found.boxes_R4, boxes_R4[kept])
        assert np.array_equal(found.features_RD, boxes_R4[kept, :1])
        assert np.array_equal(found.scores_R, scores_R[kept])


def test_reading_fewer_regions_lets_a_smaller_model_train(sound: Path) -> None:
    _data(sound, spec=SPEC._replace(num_regions=2), max_regions=2).setup()
    with pytest.raises(DataError, match="num_regions=2"):
        _data(sound, spec=SPEC._replace(num_regions=2), max_regions=3).setup()
    with pytest.raises(DataError, match=r"data\.max_regions=2 counts stored regions"):
        _data(sound, spec=SPEC._replace(visual_input="none"), max_regions=2).setup()
    with pytest.raises(DataError, match=r"data\.max_regions=0: should be at least 1"):
        _data(sound, max_regions=0)


def _spoilt(changes: dict[str, Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def regions(record: Any) -> Any:
        found = tiny_regions(record)
        return changes[record.id](found) if record.id in changes else found

    return regions


def test_a_build_skips_and_counts_what_a_batch_would_refuse(tmp_path: Path) -> None:
    changes = {
        "train.1": lambda regions: regions._replace(features_RD=_features(np.nan)),
        "train.2": lambda regions: regions._replace(features_RD=_features(1e6, np.float32)),
        "train.3": lambda regions: regions._replace(boxes_R4=_boxes(9, 9, 0, 0)),
        "train.4": lambda regions: regions._replace(size_hw=(0, 0)),
        "train.5": lambda regions: None,
    }
    options: dict[str, Any] = {"vocab_size": 60, "progress": False, "pictures": False}
    manifest = build(TinyCatalogue(COUNTS), tmp_path, regions=_spoilt(changes), **options)
    assert manifest["splits"]["train"]["skipped"] == {
        "malformed_regions": 1, "misplaced_boxes": 1, "missing_regions": 1, "non_finite_regions": 2,
    }  # fmt: skip
    assert verify(tmp_path) == []


@pytest.mark.parametrize("shard_size", [6, 24])
def test_features_of_two_widths_are_refused(shard_size: int, tmp_path: Path) -> None:
    def wider(regions: Any) -> Any:
        return regions._replace(features_RD=np.ones((3, 9), np.float16))

    spoilt = _spoilt({"val.1": wider, "train.7": wider})
    with pytest.raises(DataError, match=r"are (8|9) wide, those before it (8|9)"):
        build(
            TinyCatalogue(COUNTS), tmp_path, shard_size=shard_size, vocab_size=60, progress=False, pictures=False,
            regions=spoilt,
        )  # fmt: skip


# ---- class scores ------------------------------------------------------------------------------------------------

SCORED_SPEC = SPEC._replace(region_classes=6)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scored")
    options: dict[str, Any] = {"vocab_size": 60, "progress": False, "pictures": False}
    build(TinyCatalogue(COUNTS, size_px=8), folder, regions=tiny_scored_regions, **options)
    return folder


@pytest.mark.parametrize("num_workers", [0, 2])
def test_class_scores_reach_the_batch_of_a_model_that_wants_them(num_workers: int, scored: Path) -> None:
    data = _data(scored, SCORED_SPEC, num_workers=num_workers, steps_per_epoch=12)
    data.setup("fit")
    # More batches than the ring of a worker holds, all kept: what is reused must have been copied.
    batches = list(data.train_dataloader())
    data.teardown("fit")
    ids = _train_ids(scored)
    for batch in batches:
        assert batch.class_scores_BRC.dtype == batch.features_BRD.dtype
        assert batch.class_scores_BRC.shape == (4, 4, 6)
        assert not batch.class_scores_BRC.is_shared()
        for row, scores_RC in zip(batch.index_B.tolist(), batch.class_scores_BRC.numpy(), strict=True):
            expected = tiny_scored_regions(TinyCatalogue(COUNTS).make("train", ids[row])).class_scores_RC  # type: ignore[arg-type]
            assert np.array_equal(scores_RC[:3], expected)
            assert (scores_RC[3:] == 0).all()


def _train_ids(folder: Path) -> list[int]:
    """Numbers of the training items in row order."""
    with tarfile.open(folder / "train-000000.tar") as tar:
        records = [tar.extractfile(member).read() for member in tar if member.name.endswith(".json")]  # type: ignore[union-attr]
    return [int(json.loads(record)["id"].removeprefix("train.")) for record in records]


def test_a_model_that_wants_none_gets_none_and_the_same_features(scored: Path, sound: Path) -> None:
    loaders = [_data(folder).evaluation_loader("gallery") for folder in (scored, sound)]
    for one, other in zip(*loaders, strict=True):
        assert one.class_scores_BRC is None
        assert np.array_equal(one.features_BRD, other.features_BRD)


def _scores(*first: float) -> np.ndarray:
    scores = np.full((3, 6), 1 / 8, np.float32)
    scores[0] = first
    return scores


BAD_SCORES = {
    "logits": ({"class_scores": _scores(-2, 3, 0, 0, 0, 0)}, "bad_class_scores", "region 0 hold -2; .*softmax"),
    "sum": ({"class_scores": _scores(1, 1, 0, 0, 0, 0)}, "bad_class_scores", "region 0 sum to 2; .*softmax"),
    "zeros": ({"class_scores": _scores(0, 0, 0, 0, 0, 0)}, "bad_class_scores", "region 0 sum to 0;"),
    "nan": ({"class_scores": _scores(np.nan, 0, 0, 0, 0, 1)}, "non_finite_regions", "'class_scores' of region 0"),
    "huge": ({"class_scores": _scores(1e9, 0, 0, 0, 0, 1)}, "non_finite_regions", "'class_scores' of region 0"),
    "rows": ({"class_scores": _scores(1, 0, 0, 0, 0, 0)[:2]}, "malformed_regions", r"shape \(2, 6\), not \(3, C\)"),
}


@pytest.mark.parametrize(("changes", "reason", "message"), BAD_SCORES.values(), ids=BAD_SCORES)
def test_bad_class_scores_are_skipped_in_training_fatal_in_evaluation_and_found_by_verify(
    changes: dict[str, Any], reason: str, message: str, scored: Path, tmp_path: Path
) -> None:
    folder = _with(scored, tmp_path / "train", "train", changes)
    data = _data(folder, SCORED_SPEC, batch_size=23, steps_per_epoch=2)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert data.skipped[reason] >= 1
    assert {row for batch in batches for row in batch.index_B.tolist()} == set(range(24)) - {2}
    for batch in batches:
        assert (batch.class_scores_BRC[:, 3] == 0).all()
        assert (batch.class_scores_BRC[:, :3].sum(-1, dtype=torch.float32) > 0).all()

    folder = _with(scored, tmp_path / "val", "val", changes)
    evaluation = _data(folder, SCORED_SPEC)
    evaluation.setup("validate")
    with pytest.raises(DataError, match=rf"val-000000\.tar, sample 'val\.2': \.regions\.npz: .*{message}"):
        list(evaluation.val_dataloader()[0])
    (problem,) = (problem for problem in verify(folder) if "regions.npz" in problem)
    assert f"sample 'val.2': .regions.npz: {reason}: " in problem
    assert re.search(message, problem)

    assert len(list(_data(folder).evaluation_loader("val"))) == 2, "nobody else reads them"


def test_a_model_that_wants_other_class_scores_is_refused_at_start(sound: Path, scored: Path) -> None:
    with pytest.raises(DataError) as caught:
        _data(sound, SCORED_SPEC).setup("fit")
    assert str(caught.value) == (
        f"The regions of {sound}: no class scores, the model takes region_classes=6. Choose objectives that need none, "
        "or build the regions again with class_scores (docs/regions.md)."
    )
    with pytest.raises(DataError, match=r"scores of 6 classes, .* region_classes=5\..* set model\.region_classes=6 to"):
        _data(scored, SPEC._replace(region_classes=5)).setup("test")
    _data(scored, SCORED_SPEC).setup()
    _data(scored).setup()


@pytest.mark.parametrize(
    ("changes", "told", "found"),
    [
        ({"class_scores": np.full((3, 7), 1 / 8)}, "scores of 7 classes, the model takes region_classes=6", "of 7 c"),
        ({"class_scores": None}, "no class scores, the model takes region_classes=6", "of 0 c"),
    ],
)
def test_a_sample_with_other_class_scores_stops_training(
    changes: dict[str, Any], told: str, found: str, scored: Path, tmp_path: Path
) -> None:
    folder = _with(scored, tmp_path / "train", "train", changes)
    data = _data(folder, SCORED_SPEC, batch_size=24)
    data.setup("fit")
    with pytest.raises(DataError, match=rf"train-000000\.tar, sample 'train\.\d+', \.regions\.npz: {told}"):
        list(data.train_dataloader())
    assert any(f"scores {found}lasses, the manifest says 6; build again" in problem for problem in verify(folder))


def test_a_model_of_captions_decodes_nothing_else(sound: Path, tmp_path: Path) -> None:
    """Neither from region shards, also where regions are damaged, nor from shards of pictures."""
    captions = SPEC._replace(visual_input="none")
    torn = _with(sound, tmp_path / "torn", "train", b"PK\x03\x04")
    pictures = tmp_path / "pictures"
    build(TinyCatalogue(COUNTS, size_px=8), pictures, vocab_size=60, progress=False)
    for folder in (torn, pictures):
        data = Product1M(str(folder), batch_size=24, num_workers=0)
        data.use_input_spec(captions)
        data.setup("fit")
        (batch,) = data.train_dataloader()
        assert sorted(batch.index_B.tolist()) == list(range(24))  # one pass, nothing skipped
        assert batch.token_mask_BT.any(1).all()
        assert batch.tokens_BT.shape[1] <= 10
        filled = {name for name, field in batch._asdict().items() if field is not None}
        assert filled == {"index_B", "tokens_BT", "token_mask_BT"}
        (evaluated,) = data.val_dataloader()[0]
        assert evaluated.index_B.tolist() == list(range(5))
        assert evaluated.images_B3HW is evaluated.features_BRD is None


def test_an_unknown_visual_input_names_the_known(sound: Path) -> None:
    data = Product1M(str(sound), batch_size=4)
    data.use_input_spec(SPEC._replace(visual_input="sound"))
    with pytest.raises(DataError, match="'grid', 'regions' and 'none'"):
        data.setup("fit")
