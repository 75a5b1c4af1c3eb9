"""Ways to run the same mathematics faster or in less memory; no number of a run depends on them but by rounding."""

from __future__ import annotations

from functools import partial

import lightning
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.checkpoint import checkpoint


class Speed(Callback):
    """Treats the repeated layers of a model (those in a `nn.ModuleList`) when training starts.

    Layer by layer, not the whole model: layers of one kind are compiled once, and what lies between them (masks,
    collectives, losses) stays as written. Names of weights do not change, so checkpoints stay the same.

    Args:
        compile: `torch.compile` the layers; takes a minute at the start and wants a C++ compiler.
        compile_backend: For torch.compile.
        recompute: Keep only the inputs of each layer and run it again in the backward pass (activation checkpointing):
            about a third more time for batches that would not fit otherwise.
    """

    def __init__(self, compile: bool = False, compile_backend: str = "inductor", recompute: bool = False) -> None:
        self.compile = compile
        self.compile_backend = compile_backend
        self.recompute = recompute

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.apply(pl_module)

    def apply(self, module: nn.Module) -> None:
        """Treat a model's layers; once."""
        for layer in repeated_layers(module):
            if self.recompute:
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
            if self.compile:
                layer.compile(backend=self.compile_backend)


def repeated_layers(module: nn.Module) -> list[nn.Module]:
    """The layers of every stack of a model."""
    return [layer for stack in module.modules() if isinstance(stack, nn.ModuleList) for layer in stack]
