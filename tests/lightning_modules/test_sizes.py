"""Sizes that do not go together are refused by name, with what would do, before torch stumbles over a shape."""

from __future__ import annotations

import inspect

import pytest

from lightning_modules import CAPTURE, EGECMP, RetrievalModule
from lightning_modules.errors import ModelError
from lightning_modules.example_batch import example_batch
from tests.lightning_modules.tiny_models import every_model, tiny

WIDTH_OF = {  # where the heads of several models share different widths, by model
    "heads": {"": "width"},
    "text_heads": {"": "width"},
    "image_heads": {"": "width", "ViLBERT": "image_width"},
    "cross_heads": {"": "cross_width"},
    "co_heads": {"": "width"},
}


def _arguments(kind: type[RetrievalModule]) -> set[str]:
    return set(inspect.signature(kind).parameters)


HEADS = [(kind, name) for kind in every_model() for name in sorted(_arguments(kind)) if name.endswith("heads")]


def test_every_argument_about_heads_is_known_here() -> None:
    assert {name for _, name in HEADS} == set(WIDTH_OF)


@pytest.mark.parametrize(("kind", "heads"), HEADS, ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize("number", [5, 0, -2])
def test_heads_that_do_not_divide_their_width_are_refused(kind: type[RetrievalModule], heads: str, number: int) -> None:
    width = WIDTH_OF[heads].get(kind.__name__, WIDTH_OF[heads][""])
    size = getattr(tiny(kind).hparams, width)
    with pytest.raises(ModelError, match=rf"model\.{heads}={number} does not divide model\.{width}={size}: .*would do"):
        tiny(kind, **{heads: number})


@pytest.mark.parametrize(
    "kind",
    [kind for kind in every_model() if {"text_layers", "text_heads"} <= _arguments(kind)],
    ids=lambda kind: kind.__name__,
)
def test_heads_of_layers_that_are_not_there_are_not_looked_at(kind: type[RetrievalModule]) -> None:
    tiny(kind, text_layers=0, text_heads=5)


@pytest.mark.parametrize(
    "kind", [kind for kind in every_model() if "max_positions" in _arguments(kind)], ids=lambda kind: kind.__name__
)
def test_a_caption_longer_than_the_positions_names_the_remedy(kind: type[RetrievalModule]) -> None:
    model = tiny(kind, text_length=50)
    with pytest.raises(ModelError, match=r"texts of 50 tokens, but model\.max_positions=40: raise it"):
        model.encode(example_batch(model.input_spec()))


@pytest.mark.parametrize("kind", every_model(), ids=lambda kind: kind.__name__)
def test_a_misspelt_name_is_answered_with_the_nearest(kind: type[RetrievalModule]) -> None:
    wanted = kind.candidate_features[0]
    with pytest.raises(ModelError, match=rf"model\.retrieval_feature '{wanted}x' is unknown; did you mean '{wanted}'"):
        tiny(kind, retrieval_feature=f"{wanted}x")


@pytest.mark.parametrize("kind", [CAPTURE, EGECMP], ids=lambda kind: kind.__name__)
def test_two_streams_that_are_too_long_together_are_refused(kind: type[RetrievalModule]) -> None:
    model = tiny(kind, text_length=38)  # of 40 positions
    with pytest.raises(ModelError, match=r"positions side by side, but model\.max_positions=40: raise it"):
        model.encode(example_batch(model.input_spec(), batch_size=2))
