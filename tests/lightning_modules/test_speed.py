"""Ways to run faster change no number: compiled or recomputed layers, the last layer at read positions only."""

from __future__ import annotations

import shutil
from contextlib import nullcontext

import pytest
import torch

from lightning_modules import CAPTURE
from lightning_modules.callbacks.speed import Speed, repeated_layers
from lightning_modules.example_batch import example_batch
from lightning_modules.layers.attention import PreNormBlock, take
from lightning_modules.objectives.draws import Draws
from tests.lightning_modules.tiny_models import tiny_capture


def _step(model: CAPTURE, seed: int = 0) -> dict[str, torch.Tensor]:
    """Losses and gradients of one step, dropout included."""
    batch = example_batch(model.input_spec(), model.device, batch_size=6)
    torch.manual_seed(seed)
    losses = model.losses(batch, Draws(0, 0, model.device))
    model.zero_grad()
    torch.stack([value for name, value in losses.items() if not name.startswith("_")]).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**{name: value.detach() for name, value in losses.items()}, **gradients}


@pytest.mark.parametrize("visual_input", ["regions", "grid"])
def test_a_step_never_waits_for_the_device(visual_input: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta tensors hold no values: whatever had to look at one (a count, a boolean index, an item) would raise."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **more: nullcontext())  # it knows no meta device
    model = tiny_capture(visual_input=visual_input, fused_share=0.5).to("meta").train()
    assert {tensor.device.type for tensor in _step(model).values()} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_on_a_gpu_never_waits_for_it() -> None:
    model = tiny_capture().to("cuda").train()
    _step(model)
    batch, draws = example_batch(model.input_spec(), model.device, batch_size=6), Draws(0, 1, model.device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.stack(list(model.losses(batch, draws).values())).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("speed", [{"recompute": True}, {"compile": True}, {"recompute": True, "compile": True}])
def test_losses_and_gradients_stay_what_they_were(speed: dict[str, bool]) -> None:
    torch.manual_seed(0)
    model = tiny_capture(dropout=0.1 if "compile" not in speed else 0.0).train()
    names, expected = list(model.state_dict()), _step(model)
    Speed(**speed, compile_backend="aot_eager").apply(model)
    found = _step(model)
    assert list(model.state_dict()) == names
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile wants a C++ compiler")
def test_compiled_by_inductor_too() -> None:
    torch.manual_seed(0)
    model = tiny_capture(dropout=0.0).train()
    expected = _step(model)
    Speed(compile=True).apply(model)
    for name, value in _step(model).items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_recomputing_keeps_only_the_inputs_of_layers() -> None:
    def kept(model: CAPTURE) -> int:
        sizes: list[int] = []

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        batch = example_batch(model.input_spec(), batch_size=6)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.losses(batch, Draws(0, 0, model.device))
        return sum(sizes)

    plain, recomputing = (tiny_capture(text_layers=3, image_layers=3, co_layers=3).train() for _ in range(2))
    Speed(recompute=True).apply(recomputing)
    assert len(repeated_layers(recomputing)) == 10
    assert kept(recomputing) < 0.5 * kept(plain)


def test_a_block_at_some_positions_equals_the_whole_block_there() -> None:
    torch.manual_seed(0)
    block = PreNormBlock(16, 4)
    x, mask = torch.randn(3, 7, 16, requires_grad=True), torch.arange(7) < torch.tensor([[7], [4], [2]])
    read = torch.tensor([[0, 3], [1, 1], [0, 0]])
    whole, part = take(block(x, mask), read), block(x, mask, read)
    torch.testing.assert_close(part, whole)
    expected, found = (torch.autograd.grad(out.square().sum(), x)[0] for out in (whole, part))
    torch.testing.assert_close(found, expected)


def test_the_plain_implementation_of_the_bench_computes_the_same() -> None:
    from experiments.bench_step import PARTS, _without

    torch.manual_seed(0)
    model = tiny_capture(dropout=0.0).train()
    expected = _step(model)
    for parts in (*((part,) for part in PARTS), PARTS):
        with _without(parts):
            found = _step(model)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
