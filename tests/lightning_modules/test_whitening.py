"""Whitening of the bag features: what it does to vectors, and that one process and several learn the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from lightning_modules.callbacks.fit_whitening import FitWhitening
from lightning_modules.distributed import rank, world_size
from lightning_modules.example_batch import example_batch
from lightning_modules.layers.whitening import Whitening
from tests.distributed.gloo import run_on_ranks
from tests.lightning_modules.tiny_models import tiny_capture


def _vectors() -> torch.Tensor:
    mix = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    return torch.randn(400, 8, generator=torch.Generator().manual_seed(0)) @ mix + 5.0


def test_whitened_vectors_have_mean_zero_and_unit_covariance() -> None:
    vectors = _vectors()
    whitening = Whitening(8, shrinkage=0.0)
    torch.testing.assert_close(whitening(vectors), vectors)  # the identity until it is fitted
    assert not whitening.fitted
    whitening.fit(vectors)
    white = whitening(vectors)
    assert whitening.fitted
    torch.testing.assert_close(white.mean(0), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cov(white.T, correction=0), torch.eye(8), atol=1e-3, rtol=0)


def test_it_depends_neither_on_the_basis_nor_on_dead_dimensions() -> None:
    vectors = _vectors()
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(2)))[0]
    plain, turned, padded = Whitening(8), Whitening(8), Whitening(10)
    plain.fit(vectors)
    turned.fit(vectors @ rotation)
    torch.testing.assert_close(turned(vectors @ rotation), plain(vectors) @ rotation, atol=1e-3, rtol=0)
    dead = torch.cat([vectors, torch.ones(400, 2)], 1)
    padded.fit(dead)
    torch.testing.assert_close(padded(dead)[:, :8], plain(vectors), atol=1e-3, rtol=0)
    assert torch.isfinite(padded(dead)).all()


def _fitted_on_ranks() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = tiny_capture(whitening_samples=24)
    whole = example_batch(model.input_spec(), batch_size=24)
    rows = slice(rank() * 24 // world_size(), (rank() + 1) * 24 // world_size())
    model.fit_whitening([whole.rows(rows)])
    return {name: tensor for name, tensor in model.state_dict().items() if name.startswith("whitening.")}


def test_two_ranks_learn_what_one_process_learns(tmp_path: Path) -> None:
    expected = _fitted_on_ranks()
    assert len(expected) == 18  # three buffers for each of four bags and two pooled streams
    for found in run_on_ranks(2, tmp_path, _fitted_on_ranks):
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-4)


def test_only_whitened_features_change_and_a_reloaded_model_agrees(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tiny_capture(whitening_samples=8)
    batch = example_batch(model.input_spec(), batch_size=8)
    before = model.encode(batch)
    assert not model.whitening_is_fitted
    model.fit_whitening([batch])
    assert model.whitening_is_fitted
    after = model.encode(batch)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    whitened = {"text_bag", "image_bag", "text_whitened", "image_whitened"}
    assert changed == whitened | {name for name in model.candidate_features if "bag" in name}
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.whitening_is_fitted
    torch.testing.assert_close(again.encode(batch)["concat_bag"], after["concat_bag"])


def test_a_model_without_whitening_has_no_weights_for_it() -> None:
    model = tiny_capture()
    assert model.whitening_is_fitted
    assert not [name for name in model.state_dict() if name.startswith("whitening")]


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_text_pooling_decides_which_positions_the_stream_feature_reads(pooling: str) -> None:
    torch.manual_seed(0)
    model = tiny_capture(text_pooling=pooling, text_layers=0)  # without self layers a position sees only itself
    batch = example_batch(model.input_spec(), batch_size=4)
    tokens = batch.tokens_BT.clone()
    tokens[:, 1] = (tokens[:, 1] + 1) % 100 + 5
    same = torch.equal(
        model.encode(batch)["text_stream"], model.encode(batch._replace(tokens_BT=tokens))["text_stream"]
    )
    assert same == (pooling == "first")


def test_a_whitening_of_earlier_weights_is_not_kept_where_no_validation_follows() -> None:
    torch.manual_seed(0)
    model = tiny_capture(whitening_samples=8)
    batches: Any = [example_batch(model.input_spec(), batch_size=6, seed=seed) for seed in (0, 1)]
    model.fit_whitening(batches)
    trainer = Trainer(
        max_steps=2,
        accelerator="cpu",
        callbacks=[FitWhitening()],
        **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
    )
    trainer.fit(model, DataLoader(batches, batch_size=None))
    assert not model.whitening_is_fitted
    assert all(torch.equal(one.projection_DD, torch.eye(len(one.mean_D))) for one in model.whitening.values())
