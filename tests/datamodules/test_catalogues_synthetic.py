"""The synthetic shop: reproducible, answerable, and ambiguous in each modality alone."""

from __future__ import annotations

import io
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datamodules.catalogues.record import SPLITS, iterate
from datamodules.catalogues.seeding import stream
from datamodules.catalogues.synthetic import Synthetic
from datamodules.catalogues.synthetic_captions import caption
from datamodules.catalogues.synthetic_scene import render
from datamodules.catalogues.synthetic_shop import MAX_LABELS, MIN_LABELS, build_shop
from datamodules.errors import DataError

SMALL = {
    "image_size_px": 64, "num_labels": 24, "num_train_singles": 24, "num_train_multis": 12, "num_gallery": 48,
    "num_val": 12, "num_test": 12,
}  # fmt: skip


@pytest.fixture(scope="module")
def records():
    shop = Synthetic(**SMALL)
    return {split: list(iterate(shop, split)) for split in SPLITS}


def test_same_seed_same_bytes_whatever_the_order(records):
    again = Synthetic(**SMALL)
    items = again.plan("test")
    for number in (7, 0, 11):
        assert again.make("test", items[number]) == records["test"][number]


def test_another_seed_gives_other_pictures_and_captions(records):
    other = Synthetic(seed=1, **SMALL)
    made = [other.make("gallery", item) for item in other.plan("gallery")]
    assert not {record.image for record in made} & {record.image for record in records["gallery"]}
    assert sum(one.caption == two.caption for one, two in zip(made, records["gallery"], strict=True)) < 5


def test_counts_kinds_and_unique_ids(records):
    assert {split: len(made) for split, made in records.items()} == {"train": 36, "val": 12, "test": 12, "gallery": 48}
    assert Counter(record.kind for record in records["train"]) == {"single": 24, "multi": 12}
    assert {record.kind for record in records["gallery"]} == {"single"}
    for split in ("val", "test"):
        assert all(2 <= len(record.labels) <= 5 and record.kind == "multi" for record in records[split])
    ids = [record.id for made in records.values() for record in made]
    assert len(set(ids)) == len(ids)


def test_no_picture_is_in_two_splits(records):
    pictures = [record.image for made in records.values() for record in made]
    assert len(set(pictures)) == len(pictures)


def test_every_query_label_has_several_gallery_items(records):
    gallery = Counter(record.labels[0] for record in records["gallery"])
    asked = {label for split in ("val", "test") for record in records[split] for label in record.labels}
    assert asked <= gallery.keys()
    assert min(gallery.values()) >= 2


def test_pictures_decode_and_boxes_lie_inside_one_per_label(records):
    for record in [*records["test"], *records["gallery"]]:
        image = Image.open(io.BytesIO(record.image))
        assert image.size == (64, 64)
        assert len(record.boxes) == len(record.labels)
        for left, top, right, bottom in record.boxes:
            assert 0 <= left < right <= 64
            assert 0 <= top < bottom <= 64
            assert (right - left) * (bottom - top) >= 0.01 * 64 * 64


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 50), st.integers(MIN_LABELS, MAX_LABELS))
def test_a_shop_has_the_wanted_number_of_distinct_labels(seed, num_labels):
    products = build_shop(seed, num_labels)
    assert len({product.label for product in products}) == len(products) == num_labels


def test_a_picture_does_not_tell_the_brand():
    """Each pack in each shade is sold by several brands of one family, in the same palette."""
    sellers = defaultdict(set)
    for product in build_shop(0, 96):
        look = (product.brand.family, product.category.name, product.shade, product.series_index)
        sellers[look].add(product.brand.latin)
    assert all(len(brands) == 4 for brands in sellers.values())


def test_captions_mostly_leave_out_the_shade_but_name_brand_or_series():
    shop = build_shop(0, 96)
    shaded = [product for product in shop if product.shade]
    titles = [(product, caption(stream("t", row, product.label), [product])) for row in range(20) for product in shaded]
    told = sum(product.shade in title for product, title in titles) / len(titles)
    assert 0.1 < told < 0.4
    named = sum(
        product.brand.chinese in title or product.brand.latin.lower() in title.lower() for product, title in titles
    )
    assert 0.75 < named / len(titles) < 0.95
    assert all(title.strip() for _, title in titles)


def test_a_set_s_caption_drops_products():
    products = build_shop(0, 96)[:4]
    titles = [caption(stream("set", number), products) for number in range(300)]
    words = [word for product in products for word in product.category.words]
    assert sum(any(word in title for word in words) for title in titles) > 150
    assert all(len(title) <= 80 for title in titles)
    complete = [all(any(word in title for word in product.category.words) for product in products) for title in titles]
    assert sum(complete) < 100


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_shade_and_lettering_change_the_picture(number):
    products = [product for product in build_shop(0, 96) if product.shade]
    one, two = products[0], products[1]
    assert one._replace(shade=two.shade, shade_colour=two.shade_colour, label=two.label) == two
    group = products[2 : 1 + number]
    assert render(stream(number), [one, *group], 96)[0] != render(stream(number), [two, *group], 96)[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_labels": 5}, ["num_labels", "5", str(MIN_LABELS)]),
        ({"num_labels": 96, "num_gallery": 100}, ["num_gallery", "192"]),
        ({"num_test": -1}, ["num_test", "-1"]),
        ({"image_size_px": 8}, ["image_size_px", "8"]),
    ],
)
def test_impossible_options_name_the_key_and_the_bound(options, words):
    with pytest.raises(DataError) as error:
        Synthetic(**options)
    assert all(word in str(error.value) for word in words)
