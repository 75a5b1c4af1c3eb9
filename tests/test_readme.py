"""What the README shows works: the baseline in its twenty lines keeps the contract of a model."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from lightning_modules.example_batch import example_batch
from lightning_modules.objectives.draws import Draws
from lightning_modules.retrieval_module import RetrievalModule, total_loss

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture
def two_bags(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The README's file as a module."""
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.S)
    module = ModuleType("lightning_modules.two_bags")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, "README.md", "exec"), module.__dict__)
    return module


def test_the_baseline_of_the_readme_learns(two_bags: ModuleType, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: RetrievalModule = two_bags.TwoBags(vocab_size=120)
    model.setup("fit")
    batch = example_batch(model.input_spec(), batch_size=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(40):
        optimizer.zero_grad()
        total = total_loss(model.losses(batch, Draws(0, step, "cpu")))
        total.backward()
        optimizer.step()
        losses.append(total.item())
    assert losses[-1] < 0.1 < 1.5 < losses[0]
    vectors = model.encode(batch)
    assert set(vectors) == {"product", "image", "text", "concat", "image_bag", "text_bag"}
    model.save_pretrained(tmp_path)
    again = two_bags.TwoBags.from_pretrained(tmp_path).encode(batch)
    assert all(torch.equal(again[name], value) for name, value in vectors.items())
