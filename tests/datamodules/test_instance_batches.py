"""Rows of instances as batches: what they hold, which boxes they are of, and that none depends on who reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules import DataError, InputSpec, Product1M
from datamodules.batch import ProductBatch
from datamodules.batching import RawSample
from datamodules.instance_batches import InstanceBatchMaker
from datamodules.instances import InstanceOptions
from datamodules.region_set_writer import RegionSetWriter
from datamodules.regions import Regions, pack_regions
from datamodules.shard_reader import read_shard
from datamodules.shards import EvaluationStream, Place
from datamodules.write_shards import build
from tests.datamodules.coloured_squares import COLOURS, PLACES, SIDE_PX, ColouredSquares, squares_regions

GRID = InputSpec(visual_input="grid", image_size_px=24, text_length=10)
REGIONS = InputSpec(visual_input="regions", region_width=len(COLOURS), num_regions=6, text_length=10)
TEXT = InputSpec(visual_input="none", text_length=10)
SHOP = ColouredSquares(queries=11, bare=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("squares")
    build(SHOP, folder, shard_size=4, vocab_size=60, progress=False, regions=squares_regions)
    return folder


def _data(folder: Path, spec: InputSpec = GRID, **options: Any) -> Product1M:
    data = Product1M(str(folder), eval_batch_size=6, num_workers=0, **({"max_instances": 3} | options))
    data.use_input_spec(spec)
    return data


def _batches(folder: Path, spec: InputSpec = GRID, kind: str = "detected", **options: Any) -> list[ProductBatch]:
    data = _data(folder, spec, instances=[kind], **options)
    return list(data.test_dataloader()[2])


def _joined(batches: list[ProductBatch]) -> ProductBatch:
    return ProductBatch._make(
        None if parts[0] is None else torch.cat([part for part in parts if part is not None])
        for parts in zip(*batches, strict=True)
    )


def _shown(item: int) -> list[int]:
    return SHOP.colours("test", item)


@pytest.mark.parametrize("spec", [GRID, REGIONS, TEXT], ids=lambda spec: spec.visual_input)
def test_a_query_has_one_row_per_detected_box_best_first(folder: Path, spec: InputSpec) -> None:
    batches = _batches(folder, spec)
    assert len(batches) == 6, "two queries of at most three instances in a batch of six rows"
    rows = _joined(batches)
    expected = [(item, number) for item in range(11) for number in range(len(_shown(item)))]
    assert rows.owner_B.tolist() == [item for item, _ in expected]
    assert rows.index_B.tolist() == [3 * item + number for item, number in expected]
    boxes = [PLACES[len(_shown(item)) - 1 - number] for item, number in expected]  # the surest one was drawn last
    np.testing.assert_allclose(rows.instance_box_B5[:, :4], np.array(boxes) / SIDE_PX, atol=1e-6)
    sides = rows.instance_box_B5[:, 2:4] - rows.instance_box_B5[:, :2]
    torch.testing.assert_close(rows.instance_box_B5[:, 4], sides.prod(1))
    scores = [0.6 + 0.1 * (len(_shown(item)) - 1 - number) for item, number in expected]
    assert rows.instance_score_B.tolist() == pytest.approx(scores)
    whole = _joined(list(_data(folder, spec).test_dataloader()[0]))
    assert torch.equal(rows.tokens_BT, whole.tokens_BT[rows.owner_B]), "the caption is shared"
    assert whole.owner_B is whole.instance_box_B5 is whole.instance_score_B is whole.instance_feature_BD is None


def test_crops_hold_their_box(folder: Path) -> None:
    for kind in ("detected", "true"):
        rows = _joined(_batches(folder, GRID, kind, crop_margin=0.0, instance_nms_iou=1.0))
        for owner, score, box, image in zip(
            rows.owner_B.tolist(), rows.instance_score_B, rows.instance_box_B5, rows.images_B3HW, strict=True
        ):
            if score == 0:
                continue
            place = PLACES.index(tuple(round(float(v) * SIDE_PX) for v in box[:4]))
            assert image.float().mean((1, 2)).round().tolist() == pytest.approx(COLOURS[_shown(owner)[place]], abs=1)


def test_a_margin_shows_what_lies_around_and_the_picture_s_edge_cuts_it_off(folder: Path) -> None:
    rows = _joined(_batches(folder, GRID, "true", crop_margin=0.25))
    first = next(row for row, box in enumerate(rows.instance_box_B5) if box[0] * SIDE_PX == pytest.approx(4))
    # The box of 40 px at (4, 6), with 10 px around it: 54 wide to the right and below, 4 and 6 left of and above it.
    image = rows.images_B3HW[first].float() / 255
    white = (image.min(0).values > 0.95).float()
    assert white[:, 0].mean() == 1
    assert 0.3 < white.mean() < 0.6


def test_a_query_without_a_box_is_its_whole_picture_with_score_0(folder: Path) -> None:
    for spec in (GRID, REGIONS):
        whole = _joined(list(_data(folder, spec).test_dataloader()[0]))
        rows = _joined(_batches(folder, spec, instance_min_score=0.99))
        assert rows.owner_B.tolist() == list(range(11))
        assert rows.instance_score_B.tolist() == [0] * 11
        assert rows.instance_box_B5.tolist() == [[0, 0, 1, 1, 1]] * 11
        for field in ("images_B3HW", "features_BRD", "boxes_BR5", "region_mask_BR"):
            one, other = getattr(rows, field), getattr(whole, field)
            assert (one is None and other is None) or torch.equal(one, other), field
    true = _joined(_batches(folder, GRID, "true"))
    assert true.owner_B[true.instance_score_B == 0].tolist() == [0, 4, 8], "whose boxes are not known"


def test_regions_of_a_box_are_those_whose_centre_lies_inside(folder: Path) -> None:
    rows = _joined(_batches(folder, REGIONS))
    for row, owner in enumerate(rows.owner_B.tolist()):
        number = len(_shown(owner)) - 1 - int(rows.index_B[row] % 3)
        colour = torch.eye(len(COLOURS))[_shown(owner)[number]]
        assert rows.region_mask_BR[row].sum() == 1, "its own; the one over the whole picture has its centre elsewhere"
        assert torch.equal(rows.features_BRD[row, 0].float(), colour)
        assert torch.equal(rows.instance_feature_BD[row].float(), colour)
        assert torch.equal(rows.boxes_BR5[row, 0], rows.instance_box_B5[row])
        assert not rows.features_BRD[row, 1:].any()
        assert not rows.boxes_BR5[row, 1:].any()


def test_fewer_regions_read_are_no_fewer_instances(folder: Path) -> None:
    whole, part = (_joined(_batches(folder, REGIONS, max_regions=most)) for most in (None, 1))
    assert torch.equal(whole.instance_box_B5, part.instance_box_B5)
    assert torch.equal(whole.instance_feature_BD, part.instance_feature_BD)
    for most in (None, 1):
        pictures = _joined(list(_data(folder, REGIONS, max_regions=most).test_dataloader()[0]))
        assert (int(pictures.region_mask_BR.sum(-1).max()) == 1) == (most == 1)


def _sample(boxes: Any = None, regions: Regions | None = None, truth: Regions | None = None) -> RawSample:
    record = SHOP.make("test", 1)
    about = {"id": record.id, "caption": record.caption} | ({} if boxes is None else {"boxes": boxes})
    members = {"json": json.dumps(about).encode(), "jpg": record.image}
    members["regions.npz"] = pack_regions(squares_regions(record) if regions is None else regions)
    if truth is not None:
        members["truth.npz"] = pack_regions(truth)
    return RawSample(1, "test-000000.tar", members)


def _rows(folder: Path, sample: RawSample, spec: InputSpec = REGIONS, kind: str = "detected") -> ProductBatch:
    maker = InstanceBatchMaker(folder, spec, kind, InstanceOptions())
    maker.start(1)
    maker.add(sample, None)
    return maker.finish()


def test_true_boxes_of_a_region_model_bring_their_own_features(folder: Path) -> None:
    truth = Regions(
        np.array([[70, 75, 100, 105], [0, 0, 3, 3]], np.float32),
        np.full((2, len(COLOURS)), 0.5, np.float16),
        np.ones(2, np.float32),
        (SIDE_PX, SIDE_PX),
    )
    stored = Regions(
        np.array([[60, 60, 110, 115], [5, 5, 45, 45]], np.float32),
        np.eye(2, len(COLOURS), dtype=np.float16),
        np.ones(2, np.float32),
        (SIDE_PX, SIDE_PX),
    )
    rows = _rows(folder, _sample(regions=stored, truth=truth), kind="true")
    assert rows.instance_score_B.tolist() == [1, 1]
    assert (rows.instance_feature_BD == 0.5).all()
    assert rows.region_mask_BR.sum(1).tolist() == [1, 0], "no centre lies in the second box: it stands alone"
    assert rows.features_BRD[0, 0].tolist() == [1, 0, 0, 0, 0, 0]
    assert not rows.features_BRD[1].any()


BAD = [([[0, 0, 0, 9]], "has zero area"), ([[0, 0, 500, 9]], "outside the picture"), ([[0, 0, None, 9]], "not a list"),
       ([[0, 0, float("nan"), 9]], "NaN")]  # fmt: skip


@pytest.mark.parametrize(("boxes", "message"), BAD)
def test_a_bad_true_box_is_named(folder: Path, boxes: list, message: str) -> None:
    with pytest.raises(DataError, match=rf"test-000000\.tar, sample 'test001', \.json: .*{message}.*build again"):
        _rows(folder, _sample(boxes=boxes), GRID, "true")


def test_a_bad_detected_box_is_named(folder: Path) -> None:
    regions = squares_regions(SHOP.make("test", 1))
    thin = regions.boxes_R4.copy()
    thin[1, 2] = thin[1, 0]
    for spec in (GRID, REGIONS, TEXT):
        with pytest.raises(DataError, match=r"sample 'test001', \.regions\.npz: box 1, .* has zero area"):
            _rows(folder, _sample(regions=regions._replace(boxes_R4=thin)), spec)
    sample = _sample()
    data = sample.members["regions.npz"].replace(thin[0, :1].tobytes(), np.float32("nan").tobytes())
    broken = sample._replace(members={**sample.members, "regions.npz": data})
    with pytest.raises(DataError, match=r"sample 'test001'"):
        _rows(folder, broken)


def test_known_boxes_without_features_are_not_read_as_unknown(folder: Path) -> None:
    sample = _sample(boxes=[[1, 1, 9, 9]])._replace(sidecar="test-regions-mine-000000.tar")
    with pytest.raises(DataError, match=r"test-regions-mine-000000\.tar, sample 'test001', \.truth\.npz: missing"):
        _rows(folder, sample, kind="true")
    assert _rows(folder, _sample(), kind="true").instance_score_B.tolist() == [0], "of this one nothing is known"


def test_an_upper_bound_leaves_no_box_out(folder: Path) -> None:
    boxes = [[n, n, n + 5, n + 5] for n in range(11)]
    with pytest.raises(DataError, match=r"sample 'test001': 11 true boxes, data\.max_instances=10. Raise it"):
        _rows(folder, _sample(boxes=boxes), GRID, "true")


# ---- who reads what ----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    world=st.integers(1, 4),
    workers=st.integers(1, 3),
    queries=st.integers(1, 5),
    kind=st.sampled_from(["detected", "true"]),
)
def test_any_ranks_and_workers_read_the_same_batches(
    folder: Path, world: int, workers: int, queries: int, kind: str
) -> None:
    def stream(place: Place) -> EvaluationStream:
        maker = InstanceBatchMaker(folder, GRID, kind, InstanceOptions(max_instances=3))
        return EvaluationStream(folder, shards, maker, queries, place)

    shards = _data(folder).manifest["splits"]["test"]["shards"]
    expected = {int(batch.owner_B[0]): batch for batch in stream(Place())}
    assert sorted(expected) == list(range(0, 11, queries)), "batches are of whole queries"
    found: dict[int, ProductBatch] = {}
    for rank in range(world):
        mine = stream(Place(rank, world, workers))
        delivered = [batch for worker in range(workers) for batch in mine._deliveries(worker)]
        assert len(delivered) == len(mine)
        for batch in delivered:
            assert int(batch.owner_B[0]) not in found
            found[int(batch.owner_B[0])] = batch
    assert found.keys() == expected.keys()
    for first, batch in expected.items():
        for one, other in zip(batch, found[first], strict=True):
            assert (one is None and other is None) or torch.equal(one, other)


def test_worker_processes_deliver_the_same(folder: Path) -> None:
    for spec in (GRID, REGIONS):
        alone = _batches(folder, spec)
        data = _data(folder, spec, instances=["detected"])
        data.num_workers = 2
        together = list(data.test_dataloader()[2])
        assert len(together) == len(alone)
        for one, other in zip(alone, together, strict=True):
            for a, b in zip(one, other, strict=True):
                assert (a is None and b is None) or torch.equal(a, b)


def test_levels_and_loaders(folder: Path) -> None:
    data = _data(folder, instances=["true", "detected"])
    assert data.levels("val") == ("whole", "true", "detected")
    assert len(data.val_dataloader()) == 4
    assert _data(folder).levels("test") == ("whole",)
    assert len(_data(folder).val_dataloader()) == 2
    many = Product1M(str(folder), eval_batch_size=32, num_workers=0, instances=["true"], max_instances=36)
    many.use_input_spec(GRID)
    assert len(many.val_dataloader()[2]) == 11, "one query of up to 36 rows is a batch"


def test_entities_are_repeated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are looked up by the query's row, not by the instance's number."""

    class Entities:
        def added(self, batch: ProductBatch, *_: Any) -> ProductBatch:
            return batch._replace(entities_BE=batch.index_B[:, None])

    maker = InstanceBatchMaker(folder, GRID, "detected", InstanceOptions(), Entities())  # type: ignore[arg-type]
    maker.start(1)
    maker.add(_sample(), None)
    assert maker.finish().entities_BE.tolist() == [[1]] * len(_shown(1))


