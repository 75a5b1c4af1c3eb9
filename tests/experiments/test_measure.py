"""Evaluating a checkpoint by other instances than it was trained with: val chooses, test follows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from lightning import Trainer

from datamodules import Product1M
from datamodules.write_shards import build
from experiments.evaluate import measure
from lightning_modules.callbacks.retrieval_evaluation import RetrievalEvaluation
from tests.datamodules.coloured_squares import squares_regions
from tests.lightning_modules.test_instance_levels import SHOP, MeanColour


def test_test_ranks_by_the_vector_that_val_chose_and_not_by_the_checkpoint_s(tmp_path: Path) -> None:
    folder, checkpoint = tmp_path / "squares", tmp_path / "best.ckpt"
    build(SHOP, folder, shard_size=4, vocab_size=60, progress=False, regions=squares_regions)
    model = MeanColour("auto")
    data = Product1M(str(folder), eval_batch_size=6, num_workers=0, instances=["detected"])
    data.use_input_spec(model.input_spec())
    evaluation = RetrievalEvaluation(ks=(2, 6), depth=18)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", devices=1, callbacks=[evaluation], enable_checkpointing=False, **quiet)
    chosen = {"product": "blind", "image": "colour"}  # by whole pictures, say
    trainer.strategy.connect(model)
    trainer.save_checkpoint(checkpoint)
    stored = torch.load(checkpoint, weights_only=True)
    torch.save(stored | {"selected_features": chosen}, checkpoint)

    results = measure(SimpleNamespace(trainer=trainer, model=model, data=data, evaluation=evaluation), checkpoint)
    assert results["val"].features["product"] == "colour"
    assert results["test"].features == results["val"].features
    assert results["test"].metrics["mAP@2"] == 1.0
