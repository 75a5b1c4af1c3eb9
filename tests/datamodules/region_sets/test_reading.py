"""Regions of a set are read in the place of those in the shards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from datamodules import InputSpec
from datamodules.manifest import read_manifest
from datamodules.regions import boxes_with_area, pack_regions
from datamodules.shard_reader import read_shard
from tests.datamodules.region_sets.conftest import SPEC, data_of
from tests.datamodules.tiny_sets import found_in, true_in


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_named_set_takes_the_place_of_stored_regions(num_workers: int, sound: Path) -> None:
    data = data_of(sound, num_workers=num_workers, steps_per_epoch=12)
    data.setup("fit")
    ids = {"gallery": list(data.ids("gallery")), "train": _train_ids(sound)}
    batches = [("train", batch) for batch in data.train_dataloader()]
    data.teardown("fit")
    batches += [("gallery", batch) for batch in data.evaluation_loader("gallery")]
    for split, batch in batches:
        assert batch.features_BRD is not None
        assert batch.boxes_BR5 is not None
        for row, number in enumerate(batch.index_B.tolist()):
            expected = found_in(ids[split][number])
            num = len(expected.boxes_R4)
            assert batch.region_mask_BR[row].tolist() == [True] * num + [False] * (8 - num)
            assert np.array_equal(batch.features_BRD[row, :num], expected.features_RD)
            assert np.allclose(batch.boxes_BR5[row, :num], boxes_with_area(expected))
    assert sum(len(batch.index_B) for split, batch in batches if split == "train") == 48


def _train_ids(folder: Path) -> list[str]:
    shards = read_manifest(folder)["splits"]["train"]["shards"]
    return [json.loads(one.members["json"])["id"] for shard in shards for one in read_shard(folder / shard["file"])]


def test_order_and_resumption_are_those_of_the_shards(sound: Path) -> None:
    order = {}
    for name, spec in ((None, SPEC._replace(region_width=8)), ("detected", SPEC)):
        data = data_of(sound, spec, region_set=name, steps_per_epoch=5)
        order[name] = [batch.index_B.tolist() for _ in range(2) for batch in data.train_dataloader()]
        half = data_of(sound, spec, region_set=name, steps_per_epoch=5)
        list(half.train_dataloader())
        rest = data_of(sound, spec, region_set=name, steps_per_epoch=5)
        rest.load_state_dict(half.state_dict())
        assert [batch.index_B.tolist() for batch in rest.train_dataloader()] == order[name][5:]
    assert order[None] == order["detected"]


def test_true_boxes_reach_an_evaluation_and_never_a_training(sound: Path) -> None:
    path, sidecar = sound / "val-000000.tar", sound / "val-regions-detected-000000.tar"
    for truth in (False, True):
        for sample in read_shard(path, 10, sidecar, truth):
            item = json.loads(sample.members["json"])["id"]
            assert sample.row == 10 + int(item.removeprefix("val."))
            assert ("truth.npz" in sample.members) == truth
            assert sample.members["regions.npz"] == pack_regions(found_in(item))
            if truth:
                assert sample.members["truth.npz"] == pack_regions(true_in(item))
    seen: list[set[str]] = []
    data = data_of(sound)
    maker = data._maker("train", None)
    for stream in (data._train_stream(maker, data._place, [0], 0), data.evaluation_loader("val")._stream):
        seen.append(set())
        add = stream.maker.add
        stream.maker.add = lambda sample, seed, add=add: (seen[-1].update(sample.members), add(sample, seed))  # type: ignore[method-assign, assignment, misc]
        next(iter(stream))
    assert seen == [{"jpg", "json", "regions.npz"}, {"jpg", "json", "regions.npz", "truth.npz"}]


def test_a_model_of_pictures_opens_no_sidecar(copy: Path) -> None:
    expected = [batch.images_B3HW for batch in data_of(copy, InputSpec(visual_input="grid")).evaluation_loader("val")]
    data = data_of(copy, InputSpec(visual_input="grid"))
    data.setup()
    for path in copy.glob("*-regions-*"):
        path.write_bytes(b"")
    for batch, images in zip(data.evaluation_loader("val"), expected, strict=True):
        assert (batch.images_B3HW == images).all()
