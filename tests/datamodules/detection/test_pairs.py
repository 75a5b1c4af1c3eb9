"""Which cut-out a box shows is known, and pictures come in pairs that share cut-outs."""

from __future__ import annotations

import numpy as np

from datamodules.detection.cut_outs import CutOut
from datamodules.detection.streams import SHARED, PastedBatches

COLOURS = [(250, 20, 20), (20, 250, 20), (20, 20, 250), (250, 250, 20), (20, 250, 250), (250, 20, 250), (0, 0, 0)]


def _batches(count: int = len(COLOURS)) -> PastedBatches:
    cut_outs = [CutOut(np.full((40, 40, 4), (*colour, 255), np.uint8), "outline", 0, 0) for colour in COLOURS[:count]]
    photos = [np.full((8, 8, 3), 128, np.uint8)]
    return PastedBatches(("seed", 3), cut_outs, photos, 64, 5, lambda number: range(4 * number, 4 * number + 4))


def test_a_box_shows_the_cut_out_it_names() -> None:
    batch = _batches()[0]
    assert batch.cut_outs_BN is not None
    for pixels_3HW, boxes_N4, mask_N, cut_outs_N in zip(
        batch.images_B3HW, batch.boxes_BN4, batch.box_mask_BN, batch.cut_outs_BN, strict=True
    ):
        assert (cut_outs_N[~mask_N] == -1).all()
        for (x1, y1, x2, y2), cut_out in zip(boxes_N4[mask_N].int().tolist(), cut_outs_N[mask_N].tolist(), strict=True):
            # The most frequent of the colours in the box, which neighbours and a recolouring may touch.
            region = pixels_3HW[:, y1:y2, x1:x2].flatten(1).T.float().numpy()
            nearest = np.abs(region[:, None] - np.array(COLOURS)).sum(-1).argmin(1)
            assert np.bincount(nearest, minlength=len(COLOURS))[cut_out] > 0.3 * len(nearest)


def test_two_pictures_draw_from_the_same_few_cut_outs() -> None:
    batches, pairs, shown_twice = _batches(), [], 0
    for number in range(12):
        batch = batches[number]
        assert batch.cut_outs_BN is not None
        shown = [set(row[row >= 0].tolist()) for row in batch.cut_outs_BN]
        for first, second in ((0, 1), (2, 3)):
            assert len(shown[first] | shown[second]) <= SHARED
            shown_twice += len(shown[first] & shown[second])
            pairs.append(frozenset(shown[first] | shown[second]))
    assert shown_twice > len(pairs) / 2
    assert len(set(pairs)) > len(pairs) / 3


def test_fewer_cut_outs_than_a_pair_draws_from() -> None:
    batch = _batches(count=2)[0]
    assert batch.cut_outs_BN is not None
    assert set(batch.cut_outs_BN[batch.box_mask_BN].tolist()) <= {0, 1}