# ---- what the folder must hold -----------------------------------------------------------------------------------


def test_a_folder_without_boxes_is_told_before_anything_runs(folder: Path, tmp_path: Path) -> None:
    bare = ColouredSquares(queries=4, bare=1)
    build(bare, tmp_path, vocab_size=60, progress=False)
    with pytest.raises(DataError, match=r"holds no detected boxes.*make train EXP=detector.*experiments predict"):
        _data(tmp_path, instances=["detected"]).setup("fit")
    with pytest.raises(DataError, match=r"no val query of .* has known boxes"):
        _data(tmp_path, instances=["true"]).setup("fit")
    with pytest.raises(DataError, match=r"the model reads region features, and .* holds none of the true boxes"):
        _data(folder, REGIONS, instances=["true"]).setup("test")
    for spec in (GRID, TEXT):
        _data(folder, spec, instances=["true", "detected"]).setup("test")
    with pytest.raises(DataError, match="did you mean 'true'"):
        _data(folder, instances=["ture"])


# ---- region sets -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of pictures alone, and a region set beside them that knows the true boxes."""
    folder = tmp_path_factory.mktemp("set")
    build(SHOP, folder, shard_size=4, vocab_size=60, progress=False)
    writer = RegionSetWriter(folder, "mine", {"detector": "drawn"})
    for split, number in writer.pending():
        rows = []
        for sample in read_shard(folder / f"{split}-{number:06d}.tar"):
            record = json.loads(sample.members["json"])
            found = squares_regions(SHOP.make(split, int(record["id"].removeprefix(split))))
            boxes = record.get("boxes") if split in ("val", "test") else None
            keep = slice(0, len(boxes or []))
            truth = found._replace(boxes_R4=found.boxes_R4[keep], scores_R=np.ones(len(boxes or []), np.float32),
                                   features_RD=found.features_RD[keep] * 2)  # fmt: skip
            rows.append((found, truth if boxes else None))
        writer.write(split, number, rows)
    writer.finish()
    return folder


