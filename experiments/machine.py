"""What this machine is, without importing torch: devices for a check that must answer at once, and for the record."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

from experiments.errors import UsageError


def rank() -> int:
    """Global rank of this process as launchers announce it (torchrun, SLURM, Lightning's own children); 0 if none."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


def visible_gpus() -> int:
    """NVIDIA devices this process may use, by the driver's device files and CUDA_VISIBLE_DEVICES."""
    count = len([file for file in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", file.name)])
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or not count:
        return count
    return len([entry for entry in chosen.split(",") if entry.strip() not in ("", "-1")])


def check_devices(trainer: dict[str, Any]) -> None:
    """Refuse more devices than there are, and fewer than processes were launched, before anything is loaded.

    Raises:
        UsageError: Naming the key, the number asked for and the number there is.
    """
    devices = trainer.get("devices", "auto")
    asked = len(devices) if isinstance(devices, list) else int(devices) if str(devices).lstrip("-").isdigit() else 0
    launched, by = _launched()
    nodes = int(trainer.get("num_nodes", 1))
    if launched > 1 and asked > 0 and asked * nodes != launched:
        # Each process would train a model of its own, all into one folder.
        raise UsageError(
            f"{by} has started {launched} processes, but trainer.devices={asked} × trainer.num_nodes={nodes} is "
            f"{asked * nodes}: add --trainer.devices=<processes per node> --trainer.num_nodes=<nodes> "
            "--trainer.strategy=ddp"
        )
    accelerator = str(trainer.get("accelerator", "auto"))
    gpus = visible_gpus()
    if accelerator in ("gpu", "cuda") and platform.system() == "Linux" and not gpus:
        raise UsageError(f"trainer.accelerator={accelerator}: this machine shows no GPU; use --trainer.accelerator=cpu")
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and gpus > 0)
    if not on_gpu and accelerator not in ("cpu", "auto"):
        return  # mps, tpu, …: Lightning knows them better
    there = gpus if on_gpu else os.cpu_count() or 1
    if asked > there:
        what = "GPU(s)" if on_gpu else "CPU core(s)"
        raise UsageError(f"trainer.devices={devices}: this machine has {there} {what}; use --trainer.devices={there}")


def _launched() -> tuple[int, str]:
    """How many processes a launcher has started for this command, and which; 1 without one."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ.get("WORLD_SIZE", 1)), "torchrun"
    if "SLURM_STEP_NUM_TASKS" in os.environ and "SLURM_PROCID" in os.environ:
        return int(os.environ["SLURM_STEP_NUM_TASKS"]), "srun"
    return 1, ""


def cpu_model() -> str:
    """The processor's name."""
    try:
        match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        match = None
    return match.group(1).strip() if match else platform.processor() or platform.machine()


def memory_gib() -> float | None:
    """Physical memory, GiB; None where the system does not tell."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def describe() -> dict[str, Any]:
    """What stands under `hardware` in metrics.json, before the trainer adds its devices."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": memory_gib(),
        "python": platform.python_version(),
    }
