"""What all catalogues share: opening by name, and the parts they are built from."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datamodules.catalogues import NEEDS, open_catalogue, options_of
from datamodules.catalogues.compose import compose
from datamodules.catalogues.compose_captions import FuzzyRules, fuzzy_caption
from datamodules.catalogues.cutout import cut_out
from datamodules.catalogues.duplicates import group_near_identical, perceptual_hash
from datamodules.catalogues.photo_titles import PhotoTitle
from datamodules.catalogues.picture_files import UnusablePictureError, decode
from datamodules.catalogues.placement import place
from datamodules.catalogues.seeding import stream
from datamodules.errors import DataError
from tests.datamodules.tiny_shops import photo


@pytest.mark.parametrize(
    ("source", "raw", "options", "words"),
    [
        ("grocrey", None, {}, ["'grocrey'", "did you mean 'grocery'", "product1m"]),
        ("zzz", None, {}, ["'zzz'", "synthetic"]),
        ("synthetic", None, {"num_lables": 3}, ["'num_lables'", "did you mean 'num_labels'"]),
        ("synthetic", None, {"num_val": "many"}, ["'num_val'", "'many'", "int"]),
        ("synthetic", None, {"num_val": True}, ["'num_val'", "True", "int"]),
        ("synthetic", "somewhere", {}, ["takes no raw folder", "somewhere"]),
        ("photos", None, {}, ["needs a raw folder", "products.txt"]),
        ("grocery", "/no/such/folder", {}, ["'/no/such/folder' does not exist", "GroceryStoreDataset"]),
    ],
)
def test_wrong_calls_are_answered_in_one_line(source, raw, options, words):
    with pytest.raises(DataError) as error:
        open_catalogue(source, raw, **options)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_every_source_takes_a_seed():
    assert all("seed" in options_of(source) for source in NEEDS)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(0, 10_000), st.integers(64, 300))
def test_composites_are_reproducible_with_a_box_inside_per_photo(number, seed, size_px):
    photos = [decode(photo(seed + index, white_ground=index % 2 == 0)) for index in range(number)]
    data, boxes = compose(random.Random(seed), photos, size_px)
    assert (data, boxes) == compose(random.Random(seed), photos, size_px)
    assert Image.open(io.BytesIO(data)).size == (size_px, size_px)
    assert len(boxes) == number
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= size_px
        assert 0 <= top < bottom <= size_px


def test_the_box_is_where_the_photo_went():
    """A red and a blue photo: inside each box its own colour."""
    sheets = [Image.new("RGB", (60, 60), colour) for colour in ((250, 0, 0), (0, 0, 250))]
    data, boxes = compose(random.Random(5), sheets, 200)
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    for channel, (left, top, right, bottom) in zip((0, 2), boxes, strict=True):
        x, y = int((left + right) / 2), int((top + bottom) / 2)
        assert pixels[y, x, channel] > 200
        assert pixels[y, x].sum() - pixels[y, x, channel] < 80


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(0, 10_000))
def test_slots_lie_on_the_canvas_and_cover_little_of_each_other(number, seed):
    slots = place(random.Random(seed), number, (200, 100))
    assert len(slots) == number
    for left, top, right, bottom in slots:
        assert 0 <= left < right <= 200
        assert 0 <= top < bottom <= 100


def test_white_ground_is_cut_and_other_grounds_are_not():
    cut = cut_out(decode(photo(3, (80, 80), white_ground=True)))
    assert cut is not None
    assert abs(cut.width - 40) <= 6
    assert cut.getchannel("A").getpixel((cut.width // 2, cut.height // 2)) == 255
    assert cut_out(decode(photo(3, (80, 80)))) is None
    assert cut_out(Image.new("RGB", (80, 80), (255, 255, 255))) is None


def test_copies_are_grouped_and_different_pictures_are_not():
    originals = {str(seed): photo(seed, (160, 160)) for seed in range(30)}
    copies = {}
    for key, data in originals.items():
        out = io.BytesIO()
        decode(data).resize((120, 120)).save(out, "JPEG", quality=70)
        copies[f"{key}-copy"] = out.getvalue()
    hashes = {key: perceptual_hash(data) for key, data in {**originals, **copies}.items()}
    groups = group_near_identical(hashes)
    assert all(groups[f"{key}-copy"] == groups[key] for key in originals)
    assert len(set(groups.values())) == 30
    halves = {key: key.endswith("copy") for key in hashes}
    assert len(set(group_near_identical(hashes, apart=halves).values())) == 60


UNUSABLE = (
    (b"", "undecodable_picture"),
    (photo(1)[:200], "undecodable_picture"),
    (photo(1, (1200, 900)), "oversized_picture"),
)


@pytest.mark.parametrize(("data", "reason"), UNUSABLE)
def test_unusable_pictures_give_a_reason(data, reason):
    with pytest.raises(UnusablePictureError) as error:
        decode(data, max_megapixels=1)
    assert error.value.reason == reason


def test_transparent_pictures_get_a_white_ground():
    out = io.BytesIO()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(out, "PNG")
    assert decode(out.getvalue()).getpixel((4, 4)) == (255, 255, 255)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.booleans())
def test_fuzzy_captions_are_never_empty(seed, number, has_other):
    titles = [PhotoTitle(title) for title in ("A B", "One", "Red Bag", "面霜", "x y z")][:number]
    rules = FuzzyRules(mention_prob=0.1, exact_prob=0.3)
    assert fuzzy_caption(stream(seed), titles, PhotoTitle("Other Thing") if has_other else None, rules).strip()


def test_only_some_products_are_mentioned_and_absent_ones_are_praised():
    titles = [PhotoTitle(f"Brand{number} Thing{number} Kind{number}") for number in range(4)]
    captions = [fuzzy_caption(stream(seed), titles, PhotoTitle("Absent Product"), FuzzyRules()) for seed in range(400)]
    mentioned = [sum(f"{word}{n}" in text for n in range(4) if (word := "Brand")) for text in captions]
    assert 0.8 < sum(mentioned) / len(mentioned) < 2.8
    assert 0.3 < sum("Absent Product" in text for text in captions) / len(captions) < 0.7
