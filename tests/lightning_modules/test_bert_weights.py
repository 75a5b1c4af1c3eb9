"""The text stream started from a BERT computes what transformers computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_modules import ModelError
from tests.lightning_modules.tiny_models import tiny_capture


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertConfig, BertForPreTraining

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=120,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
        layer_norm_eps=1e-12,
    )
    folder = tmp_path_factory.mktemp("bert")
    BertForPreTraining(config).save_pretrained(folder)
    return folder


def test_hidden_states_equal_transformers(bert_folder: Path) -> None:
    from transformers import BertModel

    model = tiny_capture(text_weights=str(bert_folder), text_layers=2)
    before = model.network.image_layers[0].out.weight.clone()
    model.setup("fit")
    model.eval()
    bert = BertModel.from_pretrained(bert_folder).eval()
    tokens = torch.randint(5, 120, (3, 10), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(10) < torch.tensor([[10], [7], [4]])
    hidden = model.network.text_embedding(tokens)
    for layer in model.network.text_layers:
        hidden = layer(hidden, mask)
    with torch.no_grad():
        expected = bert(tokens, attention_mask=mask.long(), output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(hidden[mask], expected[mask], atol=2e-6, rtol=0)
    assert torch.equal(model.network.image_layers[0].out.weight, before)


def test_learning_rate_is_lower_for_loaded_weights_only(bert_folder: Path) -> None:
    from lightning_modules.optim import parameter_groups

    model = tiny_capture(text_weights=str(bert_folder), text_layers=2)
    groups = parameter_groups(model, 1.0, 0.01, model.pretrained_prefixes, 0.1)
    rate = {id(p): g["lr"] for g in groups for p in g["params"]}
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert len(rate) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        loaded = name.startswith(("network.text_embedding.", "network.text_layers."))
        assert rate[id(parameter)] == (0.1 if loaded else 1.0), name
        assert decay[id(parameter)] == (0.01 if parameter.ndim > 1 else 0.0), name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text_layers": 4}, "encoder.layer.3"),
        ({"vocab_size": 130}, "word_embeddings"),
        ({"text_weights": "no/such/folder"}, "no/such/folder"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_nothing_is_loaded(bert_folder: Path, changes: dict, words: str) -> None:
    model = tiny_capture(**({"text_weights": str(bert_folder)} | changes))
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(ModelError, match=words):
        model.setup("fit")
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
