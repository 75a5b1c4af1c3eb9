"""Parameter groups and schedules, in steps."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR


def parameter_groups(
    module: nn.Module, lr: float, weight_decay: float, pretrained: Iterable[str] = (), pretrained_lr_scale: float = 1.0
) -> list[dict]:
    """Groups by decay (not for biases, norms and other vectors) and by origin (pretrained weights at a lower rate).

    Args:
        pretrained: Prefixes of parameter names that came from a checkpoint.
    """
    prefixes = tuple(pretrained)
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            key = (parameter.ndim >= 2, bool(prefixes) and name.startswith(prefixes))
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": lr * (pretrained_lr_scale if loaded else 1.0),
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (decays, loaded), parameters in groups.items()
    ]


def adamw(groups: list[dict], betas: tuple[float, float], eps: float) -> AdamW:
    """AdamW by its fused kernel: one pass over memory instead of several."""
    return AdamW(groups, betas=betas, eps=eps, fused=True)


def linear_warmup_decay(optimizer: AdamW, max_steps: int, warmup_fraction: float) -> LambdaLR:
    """From 0 up to the peak over the first `warmup_fraction` of `max_steps`, then linearly to 0."""
    warmup = max(1, round(max_steps * warmup_fraction))

    def scale(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup  # the first step must move: lr 0 would waste it
        return max(0.0, (max_steps - step) / max(1, max_steps - warmup))

    return LambdaLR(optimizer, scale)
