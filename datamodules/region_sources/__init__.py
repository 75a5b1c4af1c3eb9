"""Region features that a detector left on disk, as sources for `write_shards.build(regions=…)`; see docs/regions.md."""

from __future__ import annotations

from pathlib import Path

from datamodules.errors import DataError
from datamodules.region_sources.folder import RegionFolder, write_region_file
from datamodules.region_sources.official_lmdb import OfficialLmdb, is_lmdb
from datamodules.region_sources.official_tsv import OfficialTsv, is_tsv
from datamodules.region_sources.store import RegionStore

__all__ = ["RegionStore", "open_region_store", "write_region_file"]


def open_region_store(path: Path | str) -> RegionStore:
    """The region features at a path, recognised by what is there, not by its name.

    Args:
        path: a folder of `<item id>.npz`, an LMDB of the CAPTURE release (the file, or the folder that holds its
            `data.mdb`), or the TSV that it is made from.

    Raises:
        DataError: there is nothing, or none of these.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"region features {path}: no such file or folder")
    if is_lmdb(path):
        return OfficialLmdb(path)
    if path.is_dir():
        return RegionFolder(path)
    if is_tsv(path):
        return OfficialTsv(path)
    raise DataError(
        f"region features {path}: neither an LMDB nor a TSV of the CAPTURE release; give one of them or a folder of "
        "<item id>.npz (docs/regions.md)"
    )
