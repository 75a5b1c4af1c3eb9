"""What every model of the package promises, whatever its paper.

Every RetrievalModule in a file of the package is found, without registration. A new one needs a constant OBJECTIVES
beside its class, and each objective that is left out as an attribute of that name that is None.
"""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

import lightning_modules
from datamodules.batch import ProductBatch
from lightning_modules import RetrievalModule
from lightning_modules.distributed import rank as rank_of_process
from lightning_modules.distributed import world_size
from lightning_modules.example_batch import example_batch, example_instances
from lightning_modules.layers.views import Views
from lightning_modules.objectives.draws import Draws
from lightning_modules.retrieval_module import total_loss
from retrieval import rank, textbook_metrics
from tests.lightning_modules.tiny_models import every_model, objectives_of, tiny

MODELS = every_model()
by_model = pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)


def _total(model: RetrievalModule, batch: ProductBatch, step: int = 0) -> torch.Tensor:
    """Of all tasks, where a step would train one of them."""
    losses = [model.losses(batch, Draws(0, step, model.device, task=task)) for task in model.tasks]
    return torch.stack([total_loss(found) for found in losses]).sum()


def test_every_model_is_exported() -> None:
    names = {kind.__name__ for kind in MODELS}
    assert {"CAPTURE", "CLIP", "EGECMP", "ImageOnly", "LXMERT", "TextOnly", "UNITER", "ViLBERT"} <= names
    assert names <= set(lightning_modules.__all__)


@by_model
def test_embeddings_are_unit_fp32_and_independent_of_the_batch(kind: type[RetrievalModule]) -> None:
    torch.manual_seed(0)
    model = tiny(kind)
    batch = example_batch(model.input_spec(), batch_size=6)
    together = model.encode(batch)
    order = [4, 2, 5]
    some = model.encode(batch.rows(order))
    alone = {name for names in model.modalities.values() for name in names}
    assert {"product", *model.modalities, *model.candidate_features, *alone} == set(together)
    assert not {"product", "image", "text"} & {*model.candidate_features, *alone}  # these name what was selected
    for name, vectors in together.items():
        assert vectors.dtype == torch.float32
        norms = vectors.norm(dim=-1)
        assert ((norms - 1).abs() < 1e-5).logical_or(norms == 0).all()
        torch.testing.assert_close(some[name], vectors[order], atol=2e-6, rtol=0)


@by_model
def test_what_lies_under_the_masks_does_not_matter(kind: type[RetrievalModule]) -> None:
    torch.manual_seed(0)
    model = tiny(kind)
    batch = example_batch(model.input_spec(), batch_size=5)
    noisy = batch._replace(tokens_BT=torch.where(batch.token_mask_BT, batch.tokens_BT, 77))
    if batch.region_mask_BR is not None and batch.features_BRD is not None:
        noise = torch.full_like(batch.features_BRD, 9.0)
        noisy = noisy._replace(features_BRD=torch.where(batch.region_mask_BR[..., None], batch.features_BRD, noise))
    if batch.entity_tokens_BT is not None and batch.entity_token_mask_BT is not None:
        noisy = noisy._replace(
            entity_tokens_BT=torch.where(batch.entity_token_mask_BT, batch.entity_tokens_BT, 77),
            entities_BE=None if batch.entities_BE is None else batch.entities_BE.flip(0),  # only the graph reads rows
        )
    for name, vectors in model.encode(batch).items():
        torch.testing.assert_close(model.encode(noisy)[name], vectors, atol=2e-6, rtol=0)


