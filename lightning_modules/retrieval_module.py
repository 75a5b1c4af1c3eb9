"""The one LightningModule base of the package: optimisation, logging, and unit-norm embeddings."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, cast

import lightning
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode
from typing_extensions import Self

from datamodules.batch import InputSpec, ProductBatch
from lightning_modules import pretrained
from lightning_modules.distributed import alone
from lightning_modules.errors import ModelError, is_unknown
from lightning_modules.example_batch import example_batch
from lightning_modules.full_precision import full_precision
from lightning_modules.layers.whitening import Whitening
from lightning_modules.objectives.draws import Draws
from lightning_modules.trained_module import TrainedModule


class RetrievalModule(TrainedModule, ABC):
    """A model that maps image-caption pairs to unit vectors. A new method is one subclass with three methods.

    A subclass writes
        `input_spec()`: what its batches must hold;
        `losses(batch, draws)`: its objectives, one named scalar each, summed with weight 1;
        `embed(batch)`: its vectors by name: every name in `candidate_features`, the vectors that may serve as the
        product embedding, and every name in `modalities`, those of one modality alone, reported beside it;
        `match(queries, items)`, if it has a head that reads a query and an item together;
        `unwhitened(batch)`, if it fills `whitening`: the vectors that are to be whitened, by the same names;
        `tasks`, if it trains one of several tasks per step: their shares; `losses` then takes the one that
        `draws.choose(self.tasks)` says, which is the same on all ranks.

    Args:
        retrieval_feature: Which candidate is the product embedding; "auto" takes the one with the highest val/mAP@10 at
            that evaluation (never chosen on test), and likewise for each modality, so that it is compared at its best.
        lr, weight_decay, warmup_fraction, pretrained_lr_scale, betas, adam_eps: As TrainedModule's.
    """

    candidate_features: tuple[str, ...] = ()
    modalities: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # "image", "text" -> candidates of that modality alone
    tasks: Mapping[str, float] = MappingProxyType({"": 1.0})  # task -> how often a step trains it, in proportion
    whitening_samples: int = 0  # training pictures the whitening is learned from
    uses_in_batch_negatives = True  # a contrast: more negatives are another objective
    starts_trained = False  # the weights it is built with can rank, nothing trained: those of a pretrained network
    compares_samples = True  # some objective needs a second sample in the batch
    _idle: Sequence[nn.Parameter] = ()  # parameters that the current step's task does not train

    def __init__(
        self,
        retrieval_feature: str,
        lr: float,
        weight_decay: float,
        warmup_fraction: float,
        pretrained_lr_scale: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        adam_eps: float = 1e-6,
    ) -> None:
        super().__init__(lr, weight_decay, warmup_fraction, pretrained_lr_scale, betas, adam_eps)
        if retrieval_feature not in (*self.candidate_features, "auto"):
            raise is_unknown("model.retrieval_feature", retrieval_feature, ("auto", *self.candidate_features))
        self.retrieval_feature = retrieval_feature
        product = self.candidate_features[0] if retrieval_feature == "auto" else retrieval_feature
        self.selected_features = {name: names[0] for name, names in self.modalities.items()} | {"product": product}
        self.whitening = nn.ModuleDict()  # name of a vector of `unwhitened` -> Whitening
        self._trained_by: dict[str, set[str]] = {}  # task -> names of parameters

    @abstractmethod
    def input_spec(self) -> InputSpec:
        """What the DataModule must deliver."""

    @abstractmethod
    def losses(self, batch: ProductBatch, draws: Draws) -> dict[str, Tensor]:
        """Named scalar losses; the total is their sum. Names that start with `_` are logged, not trained."""

    @abstractmethod
    def embed(self, batch: ProductBatch) -> dict[str, Tensor]:
        """Vectors by name, of any length; `encode` normalises them."""

    @torch.no_grad()
    def encode(self, batch: ProductBatch) -> dict[str, Tensor]:
        """Unit-norm fp32 embeddings by name; `product` is the retrieval feature. A zero vector stays zero.

        Dropout is off, and neither autocast nor TF32 applies, whatever mode and precision training runs in: bf16 keeps
        the fp32 top 10 of only a third of the queries.
        """
        training = self.training
        self.eval()
        try:
            with full_precision(self.device):
                vectors = {name: F.normalize(x.float(), dim=-1, eps=1e-12) for name, x in self.embed(batch).items()}
        finally:
            self.train(training)
        return vectors | {role: vectors[name] for role, name in self.selected_features.items()}

    def match(self, queries: ProductBatch, items: ProductBatch) -> Tensor:
        """logits_B of batches of equal length: how well item i answers query i, higher = better."""
        raise ModelError(f"{type(self).__name__} has no matching head; evaluation.rerank must be 0")

    def unwhitened(self, batch: ProductBatch) -> dict[str, Tensor]:
        """The vectors that `whitening` is learned from, by its names."""
        return {}

    def whiten(self, vectors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each vector through the whitening of its name; as it is where there is none."""
        return {name: self.whitening[name](x) if name in self.whitening else x for name, x in vectors.items()}

    @property
    def whitening_is_fitted(self) -> bool:
        """Whether every whitening has been learned; true where there is none."""
        return all(bool(cast("Whitening", whitening).fitted) for whitening in self.whitening.values())

    def forget_whitening(self) -> None:
        """The weights change: what was learned before no longer fits them."""
        for whitening in self.whitening.values():
            cast("Whitening", whitening).forget()

    @torch.no_grad()
    def fit_whitening(self, batches: Iterable[ProductBatch]) -> None:
        """Learn the whitening from unlabelled pictures; every rank calls it with its share."""
        training = self.training
        self.eval()
        parts: dict[str, list[Tensor]] = {name: [] for name in self.whitening}
        try:
            with full_precision(self.device):
                for batch in batches:
                    for name, vectors_BD in self.unwhitened(batch).items():
                        parts[name].append(vectors_BD.float())
        finally:
            self.train(training)
        for name, whitening in self.whitening.items():
            cast("Whitening", whitening).fit(torch.cat(parts[name]))

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self._freeze_what_no_objective_trains()

    def _freeze_what_no_objective_trains(self) -> None:
        """Freeze parameters that get no gradient from the chosen objectives, found by a backward on a random batch.

        One for each task; its operations are counted on the way. Each rank does so for itself.

        DDP raises on parameters without gradient, and counting them as trained would be dishonest: CAPTURE with the
        contrast alone, say, never reaches its cross layers.
        """
        device = self.weights_device
        batch = example_batch(self.input_spec(), device)
        flops = 0.0
        with alone(), torch.random.fork_rng(devices=[]), torch.enable_grad():
            for task, share in self.tasks.items():
                with FlopCounterMode(display=False) as counter:
                    total_loss(self.losses(batch, Draws(0, 0, device, task=task))).backward()
                flops += share * counter.get_total_flops()
                self._trained_by[task] = {name for name, p in self.named_parameters() if p.grad is not None}
                self.zero_grad(set_to_none=True)
        self.flops_per_sample = flops / sum(self.tasks.values()) / len(batch.index_B)
        trained = set().union(*self._trained_by.values())
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in trained)

    def training_step(self, batch: ProductBatch, batch_idx: int) -> Tensor:
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        # A step that accumulates gradients trains one task, and masks each of its batches in another way.
        task = Draws(seed, self.global_step, self.device).choose(self.tasks)
        part = batch_idx % self.trainer.accumulate_grad_batches
        losses = self.losses(batch, Draws(seed, self.global_step, self.device, task=task, part=part))
        total = total_loss(losses)
        logged = {f"train/{name.lstrip('_')}": value.detach() for name, value in losses.items()}
        self.log_dict(logged, batch_size=len(batch.index_B))
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=len(batch.index_B))
        self._idle = [
            p for name, p in self.named_parameters() if p.requires_grad and name not in self._trained_by[task]
        ]
        # DDP waits for a gradient of every parameter: those of other tasks get 0, until the optimiser's turn.
        return total + 0.0 * sum(parameter.sum() for parameter in self._idle) if self._idle else total

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        for parameter in self._idle:  # a gradient of 0 would let momentum and decay move what this step does not train
            parameter.grad = None

    def validation_step(self, batch: ProductBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        return self.encode(batch)

    def test_step(self, batch: ProductBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        return self.encode(batch)

    def predict_step(self, batch: ProductBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        return self.encode(batch)

    def check_training(self, trainer: lightning.Trainer, batch_size: int | None) -> None:
        """Raise `ModelError` if the objectives cannot be trained so; `batch_size` of a process, None = unknown."""
        if self.uses_in_batch_negatives and trainer.accumulate_grad_batches != 1:
            raise ModelError(
                "trainer.accumulate_grad_batches must be 1: accumulation adds no negatives to a contrastive "
                "objective, so it trains something else than the larger batch; raise data.batch_size or devices"
            )
        if self.compares_samples and batch_size is not None and batch_size * trainer.world_size < 2:
            raise ModelError(
                "data.batch_size=1: matching and contrast compare a sample with others of its batch, so "
                "data.batch_size × processes must be at least 2"
            )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights (safetensors) and constructor arguments (JSON) to a folder."""
        pretrained.save(self, folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """The model of a folder written by `save_pretrained`, in eval mode."""
        return cast("Self", pretrained.load(cls, folder))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["selected_features"] = dict(self.selected_features)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.retrieval_feature == "auto":
            self.selected_features = dict(checkpoint["selected_features"])


def total_loss(losses: Mapping[str, Tensor]) -> Tensor:
    """The sum of the losses that train, as `RetrievalModule.losses` names them."""
    return torch.stack([value for name, value in losses.items() if not name.startswith("_")]).sum()


def check_objectives(chosen: Sequence[str], known: Sequence[str]) -> None:
    """Raise `ModelError` unless a model is given at least one objective, each known and once."""
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise is_unknown("model.objectives:", unknown[0], known)
    if not chosen or len(set(chosen)) != len(chosen):
        raise ModelError(f"model.objectives: {chosen} must name at least one objective, each once")
