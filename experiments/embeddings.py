"""Product embeddings of a retrieval run as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments.config import Composition
from experiments.errors import UsageError
from experiments.evaluate import checkpoint_of
from experiments.output import say
from experiments.runs import run_folder


def write_embeddings(composition: Composition, home: Path, checkpoint: str | None) -> Path:
    """Write the product embeddings of the test queries and the gallery to the run's `embeddings/<split>.npz`."""
    from experiments.engine import build
    from experiments.runs import atomic

    run = run_folder(composition, home)
    if composition.config["trainer"].get("devices") not in (None, 1, "1", "auto"):
        raise UsageError("trainer.devices: predict writes from one process; use --trainer.devices=1")
    composition.config["trainer"]["devices"] = 1
    path = checkpoint_of(run, checkpoint)
    engine = build(composition, run)
    engine.data.setup("test")
    folder = run.root / "embeddings"
    for split in engine.data.eval_splits("test"):
        loader = engine.data.evaluation_loader(split)
        batches: Any = engine.trainer.predict(engine.model, dataloaders=loader, ckpt_path=path, weights_only=True)
        product_ND = np.concatenate([batch["product"].cpu().numpy() for batch in batches])
        with atomic(folder / f"{split}.npz") as temporary:
            np.savez_compressed(temporary, ids=engine.data.ids(split), product=product_ND)
    say(f"embeddings of {path or 'the untrained model'} in {folder}")
    return folder
