"""The regions member: what goes in comes out, plainly stored or not, and what no model can use is refused."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules import npz
from datamodules.regions import (
    SUM_TOLERANCE,
    BadRegionsError,
    Regions,
    check_class_scores,
    check_finite,
    check_regions,
    pack_regions,
    unpack_regions,
)
from tests.datamodules.region_files import some_class_scores, some_regions

NAMES = ("boxes", "features", "scores", "size")


def _slowly(data: bytes) -> dict[str, np.ndarray]:
    """What numpy itself reads."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in NAMES if name in arrays}


def _same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and one[name].shape == other[name].shape
        and one[name].tobytes() == other[name].tobytes()
        for name in one
    )  # fmt: skip


def _whole(read: Callable[[bytes], dict[str, np.ndarray]], data: bytes) -> dict[str, np.ndarray] | None:
    """All four arrays, or nothing."""
    try:
        arrays = read(data)
    except Exception:  # of nearly any kind
        return None
    return arrays if len(arrays) == len(NAMES) else None


def _entries(data: bytes) -> list[zipfile.ZipInfo]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.infolist()


def _saved(compressed: bool = False, **arrays: Any) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


@settings(max_examples=60, deadline=None)
@given(
    num=st.integers(0, 7),
    width=st.integers(1, 33),
    seed=st.integers(0, 99),
    dtype=st.sampled_from(["<f2", "<f4", ">f4", "<f8", "<i4"]),
    fortran=st.booleans(),
    compressed=st.booleans(),
)
def test_arrays_seen_in_place_are_those_numpy_reads(
    num: int, width: int, seed: int, dtype: str, fortran: bool, compressed: bool
) -> None:
    regions = some_regions(str(seed), num, width)
    features = np.array(regions.features_RD * 9, dtype, order="F" if fortran else "C")
    data = _saved(compressed, boxes=regions.boxes_R4, features=features, scores=regions.scores_R, size=(60, 80))
    assert _same(npz.read_npz(data, NAMES), _slowly(data))


@settings(max_examples=60, deadline=None)
@given(num=st.integers(0, 7), width=st.integers(1, 33), seed=st.integers(0, 99))
def test_packed_regions_come_back(num: int, width: int, seed: int) -> None:
    regions = some_regions(str(seed), num, width)
    back = unpack_regions(pack_regions(regions))
    assert np.array_equal(back.boxes_R4, regions.boxes_R4)
    assert np.array_equal(back.features_RD, regions.features_RD.astype(np.float16))
    assert back.features_RD.dtype == np.float16
    assert (back.scores_R.tolist(), back.size_hw) == ([1.0] * num, (60, 80))


@settings(max_examples=150, deadline=None)
@given(at=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255), cut=st.booleans())
def test_damage_is_seen_as_numpy_sees_it(at: float, value: int, cut: bool) -> None:
    data = bytearray(pack_regions(some_regions("a")))
    place = int(at * len(data))
    data[place] = value
    damaged = bytes(data[:place] if cut else data)
    expected, found = _whole(_slowly, damaged), _whole(lambda data: npz.read_npz(data, NAMES), damaged)
    if found is None:
        assert expected is None or sum(entry.file_size for entry in _entries(damaged)) > npz.MAX_BYTES
    else:
        assert expected is not None
        assert _same(found, expected)


def test_plainly_stored_features_are_not_copied() -> None:
    data = pack_regions(some_regions("a"))
    features = unpack_regions(data).features_RD
    start = np.frombuffer(data, np.uint8).ctypes.data
    assert start < features.ctypes.data < start + len(data)


def test_what_unpacks_to_too_much_is_not_unpacked() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("features.npy", "w") as file:
        for _ in range(65):
            file.write(bytes(1 << 20))
    with pytest.raises(BadRegionsError, match="more than 67108864 bytes"):
        unpack_regions(buffer.getvalue())


def test_scores_may_be_missing() -> None:
    regions = some_regions("a")
    back = unpack_regions(_saved(boxes=regions.boxes_R4, features=regions.features_RD, size=(60, 80)))
    assert back.scores_R.tolist() == [1.0, 1.0, 1.0]


def _changed(**changes: Any) -> Regions:
    return some_regions("a")._replace(**changes)


def _with(array: np.ndarray, row: int, column: int, value: float) -> np.ndarray:
    array = array.copy()
    array[row, column] = value
    return array


