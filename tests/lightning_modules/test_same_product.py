"""The identical-product task in an evaluation, against a slow transcription; on one process and on several."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lightning import Trainer
from torch import Tensor

from datamodules.batch import ProductBatch
from lightning_modules.callbacks.retrieval_evaluation import RetrievalEvaluation, SplitResult
from retrieval import search
from tests.distributed.gloo import run_on_ranks
from tests.lightning_modules.pairs import PairData, PairModel, halves

KS = (1, 5, 10)


class TwoModalities(PairModel):
    """Image and text embeddings beside two candidates for the product; val chooses the second."""

    candidate_features = ("mirrored", "both")
    modalities: ClassVar = {"image": ("first",), "text": ("second",)}

    def __init__(self, retrieval_feature: str = "both") -> None:
        super(PairModel, self).__init__(retrieval_feature, 1e-3, 0.0, 0.1)

    def embed(self, batch: ProductBatch) -> dict[str, Tensor]:
        first, second = halves(batch)
        both = torch.cat([first, second], -1)
        return {"mirrored": both.flip(-1) * torch.arange(8), "both": both, "first": first, "second": second}


class Shop(PairData):
    """Items that share a label share features, nearly; the last three are alone, one of them without a label."""

    def __init__(self, queries: int = 7, items: int = 25, batch_size: int = 3) -> None:
        super().__init__(queries, items, batch_size)
        features = self.splits["gallery"].features_BRD
        assert features is not None
        for row in range(0, items - 3, 2):
            features[row] = (features[row % 5] * 2 + features[row]) / 2

    def labels(self, split: str) -> list[tuple[str, ...]]:
        found = super().labels(split)
        return [*found[:-3], ("alone",), (), ("alone too", "0")] if split == "gallery" else found


def _evaluated(data: PairData, model: PairModel | None = None, **options: Any) -> dict[str, SplitResult]:
    evaluation = RetrievalEvaluation(ks=(3, 10), depth=12, **options)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", devices=1, callbacks=[evaluation], enable_checkpointing=False, **quiet)
    for evaluate in (trainer.validate, trainer.test):
        evaluate(model or TwoModalities(), datamodule=data, verbose=False)
    return evaluation.results


def _slow(data: Shop, vectors_ND: np.ndarray, num: int, textbook: bool) -> dict[str, tuple[float, float]]:
    """(AP, Prec) by query id: every pair scored by itself, everything sorted, the definition line by line."""
    ids, labels = data.ids("gallery").tolist(), [one[0] if one else None for one in data.labels("gallery")]
    unit_ND = vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    found = {}
    for query, label in enumerate(labels):
        mates = [row for row in range(len(ids)) if row != query and label is not None and labels[row] == label]
        if not mates:
            continue
        scored = [
            (-np.float32(unit_ND[query] @ unit_ND[row]), ids[row], row) for row in range(len(ids)) if row != query
        ]
        ranked = [row for _, _, row in sorted(scored)]
        k = num if textbook else min(num, len(mates) + 1, len(ranked))
        hits = [place for place, row in enumerate(ranked[:k], 1) if row in mates]
        total = sum((number + 1) / place for number, place in enumerate(hits))
        divisor = min(len(mates), num) if textbook else len(hits)
        found[ids[query]] = (total / divisor if hits else 0.0, len(hits) / k)
    return found


def _vectors(data: Shop) -> dict[str, np.ndarray]:
    first, second = halves(data.splits["gallery"])
    both = torch.cat([first, second], -1)
    return {"": both.double().numpy(), "image/": first.double().numpy(), "text/": second.double().numpy()}


def test_every_role_equals_the_slow_transcription(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "QUERY_BLOCK", 4)  # several blocks, as a whole gallery of queries has
    data = Shop()
    result = _evaluated(data)["test"]
    same = result.same
    assert same is not None
    assert same.left_out == 3
    assert same.seconds > 0
    assert len(same.ranking.query_ids) == 22
    for prefix, vectors_ND in _vectors(data).items():
        for num in KS:
            expected = _slow(data, vectors_ND, num, textbook=False)
            assert list(expected) == same.ranking.query_ids.tolist()
            for place, name in enumerate(("mAP", "Prec")):
                scores = [pair[place] for pair in expected.values()]
                np.testing.assert_allclose(same.per_query[f"{prefix}same/{name}@{num}"], scores, atol=1e-12)
                assert result.metrics[f"{prefix}same/{name}@{num}"] == pytest.approx(np.mean(scores))
    for num in KS:
        scores = list(_slow(data, _vectors(data)[""], num, textbook=True).values())
        expected_means = [result.metrics[f"textbook/same/{name}@{num}"] for name in ("mAP", "Prec")]
        np.testing.assert_allclose(np.mean(scores, axis=0), expected_means)
    assert 0 < result.metrics["same/mAP@10"] < 1
    assert not [key for key in result.metrics if "same/mAR" in key]


def test_an_item_never_finds_itself_and_lists_are_full() -> None:
    same = _evaluated(Shop())["test"].same
    assert same is not None
    for row, query in enumerate(same.ranking.query_ids.tolist()):
        found = same.ranking.item_ids(row)
        assert query not in found
        assert len(set(found)) == len(found) == 10


def test_val_has_the_same_queries_and_chooses_nothing_by_them() -> None:
    """The feature is the multi-product task's."""
    data = Shop()
    results = _evaluated(data, TwoModalities("auto"))
    assert results["val"].features == results["test"].features
    assert results["val"].same is not None
    shown = [{key: value for key, value in result.metrics.items() if "same/" in key} for result in results.values()]
    assert shown[0] == shown[1] == results["val"].same.metrics
    product = results["val"].features["product"]
    best = max(TwoModalities.candidate_features, key=lambda name: results["val"].metrics[f"feature/{name}/mAP@3"])
    assert product == best
    fixed = _evaluated(data, TwoModalities(product))["test"]
    assert fixed.metrics["same/mAP@10"] == shown[0]["same/mAP@10"]


