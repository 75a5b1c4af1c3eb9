"""The arrows of the house, read from the syntax trees: who may import whom, and each vendor in its file."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("datamodules", "lightning_modules", "retrieval", "experiments")
MAY_IMPORT = {
    "datamodules": {"datamodules"},
    "retrieval": {"retrieval"},
    "lightning_modules": {"lightning_modules", "retrieval", "datamodules.batch"},
    "experiments": set(PACKAGES),
}
VENDOR_FILES = {
    "webdataset": {"datamodules/shard_reader.py"},
    "faiss": {"retrieval/search.py"},
    "wandb": {"experiments/wandb_logger.py", "experiments/wandb_segments.py", "experiments/wandb_artifacts.py"},
    "ahocorasick": {"datamodules/entity_sources/matcher.py"},
    "lmdb": {"datamodules/region_sources/official_lmdb.py"},
    "submitit": {f"experiments/cluster/{name}.py" for name in ("fit_job", "launch", "records")},
    "open_clip": {"lightning_modules/clip_source.py", "datamodules/tokenizer.py"},
}


def _imports(path: Path) -> list[tuple[str, int]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.append((node.module, node.lineno))
    return found


FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    for name, line in _imports(path):
        if name.split(".")[0] in PACKAGES:
            allowed = MAY_IMPORT[package]
            assert any(name == a or name.startswith(a + ".") for a in allowed), f"{path}:{line} imports {name}"
        vendor = name.split(".")[0]
        if vendor in VENDOR_FILES and not path.name.startswith("bench_"):  # benchmarks measure against bare vendors
            assert str(path.relative_to(ROOT)) in VENDOR_FILES[vendor], f"{path}:{line} imports {vendor}"


def test_packages_import_without_torch() -> None:
    code = f"import sys; import {', '.join(PACKAGES)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
