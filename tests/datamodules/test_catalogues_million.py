"""The catalogue of Product1M's size: its numbers, and that no two pairs are the same."""

from __future__ import annotations

import numpy as np
import pytest

from datamodules.catalogues.million import PRODUCT1M_PAIRS, Million
from datamodules.catalogues.record import SPLITS, iterate
from datamodules.errors import DataError
from datamodules.pictures import decode_picture, plain_jpeg_size


@pytest.mark.parametrize("num_pairs", [8, 999, 50_000, 1_182_083])
def test_splits_add_up_in_the_proportions_of_product1m(num_pairs):
    counts = {split: len(Million(num_pairs=num_pairs).plan(split)) for split in SPLITS}
    assert sum(counts.values()) == num_pairs
    for split, published in PRODUCT1M_PAIRS.items():
        assert counts[split] == pytest.approx(published * num_pairs / 1_182_083, abs=3)
    assert num_pairs != 1_182_083 or counts == PRODUCT1M_PAIRS


def test_pairs_are_distinct_answerable_and_as_long_as_real_ones():
    shop = Million(num_pairs=1_200, image_size_px=32)
    records = [record for split in SPLITS for record in iterate(shop, split)]
    assert len({record.id for record in records}) == len({record.image for record in records}) == 1_200
    of_train = [record.caption for record in records if record.id.startswith("train")]
    assert len(set(of_train)) == len(of_train)
    lengths = np.array([len(caption) for caption in of_train])
    assert lengths.mean() == pytest.approx(31.4, abs=1)
    assert lengths.max() <= 54
    sold = {label for record in records if record.id.startswith("gallery") for label in record.labels}
    assert all(sold.issuperset(record.labels) for record in records)
    assert {record.kind for record in records if record.id.startswith("train")} == {"single", "multi"}


def test_an_item_is_the_same_whatever_was_made_before():
    shop = Million(num_pairs=100)
    alone = shop.make("test", 0)
    list(iterate(shop, "train"))
    assert Million(num_pairs=100).make("test", 0) == alone
    assert Million(num_pairs=100, seed=1).make("test", 0) != alone


def test_pictures_with_an_id_in_them_take_the_fast_way():
    image = Million(image_size_px=48).make("train", 1_132_829).image
    assert plain_jpeg_size(image) == decode_picture(image).image.size == (48, 48)


@pytest.mark.parametrize("options", [{"num_pairs": 7}, {"image_size_px": 8}])
def test_too_little_is_refused(options):
    with pytest.raises(DataError, match=next(iter(options))):
        Million(**options)
