"""Is this machine ready? Versions, devices, vendor imports, and what to do about what is broken.

Standard library only, so that it runs on the system's Python before any set-up; imports are tried in the set-up's own
interpreter, each in a process of its own, because a broken wheel may take its process down.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

HOME = Path(__file__).parent.parent
VENV_PYTHON = HOME / ".venv" / "bin" / "python"
SETUP = "make setup"
REINSTALL = "rm -rf .venv && make setup"

# module -> what does not work without it
VENDORS = {
    "torch": "everything",
    "torchvision": "pictures and backbones",
    "lightning": "training",
    "jsonargparse": "configuration",
    "torchmetrics": "training",
    "transformers": "Hugging Face tokenizers",
    "tokenizers": "captions",
    "open_clip": "CLIP models",
    "webdataset": "shards",
    "lmdb": "region features from the authors' LMDB",
    "msgpack": "the same",
    "ahocorasick": "entities in captions, so `data build`",
    "faiss": "search with FAISS (torch is the default)",
    "wandb": "W&B (runs go on without it)",
    "submitit": "tables as jobs of a cluster",
    "sklearn": "the TF-IDF floor",
    "PIL": "pictures",
    "matplotlib": "report",
    "networkx": "the picture of the entity graph",
    "jinja2": "report",
}


class Finding(NamedTuple):
    """One line of the report."""

    good: bool
    what: str
    remedy: str = ""


def doctor() -> int:
    """Print all findings; 0 if nothing is broken, else 1."""
    findings = [_python(), _make(), _disk(), *_environment()]
    if VENV_PYTHON.exists():
        findings += _vendors()
        findings.append(_devices())
    for finding in findings:
        print(f"{'ok    ' if finding.good else 'BROKEN'} {finding.what}")
        if not finding.good and finding.remedy:
            print(f"       -> {finding.remedy}")
    broken = sum(not finding.good for finding in findings)
    print(f"\n{broken} of {len(findings)} broken" if broken else f"\nall {len(findings)} in order")
    return 1 if broken else 0


def _python() -> Finding:
    version = platform.python_version()
    good = sys.version_info >= (3, 10)
    return Finding(good, f"python {version} ({platform.system()} {platform.machine()})", "install Python 3.10 or newer")


def _make() -> Finding:
    return Finding(shutil.which("make") is not None, "make", "install make; or call `python -m experiments` directly")


def _disk() -> Finding:
    free = shutil.disk_usage(HOME).free / 2**30
    return Finding(
        free > 5, f"disk: {free:.0f} GiB free, {os.cpu_count()} cores", "free some: shards and runs need room"
    )


def _environment() -> list[Finding]:
    if not VENV_PYTHON.exists():
        return [Finding(False, "no .venv yet", SETUP)]
    stamp, lock = HOME / ".venv" / ".installed", HOME / "requirements.lock"
    fresh = stamp.exists() and stamp.stat().st_mtime >= lock.stat().st_mtime
    return [Finding(fresh, ".venv is as requirements.lock wants it", SETUP)]


def _vendors() -> list[Finding]:
    """Import each vendor alone, several at a time."""
    code = "import importlib, sys; m = importlib.import_module(sys.argv[1]); print(getattr(m, '__version__', ''))"
    started = {name: _start("-c", code, name) for name in VENDORS}
    findings = []
    for name, process in started.items():
        output, error = process.communicate()
        if process.returncode == 0:
            findings.append(Finding(True, f"{name} {output.strip()}"))
            continue
        reason = (error.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        findings.append(Finding(False, f"{name}: {reason} (breaks: {VENDORS[name]})", _remedy(name, reason)))
    return findings


def _remedy(name: str, reason: str) -> str:
    if "torchvision::nms" in reason:
        return f"torch and torchvision come from different indexes; {REINSTALL} takes the locked pair"
    if "No module named" in reason:
        return f"{REINSTALL}  ({name} is in requirements.lock)"
    if "libGL" in reason or "cannot open shared object" in reason:
        return "a system library is missing: install the package that holds the file named above"
    return REINSTALL


def _devices() -> Finding:
    code = (
        "import torch\n"
        "n = torch.cuda.device_count()\n"
        "names = ', '.join(torch.cuda.get_device_name(i) for i in range(n))\n"
        "print(f'{n} GPU(s) {names}'.strip() if n else 'no GPU, CPU only')\n"
        "n and torch.ones(2, device='cuda').sum().item()\n"
    )
    output, error = (process := _start("-c", code)).communicate()
    if process.returncode == 0:
        return Finding(True, f"devices: {output.strip()}, {os.cpu_count()} CPU cores")
    reason = (error.strip().splitlines() or ["no output"])[-1]
    return Finding(
        False, f"devices: {reason}", "check the driver with nvidia-smi; without a GPU add --trainer.accelerator=cpu"
    )


def _start(*words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [str(VENV_PYTHON), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=HOME
    )