BOXES, FEATURES = some_regions("a").boxes_R4, some_regions("a").features_RD
BAD = {
    "boxes shape": ({"boxes_R4": BOXES[:, :3]}, "malformed_regions", r"'boxes' have shape \(3, 3\), not \(R, 4\)"),
    "rows": ({"features_RD": FEATURES[:2]}, "malformed_regions", "differ in R"),
    "width 0": ({"features_RD": FEATURES[:, :0]}, "malformed_regions", "0 wide"),
    "text": ({"features_RD": FEATURES.astype(str)}, "malformed_regions", "'features' holds <U"),
    "a single number": ({"boxes_R4": np.float32(3)}, "malformed_regions", r"'boxes' have shape \(\), not \(R, 4\)"),
    "size of three": ({"size_hw": (3, 60, 80)}, "malformed_regions", r"'size' is \[3, 60, 80\]; give the picture's"),
    "size nan": ({"size_hw": (np.nan, 80)}, "malformed_regions", r"'size' is \[nan, 80.0\]"),
    "size 0": ({"size_hw": (0, 80)}, "malformed_regions", "'size' is 0 × 80"),
    "nan": ({"features_RD": _with(FEATURES, 1, 2, np.nan)}, "non_finite_regions", "'features' of region 1"),
    "inf": ({"features_RD": _with(FEATURES, 2, 0, -np.inf)}, "non_finite_regions", "'features' of region 2"),
    "beyond float16": ({"features_RD": _with(FEATURES, 0, 5, 7e4)}, "non_finite_regions", "beyond ±65504"),
    "nan box": ({"boxes_R4": _with(BOXES, 1, 0, np.nan)}, "non_finite_regions", "'boxes' row 1"),
    "inf box": ({"boxes_R4": _with(BOXES, 1, 2, np.inf)}, "non_finite_regions", "'boxes' row 1"),
    "beyond float32": (
        {"boxes_R4": _with(BOXES.astype(np.float64), 1, 2, 1e300)}, "non_finite_regions", "'boxes' row 1"
    ),
    "outside": ({"boxes_R4": _with(BOXES, 2, 2, 81.5)}, "misplaced_boxes", "'boxes' row 2 .* outside .* 80 × 60 px"),
    "below": ({"boxes_R4": _with(BOXES, 2, 3, 61.5)}, "misplaced_boxes", "'boxes' row 2"),
    "negative": ({"boxes_R4": _with(BOXES, 0, 1, -1.5)}, "misplaced_boxes", "'boxes' row 0"),
    "inverted": ({"boxes_R4": BOXES[:, [2, 1, 0, 3]]}, "misplaced_boxes", "inverted"),
    "fractions": ({"boxes_R4": BOXES / 80}, "misplaced_boxes", "look like fractions"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "reason", "message"), BAD.values(), ids=BAD)
def test_what_no_model_can_use_is_refused(changes: dict[str, Any], reason: str, message: str) -> None:
    with pytest.raises(BadRegionsError, match=message) as caught:
        pack_regions(_changed(**changes))
    assert caught.value.reason == reason
    bad = _changed(**changes)
    data = _saved(boxes=bad.boxes_R4, features=bad.features_RD, scores=bad.scores_R, size=bad.size_hw)
    with pytest.raises(BadRegionsError, match=message):
        check_regions(unpack_regions(data))


def test_a_box_may_stand_out_by_a_rounding_and_be_a_pixel_thin() -> None:
    boxes = np.array([[-0.9, 0, 80.9, 60.9], [5, 5, 5, 5], [0, 0, 80, 60]], np.float32)
    assert unpack_regions(pack_regions(_changed(boxes_R4=boxes))).boxes_R4.tolist() == boxes.tolist()


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(0, 0xFFFF))
def test_every_float16_is_known_as_a_number_or_not(bits: int) -> None:
    value = np.array([[0, bits]], np.uint16).view(np.float16)
    if np.isfinite(value).all():
        check_finite(value)
    else:
        with pytest.raises(BadRegionsError):
            check_finite(value)


# ---- class scores ------------------------------------------------------------------------------------------------

CLASS_SCORES = some_class_scores("a")


@settings(max_examples=60, deadline=None)
@given(
    num=st.integers(0, 7),
    classes=st.sampled_from([1, 2, 91, 1601]),
    seed=st.integers(0, 99),
    sharpness=st.floats(0, 40),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
)
def test_every_softmax_is_packed_and_comes_back(
    num: int, classes: int, seed: int, sharpness: float, dtype: Any
) -> None:
    logits = sharpness * np.random.default_rng(seed).normal(size=(num, classes))
    scores = np.exp(logits - logits.max(1, keepdims=True))
    scores = (scores / scores.sum(1, keepdims=True)).astype(dtype)
    regions = some_regions(str(seed), num)._replace(class_scores_RC=scores)
    data = pack_regions(regions)
    back = unpack_regions(data)
    assert np.array_equal(back.class_scores_RC, scores.astype(np.float16))
    assert (back.class_scores_RC.dtype, back.num_classes) == (np.float16, classes)
    assert _slowly(data).keys() == set(NAMES), "the four others are as they were"
    check_regions(back)


