"""A model leaves and comes back as a folder, and as an exported graph, with the same embeddings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_modules import CAPTURE, ModelError
from lightning_modules.example_batch import example_batch
from tests.lightning_modules.tiny_models import tiny_capture


def test_round_trip_keeps_embeddings_and_selected_feature(tmp_path: Path) -> None:
    model = tiny_capture(retrieval_feature="auto")
    model.selected_features["product"] = "concat_mean"
    model.save_pretrained(tmp_path / "model")
    again = CAPTURE.from_pretrained(tmp_path / "model")
    batch = example_batch(model.input_spec())
    expected = model.encode(batch)
    assert again.selected_features == model.selected_features
    assert not again.training
    assert {path.suffix for path in (tmp_path / "model").iterdir()} == {".safetensors", ".json"}
    for name, vectors in again.encode(batch).items():
        assert torch.equal(vectors, expected[name])


def test_wrong_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        CAPTURE.from_pretrained(tmp_path)
    tiny_capture().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"CAPTURE"', '"CLIP"'))
    with pytest.raises(ModelError, match="holds a CLIP"):
        CAPTURE.from_pretrained(tmp_path)
    config.write_text(text)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="unreadable"):
        CAPTURE.from_pretrained(tmp_path)


class _EmbeddingPath(torch.nn.Module):
    def __init__(self, model: CAPTURE) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens, token_mask, features, boxes, region_mask):  # type: ignore[no-untyped-def]
        from datamodules.batch import ProductBatch

        batch = ProductBatch(
            tokens[:, 0],
            tokens,
            token_mask,
            features_BRD=features,
            boxes_BR5=boxes,
            region_mask_BR=region_mask,
        )
        return self.model.embed(batch)


def test_exported_embedding_path_equals_eager() -> None:
    torch.manual_seed(0)
    model = tiny_capture().eval()
    batch = example_batch(model.input_spec(), batch_size=3)
    inputs = (batch.tokens_BT, batch.token_mask_BT, batch.features_BRD, batch.boxes_BR5, batch.region_mask_BR)
    exported = torch.export.export(_EmbeddingPath(model), inputs).module()
    other = example_batch(model.input_spec(), batch_size=3, seed=5)
    with torch.no_grad():
        expected = model.embed(other)
        found = exported(
            other.tokens_BT, other.token_mask_BT, other.features_BRD, other.boxes_BR5, other.region_mask_BR
        )
    for name, vectors in expected.items():
        torch.testing.assert_close(found[name], vectors, atol=1e-5, rtol=0)
