"""Instance-level retrieval metrics after every validation and test, equal on every rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import lightning
import numpy as np
from lightning.pytorch.callbacks import Callback

from lightning_modules.embedding_store import EmbeddingStore, InstanceStore
from lightning_modules.errors import ModelError, is_unknown
from lightning_modules.instance_levels import (
    WHOLE,
    InstanceSearch,
    LevelResult,
    best_feature,
    check_headline,
    headline,
    level_result,
    levels_of,
)
from lightning_modules.reranking import Reranked, check_matching_head, rerank
from lightning_modules.retrieval_module import RetrievalModule
from lightning_modules.same_product import SameProduct, rank_same_product
from lightning_modules.split_search import SplitSearch
from lightning_modules.stopwatch import Stopwatch
from retrieval import Ranking, false_negatives_per_batch, official_metrics, per_query_scores, textbook_metrics
from retrieval.instances import METHODS

# Metrics "image->text" and "text->image", for models with both; by the first vector of each modality, which is trained
# to be comparable.
_CROSS_MODAL = (("image", "text"), ("text", "image"))


class SplitResult(NamedTuple):
    """What one evaluation of a split found."""

    metrics: dict[str, float]
    ranking: Ranking  # by the product embedding
    per_query: dict[str, np.ndarray]  # the numbers behind the means, in the ranking's query order
    unscorable: int  # queries with a label that no gallery item has
    features: dict[str, str]  # role (product, image, text, another level) -> the vector that served as it
    embedding_ms_per_item: float | None  # of this rank's `encode`, loading not counted; None: it had no items
    reranked: Reranked | None = None  # by the matching head, where asked for
    same: SameProduct | None = None  # the identical-product task, where asked for and two items share a label
    # Of "whole" and the kinds of instances that were read; the first is the headline, which `ranking` is of.
    levels: Mapping[str, LevelResult] = MappingProxyType({})


class RetrievalEvaluation(Callback):
    """Embeds queries and gallery on all ranks, ranks exactly, and logs the same metrics on every rank.

    Everything is keyed by the row of the split's id table, so duplicates from padding vanish and a missing item raises.

    Where the data read queries by instance as well, one level is the headline and the others stand beside it under
    their names (`whole/…`, `detected/…`, `true/…`), each by the vector that is best at it on val.

    Args:
        ks: Cut-offs of the official metrics.
        depth: Length of the ranking kept per query.
        all_features: Also report every candidate (`feature/<name>/…`) and the cross-modal directions.
        backend: Of `retrieval.rank`.
        rerank: In the test split, also put the first items of each list, so many, in the order of the model's matching
            head (`rerank/…`), which has to read each pair of query and item; 0 = do not.
        same: Also the identical-product task (`same/…`): each gallery item that has another of its label against the
            gallery without itself, by the vectors of the multi-product task. It searches N × N pairs for each role.
        level: How queries are read for the metrics that have no prefix: "whole", the picture as one, or "detected", by
            the boxes of a detector; None = "detected" where the data are read so. Re-ranking stays with whole pictures.
        merge: The lists of a query's instances become one by "round_robin", "best" or "normalised" score
            (`retrieval.merge_instances`).
        choose_by: The metric on val by which `retrieval_feature: auto` chooses a vector, at every level alike: mAP,
            mAR, Prec or coverage at one of `ks`; None = mAP at the first, which asks for one product of a query only.
    """

    def __init__(
        self,
        ks: Sequence[int] = (10, 50, 100),
        depth: int = 100,
        all_features: bool = True,
        backend: str = "torch",
        rerank: int = 0,
        same: bool = True,
        level: str | None = None,
        merge: str = "round_robin",
        choose_by: str | None = None,
    ) -> None:
        check_headline(level)
        if merge not in METHODS:
            raise is_unknown("evaluation.merge", merge, METHODS)
        self.level, self.merge = level, merge
        self.ks = tuple(ks)
        self.depth = max(depth, *self.ks)
        measured = [f"{name}@{k}" for name in ("mAP", "mAR", "Prec", "coverage") for k in self.ks]
        if choose_by is not None and choose_by not in measured:
            raise is_unknown("evaluation.choose_by", choose_by, measured)
        self.choose_by = choose_by or measured[0]
        if not 0 <= rerank <= self.depth:
            raise ModelError(f"evaluation.rerank={rerank} must be between 0 (off) and evaluation.depth={self.depth}")
        self.rerank = rerank
        self.same = same
        self.all_features = all_features
        self.backend = backend
        self.results: dict[str, SplitResult] = {}
        self._stores: list[EmbeddingStore] = []
        self._encoding: Stopwatch | None = None
        self._encoded = 0  # items, padding included

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if self.rerank:
            assert isinstance(pl_module, RetrievalModule)
            check_matching_head(pl_module)
        if data := getattr(trainer, "datamodule", None):
            for split in ("val", "test"):
                headline(self.level, levels_of(data, split))

    def on_validation_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        levels = levels_of(trainer.datamodule, "test" if trainer.testing else "val")  # type: ignore[attr-defined]
        self._stores = [EmbeddingStore(), EmbeddingStore(), *(InstanceStore() for _ in levels[1:])]
        self._encoding, self._encoded = Stopwatch(pl_module.device), 0

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert self._encoding is not None
        self._encoding.start()

    on_test_batch_start = on_validation_batch_start

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(pl_module, RetrievalModule)
        assert self._encoding is not None
        self._encoding.stop()
        self._encoded += len(batch.index_B)
        wanted = {name for names in self._candidates(pl_module).values() for name in names}
        wanted |= set(pl_module.selected_features.values())
        vectors = {name: vector for name, vector in outputs.items() if name in wanted}
        self._stores[dataloader_idx].update(batch, vectors)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._evaluate(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._evaluate(trainer, pl_module, "test")

    def _candidates(self, model: RetrievalModule) -> dict[str, tuple[str, ...]]:
        """Role (product, image, text) -> vectors that may play it; the product's first."""
        if self.all_features or model.retrieval_feature == "auto":
            return {"product": model.candidate_features, **model.modalities}
        return {role: (model.selected_features[role],) for role in ("product", *model.modalities)}

    def _evaluate(self, trainer: lightning.Trainer, model: Any, split: str) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        query_split, gallery_split = data.eval_splits(split)
        searches = self._searches(data, model, split)
        labels = (data.labels(query_split), data.labels(gallery_split))
        level = headline(self.level, tuple(searches))
        search, others = searches[level], [name for name in searches if name != level]

        candidates = self._candidates(model)
        rankings = {name: search(name, name) for names in candidates.values() for name in names}
        scores = {name: official_metrics(ranking, *labels, ks=self.ks) for name, ranking in rankings.items()}
        if model.retrieval_feature == "auto" and split == "val":
            # max() keeps the first on a tie: the order of the candidates decides
            model.selected_features = {
                role: max(names, key=lambda name: scores[name][self.choose_by]) for role, names in candidates.items()
            }
            for other in others:
                best = best_feature(searches[other], candidates["product"], labels, self.choose_by)
                model.selected_features[other] = best
        chosen = {role: model.selected_features[role] for role in candidates}
        ranking = rankings[chosen["product"]]
        levels = {level: level_result(search, chosen["product"], labels, self.ks, ranking)}
        for other in others:  # a checkpoint that was not evaluated so has chosen none
            name = model.selected_features.get(other, chosen["product"])
            levels[other] = level_result(searches[other], name, labels, self.ks)

        metrics = dict(levels[level].metrics)
        metrics |= _prefixed("textbook", textbook_metrics(ranking, *labels, ks=self.ks))
        for name in model.modalities:
            metrics |= _prefixed(name, scores[chosen[name]])
        if self.all_features:
            for query, gallery in _CROSS_MODAL:
                if query in model.modalities and gallery in model.modalities:
                    across = search(model.modalities[query][0], model.modalities[gallery][0])
                    metrics |= _prefixed(f"{query}->{gallery}", official_metrics(across, *labels, ks=self.ks))
            for name, score in scores.items():
                metrics |= _prefixed(f"feature/{name}", score)
        metrics["zero_vectors"] = float(search.zero_vectors(chosen["product"]))
        if model.uses_in_batch_negatives:
            # Of one process's batch, so that the number does not depend on how many processes evaluate. The gallery,
            # because training pictures have no labels that anything may read.
            metrics["false_negatives_per_batch"] = false_negatives_per_batch(labels[1], data.batch_size)

        for other in others:
            metrics |= _prefixed(other, levels[other].metrics)

        per_query: dict[str, np.ndarray] = {}
        for role, name in chosen.items():
            found = per_query_scores(rankings[name], *labels, ks=self.ks)
            per_query |= found.scores if role == "product" else _prefixed(role, found.scores)
            unscorable = found.unscorable  # a matter of labels, the same for every ranking
        for other in others:
            per_query |= _prefixed(other, levels[other].per_query)
        reranked = None
        if self.rerank and split == "test":
            loaders = (data.evaluation_loader(query_split), data.evaluation_loader(gallery_split))
            reranked = rerank(model, levels[WHOLE].ranking, *loaders, depth=self.rerank)
            found = per_query_scores(reranked.ranking, *labels, ks=self.ks)
            metrics |= _prefixed("rerank", found.means())
            per_query |= _prefixed("rerank", found.scores)
        same = rank_same_product(searches[WHOLE], labels[1], chosen) if self.same else None
        metrics |= same.metrics if same else {}
        features = chosen | {other: levels[other].feature for other in others}
        self.results[split] = SplitResult(
            *(metrics, ranking, per_query, unscorable, features, self._ms_per_item(), reranked, same),
            levels=levels,
        )
        # rank_zero_only stays False and every rank holds the same numbers: a monitored metric that only rank 0 knows
        # hangs checkpointing.
        model.log_dict({f"{split}/{name}": value for name, value in metrics.items()}, sync_dist=False)

    def _searches(self, data: Any, model: RetrievalModule, split: str) -> dict[str, Any]:
        """Level -> what ranks the queries at it, by any two vectors; every item was embedded."""
        query_split, gallery_split = data.eval_splits(split)
        query_ids, gallery_ids = data.ids(query_split), data.ids(gallery_split)
        queries, gallery, *by_instance = self._stores
        gallery.check_complete(gallery_ids, gallery_split, model.device)
        for store in (queries, *by_instance):
            store.check_complete(query_ids, query_split, model.device)

        def search(store: EmbeddingStore) -> SplitSearch:
            return SplitSearch(store, gallery, query_ids, gallery_ids, model.device, self.depth, self.backend)

        kinds = levels_of(data, split)[1:]
        instances = [InstanceSearch(search(store), self.merge) for store in by_instance]
        return {WHOLE: search(queries), **dict(zip(kinds, instances, strict=True))}

    def _ms_per_item(self) -> float | None:
        if self._encoding is None or not self._encoded:
            return None
        return 1e3 * self._encoding.seconds() / self._encoded


def _prefixed(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}/{name}": value for name, value in values.items()}