def test_regions_without_class_scores_give_the_bytes_they_always_gave() -> None:
    regions = some_regions("a")
    assert unpack_regions(pack_regions(regions)).class_scores_RC is None
    assert pack_regions(regions) == _saved(
        boxes=regions.boxes_R4,
        features=regions.features_RD.astype(np.float16),
        scores=regions.scores_R,
        size=np.array((60, 80), np.int32),
    )


def test_class_scores_are_left_unread_where_nobody_wants_them() -> None:
    regions = some_regions("a")
    data = _saved(boxes=regions.boxes_R4, features=regions.features_RD, size=(60, 80), class_scores=["text"])
    assert unpack_regions(data, class_scores=False).class_scores_RC is None
    with pytest.raises(BadRegionsError, match="'class_scores' holds <U"):
        unpack_regions(data)


def test_rounding_is_put_back_into_place() -> None:
    scores = np.array([[1.0004, -0.0, 0], [-1e-9, 0.5, 0.505], [0, 0, 1e-6]])
    found = unpack_regions(pack_regions(_changed(class_scores_RC=scores))).class_scores_RC
    assert np.array_equal(found, np.array([[1, 0, 0], [0, 0.5, 0.505], [0, 0, 1e-6]], np.float16))
    check_class_scores(np.array([[-0.0, 1]], np.float16))


def _row(*scores: float) -> np.ndarray:
    return np.array([[0.5, 0.5], scores, [1, 0]], np.float32)


BAD_SCORES = {
    "rows": (CLASS_SCORES[:2], "malformed_regions", r"'class_scores' have shape \(2, 5\), not \(3, C\)"),
    "flat": (CLASS_SCORES[:, 0], "malformed_regions", r"have shape \(3,\), not \(3, C\)"),
    "no class": (CLASS_SCORES[:, :0], "malformed_regions", "at least one class"),
    "text": (CLASS_SCORES.astype(str), "malformed_regions", "'class_scores' holds <U"),
    "nan": (_row(np.nan, 0.5), "non_finite_regions", "'class_scores' of region 1 hold NaN"),
    "inf": (_row(0.5, np.inf), "non_finite_regions", "'class_scores' of region 1 hold NaN or infinity"),
    "logits": (_row(2.5, -1.5), "bad_class_scores", r"of region 1 hold 2\.5; .*apply softmax to logits"),
    "small logits": (_row(0.25, -0.25), "bad_class_scores", r"region 1 hold -0\.25; .*softmax"),
    "sigmoids": (_row(0.75, 0.5), "bad_class_scores", r"region 1 sum to 1\.25; .*at most 1 in sum"),
    "zeros": (_row(0, 0), "bad_class_scores", "region 1 sum to 0; .*not all 0"),
    "nothing half precision holds": (_row(1e-9, 1e-9), "bad_class_scores", "region 1 sum to 0;"),
}


@pytest.mark.parametrize(("scores", "reason", "message"), BAD_SCORES.values(), ids=BAD_SCORES)
def test_what_is_no_distribution_over_classes_is_refused(scores: np.ndarray, reason: str, message: str) -> None:
    with pytest.raises(BadRegionsError, match=message) as caught:
        pack_regions(_changed(class_scores_RC=scores))
    assert caught.value.reason == reason
    regions = some_regions("a")
    data = _saved(boxes=regions.boxes_R4, features=regions.features_RD, size=(60, 80), class_scores=scores)
    with pytest.raises(BadRegionsError, match=message):
        check_regions(unpack_regions(data))


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(st.lists(st.integers(0, 0xFFFF), min_size=3, max_size=3), min_size=1, max_size=3))
def test_class_scores_are_judged_as_one_would_slowly(rows: list[list[int]]) -> None:
    scores = np.array(rows, np.uint16).view(np.float16)
    exact = [[float(value) for value in row] for row in scores]
    good = all(all(0 <= value <= 1 for value in row) and 0 < sum(row) <= 1 + SUM_TOLERANCE for row in exact)
    with np.errstate(invalid="ignore"):
        if good:
            check_class_scores(scores)
        else:
            with pytest.raises(BadRegionsError):
                check_class_scores(scores)


@pytest.mark.parametrize("key", ["boxes", "features", "size"])
def test_a_missing_array_is_named(key: str) -> None:
    arrays: dict[str, Any] = {"boxes": BOXES, "features": FEATURES, "size": (60, 80)}
    del arrays[key]
    with pytest.raises(BadRegionsError, match=f"no array '{key}'"):
        unpack_regions(_saved(**arrays))
