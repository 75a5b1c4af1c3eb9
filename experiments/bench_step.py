"""How fast is a training step? Paper-size CAPTURE beside a plain implementation of the same network, in one run."""

from __future__ import annotations

import multiprocessing
import resource
import time
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules import CAPTURE
from lightning_modules.example_batch import example_batch
from lightning_modules.layers import attention
from lightning_modules.objectives.draws import Draws
from lightning_modules.objectives.masked_language_modelling import NOT_MASKED, MaskedLanguageModelling
from lightning_modules.objectives.masked_region_modelling import MaskedRegionModelling, RegionLoss
from lightning_modules.optim import adamw

# name, plain or ours, autocast type
VARIANTS = (("plain, fp32", True, None), ("ours, fp32", False, None), ("ours, bf16", False, torch.bfloat16))


def bench_step(batch_size: int = 64, steps: int = 3, **model_arguments: Any) -> list[dict[str, Any]]:
    """Time one optimiser step on region features (batch 64, 36 tokens, 36 regions by default).

    Each variant runs in a process of its own, so that its peak memory is its own.

    Returns: rows {"name", "step_s", "samples_per_s", "speedup" over plain, "mfu", "peak_mb"}; mfu is relative to a
        large matrix product of the same type measured in the same process.
    """
    rows: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    for name, plain, dtype in VARIANTS:
        with context.Pool(1) as pool:  # a fresh process
            row = pool.apply(_measure, (plain, dtype, batch_size, steps, model_arguments))
        rows.append({"name": name} | row)
    for row in rows:
        row["speedup"] = rows[0]["step_s"] / row["step_s"]
    return rows


def _measure(
    plain: bool, dtype: torch.dtype | None, batch_size: int, steps: int, model_arguments: dict[str, Any]
) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = CAPTURE(**model_arguments).to(device)
    batch = example_batch(model.input_spec(), device, batch_size, vocab_size=min(21128, model.hparams["vocab_size"]))
    if plain:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=False, fused=False)
    else:
        optimizer = adamw([{"params": list(model.parameters())}], (0.9, 0.999), 1e-6)

    def step(number: int) -> None:
        with torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            losses = model.losses(batch, Draws(0, number, device))
        optimizer.zero_grad(set_to_none=True)
        torch.stack([value for key, value in losses.items() if not key.startswith("_")]).sum().backward()
        optimizer.step()

    swaps: list[Any] = [
        mock.patch.object(attention, "attend", _plain_attend),
        mock.patch.object(MaskedLanguageModelling, "forward", _full_length_mlm),
        mock.patch.object(MaskedRegionModelling, "forward", _full_length_mrm),
    ]
    for swap in swaps if plain else ():
        swap.start()
    step(0)  # allocations and kernel choices stay outside the clock
    with FlopCounterMode(display=False) as counter:
        step(1)
    seconds = min(_timed(step, number, device) for number in range(2, 2 + steps))
    if device.type == "cuda":
        peak_mb = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # KiB on Linux
    rate = counter.get_total_flops() / seconds
    return {
        "step_s": seconds,
        "samples_per_s": batch_size / seconds,
        "mfu": rate / _matrix_product_rate(device, dtype or torch.float32),
        "peak_mb": peak_mb,
    }


def _timed(step: Any, number: int, device: torch.device) -> float:
    start = time.perf_counter()
    step(number)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _matrix_product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of one large product: what the device gives when nothing is in the way."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

    def product(_: int) -> None:
        torch.mm(a, b)

    return 2 * side**3 / min(_timed(product, 0, device) for _ in range(5))


def _plain_attend(query: Tensor, key: Tensor, value: Tensor, mask_BM: Tensor, heads: int, dropout: float) -> Tensor:
    batch, positions, width = query.shape

    def split(x: Tensor) -> Tensor:
        return x.view(batch, -1, heads, width // heads).transpose(1, 2)

    scores = split(query) @ split(key).transpose(-1, -2) / (width // heads) ** 0.5
    scores = scores + (1.0 - mask_BM[:, None, None, :].to(scores.dtype)) * -10000.0
    weights = F.dropout(scores.softmax(-1), dropout)
    return (weights @ split(value)).transpose(1, 2).reshape(batch, positions, width)


def _full_length_mlm(self: MaskedLanguageModelling, outputs_BTD: Tensor, targets: Tensor, word_VD: Tensor) -> Tensor:
    logits = F.linear(self.norm(F.gelu(self.transform(self.back(outputs_BTD)))), word_VD, self.bias)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=NOT_MASKED)


def _full_length_mrm(
    self: MaskedRegionModelling, outputs_BRD: Tensor, targets_BRD: Tensor, predicted_BR: Tensor, _mask: Tensor
) -> RegionLoss:
    guess = self.decoder(self.norm(F.gelu(self.transform(self.back(outputs_BRD)))))
    weight = predicted_BR.unsqueeze(-1).to(guess.dtype)
    squared = (guess - targets_BRD).square() * weight
    return RegionLoss(squared.sum() / (weight.sum() * guess.shape[-1]).clamp(min=1), None)
