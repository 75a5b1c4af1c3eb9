"""The shards that a finished run was evaluated on, for its page: who was asked for, what was searched, and pictures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from datamodules.annotations import AnnotationRow, read_rows
from datamodules.errors import DataError
from datamodules.manifest import Manifest, read_manifest
from datamodules.stored_pictures import stored_pictures
from experiments.runs import RunFolder


class RunShards(NamedTuple):
    """A shard folder as far as a page needs it. Imports no torch."""

    path: Path
    manifest: Manifest
    test: list[AnnotationRow]
    gallery: list[AnnotationRow]

    def pictures(self, split: str, rows: Iterable[int]) -> dict[int, bytes]:
        """Encoded pictures by row.

        Raises:
            DataError: a tar is missing or damaged.
        """
        return stored_pictures(self.path, self.manifest, split, rows)


def open_shards(folder: RunFolder, record: dict[str, Any]) -> RunShards:
    """The shards that a run's configuration names.

    Raises:
        DataError: If they are gone, damaged, or no longer those that were evaluated.
    """
    config = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    path = Path(config["data"]["init_args"]["folder"])
    manifest = read_manifest(path)
    if manifest["data_hash"] != record["data_hash"]:
        raise DataError(f"{path} has changed since the run; evaluate it again: make eval RUN={folder.root}")
    rows = {
        split: read_rows(path, split, sum(shard["samples"] for shard in manifest["splits"][split]["shards"]))
        for split in ("test", "gallery")
    }
    return RunShards(path, manifest, rows["test"], rows["gallery"])
