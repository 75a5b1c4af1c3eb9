"""PastedPictures under Lightning: splits, order, resuming, two ranks, true boxes, and messages about bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules import DataError, DetectionBatch, PastedPictures
from datamodules.detection.collection import is_held_out
from datamodules.detection.streams import Numbers
from datamodules.shards import Place, read_shard
from datamodules.write_shards import build
from tests.datamodules.detection.tiny_shots import ShotCatalogue
from tests.datamodules.recording import Checkpoint, Recording, quiet_trainer, recorded
from tests.datamodules.tiny_catalogue import TinyCatalogue, tiny_regions

COUNTS = {"train": 80, "val": 5, "test": 7, "gallery": 12}


def _build(folder: Path, catalogue: Any, **options: Any) -> Path:
    build(catalogue, folder, **{"shard_size": 30, "vocab_size": 60, "progress": False, **options})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(tmp_path_factory.mktemp("shots"), ShotCatalogue(COUNTS))


def _data(folder: Path, **options: Any) -> PastedPictures:
    settings = {"batch_size": 3, "eval_batch_size": 2, "num_workers": 0, "steps_per_epoch": 4, "num_pasted": 7}
    data = PastedPictures(str(folder), **{**settings, **options})
    data.use_image_size(48)
    return data


def _prints(batch: DetectionBatch) -> list[tuple[int, bytes, list]]:
    rows = zip(batch.index_B, batch.images_B3HW, batch.boxes_BN4, batch.box_mask_BN, strict=True)
    return [(int(index), image.numpy().tobytes(), boxes[mask].tolist()) for index, image, boxes, mask in rows]


def _flat(loader: Any) -> list[tuple[int, bytes, list]]:
    return [row for batch in loader for row in _prints(batch)]


# ---- cut-outs ----------------------------------------------------------------------------------------------------


def test_cut_outs_come_from_the_singles_and_held_out_ones_are_apart(folder: Path) -> None:
    data = _data(folder)
    data.setup("fit")
    found = data.collection
    # Rows were shuffled when they were written; who is single is told by the records.
    singles, row = set(), 0
    for shard in data.manifest["splits"]["train"]["shards"]:
        for sample in read_shard(folder / shard["file"]):
            if json.loads(sample.members["json"])["kind"] == "single":
                singles.add(row)
            row += 1
    assert len(singles) == 40
    assert set(found.train_rows) | set(found.held_out_rows) <= singles
    assert not set(found.train_rows) & set(found.held_out_rows)
    assert found.held_out_rows
    assert len(found.train_rows) > 25
    assert all(is_held_out(row) for row in found.held_out_rows)
    assert not any(is_held_out(row) for row in found.train_rows)
    pixels = {cut.pixels_HW4.tobytes() for cut in found.train}
    assert not pixels & {cut.pixels_HW4.tobytes() for cut in found.held_out}
    assert data.cut_outs == {
        "source": "train",
        "outline": len(found.train),
        "tile": 0,
        "held_out": len(found.held_out),
        "unclear": found.unclear,
        "unreadable": 0,
    }


def test_a_limit_on_cut_outs_takes_the_first(folder: Path) -> None:
    few, all_ = _data(folder, num_cut_outs=10), _data(folder)
    few.setup("fit"), all_.setup("fit")
    rows = sorted(few.collection.train_rows + few.collection.held_out_rows)
    assert rows == sorted(all_.collection.train_rows + all_.collection.held_out_rows)[:10]


def test_labels_and_boxes_of_training_records_change_nothing(folder: Path, tmp_path: Path) -> None:
    wrong = {f"train.{item}": ((0, 0, 1, 1),) for item in range(COUNTS["train"])}
    other = _build(tmp_path, ShotCatalogue(COUNTS, word="something else", boxes=wrong))
    pictures = []
    for place in (folder, other):
        data = _data(place)
        data.setup("fit")
        pictures.append(_flat(data.train_dataloader()))
    assert pictures[0] == pictures[1]


def test_where_train_knows_no_kinds_the_gallery_is_the_source(tmp_path: Path) -> None:
    data = _data(_build(tmp_path, ShotCatalogue(COUNTS, kind="unknown")))
    data.setup("fit")
    assert data.source == "gallery"
    assert data.cut_outs["source"] == "gallery"
    found = data.collection
    assert 2 <= len(found.train_rows) + len(found.held_out_rows) <= COUNTS["gallery"]
    assert len(_flat(data.train_dataloader())) == 12


def test_photos_without_a_ground_are_tiles(tmp_path: Path) -> None:
    data = _data(_build(tmp_path, ShotCatalogue({**COUNTS, "train": 20}, scenes=True)))
    data.setup("fit")
    assert data.cut_outs["tile"] >= 7
    assert data.cut_outs["outline"] == 0
    assert data.collection.held_out_rows


# ---- order -------------------------------------------------------------------------------------------------------


def test_the_order_is_the_same_with_any_number_of_workers_and_goes_on(folder: Path) -> None:
    streams = []
    for num_workers in (0, 1, 2):
        data = _data(folder, num_workers=num_workers)
        data.setup("fit")
        loader = data.train_dataloader()
        assert len(loader) == data.steps_per_epoch == 4
        streams.append(_flat(loader) + _flat(loader))
        data.teardown("fit")
    assert streams[0] == streams[1] == streams[2]
    assert [index for index, _, _ in streams[0]] == list(range(24))
    assert len({image for _, image, _ in streams[0]}) == 24
    other = _data(folder, seed=1)
    other.setup("fit")
    assert not {image for _, image, _ in _flat(other.train_dataloader())} & {image for _, image, _ in streams[0]}


def test_a_batch_is_as_agreed(folder: Path) -> None:
    data = _data(folder)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    num = batch.boxes_BN4.shape[1]
    assert (batch.images_B3HW.shape, batch.images_B3HW.dtype) == ((3, 3, 48, 48), torch.uint8)
    assert (batch.boxes_BN4.shape, batch.boxes_BN4.dtype) == ((3, num, 4), torch.float32)
    assert (batch.box_mask_BN.shape, batch.box_mask_BN.dtype) == ((3, num), torch.bool)
    assert (batch.index_B.dtype, batch.size_B2.dtype, batch.letterbox_B4.dtype) == (
        torch.int64,
        torch.int64,
        torch.float32,
    )
    assert batch.box_mask_BN.any(1).all()
    assert (batch.boxes_BN4[~batch.box_mask_BN] == 0).all()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_take_disjoint_pictures_that_are_all_of_them(world_size: int) -> None:
    taken = [
        number
        for step in range(5)
        for rank in range(world_size)
        for number in Numbers(4, Place(rank, world_size))(step)
    ]
    assert taken == list(range(5 * world_size * 4))


def test_pasted_pictures_to_validate_with_are_fixed_and_of_held_out_cut_outs(folder: Path) -> None:
    sets = []
    for seed, num_workers in ((0, 0), (5, 2)):
        data = _data(folder, seed=seed, num_workers=num_workers)
        data.setup("validate")
        loader = data.val_dataloader()[0]
        assert len(loader) == 4
        sets.append(_flat(loader))
        assert _flat(loader) == sets[-1]
    assert sets[0] == sets[1], "whatever the seed of training"
    assert [index for index, _, _ in sets[0]] == list(range(7))
    assert data.eval_names("val") == ("pasted", "val")
    assert data.eval_names("test") == ("test",)
    assert [data.num_samples(name) for name in ("pasted", "val", "test", "train")] == [7, 5, 7, 80]


# ---- under Lightning ---------------------------------------------------------------------------------------------


def _recorded(folder: Path, stage: str = "train") -> list[int]:
    return [row for rows in recorded(folder, stage) for row in rows]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_fit_sees_the_pictures_it_would_have_seen(folder: Path, tmp_path: Path, num_workers: int) -> None:
    (tmp_path / "whole").mkdir()
    saves = Checkpoint(tmp_path, {3, 4, 6})
    data = _data(folder, num_workers=num_workers)
    quiet_trainer(max_steps=10, callbacks=[saves]).fit(Recording(str(tmp_path / "whole")), data)
    whole = _recorded(tmp_path / "whole")
    assert whole == list(range(30))
    assert sorted(set(_recorded(tmp_path / "whole", "val0"))) == list(range(7))
    for name in ("step3", "step4", "end4", "step6", "end8"):
        out = tmp_path / name
        out.mkdir()
        again = _data(folder, num_workers=num_workers)
        quiet_trainer(max_steps=10).fit(
            Recording(str(out)), again, ckpt_path=tmp_path / f"{name}.ckpt", weights_only=True
        )
        assert _recorded(out) == whole[3 * int(name.lstrip("stepnd")) :], name


def test_accumulated_steps_resume_too(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    options: dict[str, Any] = {"max_steps": 6, "accumulate_grad_batches": 3}  # 4 batches an interval: 2 steps
    saves = Checkpoint(tmp_path, {3})
    quiet_trainer(callbacks=[saves], **options).fit(Recording(str(tmp_path / "whole")), _data(folder))
    (tmp_path / "rest").mkdir()
    quiet_trainer(**options).fit(
        Recording(str(tmp_path / "rest")), _data(folder), ckpt_path=tmp_path / "end4.ckpt", weights_only=True
    )
    assert _recorded(tmp_path / "rest") == _recorded(tmp_path / "whole")[8 * 3 :]


def test_two_spawned_ranks_share_pictures_and_evaluation(folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"devices": 2, "strategy": "ddp_spawn", "num_sanity_val_steps": 0}
    quiet_trainer(max_steps=4, **options).fit(Recording(str(tmp_path)), _data(folder))
    assert sorted(_recorded(tmp_path)) == list(range(2 * 4 * 3))
    assert sorted(_recorded(tmp_path, "val0")) == list(range(7)), "each exactly once"
    assert sorted(_recorded(tmp_path, "val1")) == list(range(5))


# ---- true boxes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_queries_with_their_true_boxes_on_the_square(folder: Path, num_workers: int) -> None:
    data = _data(folder, num_workers=num_workers)
    data.setup("validate")
    batches = list(data.val_dataloader()[1])
    assert [index for batch in batches for index in batch.index_B.tolist()] == list(range(5))
    catalogue = ShotCatalogue(COUNTS)
    ids = [line.split("#####")[0] for line in (folder / "annotations/val.txt").read_text().splitlines()]
    for batch in batches:
        for row, index in enumerate(batch.index_B.tolist()):
            box = catalogue.make("val", int(ids[index].split(".")[1])).boxes[0]  # type: ignore[index]
            scale = 48 / 80
            top = (48 - round(56 * scale)) // 2
            expected = [box[0] * scale, box[1] * scale + top, box[2] * scale, box[3] * scale + top]
            assert batch.boxes_BN4[row, 0].tolist() == pytest.approx(expected, abs=0.6)
            assert batch.size_B2[row].tolist() == [56, 80]
            scale_x, scale_y, left, top_px = batch.letterbox_B4[row].tolist()
            assert (scale_x, left, top_px) == (pytest.approx(scale), 0, top)
            assert scale_y == pytest.approx(scale, rel=0.03)
            assert bool(batch.box_mask_BN[row, 0])


def test_one_shard_in_order_for_prediction(folder: Path) -> None:
    data = _data(folder, num_workers=2)
    sizes = [shard["samples"] for shard in data.manifest["splits"]["train"]["shards"]]
    assert len(sizes) == 3
    rows = [index for batch in data.prediction_loader("train", 1) for index in batch.index_B.tolist()]
    assert rows == list(range(sizes[0], sizes[0] + sizes[1]))
    batches = list(data.prediction_loader("train", 2))
    assert [index for batch in batches for index in batch.index_B.tolist()] == list(range(80 - sizes[2], 80))
    assert not any(batch.box_mask_BN.any() for batch in batches), "boxes of training records are not looked at"
    assert all(batch.box_mask_BN.any() for batch in data.prediction_loader("test", 0))


# ---- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        (((1.0, 1.0, float("nan"), 9.0),), "holds NaN or infinity"),
        (((1.0, 1.0, 9.0, 9.0), (5.0, 5.0, 5.0, 9.0)), r"row 1 .* has no area"),
        (((9.0, 9.0, 5.0, 5.0),), "has no area"),
        (((1.0, 1.0, 90.0, 9.0),), r"outside the picture of 64 × 64 px"),
        (((1.0, 1.0, 9.0),), "not rows of four numbers"),
    ],
)
def test_a_bad_true_box_names_the_sample(tmp_path: Path, boxes: Any, words: str) -> None:
    data = _data(_build(tmp_path, ShotCatalogue({**COUNTS, "train": 8}, boxes={"test.3": boxes})))
    data.setup("test")
    with pytest.raises(DataError, match=rf"test-000000\.tar, sample 'test\.3': 'boxes' .*{words}.*build the folder"):
        list(data.test_dataloader()[0])


@pytest.mark.parametrize("boxes", [None, ()])
def test_a_record_without_boxes_has_none(tmp_path: Path, boxes: Any) -> None:
    data = _data(_build(tmp_path, ShotCatalogue({**COUNTS, "train": 8}, boxes={"test.3": boxes})))
    data.setup("test")
    numbers = [int(mask.sum()) for batch in data.test_dataloader()[0] for mask in batch.box_mask_BN]
    assert sorted(numbers) == [0, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_picture_names_the_sample(tmp_path: Path, num_workers: int) -> None:
    folder = tmp_path / "of {ours}"
    data = _data(_build(folder, ShotCatalogue({**COUNTS, "train": 8})), num_workers=num_workers)
    path = folder / "test-000000.tar"
    content = path.read_bytes()
    start = content.index(b"\xff\xd8\xff")
    path.write_bytes(content[:start] + bytes(40) + content[start + 40 :])
    data.setup("test")
    for loader in (data.test_dataloader()[0], data.prediction_loader("test", 0)):
        with pytest.raises(DataError, match=r"test-000000\.tar, sample 'test\.\d': the picture does not decode"):
            list(loader)


def test_folders_that_cannot_be_pasted_from(tmp_path: Path) -> None:
    counts = {"train": 6, "val": 2, "test": 2, "gallery": 3}
    regions = _build(tmp_path / "regions", TinyCatalogue(counts), pictures=False, regions=tiny_regions)
    with pytest.raises(DataError, match=r"regions holds no pictures, only regions.*Build the folder with"):
        _data(regions).setup("fit")
    with pytest.raises(DataError, match="holds no pictures"):
        _data(regions).setup("test")
    with pytest.raises(DataError, match="holds no pictures"):
        _data(regions).prediction_loader("train", 0)
    one = _build(tmp_path / "one", ShotCatalogue({**counts, "train": 2}))
    with pytest.raises(DataError, match=r"one: 1 usable single-product photos in its train split .*kind 'single'"):
        _data(one).setup("fit")
    with pytest.raises(DataError, match=r"make data DATA=missing"):
        _data(tmp_path / "missing").setup("fit")


def test_numbers_out_of_range(folder: Path) -> None:
    for key in ("batch_size", "num_workers", "max_products", "num_pasted", "steps_per_epoch", "num_cut_outs"):
        with pytest.raises(DataError, match=rf"data\.{key}=-1: should be at least"):
            _data(folder, **{key: -1})
    with pytest.raises(DataError, match="image_size_px=16"):
        _data(folder).use_image_size(16)
    with pytest.raises(DataError, match="malformed"):
        _data(folder).load_state_dict({"steps": "three"})
