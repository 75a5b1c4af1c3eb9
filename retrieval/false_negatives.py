"""How often an in-batch contrast pushes apart what belongs together; labels tell, which no training sees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np


def false_negatives_per_batch(labels: Sequence[Sequence[str]], batch_size: int) -> float:
    """Of the B (B − 1) pairs a contrast over B random items takes for negatives: how many share a label, on average.

    The exact mean over all batches of different items, not a draw. It grows with B² (about four times for twice the
    batch); divided by B (B − 1) it is the chance that a negative is none.

    Args:
        labels: Per item, repeats allowed. Items without a label share none.
        batch_size: B.
    """
    from scipy.sparse import csr_array

    kinds = Counter(frozenset(one) for one in labels)  # equal label sets are counted once: the rest is small
    count_K = np.array(list(kinds.values()), dtype=np.int64)
    number = {label: column for column, label in enumerate(sorted({label for kind in kinds for label in kind}))}
    if len(labels) < 2 or not number:
        return 0.0
    rows = [row for row, kind in enumerate(kinds) for _ in kind]
    columns = [number[label] for kind in kinds for label in kind]
    has_KL = csr_array((np.ones(len(rows), dtype=np.int64), (rows, columns)), shape=(len(kinds), len(number)))
    share_KK = has_KL @ has_KL.T
    share_KK.data[:] = 1
    labelled = int(sum(count for kind, count in kinds.items() if kind))
    pairs = int(count_K @ (share_KK @ count_K)) - labelled  # an item is no negative of itself
    return batch_size * (batch_size - 1) * pairs / (len(labels) * (len(labels) - 1))
