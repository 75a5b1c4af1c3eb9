"""Evaluation in true float32: what neither autocast nor TF32 may touch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from lightning_modules import UNITER
from lightning_modules.example_batch import example_batch
from lightning_modules.reranking import _match
from tests.lightning_modules.test_instance_detector import squares, tiny_detector
from tests.lightning_modules.tiny_models import tiny, tiny_capture


@contextmanager
def _watched(module: Any, name: str) -> Iterator[list[tuple[bool, bool]]]:
    """(TF32, autocast) as they are when a method is called."""
    seen, method = [], getattr(module, name)

    def watched(*arguments: Any, **options: Any) -> Any:
        seen.append((torch.backends.cudnn.allow_tf32, torch.is_autocast_enabled("cpu")))
        return method(*arguments, **options)

    setattr(module, name, watched)
    yield seen


@pytest.mark.parametrize("tf32", [True, False])
def test_embeddings_and_scores_are_computed_without_tf32_and_the_setting_is_put_back(
    tf32: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", tf32)
    capture, uniter, detector = tiny_capture(whitening_samples=8), tiny(UNITER, objectives=["itm"]), tiny_detector()
    batch = example_batch(capture.input_spec(), batch_size=8)
    pairs = example_batch(uniter.input_spec(), batch_size=4)
    calls = [
        (capture, "embed", lambda: capture.encode(batch)),
        (capture, "unwhitened", lambda: capture.fit_whitening([batch])),
        (uniter, "match", lambda: _match(uniter, pairs, pairs)),
        (detector.network.backbone, "forward", lambda: detector.propose(squares(1))),
    ]
    for module, name, call in calls:
        with _watched(module, name) as seen, torch.autocast("cpu", dtype=torch.bfloat16):
            call()
        assert seen == [(False, False)], name
        assert torch.backends.cudnn.allow_tf32 is tf32
