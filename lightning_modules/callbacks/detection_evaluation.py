"""How many of the true boxes a detector finds, after every validation and test, equal on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from datamodules.batch import DetectionBatch
from lightning_modules.distributed import all_sum
from lightning_modules.errors import ModelError
from lightning_modules.instance_detector import Proposals
from lightning_modules.proposal_recall import found_at


class DetectionEvaluation(Callback):
    """Recall of true boxes by the first k proposals, and how many proposals a picture gets.

    `recall@10/IoU50`: share of all true boxes that one of their picture's ten best proposals overlaps by 0.5 or more,
    each proposal counting for one box. `proposals`: mean number per picture that score `min_score` or more.
    `precision/IoU50`: share of these that find a box.
    Of a split without known boxes (Product1M's) `proposals` alone.

    Args:
        ious: Overlaps (intersection over union) that count as found.
        ks: Numbers of proposals.
        min_score: What a proposal must score to become an instance of a query (`data.instance_min_score`).
    """

    def __init__(
        self, ious: Sequence[float] = (0.5, 0.75), ks: Sequence[int] = (1, 10, 36), min_score: float = 0.5
    ) -> None:
        if not all(0 < iou <= 1 for iou in ious) or not all(k >= 1 for k in ks) or not 0 <= min_score <= 1:
            raise ModelError(
                f"evaluation: ious {tuple(ious)} must lie in (0, 1], ks {tuple(ks)} be at least 1 and min_score "
                f"{min_score} lie in [0, 1]"
            )
        self.ious, self.ks, self.min_score = tuple(ious), tuple(ks), min_score
        self.results: dict[str, dict[str, float]] = {}  # name of what was evaluated -> metrics
        self._sums: list[dict[str, float]] = []  # per loader: counts of this rank

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Refuse cut-offs that leave out what chooses the checkpoint, before anything is trained."""
        for checkpoint in trainer.checkpoint_callbacks:
            monitor = str(getattr(checkpoint, "monitor", None) or "")
            name, _, key = monitor.partition("/")
            if key.startswith("recall@") and key not in self._recall_keys():
                raise ModelError(
                    f"checkpoint.monitor={monitor} is not measured: evaluation.ks and evaluation.ious give "
                    f"{name}/… of {', '.join(self._recall_keys())}"
                )

    def on_validation_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._start(trainer, "val")

    def on_test_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._start(trainer, "test")

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._count(self._sums[dataloader_idx], outputs["proposals"], batch)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._finish(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._finish(trainer, pl_module, "test")

    def _start(self, trainer: lightning.Trainer, stage: str) -> None:
        keys = ["pictures", "true", "proposals", "hits", *self._recall_keys()]
        self._sums = [dict.fromkeys(keys, 0.0) for _ in _names(trainer, stage)]

    def _recall_keys(self) -> list[str]:
        return [_recall_key(k, iou) for iou in self.ious for k in self.ks]

    def _count(self, sums: dict[str, float], found: Sequence[Proposals], batch: DetectionBatch) -> None:
        for proposals, boxes_N4, mask_N in zip(found, batch.boxes_BN4, batch.box_mask_BN, strict=True):
            true_N4 = boxes_N4[mask_N]
            sums["pictures"] += 1
            sums["true"] += len(true_N4)
            chosen = int((proposals.scores_R >= self.min_score).sum())
            sums["proposals"] += chosen
            sums["hits"] += int((found_at(proposals.boxes_R4[:chosen], true_N4, self.ious[0]) < chosen).sum())
            for iou in self.ious:
                rank_N = found_at(proposals.boxes_R4, true_N4, iou)
                for k in self.ks:
                    # A rank of R means "never", also where R is less than k.
                    sums[_recall_key(k, iou)] += int((rank_N < min(k, len(proposals.scores_R))).sum())

    def _finish(self, trainer: lightning.Trainer, module: lightning.LightningModule, stage: str) -> None:
        logged: dict[str, float] = {}
        for name, sums in zip(_names(trainer, stage), self._sums, strict=True):
            total = all_sum(torch.tensor(list(sums.values()), dtype=torch.float64, device=module.device)).tolist()
            metrics = self._metrics(dict(zip(sums, total, strict=True)))
            self.results[name] = metrics
            logged |= {f"{name}/{key}": value for key, value in metrics.items()}
        # Every rank holds the same numbers: a monitored metric that only rank 0 knows hangs checkpointing.
        module.log_dict(logged, sync_dist=False)

    def _metrics(self, total: dict[str, float]) -> dict[str, float]:
        found = {"proposals": total["proposals"] / max(1.0, total["pictures"]), "pictures": total["pictures"]}
        if not total["true"]:
            return found  # of pictures that nobody composed or annotated nothing else can be said
        recall = {key: total[key] / total["true"] for key in self._recall_keys()}
        precision = {f"precision/IoU{round(100 * self.ious[0])}": total["hits"] / max(1.0, total["proposals"])}
        return recall | precision | found | {"true_boxes": total["true"]}


def _names(trainer: lightning.Trainer, stage: str) -> Sequence[str]:
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    return data.eval_names(stage)


def _recall_key(k: int, iou: float) -> str:
    return f"recall@{k}/IoU{round(100 * iou)}"
