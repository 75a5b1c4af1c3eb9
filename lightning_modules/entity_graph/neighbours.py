"""The sparse similarity of entities."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Neighbours(NamedTuple):
    """The K most similar entities of each, itself excluded, most similar first; pairs not listed count as 0."""

    index_NK: Tensor  # int64 row of the table, -1 = none
    score_NK: Tensor  # float32
