"""The choice of one task per step."""

from __future__ import annotations

import pytest
import torch

from lightning_modules.errors import ModelError
from lightning_modules.objectives.draws import Draws

SHARES = {"mlm": 2.0, "itm": 1.0, "mrc": 0.0, "mrfr": 1.0}


def test_names_come_in_proportion_to_their_weights() -> None:
    steps = 4000
    chosen = [Draws(0, step, "cpu").choose(SHARES) for step in range(steps)]
    assert chosen.count("mrc") == 0
    for name, weight in SHARES.items():
        assert chosen.count(name) / steps == pytest.approx(weight / 4, abs=0.03)
    assert chosen == [Draws(0, step, "cpu").choose(dict(reversed(SHARES.items()))) for step in range(steps)]


def test_the_choice_depends_on_seed_and_step_and_moves_on_within_a_step() -> None:
    def several(seed: int, step: int) -> list[str]:
        draws = Draws(seed, step, "cpu")
        return [draws.choose(SHARES) for _ in range(40)]

    assert several(3, 5) == several(3, 5)
    assert len({tuple(several(*key)) for key in [(3, 5), (3, 6), (4, 5)]}) == 3
    assert set(several(3, 5)) == {"mlm", "itm", "mrfr"}


def test_a_given_task_is_always_the_choice_and_changes_no_other_draw() -> None:
    for step in range(20):
        free, given = Draws(0, step, "cpu"), Draws(0, step, "cpu", task="mrc")
        free.choose(SHARES)
        assert given.choose(SHARES) == "mrc"
        assert torch.equal(free.uniform(3, 4), given.uniform(3, 4))


@pytest.mark.parametrize("shares", [{}, {"mlm": 0.0}, {"mlm": 1.0, "itm": -0.5}, {"mlm": float("nan")}])
def test_wrong_weights_are_named(shares: dict[str, float]) -> None:
    with pytest.raises(ModelError, match="task weights"):
        Draws(0, 0, "cpu").choose(shares)


def test_an_unknown_task_is_named_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match="'clr' is unknown; known: mlm, itm, mrc, mrfr"):
        Draws(0, 0, "cpu", task="clr").choose(SHARES)
