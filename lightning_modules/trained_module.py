"""How every model of the package is trained: parameter groups, schedule, gradient clipping, copies to the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning
import torch
from torch import nn
from torch.optim import Optimizer

from lightning_modules.errors import ModelError
from lightning_modules.optim import adamw, linear_warmup_decay, parameter_groups


class TrainedModule(lightning.LightningModule):
    """AdamW with warm-up and linear decay over `trainer.max_steps`; batches are NamedTuples of tensors.

    Args:
        lr: Peak learning rate.
        weight_decay: Decoupled decay of matrices; vectors (biases, norms) are not decayed.
        warmup_fraction: Share of `max_steps` with linear warm-up; then linear decay to 0.
        pretrained_lr_scale: Factor on `lr` for weights that came from a checkpoint.
        betas, adam_eps: AdamW's.
    """

    pretrained_prefixes: tuple[str, ...] = ()
    flops_per_sample = 0.0  # of a training step, forward and backward; counted when training is set up
    _copy_stream: torch.cuda.Stream | None = None

    def __init__(
        self,
        lr: float,
        weight_decay: float,
        warmup_fraction: float,
        pretrained_lr_scale: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        adam_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.lr = lr
        self.weight_decay = weight_decay
        self.warmup_fraction = warmup_fraction
        self.pretrained_lr_scale = pretrained_lr_scale
        self.betas = (float(betas[0]), float(betas[1]))
        self.adam_eps = adam_eps

    @property
    def weights_device(self) -> torch.device:
        """Where the weights are. While `setup` runs, Lightning's `device` is already the one they will be moved to."""
        return next((parameter.device for parameter in self.parameters()), self.device)

    def check_training(self, trainer: lightning.Trainer, batch_size: int | None) -> None:
        """Raise `ModelError` if the model cannot be trained so; `batch_size` of a process, None = unknown."""

    def on_fit_start(self) -> None:
        self.check_training(self.trainer, getattr(getattr(self.trainer, "datamodule", None), "batch_size", None))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """On CUDA, on a stream of its own: the copy of a batch runs beside the step before it."""
        if device.type != "cuda":
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        self._copy_stream = self._copy_stream or torch.cuda.Stream(device)
        with torch.cuda.stream(self._copy_stream):
            moved = super().transfer_batch_to_device(batch, device, dataloader_idx)
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(self._copy_stream)
        for tensor in moved:
            if tensor is not None:
                tensor.record_stream(computing)  # else its memory could be given away while the step still reads it
        return moved

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """By the norm over all parameters, or by value.

        Here, because Lightning refuses fused optimisers under every mixed precision, though bf16 scales nothing.
        """
        if not gradient_clip_val:
            return
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            raise ModelError(
                "trainer.precision=16-mixed: gradients are unscaled inside the fused optimiser and cannot be clipped "
                "before; use bf16-mixed, or trainer.gradient_clip_val=0"
            )
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        else:
            nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def configure_optimizers(self) -> Any:
        if self.trainer.max_steps < 1:
            raise ModelError("trainer.max_steps must be set: schedules count steps, not epochs")
        groups = parameter_groups(self, self.lr, self.weight_decay, self.pretrained_prefixes, self.pretrained_lr_scale)
        optimizer = adamw(groups, self.betas, self.adam_eps)
        schedule = linear_warmup_decay(optimizer, self.trainer.max_steps, self.warmup_fraction)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's; weights that do not fit raise one `ModelError` that names the first of them."""
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as problem:
            reasons = [line.strip() for line in str(problem).splitlines()[1:]] or [str(problem)]
            raise ModelError(f"the weights do not fit this {type(self).__name__}: {reasons[0]}") from None
