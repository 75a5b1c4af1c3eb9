"""From the word after --data to a shard folder: its manifest, its overlay, and what to do when it is missing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.errors import UsageError, nearest

DATA_HOME = Path("data")  # where `make data` writes, relative to the repository
FALLBACK_OVERLAY = "photos"  # a folder of one's own: pictures and a tokenizer in the shards

# What to run where `make data DATA=<name>` alone is not enough. `…` is the reader's to fill in.
BUILD_HINTS = {
    "product1m": "make data DATA=product1m RAW=<folder with the official lists>",
    "grocery": "make data DATA=grocery RAW=<the GroceryStoreDataset repository>",
    "fashion": "make data DATA=fashion SOURCE=photos RAW=<folder with a list of photos>",
    "photos": "make data DATA=photos RAW=<folder with a list of photos>",
}


class DataFolder(NamedTuple):
    """A shard folder as the configuration needs it."""

    name: str  # as it stands in run ids
    path: Path
    manifest: dict[str, Any]
    overlay: Path

    @property
    def data_hash(self) -> str:
        return str(self.manifest["data_hash"])

    @property
    def entities_hash(self) -> str | None:
        """Of the captions' entities, which are no part of the data hash; None where there are none."""
        entities = self.manifest.get("entities")
        return str(entities["hash"]) if entities else None

    def region_set(self, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """The manifest's entry of the region set a configuration reads (`data.region_set`); None where it names none.

        Raises:
            DataError: There is no such set, with the known ones and the command that writes one.
        """
        name = config["data"].get("init_args", {}).get("region_set")
        if name is None:
            return None
        from datamodules.region_sets import region_set

        manifest: Any = self.manifest
        return dict(region_set(self.path, manifest, name))

    def tokenizer_arguments(self) -> dict[str, int]:
        """Constructor arguments that follow from the tokenizer stored in the folder.

        Raises:
            UsageError: If the folder holds none.
        """
        entry = self.manifest.get("tokenizer")
        if not entry:
            raise UsageError(
                f"model.tokenizer is 'shards', but {self.path} was built without one: "
                "name a Hugging Face tokenizer with --model.tokenizer=bert-base-chinese"
            )
        found = {"vocab_size": int(entry["vocab_size"])}
        file = self.path / "tokenizer.json"
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
            found["mask_token_id"] = int(stored["model"]["vocab"]["[MASK]"])
            found["end_token_id"] = int(stored["model"]["vocab"]["[SEP]"])
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise UsageError(
                f"{file}: not a readable tokenizer with [MASK] and [SEP] ({problem!r}); build the folder again"
            ) from None
        return found

    def skipped(self) -> dict[str, int]:
        """Samples left out when the folder was built, {reason: count} over all splits."""
        total: dict[str, int] = {}
        for split in self.manifest.get("splits", {}).values():
            for reason, count in split.get("skipped", {}).items():
                total[reason] = total.get(reason, 0) + int(count)
        return total


def find_data(word: str, overlays: Mapping[str, Path]) -> DataFolder:
    """Resolve a data set's name or a shard folder's path.

    Raises:
        UsageError: If the name is unknown, or known but not built yet (says how to build it).
        DataError: If the folder's manifest cannot be read.
    """
    from datamodules.manifest import read_manifest

    path = Path(word)
    if not (path / "manifest.json").is_file():
        named = DATA_HOME / word
        if (named / "manifest.json").is_file():
            path = named
        elif len(path.parts) > 1 or path.is_dir():
            raise UsageError(
                f"--data {word}: no manifest.json there, so it is no shard folder; build one with "
                f"`make data DATA={path.name} SOURCE=<source> RAW=<raw data> OUT={word}`"
            )
        else:
            raise UsageError(_missing(word, overlays))
    manifest = dict(read_manifest(path))
    name = str(manifest.get("name") or path.resolve().name)
    overlay = overlays.get(name) or overlays.get(str(manifest.get("source"))) or overlays[FALLBACK_OVERLAY]
    return DataFolder(name, path, manifest, overlay)


def _missing(name: str, overlays: Mapping[str, Path]) -> str:
    if name not in overlays:
        built = [p.parent.name for p in DATA_HOME.glob("*/manifest.json")]
        return f"unknown data set {name!r}: {nearest(name, [*overlays, *built])}"
    how = BUILD_HINTS.get(name, f"make data DATA={name}")
    demo = "" if name == "synthetic" else ", or see it run without any data: `make demo`"
    return f"no shards at {DATA_HOME / name}: build them with `{how}`{demo}"