def test_it_can_be_left_out_and_changes_nothing_else() -> None:
    asked, plain = _evaluated(Shop())["test"], _evaluated(Shop(), same=False)["test"]
    assert plain.same is None
    assert asked.same is not None
    assert {key: value for key, value in asked.metrics.items() if "same/" not in key} == plain.metrics
    assert set(asked.metrics) - set(plain.metrics) == set(asked.same.metrics)


def test_a_gallery_of_single_items_has_no_such_task() -> None:
    data = PairData(4, 5)  # five items, five labels
    result = _evaluated(data)["test"]
    assert result.same is None
    assert not [key for key in result.metrics if "same/" in key]


def test_a_gallery_smaller_than_the_cut_off_is_ranked_to_its_end() -> None:
    same = _evaluated(PairData(4, 7))["test"].same  # labels 0 and 1 twice
    assert same is not None
    assert same.ranking.lengths.tolist() == [6] * 4
    assert same.left_out == 3


def _numbers(items: int) -> dict[str, Tensor]:
    """What an evaluation on this rank reports of the task, as tensors."""
    same = _evaluated(Shop(items=items))["test"].same
    assert same is not None
    numbers = {key: torch.tensor(value) for key, value in same.metrics.items()}
    numbers |= {f"per query {key}": torch.from_numpy(score) for key, score in same.per_query.items()}
    return numbers | {
        "order": torch.from_numpy(same.ranking.index_QK),
        "score": torch.from_numpy(same.ranking.score_QK),
    }


def _both() -> dict[str, Tensor]:
    """A gallery dealt over the ranks, and one that is shorter than the lists on each of them."""
    return _numbers(25) | {f"small {key}": value for key, value in _numbers(13).items()}


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    expected = _both()
    for found in run_on_ranks(2, tmp_path, _both):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value), key
