"""Product1M under Lightning: intervals, exact resuming, two spawned ranks, and messages about bad settings."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from datamodules import DataError, InputSpec, Product1M
from datamodules.write_shards import build
from tests.datamodules.recording import Checkpoint, Recording, quiet_trainer, recorded
from tests.datamodules.tiny_catalogue import TinyCatalogue, tiny_regions

GRID = InputSpec(visual_input="grid", image_size_px=8, text_length=10)
REGIONS = InputSpec(visual_input="regions", region_width=8, num_regions=4, text_length=10)
COUNTS = {"train": 24, "val": 5, "test": 7, "gallery": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    build(TinyCatalogue(COUNTS, size_px=8), folder, shard_size=6, vocab_size=60, progress=False)
    return folder


@pytest.fixture(scope="module")
def regions_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("regions")
    build(TinyCatalogue(COUNTS, size_px=8), folder, vocab_size=60, progress=False, pictures=False, regions=tiny_regions)
    return folder


def _data(folder: Path, spec: InputSpec = GRID, **options: Any) -> Product1M:
    settings: dict[str, Any] = {"batch_size": 4, "eval_batch_size": 4, "num_workers": 0, **options}
    data = Product1M(str(folder), **settings)
    data.use_input_spec(spec)
    return data


def _rows(loader: Any) -> list[list[int]]:
    return [batch.index_B.tolist() for batch in loader]


def _flat(batches: list[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


def test_a_training_sample_is_fixed_and_leaves_the_stream_alone(folder: Path) -> None:
    data, untouched = _data(folder), _data(folder)
    data.setup("fit"), untouched.setup("fit")
    sample = _rows(data.training_sample(10))
    assert [len(rows) for rows in sample] == [4, 4, 4]  # whole batches
    assert len(set(_flat(sample))) == 12
    assert set(_flat(sample)) <= set(range(COUNTS["train"]))
    loader = data.train_dataloader()
    first = _rows(loader)
    assert _rows(data.training_sample(10)) == sample
    assert first + _rows(loader) == _rows(other := untouched.train_dataloader()) + _rows(other)


# ---- the loaders themselves --------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_interval_has_its_length_and_the_next_one_goes_on(folder: Path, num_workers: int) -> None:
    data = _data(folder, num_workers=num_workers)
    data.setup("fit")
    loader = data.train_dataloader()
    assert len(loader) == data.steps_per_epoch == 6
    first, second = _rows(loader), _rows(loader)
    data.teardown("fit")
    assert len(first) == len(second) == 6
    assert sorted(_flat(first)) == sorted(_flat(second)) == list(range(24))
    assert first != second
    short = _data(folder, num_workers=num_workers, steps_per_epoch=5)
    short.setup("fit")
    loader = short.train_dataloader()
    assert _rows(loader) + _rows(loader) == (first + second)[:10], "the interval does not change the order"
    short.teardown("fit")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_the_callers_own(folder: Path, num_workers: int) -> None:
    # Workers write into a ring of shared memory; a batch that is kept must not change under its owner.
    data = _data(folder, num_workers=num_workers, steps_per_epoch=12)
    data.setup("fit")
    kept, copies = [], []
    for batch in data.train_dataloader():
        kept.append(batch)
        copies.append(batch.images_B3HW.clone())
    assert all(batch.images_B3HW.equal(copy) for batch, copy in zip(kept, copies, strict=True))
    assert len({copy.numpy().tobytes() for copy in copies}) == 12
    data.teardown("fit")


def test_a_grid_batch(folder: Path) -> None:
    data = _data(folder)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert (batch.images_B3HW.shape, batch.images_B3HW.dtype) == ((4, 3, 8, 8), torch.uint8)
    assert (batch.tokens_BT.shape, batch.token_mask_BT.dtype) == ((4, 10), torch.bool)
    assert batch.features_BRD is batch.boxes_BR5 is batch.region_mask_BR is None
    assert int(batch.tokens_BT.max()) < data.vocab_size == data.manifest["tokenizer"]["vocab_size"]  # type: ignore[index]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_regions_batch(regions_folder: Path, num_workers: int) -> None:
    data = _data(regions_folder, REGIONS, num_workers=num_workers)
    data.setup("validate")
    batch = next(iter(data.val_dataloader()[0]))
    assert batch.images_B3HW is None
    assert (batch.features_BRD.shape, batch.features_BRD.dtype) == ((4, 4, 8), torch.float16)
    assert batch.region_mask_BR.tolist() == [[True, True, True, False]] * 4
    expected = tiny_regions(TinyCatalogue(COUNTS).make("val", 0))  # type: ignore[arg-type]
    assert (batch.features_BRD[0, :3].numpy() == expected.features_RD).all()
    assert (batch.features_BRD[:, 3] == 0).all()
    assert batch.boxes_BR5[0, 1].tolist() == pytest.approx([0.25, 0.25, 1.0, 0.75, 0.375])
    assert (batch.boxes_BR5[:, 3] == 0).all()


def test_tables_without_opening_a_tar(folder: Path) -> None:
    data = _data(folder)
    assert data.ids("val").tolist() == [f"val.{i}" for i in range(5)]
    assert data.labels("gallery")[1] == ("label 1",)
    assert data.captions("test")[3] == "品牌3 series0 口红 lipstick number 3"
    assert sorted(data.captions("train"))[0] == "品牌0 series0 口红 lipstick number 0"
    assert len(data.captions("train")) == 24
    assert data.picture("gallery", 4) == TinyCatalogue(COUNTS, size_px=8).make("gallery", 4).image  # type: ignore[union-attr]
    assert (data.name, data.data_hash, data.eval_splits("val")) == (
        data.manifest["name"],
        data.manifest["data_hash"],
        ("val", "gallery"),
    )
    with pytest.raises(DataError, match="labels are for evaluation only"):
        data.labels("train")
    with pytest.raises(DataError, match="row 99 of val"):
        data.picture("val", 99)


# ---- resuming ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_fit_sees_the_samples_it_would_have_seen(folder: Path, tmp_path: Path, num_workers: int) -> None:
    options: dict[str, Any] = {"num_workers": num_workers, "steps_per_epoch": 5}
    (tmp_path / "whole").mkdir()
    saves = Checkpoint(tmp_path, {3, 5, 7})
    quiet_trainer(max_steps=13, callbacks=[saves]).fit(Recording(str(tmp_path / "whole")), _data(folder, **options))
    whole = recorded(tmp_path / "whole")
    assert len(whole) == 13
    for name in ("step3", "step5", "end5", "step7", "end10"):
        out = tmp_path / name
        out.mkdir()
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*not resumable.*")
            quiet_trainer(max_steps=13).fit(
                Recording(str(out)), _data(folder, **options), ckpt_path=tmp_path / f"{name}.ckpt", weights_only=True
            )
        assert recorded(out) == whole[int(name.lstrip("stepnd")) :], name


def test_validation_between_intervals_leaves_the_stream_alone(folder: Path, tmp_path: Path) -> None:
    data = _data(folder, num_workers=1, steps_per_epoch=4)
    quiet_trainer(max_steps=8, num_sanity_val_steps=1).fit(Recording(str(tmp_path)), data)
    rows = _flat(recorded(tmp_path))
    assert sorted(rows[:24]) == list(range(24))
    assert [sorted(_flat(recorded(tmp_path, stage)[-2:])) for stage in ("val0", "val1")] == [
        list(range(5)),
        list(range(6)),
    ]


def test_skipped_samples_are_counted_and_resumed(tmp_path: Path) -> None:
    # A picture that decodes when built and is damaged on disk afterwards, without changing a size.
    build(TinyCatalogue({**COUNTS, "train": 8}, size_px=8), tmp_path, vocab_size=60, progress=False)
    path = tmp_path / "train-000000.tar"
    data = path.read_bytes()
    start = data.index(b"\xff\xd8\xff")
    path.write_bytes(data[:start] + bytes(40) + data[start + 40 :])
    module = _data(tmp_path, batch_size=7)
    module.setup("fit")
    loader = module.train_dataloader()
    first, second = _rows(loader), _rows(loader)
    assert dict(module.skipped) in ({"undecodable_picture": 2}, {"undecodable_picture": 1})
    state = module.state_dict()
    assert state["positions"][0][0] > 14
    again = _data(tmp_path, batch_size=7)
    again.load_state_dict(state)
    assert again.skipped == module.skipped
    assert _rows(again.train_dataloader()) == _rows(loader) != first != second


def test_another_number_of_workers_goes_on_from_the_mean_and_says_so(folder: Path) -> None:
    data = _data(folder, num_workers=0)
    data.setup("fit")
    _rows(data.train_dataloader())
    state = data.state_dict()
    other = _data(folder, num_workers=2)
    with pytest.warns(UserWarning, match=r"1 process\(es\) × 1 loader worker\(s\), this run has 1 × 2"):
        other.load_state_dict(state)
    assert other.state_dict()["positions"] == [[12, 12]]
    assert sorted(_flat(_rows(other.train_dataloader()))) == list(range(24)), "the second pass, dealt differently"
    other.teardown("fit")
    with pytest.warns(UserWarning, match="starts from its beginning"):
        _data(folder, seed=5).load_state_dict(state)
    with pytest.raises(DataError, match="malformed"):
        _data(folder).load_state_dict({"positions": [[]]})


# ---- two ranks ---------------------------------------------------------------------------------------------------


def test_two_spawned_ranks_share_a_pass_and_the_evaluation(folder: Path, tmp_path: Path) -> None:
    # Lightning's spawned processes have no RANK in their environment: whoever reads it gives both ranks everything.
    data = _data(folder, batch_size=3, eval_batch_size=2)
    saves = Checkpoint(tmp_path, {3})
    options: dict[str, Any] = {"devices": 2, "strategy": "ddp_spawn", "num_sanity_val_steps": 0}
    quiet_trainer(max_steps=4, callbacks=[saves], **options).fit(Recording(str(tmp_path)), data)
    assert len(list(tmp_path.glob("rank*.jsonl"))) == 2
    assert sorted(_flat(recorded(tmp_path))) == list(range(24)), "one pass: the ranks read disjoint samples"
    assert sorted(_flat(recorded(tmp_path, "val0"))) == list(range(5)), "three batches for two ranks"
    assert sorted(_flat(recorded(tmp_path, "val1"))) == list(range(6))
    state = torch.load(tmp_path / "step3.ckpt", weights_only=True)["Product1M"]
    assert state["positions"] == [[9], [9]], "rank 0 writes the checkpoint, it holds the place of both"


# ---- messages ----------------------------------------------------------------------------------------------------


def test_bad_settings_are_told_with_the_remedy(folder: Path, regions_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"make data DATA=missing.*make demo"):
        _data(tmp_path / "missing").setup()
    with pytest.raises(DataError, match=r"data\.batch_size=25 .* larger than the 24 training samples"):
        _data(folder, batch_size=25).setup("fit")
    for stage in ("test", TrainerFn.TESTING, TrainerFn.VALIDATING):  # Lightning hands over the enum
        _data(folder, batch_size=25).setup(stage)
    with pytest.raises(DataError, match=r"data\.num_workers=-1"):
        _data(folder, num_workers=-1)
    with pytest.raises(DataError, match=r"holds none\. Train on the pictures .*SCALE=tiny"):
        _data(folder, REGIONS).setup()
    with pytest.raises(DataError, match=r"hold no \.jpg, only regions"):
        _data(regions_folder, GRID).setup()
    with pytest.raises(DataError, match="8 wide, the model takes region_width=16"):
        _data(regions_folder, REGIONS._replace(region_width=16)).setup()
    with pytest.raises(DataError, match="no split 'dev'"):
        _data(folder).ids("dev")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unfit_sample_names_key_file_and_id_also_from_a_worker(regions_folder: Path, num_workers: int) -> None:
    data = _data(regions_folder, REGIONS, num_workers=num_workers)
    data.setup("test")
    data.use_input_spec(REGIONS._replace(num_regions=2))  # as if the manifest understated
    with pytest.raises(DataError) as caught:
        _rows(data.test_dataloader()[0])
    message = str(caught.value)
    assert "test-000000.tar, sample 'test.0', .regions.npz: 3 boxes, the model takes num_regions=2" in message
    assert "\n" not in message, "no worker's traceback around it"


@pytest.mark.parametrize("key", ["vocab_size", "mask_token_id"])
def test_a_tokenizer_that_is_not_the_models_is_refused(folder: Path, key: str) -> None:
    right = {"vocab_size": _data(folder).vocab_size, "mask_token_id": 4}
    _data(folder, GRID._replace(**right)).setup("test")
    with pytest.raises(DataError, match=f"{key} {right[key]}, the model {right[key] + 1}: .*model.tokenizer"):
        _data(folder, GRID._replace(**{**right, key: right[key] + 1})).setup("test")


def test_more_regions_than_the_model_takes_are_refused_before_training(regions_folder: Path) -> None:
    words = r"train-000000.tar, sample 'train\.\d+', .regions.npz: \d regions a picture at most, .* num_regions=1"
    with pytest.raises(DataError, match=words):
        _data(regions_folder, REGIONS._replace(num_regions=1)).setup("fit")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (GRID._replace(end_token_id=7), "has end_token_id 3, the model 7.*set model.end_token_id=3"),
        (
            GRID._replace(tokenizer="open_clip:ViT-B-32", mask_token_id=103),
            "no token for the model's mask_token_id 103.*'shards'",
        ),
    ],
)
def test_a_tokenizer_without_what_the_model_needs_is_refused(folder: Path, spec: InputSpec, words: str) -> None:
    with pytest.raises(DataError, match=words):
        _data(folder, spec).setup("fit")


def test_batches_hold_what_clip_reads(folder: Path) -> None:
    spec = GRID._replace(tokenizer="open_clip:ViT-B-32", resize="shortest", interpolation="bicubic", text_length=16)
    data = _data(folder, spec)
    data.setup("fit")
    batch = next(iter(data.val_dataloader()[0]))
    assert batch.images_B3HW.shape[1:] == (3, 8, 8)
    last = batch.token_mask_BT.sum(1) - 1
    assert (batch.tokens_BT.argmax(1) == last).all()
    assert (batch.tokens_BT[:, 0] == 49406).all()
