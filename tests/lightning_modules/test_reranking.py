"""Re-ranking by a matching head, against a slow transcription; on one process and on several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from torch import Tensor

from datamodules.batch import ProductBatch
from lightning_modules import UNITER, ModelError, reranking
from lightning_modules.callbacks.retrieval_evaluation import RetrievalEvaluation
from lightning_modules.distributed import rank
from retrieval import Ranking, official_metrics
from tests.distributed.gloo import run_on_ranks
from tests.lightning_modules.pairs import PairData, PairModel, halves
from tests.lightning_modules.tiny_models import tiny, tiny_capture

DEPTH = 6


def _evaluated(data: PairData, model: PairModel | None = None, **options: Any) -> RetrievalEvaluation:
    """After val and test; where a process group exists, each rank holds its share of the data."""
    evaluation = RetrievalEvaluation(ks=(3, 10), depth=12, **options)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", devices=1, callbacks=[evaluation], enable_checkpointing=False, **quiet)
    for evaluate in (trainer.validate, trainer.test):
        evaluate(model or PairModel(), datamodule=data, verbose=False)
    return evaluation


def _expected(data: PairData, evaluation: RetrievalEvaluation) -> list[list[str]]:
    """Each list with its first items sorted by (-score, id), the score computed pair by pair."""
    ranking = evaluation.results["test"].ranking
    matched = {split: halves(data.splits[split])[1] for split in ("test", "gallery")}
    lists = []
    for query, index_K in enumerate(ranking.index_QK.tolist()):
        keys = [(-float(matched["test"][query] @ matched["gallery"][item]), item) for item in index_K[:DEPTH]]
        top = sorted(keys, key=lambda key: (key[0], ranking.gallery_ids[key[1]]))
        lists.append([str(ranking.gallery_ids[item]) for item in [item for _, item in top] + index_K[DEPTH:]])
    return lists


def test_the_top_is_ordered_by_the_head_and_costs_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reranking, "PAIRS_AT_ONCE", 5)
    data, model = PairData(10, 25), PairModel()
    evaluation = _evaluated(data, model, rerank=DEPTH)
    result = evaluation.results["test"]
    assert result.reranked is not None
    found = [result.reranked.ranking.item_ids(row) for row in range(10)]
    assert found == _expected(data, evaluation)
    assert found != [result.ranking.item_ids(row) for row in range(10)]
    assert result.reranked.pairs == 10 * DEPTH
    assert result.reranked.seconds > 0
    assert model.most_pairs == 5
    labels = data.labels("test"), data.labels("gallery")
    metrics = official_metrics(result.reranked.ranking, *labels, ks=(3, 10))
    assert {key: result.metrics[f"rerank/{key}"] for key in metrics} == metrics
    assert metrics["mAP@3"] != result.metrics["mAP@3"]
    assert result.per_query["rerank/mAP@3"].mean() == pytest.approx(metrics["mAP@3"])


def test_only_the_test_split_is_re_ranked_and_only_when_asked() -> None:
    asked = _evaluated(PairData(7, 25), rerank=DEPTH).results
    plain = _evaluated(PairData(7, 25)).results
    assert asked["val"].reranked is plain["test"].reranked is None
    assert asked["val"].metrics == plain["val"].metrics
    same = {key: value for key, value in asked["test"].metrics.items() if not key.startswith("rerank/")}
    assert same == plain["test"].metrics


def _numbers() -> dict[str, Tensor]:
    """What an evaluation on this rank reports, as tensors."""
    result = _evaluated(PairData(10, 25), rerank=DEPTH).results["test"]
    assert result.reranked is not None
    metrics = {key: torch.tensor(value) for key, value in result.metrics.items()}
    per_query = {f"per query {key}": torch.from_numpy(score) for key, score in result.per_query.items()}
    order = {"order": torch.from_numpy(result.reranked.ranking.index_QK)}
    return {**metrics, **per_query, **order, "pairs": torch.tensor(result.reranked.pairs)}


def test_two_evaluations_are_identical() -> None:
    first, second = _numbers(), _numbers()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def _unevenly(ranking: Ranking) -> Tensor:
    """Queries on one rank only, and a gallery that every rank reads in full, one batch even twice."""
    data = PairData(10, 25)
    queries = [data.splits["test"]] if rank() == 0 else []
    gallery = [data.splits["gallery"].rows(slice(start, start + 10)) for start in (0, 10, 20, 10)]
    reranked = reranking.rerank(PairModel(), ranking, queries, gallery, depth=DEPTH)
    return torch.from_numpy(reranked.ranking.index_QK)


def _both(ranking: Ranking) -> tuple[dict[str, Tensor], Tensor]:
    return _numbers(), _unevenly(ranking)


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    expected, ranking = _numbers(), _evaluated(PairData(10, 25)).results["test"].ranking
    assert torch.equal(_unevenly(ranking), expected["order"])
    for found, uneven in run_on_ranks(2, tmp_path, _both, ranking):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value), key
        assert torch.equal(uneven, expected["order"])


def test_a_model_without_a_head_is_told_before_anything_is_read() -> None:
    data, model = PairData(3, 8), tiny_capture()
    evaluation = RetrievalEvaluation(rerank=5)
    trainer = Trainer(accelerator="cpu", callbacks=[evaluation], logger=False, enable_checkpointing=False)
    data.test_dataloader = lambda: pytest.fail("read")  # type: ignore[method-assign]
    with pytest.raises(ModelError, match=r"CAPTURE has no matching head; evaluation\.rerank must be 0"):
        trainer.test(model, datamodule=data)
    trainer = Trainer(accelerator="cpu", callbacks=[evaluation], logger=False, enable_checkpointing=False, max_steps=1)
    with pytest.raises(ModelError, match="no matching head"):
        trainer.fit(model, datamodule=data)


class _Wide(PairModel):
    def match(self, queries: ProductBatch, items: ProductBatch) -> Tensor:
        return super().match(queries, items)[:, None]


class _Diverged(PairModel):
    def match(self, queries: ProductBatch, items: ProductBatch) -> Tensor:
        return super().match(queries, items).where(items.index_B != 7, torch.nan)


def test_scores_of_the_wrong_shape_or_value_are_told() -> None:
    with pytest.raises(ModelError, match=r"_Wide\.match gives shape \(2, 1\)"):
        _evaluated(PairData(3, 8), _Wide(), rerank=5)
    data = PairData(3, 12)
    with pytest.raises(ModelError, match=rf"query test\d with item {data.ids('gallery')[7]} is nan"):
        _evaluated(data, _Diverged(), rerank=12)


@pytest.mark.parametrize("depth", [-1, 101])
def test_a_depth_out_of_range_is_refused(depth: int) -> None:
    with pytest.raises(ModelError, match=rf"evaluation\.rerank={depth} must be between 0 \(off\) and .*depth=100"):
        RetrievalEvaluation(rerank=depth)


def test_training_mode_is_left_as_it_was() -> None:
    model = PairModel().train()
    reranking.check_matching_head(model)
    assert model.training


def test_an_evaluation_times_its_encoding() -> None:
    result = _evaluated(PairData(10, 25)).results["test"]
    assert result.embedding_ms_per_item is not None
    assert 0 < result.embedding_ms_per_item < 100
    assert np.isfinite(result.embedding_ms_per_item)


def test_a_matching_head_is_tried_where_its_weights_are() -> None:
    """Lightning names the GPU in `setup` already, and moves the weights there afterwards."""
    model = tiny(UNITER, objectives=["itm"])
    model._device = torch.device("cuda:0")
    reranking.check_matching_head(model)