@by_model
@pytest.mark.parametrize("visual_input", ["regions", "grid"])
def test_instances_are_embedded_like_any_row(kind: type[RetrievalModule], visual_input: str) -> None:
    """Unit norm, independent of company; with regions by the feature and place of their box."""
    if "visual_input" not in inspect.signature(kind).parameters and visual_input == "grid":
        pytest.skip(f"{kind.__name__} has one visual input")
    torch.manual_seed(0)
    known = inspect.signature(kind).parameters
    no_targets = {"mrc", "mrc_kl"} if visual_input == "grid" else set[str]()
    objectives = [name for name in known["objectives"].default if name not in no_targets]
    wanted = {"visual_input": visual_input} if "visual_input" in known else {}
    model = tiny(kind, objectives=objectives, **wanted)
    batch = example_instances(model.input_spec())
    together = model.encode(batch)
    some = model.encode(batch.rows([4, 2, 5]))
    plain = model.encode(batch._replace(instance_feature_BD=None))
    for name, vectors_BD in together.items():
        assert ((vectors_BD.norm(dim=-1) - 1).abs() < 1e-5).all()
        torch.testing.assert_close(some[name], vectors_BD[[4, 2, 5]], atol=2e-6, rtol=0)
        torch.testing.assert_close(plain[name][-1], vectors_BD[-1], atol=2e-6, rtol=0)  # nothing was found in it
    if batch.instance_feature_BD is None:
        assert all(torch.equal(plain[name], vectors_BD) for name, vectors_BD in together.items())
        return
    assert batch.instance_box_B5 is not None
    moved = model.encode(batch._replace(instance_box_B5=1 - batch.instance_box_B5))
    for changed in (plain, moved):
        assert not torch.allclose(changed["image"][:-1], together["image"][:-1], atol=1e-4)
    alone = batch._replace(region_mask_BR=torch.zeros_like(batch.region_mask_BR))  # no region's centre lies inside
    assert model.encode(alone)["image"].isfinite().all()


@by_model
def test_a_saved_model_comes_back(kind: type[RetrievalModule], tmp_path: Path) -> None:
    model = tiny(kind, retrieval_feature="auto")
    model.selected_features["product"] = model.candidate_features[-1]
    model.save_pretrained(tmp_path)
    again = kind.from_pretrained(tmp_path)
    batch = example_batch(model.input_spec())
    expected = model.encode(batch)
    assert again.selected_features == model.selected_features
    assert again.input_spec() == model.input_spec()
    for name, vectors in again.encode(batch).items():
        assert torch.equal(vectors, expected[name])


@pytest.mark.parametrize(
    ("kind", "objectives"),
    [
        pytest.param(kind, list(chosen), id=f"{kind.__name__}-{'+'.join(chosen)}")
        for kind in MODELS
        for chosen in chain.from_iterable(
            combinations(objectives_of(kind), n) for n in range(1, len(objectives_of(kind)) + 1)
        )
    ],
)
def test_every_trainable_parameter_is_used_by_the_chosen_objectives(
    kind: type[RetrievalModule], objectives: list[str]
) -> None:
    model = tiny(kind, objectives=objectives)
    model.setup("fit")
    _total(model, example_batch(model.input_spec(), seed=1), step=1).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    # An objective of the embedding layer alone trains words, positions, segments, and a norm's scale and shift.
    assert sum(p.requires_grad for p in model.parameters()) >= 5
    left_out = set(objectives_of(kind)) - set(objectives)
    assert [name for name in left_out if getattr(model, name) is not None] == []


