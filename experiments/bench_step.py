"""How fast is a training step? Paper-size CAPTURE beside a plain implementation of the same network, in one run."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

import lightning_modules
from experiments.bench_entities import all_ranked
from experiments.output import say
from lightning_modules import RetrievalModule
from lightning_modules.callbacks.graph_refresh import graph_of
from lightning_modules.callbacks.speed import Speed
from lightning_modules.callbacks.throughput import peak_memory_mb
from lightning_modules.capture_network import Fused, HybridStreamTransformer
from lightning_modules.example_batch import example_batch
from lightning_modules.flops import matrix_product_rate
from lightning_modules.layers import attention
from lightning_modules.layers.attention import take
from lightning_modules.objectives import masked_language_modelling, masked_regions
from lightning_modules.objectives.chosen import Chosen, chosen
from lightning_modules.objectives.draws import Draws
from lightning_modules.optim import adamw

PARTS = ("attention", "heads", "last layer", "optimiser")  # what a plain implementation does otherwise
BATCH_SIZE = 64
PARTS_BATCH_SIZE = 16  # on a CPU, where seven variants of a batch of 64 take half an hour
TOGETHER = 3  # processes that take turns on a CPU; each keeps weights and optimiser state, about 3 GB
CUDA_BATCH_SIZES = (256, 1024)
COMPILED_BATCH_SIZES = (BATCH_SIZE, 1024)  # on a GPU; each is compiled anew


class Variant(NamedTuple):
    """One way to run the step."""

    name: str
    plain: tuple[str, ...] = ()
    dtype: torch.dtype | None = None  # of autocast; None = fp32 throughout
    batch_size: int = BATCH_SIZE
    compile: bool = False
    recompute: bool = False
    model: str = "CAPTURE"  # a class that lightning_modules exports
    arguments: tuple[tuple[str, Any], ...] = ()  # of its constructor; default the published setting


class Turn(NamedTuple):
    """What one measurement in a variant's process found."""

    seconds: float  # of a step; of a model with several tasks the mean, each as often as it is trained
    samples_per_s: float
    product_rate: float  # FLOP/s of a large matrix product just after it
    flops_per_sample: float
    peak_mb: float
    parameters: int  # trained ones


PLAIN = Variant("plain, fp32", PARTS)
OURS = Variant("ours, fp32")


def bench_step() -> list[dict[str, Any]]:
    """One optimiser step at the published size (batch 64, 36 tokens, 36 regions): plain, ours, ours in bf16.

    On a GPU also plain in bf16, larger batches and the compiled step.
    """
    bf16 = OURS._replace(name="ours, bf16", dtype=torch.bfloat16)
    variants = [PLAIN, OURS, bf16]
    if torch.cuda.is_available():
        larger = [bf16._replace(name=f"ours, bf16, batch {size}", batch_size=size) for size in CUDA_BATCH_SIZES]
        compiled = [
            eager._replace(name=f"{eager.name}, compiled", compile=True)
            for eager in (bf16, *larger)
            if eager.batch_size in COMPILED_BATCH_SIZES
        ]
        variants += [PLAIN._replace(name="plain, bf16", dtype=torch.bfloat16), *larger, *compiled]
    return compare(variants)


def bench_parts() -> list[dict[str, Any]]:
    """What each measure buys: ours with one of them left out, or one of the optional ones added."""
    ours = OURS if torch.cuda.is_available() else OURS._replace(batch_size=PARTS_BATCH_SIZE)
    alone = [("attention",), ("last layer",), ("heads", "last layer"), ("optimiser",)]  # full heads read a full layer
    left_out = [ours._replace(name=f"without: {', '.join(parts)}", plain=parts) for parts in alone]
    added = [ours._replace(name="compiled", compile=True), ours._replace(name="recomputed layers", recompute=True)]
    return compare([ours, *left_out, *added], rounds=6)


def compare(variants: Sequence[Variant], rounds: int = 4) -> list[dict[str, Any]]:
    """Time a step of each variant in a process of its own, so that its peak memory is its own.

    On a CPU a few variants, the first always among them, take turns step by step, and `speedup` is the median over
    turns: on a shared machine the pace changes by a third within minutes, which would else be taken for a difference.
    A GPU is measured one variant after another, each turn the mean of several steps; all are built beforehand, on the
    CPU.

    Args:
        rounds: Timed steps of each variant (CPU), or tens of them (GPU).

    Returns: rows {"name", "step_s" (fastest), "samples_per_s", "speedup" in samples/s over the first variant in the
        same turn, "mfu", "peak_mb", "product_gflops", "parameters"}; mfu: operations the model needs (ours, without
        recomputation) over "product_gflops", the best that a large matrix product of the same type did in any turn.
    """
    found: list[tuple[Variant, list[Turn | None], list[Turn | None]]] = []  # with the first variant's in the same turns
    if torch.cuda.is_available():
        turns = _take_turns(variants, rounds, together=False)
        found = [(variant, own, turns[0]) for variant, own in zip(variants, turns, strict=True)]
    else:
        for start in range(1, len(variants), TOGETHER - 1):
            group = [variants[0], *variants[start : start + TOGETHER - 1]]
            turns = _take_turns(group, rounds)
            found += [(variant, own, turns[0]) for variant, own in zip(group, turns, strict=True)][bool(found) :]
    rates: dict[torch.dtype | None, float] = {}
    for variant, own, _ in found:
        rates[variant.dtype] = max([rates.get(variant.dtype, 0.0), *(turn.product_rate for turn in own if turn)])
    return [_row(variant, own, first, rates[variant.dtype]) for variant, own, first in found]


