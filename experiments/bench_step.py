"""How fast is a training step? Paper-size CAPTURE beside a plain implementation of the same network, in one run."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lightning_modules import CAPTURE
from lightning_modules.callbacks.speed import Speed
from lightning_modules.callbacks.throughput import peak_memory_mb
from lightning_modules.capture import Fused, HybridStreamTransformer
from lightning_modules.example_batch import example_batch
from lightning_modules.flops import matrix_product_rate
from lightning_modules.layers import attention
from lightning_modules.layers.attention import take
from lightning_modules.objectives import masked_language_modelling, masked_region_modelling
from lightning_modules.objectives.chosen import Chosen, chosen
from lightning_modules.objectives.draws import Draws
from lightning_modules.optim import adamw

PARTS = ("attention", "heads", "last layer", "optimiser")  # what a plain implementation does otherwise
BATCH_SIZE = 64
CUDA_BATCH_SIZES = (128, 256, 512, 1024, 2048)


class Variant(NamedTuple):
    """One way to run the step."""

    name: str
    plain: tuple[str, ...] = ()
    dtype: torch.dtype | None = None  # of autocast; None = fp32 throughout
    batch_size: int = BATCH_SIZE
    compile: bool = False
    recompute: bool = False


PLAIN = Variant("plain, fp32", PARTS)
OURS = Variant("ours, fp32")


def bench_step() -> list[dict[str, Any]]:
    """One optimiser step at the published size (batch 64, 36 tokens, 36 regions): plain, ours, ours in bf16.

    On a GPU also the compiled step, and larger batches up to what fits.
    """
    bf16 = OURS._replace(name="ours, bf16", dtype=torch.bfloat16)
    variants = [PLAIN, OURS, bf16]
    if torch.cuda.is_available():
        compiled = bf16._replace(name="ours, bf16, compiled", compile=True)
        variants.append(compiled)
        for size in CUDA_BATCH_SIZES:
            variants.append(compiled._replace(name=f"ours, bf16, compiled, batch {size}", batch_size=size))
    return compare(variants)


def bench_parts() -> list[dict[str, Any]]:
    """What each measure buys: ours with one of them left out, or one of the optional ones added."""
    left_out = [OURS._replace(name=f"without: {part}", plain=(part,)) for part in PARTS]
    added = [OURS._replace(name="compiled", compile=True), OURS._replace(name="recomputed layers", recompute=True)]
    return compare([OURS, *left_out, *added])


def compare(variants: Sequence[Variant], steps: int = 3, **model_arguments: Any) -> list[dict[str, Any]]:
    """Time a step of each variant in a process of its own, so that its peak memory is its own.

    Args:
        steps: Timed steps of which the fastest counts (CPU), or of which the mean counts (GPU).
        model_arguments: Of CAPTURE; default the published setting.

    Returns: rows {"name", "step_s", "samples_per_s", "speedup" over the first in samples/s, "mfu", "peak_mb"}; mfu:
        operations the model needs (ours, without recomputation) over what a large matrix product of the same type did
        in the same process.
    """
    rows: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    for variant in variants:
        with context.Pool(1) as pool:  # a fresh process
            row = pool.apply(_measure, (variant, steps, model_arguments))
        rows.append({"name": variant.name} | row)
    first = rows[0].get("samples_per_s")
    for row in rows:
        row["speedup"] = row["samples_per_s"] / first if first and "samples_per_s" in row else None
    return rows


def _measure(variant: Variant, steps: int, model_arguments: dict[str, Any]) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = CAPTURE(**model_arguments).to(device)
    model.setup("fit")  # counts the operations
    rate = matrix_product_rate(device, variant.dtype or torch.float32)
    Speed(compile=variant.compile, recompute=variant.recompute).apply(model)
    vocabulary = min(21128, model.hparams["vocab_size"])
    batch = example_batch(model.input_spec(), device, variant.batch_size, vocab_size=vocabulary)
    if "optimiser" in variant.plain:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=False, fused=False)
    else:
        optimizer = adamw([{"params": list(model.parameters())}], (0.9, 0.999), 1e-6)

    def step(number: int) -> None:
        dtype = variant.dtype
        with torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            losses = model.losses(batch, Draws(0, number, device))
        optimizer.zero_grad(set_to_none=True)
        torch.stack([value for key, value in losses.items() if not key.startswith("_")]).sum().backward()
        optimizer.step()

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        with _without(variant.plain):
            seconds = _timed(step, steps, device)
    except torch.OutOfMemoryError:
        return {"note": "does not fit"}
    samples_per_s = variant.batch_size / seconds
    return {
        "step_s": seconds,
        "samples_per_s": samples_per_s,
        "mfu": samples_per_s * model.flops_per_sample / rate,
        "peak_mb": peak_memory_mb(),
    }


def _timed(step: Callable[[int], None], steps: int, device: torch.device) -> float:
    """Seconds of a step; allocations, compilation and the choice of kernels stay outside the clock."""
    warm_up = 4 if device.type == "cuda" else 2
    for number in range(warm_up):
        step(number)
    if device.type != "cuda":
        return min(_seconds(step, warm_up + number) for number in range(steps))
    torch.cuda.synchronize()
    start = time.perf_counter()
    for number in range(warm_up, warm_up + 10 * steps):
        step(number)
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / (10 * steps)


def _seconds(step: Callable[[int], None], number: int) -> float:
    start = time.perf_counter()
    step(number)
    return time.perf_counter() - start


# ---- the plain implementation ------------------------------------------------------------------------------------


@contextmanager
def _without(parts: Sequence[str]) -> Iterator[None]:
    """The network with some parts as a plain implementation has them; the mathematics stays the same."""
    with ExitStack() as stack:
        if "attention" in parts:
            stack.enter_context(mock.patch.object(attention, "attend", _plain_attend))
        if "heads" in parts:
            for objective in (masked_language_modelling, masked_region_modelling):
                stack.enter_context(mock.patch.object(objective, "chosen", _all_positions))
        if "last layer" in parts:
            stack.enter_context(mock.patch.object(HybridStreamTransformer, "fuse", _fuse_everything))
        yield


def _plain_attend(query: Tensor, key: Tensor, value: Tensor, mask_BM: Tensor, heads: int, dropout: float) -> Tensor:
    batch, positions, width = query.shape

    def split(x: Tensor) -> Tensor:
        return x.view(batch, -1, heads, width // heads).transpose(1, 2)

    scores = split(query) @ split(key).transpose(-1, -2) / (width // heads) ** 0.5
    scores = scores + (1.0 - mask_BM[:, None, None, :].to(scores.dtype)) * -10000.0
    weights = F.dropout(scores.softmax(-1), dropout)
    return (weights @ split(value)).transpose(1, 2).reshape(batch, positions, width)


def _all_positions(chosen_BN: Tensor, draws: Draws) -> Chosen:
    return chosen(torch.ones_like(chosen_BN), draws)


_fuse = HybridStreamTransformer.fuse


def _fuse_everything(
    self: HybridStreamTransformer, text: Tensor, tokens: Tensor, image: Tensor, regions: Tensor, read: Any = None
) -> Fused:
    fused = _fuse(self, text, tokens, image, regions)
    return fused if read is None else Fused(take(fused.text_BTD, read[0]), take(fused.image_BRD, read[1]))
