"""What the base module does in training, on Lightning's own trainer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from lightning_modules import UNITER
from lightning_modules.errors import ModelError
from lightning_modules.example_batch import example_batch
from lightning_modules.objectives.draws import Draws
from tests.lightning_modules.tiny_models import tiny, tiny_capture


def _fit(clip: float, algorithm: str = "norm", **options: Any) -> torch.Tensor:
    """Two steps; all gradients of the last one, as the optimiser saw them."""
    torch.manual_seed(0)
    model = tiny_capture()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = {"max_steps": 2, "accelerator": "cpu", "enable_checkpointing": False, **quiet, **options}
    trainer = Trainer(gradient_clip_val=clip, gradient_clip_algorithm=algorithm, **settings)
    batches: Any = [example_batch(model.input_spec(), batch_size=6, seed=seed) for seed in (0, 1)]
    trainer.fit(model, DataLoader(batches, batch_size=None))
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_by_their_norm_over_all_parameters(precision: str) -> None:
    assert _fit(0.0, precision=precision).norm() > 0.1
    assert _fit(0.01, precision=precision).norm() == pytest.approx(0.01, rel=1e-3)
    assert _fit(0.01, algorithm="value", precision=precision).abs().max() <= 0.01


def test_what_scales_gradients_cannot_be_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_capture()
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    monkeypatch.setattr(model, "_trainer", trainer)
    monkeypatch.setattr(trainer.precision_plugin, "scaler", object(), raising=False)
    optimizer = torch.optim.AdamW(model.parameters())
    model.configure_gradient_clipping(optimizer, 0.0)
    with pytest.raises(ModelError, match="bf16-mixed"):
        model.configure_gradient_clipping(optimizer, 1.0)


def test_a_step_moves_only_what_its_task_trains() -> None:
    """Heads of other tasks keep weights and optimiser state: momentum and decay would move them on a gradient of 0."""
    torch.manual_seed(0)
    model = tiny(UNITER, objectives=["mlm", "itm"], lr=0.1, weight_decay=0.1)
    batches: Any = [example_batch(model.input_spec(), batch_size=6, seed=seed) for seed in range(8)]
    seen: list[tuple[str, bool, bool]] = []  # task, whether its head moved, whether the other one did

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            self.before = {name: p.detach().clone() for name, p in model.named_parameters()}

        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            task = Draws(0, trainer.global_step - 1, "cpu").choose(model.tasks)
            moved = {
                name.split(".")[0] for name, p in model.named_parameters() if not torch.equal(p, self.before[name])
            }
            other = {"mlm": "itm", "itm": "mlm"}[task]
            seen.append((task, task in moved, other in moved))

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options: dict[str, Any] = {"accelerator": "cpu", "enable_checkpointing": False, "callbacks": [Watch()], **quiet}
    Trainer(max_steps=8, **options).fit(model, DataLoader(batches, batch_size=None))
    assert {task for task, _, _ in seen} == {"mlm", "itm"}
    assert all(own and not other for _, own, other in seen[:-1])  # the last step's learning rate is 0


def test_batches_of_an_accumulated_step_share_the_task_but_no_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(UNITER, objectives=["mlm", "itm"])
    drawn: list[tuple[int, str | None, float]] = []  # step, task, the batch's first number
    losses = model.losses

    def watched(batch: Any, draws: Draws) -> dict[str, torch.Tensor]:
        if training:
            first = Draws(0, 0, "cpu")
            first.generator.set_state(draws.generator.get_state())
            drawn.append((model.global_step, draws.task, float(first.uniform(1))))
        return losses(batch, draws)

    class Training(Callback):
        def on_train_start(self, *_: Any) -> None:
            training.append(True)

    training: list[bool] = []  # set-up tries the losses too
    monkeypatch.setattr(model, "losses", watched)
    batches: Any = [example_batch(model.input_spec(), batch_size=6, seed=seed) for seed in range(12)]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options: dict[str, Any] = {"accelerator": "cpu", "enable_checkpointing": False, "callbacks": [Training()], **quiet}
    Trainer(max_steps=6, accumulate_grad_batches=2, **options).fit(model, DataLoader(batches, batch_size=None))
    assert [step for step, _, _ in drawn] == [step for step in range(6) for _ in range(2)]
    assert {task for _, task, _ in drawn} == {"mlm", "itm"}
    assert len({(step, task) for step, task, _ in drawn}) == 6
    assert len({number for _, _, number in drawn}) == 12
    unaccumulated = [float(Draws(0, step, "cpu").uniform(1)) for step in range(6)]
    assert [number for _, _, number in drawn][::2] == unaccumulated


def test_a_contrast_needs_a_second_sample() -> None:
    model = tiny_capture()
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(ModelError, match=r"data\.batch_size=1"):
        model.check_training(trainer, 1)
    model.check_training(trainer, 2)
    tiny_capture(objectives=["mlm"]).check_training(trainer, 1)
