"""A training in a process of its own that writes down its samples and fails as it is told. Run as a script.

DRILL, in the environment, is JSON: `ids`, a folder for what each rank has seen; `rank`, `step` and `fault`, what is
done to which rank when that step begins: "kill", "freeze", "kill all" of its group, or its loss is "nan".
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from experiments.cli import main
from lightning_modules.callbacks.throughput import Throughput

drill = json.loads(os.environ["DRILL"])
start = Throughput.on_train_batch_start


def begin(self: Throughput, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
    if folder := drill.get("ids"):
        Path(folder).mkdir(exist_ok=True)
        with (Path(folder) / f"{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps([trainer.global_step, batch.index_B.tolist()]) + "\n")
    if drill.get("rank") == trainer.global_rank and drill.get("step") == trainer.global_step:
        fault = drill["fault"]
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "kill all":
            os.killpg(0, signal.SIGKILL)
        if fault == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        if fault == "nan":
            step = module.training_step

            def once(*arguments: Any) -> Any:
                module.training_step = step
                return step(*arguments) * float("nan")

            module.training_step = once
    start(self, trainer, module, batch, batch_idx)


Throughput.on_train_batch_start = begin  # type: ignore[method-assign]
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