@pytest.mark.parametrize("spec", [GRID, REGIONS, TEXT], ids=lambda spec: spec.visual_input)
def test_boxes_come_from_the_region_set_that_is_named(folder: Path, with_set: Path, spec: InputSpec) -> None:
    stored = _joined(_batches(folder, spec))
    data = _data(with_set, spec, instances=["detected", "true"], region_set="mine")
    data.setup("test")
    _, _, detected, true = (_joined(list(loader)) for loader in data.test_dataloader())
    for field in ("index_B", "owner_B", "instance_box_B5", "instance_score_B", "features_BRD", "instance_feature_BD"):
        one, other = getattr(detected, field), getattr(stored, field)
        assert (one is None and other is None) or torch.equal(one, other), field
    assert true.owner_B[true.instance_score_B == 0].tolist() == [0, 4, 8], "whose boxes are not known"
    if spec is REGIONS:
        assert true.instance_feature_BD.sum(1).tolist() == [2 * bool(score) for score in true.instance_score_B]
    with pytest.raises(DataError, match=r"holds no detected boxes.*--name detected"):
        _data(with_set, spec if spec is not REGIONS else GRID, instances=["detected"]).setup("test")


def test_a_bad_box_of_a_region_set_names_its_file_and_command(with_set: Path) -> None:
    found = squares_regions(SHOP.make("test", 1))
    thin = found.boxes_R4.copy()
    thin[0, 3] = thin[0, 1]
    sample = _sample(regions=found._replace(boxes_R4=thin))._replace(sidecar="test-regions-mine-000000.tar")
    with pytest.raises(DataError, match=r"test-regions-mine-000000\.tar, sample 'test001'.*--name mine --fresh"):
        _rows(with_set, sample)