def _take_turns(variants: Sequence[Variant], rounds: int, together: bool = True) -> list[list[Turn | None]]:
    """The turns of each variant, one of each after another or (not together) all of one before those of the next.

    The first of all is a warm-up and left out.
    """
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    threads = torch.get_num_threads() if together else max(1, torch.get_num_threads() // len(variants))
    for variant in variants:
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, variant, threads), daemon=True)
        process.start()
        there.close()  # so that a process that dies is noticed
        pipes.append(here)
        processes.append(process)
    numbers, rows = range(1 + rounds), range(len(variants))
    order = [(number, row) for number in numbers for row in rows]
    found: list[list[Any]] = [[] for _ in variants]
    for number, row in order if together else sorted(order, key=lambda turn: turn[1]):
        pipes[row].send(number)
        found[row].append(pipes[row].recv())
        if number == numbers[-1]:
            pipes[row].send(None)
            processes[row].join()
            times = [turn.seconds for turn in found[row][1:] if turn is not None]
            say(f"{variants[row].name}: {f'{min(times):.3g} s a step' if times else 'does not fit'}")
    return [answers[1:] for answers in found]


def _row(variant: Variant, turns: list[Turn | None], first: list[Turn | None], rate: float) -> dict[str, Any]:
    done = [turn for turn in turns if turn is not None]
    if not done:
        return {"name": variant.name, "note": "does not fit"}
    seconds = min(turn.seconds for turn in done)
    samples_per_s = variant.batch_size / seconds
    row = {
        "name": variant.name,
        "step_s": seconds,
        "samples_per_s": samples_per_s,
        "mfu": samples_per_s * done[0].flops_per_sample / rate,
        "peak_mb": max(turn.peak_mb for turn in done),
        "product_gflops": rate / 1e9,
        "parameters": done[0].parameters,
    }
    pairs = [(base, own) for base, own in zip(first, turns, strict=True) if base and own]
    if pairs:
        row["speedup"] = median(own.samples_per_s / base.samples_per_s for base, own in pairs)
    return row


def _serve(pipe: Any, variant: Variant, threads: int) -> None:
    """Build a variant, then answer each number with a `Turn` (None: out of memory), until None is sent.

    A GPU is touched when the first number comes: others are measured on it until then.

    Args:
        threads: To build it with, as others are built beside it.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    all_threads = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model: RetrievalModule = getattr(lightning_modules, variant.model)(**dict(variant.arguments))
    model.setup("fit")  # counts the operations
    number = pipe.recv()
    torch.set_num_threads(all_threads)
    model.to(device)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    Speed(compile=variant.compile, recompute=variant.recompute).apply(model)
    spec = model.input_spec()
    vocabulary = spec.vocab_size and min(21128, spec.vocab_size)
    batch = example_batch(spec, device, variant.batch_size, vocab_size=vocabulary)
    graph = graph_of(model)
    if graph is not None:
        batch = all_ranked(graph, batch, vocabulary or 100)
    if "optimiser" in variant.plain:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=False, fused=False)
    else:
        optimizer = adamw([{"params": list(model.parameters())}], (0.9, 0.999), 1e-6)
    dtype = variant.dtype

    def step(number: int, task: str) -> None:
        more: dict[str, Any] = {"task": task} if task else {}
        with torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            losses = model.losses(batch, Draws(0, number, device, **more))
        torch.stack([value for key, value in losses.items() if not key.startswith("_")]).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    steps = 10 if device.type == "cuda" else 1
    tasks: Mapping[str, float] = getattr(model, "tasks", {"": 1.0})
    with _without(variant.plain):
        while number is not None:
            try:
                seconds = _seconds_of_tasks(step, tasks, range(number * steps, (number + 1) * steps), device)
                peak_mb = peak_memory_mb()  # before the matrix product
                rate = matrix_product_rate(device, dtype or torch.float32)
                samples_per_s = variant.batch_size / seconds
                pipe.send(Turn(seconds, samples_per_s, rate, model.flops_per_sample, peak_mb, parameters))
            except torch.OutOfMemoryError:
                pipe.send(None)
            number = pipe.recv()


def _seconds_of_tasks(
    step: Callable[[int, str], None], tasks: Mapping[str, float], numbers: range, device: torch.device
) -> float:
    """Of one step, on average over tasks by their shares of the steps; all of them are run, in turn."""
    seconds = {task: _seconds(step, task, numbers, device) for task in tasks}
    return sum(share * seconds[task] for task, share in tasks.items()) / sum(tasks.values())


def _seconds(step: Callable[[int, str], None], task: str, numbers: range, device: torch.device) -> float:
    """Of one step, on average; the first round of steps (compilation, allocations) is not used by the caller."""
    start = time.perf_counter()
    for number in numbers:
        step(number, task)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / len(numbers)


# ---- the plain implementation ------------------------------------------------------------------------------------


@contextmanager
def _without(parts: Sequence[str]) -> Iterator[None]:
    """The network with some parts as a plain implementation has them; the mathematics stays the same."""
    with ExitStack() as stack:
        if "attention" in parts:
            stack.enter_context(mock.patch.object(attention, "attend", _plain_attend))
        if "heads" in parts:
            for objective in (masked_language_modelling, masked_regions):
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
