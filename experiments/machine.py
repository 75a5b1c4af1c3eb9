"""What this machine is, without importing torch: devices for a check that must answer at once, and for the record."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any, NamedTuple

from experiments.errors import UsageError


class Layout(NamedTuple):
    """The processes a launcher has started for one command."""

    per_node: int
    nodes: int
    by: str  # the launcher

    @property
    def processes(self) -> int:
        return self.per_node * self.nodes


def rank() -> int:
    """Global rank of this process as launchers announce it (torchrun, srun, Lightning's own children); 0 if none."""
    # Every process that Lightning starts inside an interactive Slurm job has the SLURM_PROCID of its parent.
    found = layout()
    by_srun = found.by == "srun" and found.processes > 1
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if by_srun else ("RANK", "LOCAL_RANK"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


def layout() -> Layout:
    """What torchrun or srun has started; one process where neither has.

    Raises:
        UsageError: If the nodes have different numbers of processes.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        processes, by = _number("WORLD_SIZE"), "torchrun"
        nodes = processes // _number("LOCAL_WORLD_SIZE", default=processes)
    elif "SLURM_STEP_NUM_TASKS" in os.environ and "SLURM_PROCID" in os.environ:
        processes, by = _number("SLURM_STEP_NUM_TASKS"), "srun"
        nodes = _number("SLURM_STEP_NUM_NODES")
    else:
        return Layout(1, 1, "")
    if processes % nodes:
        raise UsageError(
            f"{by} has started {processes} processes on {nodes} nodes: start as many on each (--ntasks-per-node)"
        )
    return Layout(processes // nodes, nodes, by)


def launched_settings() -> dict[str, Any]:
    """Keys of the trainer that follow from how many processes were started; none for a single one."""
    found = layout()
    if found.processes == 1:
        return {}
    return {"devices": found.per_node, "num_nodes": found.nodes, "strategy": "ddp"}


def _number(name: str, default: int = 1) -> int:
    text = os.environ.get(name, "")
    return max(1, int(text)) if text.isdigit() else default


def visible_gpus() -> int:
    """NVIDIA devices this process may use, by the driver's device files and CUDA_VISIBLE_DEVICES."""
    count = len([file for file in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", file.name)])
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or not count:
        return count
    return len([entry for entry in chosen.split(",") if entry.strip() not in ("", "-1")])


def check_devices(trainer: dict[str, Any]) -> None:
    """Refuse more devices or nodes than there are, and fewer than processes were launched, before anything is loaded.

    Raises:
        UsageError: Naming the key, the number asked for and the number there is.
    """
    devices = trainer.get("devices", "auto")
    asked = len(devices) if isinstance(devices, list) else int(devices) if str(devices).lstrip("-").isdigit() else 0
    found, nodes = layout(), int(trainer.get("num_nodes", 1))
    if found.processes > 1 and asked > 0 and asked * nodes != found.processes:
        # Each process would train a model of its own, all into one folder.
        raise UsageError(
            f"{found.by} has started {found.processes} processes, but trainer.devices={asked} × "
            f"trainer.num_nodes={nodes} is {asked * nodes}: leave both out, they follow from what was started"
        )
    _check_slurm(found)
    if found.processes == 1 and nodes > 1:
        raise UsageError(
            f"trainer.num_nodes={nodes}: nothing has started processes on {nodes} nodes, and this one would wait for "
            "them: start it by torchrun or srun (docs/cluster.md), from which the number follows, or leave it out"
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


def _check_slurm(found: Layout) -> None:
    """Refuse what would wait for ever for processes that nobody starts."""
    tasks = _number("SLURM_NTASKS")
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")  # Lightning takes no notice of Slurm then
    if tasks == 1 or interactive or found.by == "torchrun":
        return
    if found.by != "srun":
        raise UsageError(f"the Slurm job has {tasks} tasks, but srun did not start this process: put srun before it")
    if "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise UsageError("srun was given --ntasks without --ntasks-per-node: Lightning needs the latter")


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