@by_model
def test_what_is_trained_is_found_without_other_ranks(
    kind: type[RetrievalModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Set-up comes before the model lies on its GPU, and NCCL gathers nothing that lies on the CPU."""

    def trained() -> list[str]:
        model = tiny(kind, objectives=list(objectives_of(kind)))
        model.setup("fit")
        return [name for name, parameter in model.named_parameters() if parameter.requires_grad]

    expected = trained()
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    for collective in ("all_gather", "all_reduce"):
        monkeypatch.setattr(dist, collective, lambda *_: pytest.fail("a collective on the CPU"))
    assert trained() == expected
    assert (world_size(), rank_of_process()) == (2, 1)  # set-up hides the others only while it lasts


@by_model
def test_eight_products_are_learned_by_heart(kind: type[RetrievalModule]) -> None:
    """Which caption belongs to which picture, or of one modality alone which item a spoilt one is: perfect after a few
    seconds, not before."""
    torch.manual_seed(0)
    published = inspect.signature(kind).parameters["objectives"].default
    # Some papers have nothing that pulls a caption and its picture together: there, the declared contrast beside them.
    contrast = [name for name in ("clr",) if name in objectives_of(kind) and name not in published]
    # A random first token would give an untrained caption away.
    more = {} if "image" in kind.modalities else {"text_pooling": "mean"}
    model = tiny(kind, objectives=[*published, *contrast], **more)
    model.setup("fit")
    batch = example_batch(model.input_spec(), batch_size=8)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    before = _found(model, batch)
    for step in range(200):
        optimizer.zero_grad()
        _total(model, batch, step).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 19 and _found(model, batch) == 1.0:
            break
    assert before < 0.9
    assert _found(model, batch) == 1.0


def _found(model: RetrievalModule, batch: ProductBatch) -> float:
    vectors = model.encode(batch)
    if len(model.modalities) == 2:
        query, gallery = (vectors[model.modalities[name][0]] for name in ("image", "text"))
    else:
        name = model.candidate_features[0]
        query, gallery = model.encode(_spoilt(batch))[name], vectors[name]
    ids = np.array([f"item{row}" for row in range(len(query))])
    labels = [(str(name),) for name in ids]
    return textbook_metrics(rank(query.numpy(), gallery.numpy(), ids, ids, k=8), labels, labels, ks=(8,))["mAP@8"]


def _spoilt(batch: ProductBatch) -> ProductBatch:
    """Another third of each caption's tokens; strong views of pictures, four fifths of the regions left out."""
    draws = Draws(9, 9, "cpu")
    order_BT = draws.uniform(*batch.tokens_BT.shape).masked_fill(~batch.token_mask_BT, 2.0).argsort(1).argsort(1)
    replaced_BT = order_BT < batch.token_mask_BT.sum(1, keepdim=True) / 3
    others_BT = (5 + draws.uniform(*batch.tokens_BT.shape) * 90).long()
    spoilt = Views(smallest_crop=0.2, jitter=0.6, hidden=0.8).of(batch, draws)
    return spoilt._replace(tokens_BT=torch.where(replaced_BT, others_BT, batch.tokens_BT))


@by_model
def test_a_resumed_run_equals_an_uninterrupted_one(kind: type[RetrievalModule], tmp_path: Path) -> None:
    """Four steps, and two steps with two more from their checkpoint: the same weights to the last digit."""
    whole = _fit(kind, steps=4)
    _fit(kind, steps=4, stop_after=2, save=tmp_path / "last.ckpt")
    resumed = _fit(kind, steps=4, resume=tmp_path / "last.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


class _Midway(Callback):
    """Draws dropout by the step, as `experiments` restores the generators' state, and may stop and save."""

    def __init__(self, stop_after: int | None, save: Path | None) -> None:
        self.stop_after, self.save = stop_after, save

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        torch.manual_seed(trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.stop_after and self.save is not None:
            trainer.save_checkpoint(self.save)
            trainer.should_stop = True


def _fit(
    kind: type[RetrievalModule],
    steps: int,
    stop_after: int | None = None,
    save: Path | None = None,
    resume: Path | None = None,
) -> RetrievalModule:
    torch.manual_seed(0 if resume is None else 1)  # what is resumed must not depend on the fresh weights
    model = tiny(kind, objectives=list(objectives_of(kind)))
    first = 0 if resume is None else 2
    batches: Any = [example_batch(model.input_spec(), batch_size=6, seed=seed) for seed in range(first, steps)]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        enable_checkpointing=False,
        gradient_clip_val=1.0,
        callbacks=[_Midway(stop_after, save)],
        **quiet,  # type: ignore[arg-type]
    )
    trainer.fit(model, DataLoader(batches, batch_size=None), ckpt_path=resume, weights_only=True)
    assert trainer.global_step == (stop_after or steps)
    return model


@by_model
def test_a_step_never_waits_for_the_device(kind: type[RetrievalModule], monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta tensors hold no values: whatever had to look at one (a count, a boolean index, an item) would raise."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **more: nullcontext())  # it knows no meta device
    model = tiny(kind, objectives=list(objectives_of(kind))).to("meta").train()
    total = _total(model, example_batch(model.input_spec(), model.device, batch_size=6))
    total.backward()
    assert total.device.type == "meta"


@by_model
def test_it_is_set_up_where_its_weights_are(kind: type[RetrievalModule]) -> None:
    """Lightning names the GPU in `setup` already, and moves the weights there afterwards."""
    model = tiny(kind, objectives=list(objectives_of(kind)))
    model._device = torch.device("meta")
    assert model.device.type == "meta"
    model.setup("fit")
    assert model.flops_per_sample > 0
