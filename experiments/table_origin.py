"""Where the numbers of a table come from: commands, commits, hardware."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def origin(records: Iterable[dict[str, Any]]) -> list[str]:
    """A line for each command with its commit, and for each machine."""
    records = list(records)
    lines = sorted({f"`{r['command']}` at {commit(r['git'])}" for r in records})
    return lines + [f"on {machine}" for machine in sorted({_machine(record["hardware"]) for record in records})]


def commit(git: dict[str, Any]) -> str:
    """A commit in short, and whether the code differed from it."""
    name = str(git.get("commit") or "no commit")[:10]
    return f"{name} with uncommitted changes" if git.get("dirty") else name


def _machine(hardware: dict[str, Any]) -> str:
    gpus = ", ".join(hardware.get("gpus") or [])
    return f"{hardware.get('cpu')}, {hardware.get('cores')} cores" + (f", {gpus}" if gpus else "")
