"""The entities of a shard folder: one table of distinct names, and for each sample the rows of its own.

    entities/table.json      names, tags, counts (training captions that hold a name), num_nodes
    entities/<split>.npy     int32 [samples, 15], row of the table in the order of the caption, -1 = none

The first `num_nodes` rows of the table occur in training captions, the commonest first: they are the nodes of the
entity graph. The others occur in val, test or gallery only. The tars and `data_hash` do not change.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datamodules.catalogues.record import SPLITS
from datamodules.entity_sources import EntitySource, Item, TagFilter
from datamodules.errors import DataError
from datamodules.manifest import Manifest, file_sha256, read_manifest, write_manifest

log = logging.getLogger(__name__)

ENTITIES = "entities"  # folder inside the shard folder
TABLE_FILE = "table.json"
MOST_ENTITIES = 15  # of a caption; REFERENCE §5
NONE = -1


class EntityTable(NamedTuple):
    """The distinct entities of a folder."""

    names: list[str]
    tags: list[str]  # of each, the commonest if a source gave several
    counts: list[int]  # training captions that hold it; 0 behind the nodes
    num_nodes: int
    hash: str  # of table and rows; another table has another one


def how_to_add(folder: Path | str) -> str:
    """The command, for every message about missing or damaged entities."""
    return f"Add them with `python -m experiments data entities {folder}` (docs/entities.md)."


def add_entities(
    folder: Path | str, source: EntitySource, tags: TagFilter | None = None, progress: bool = True
) -> dict[str, Any]:
    """Find the entities of all captions of a finished shard folder and store them; nothing else in it changes.

    A folder whose entities were found by the same source with the same settings is left alone. A kill leaves the folder
    without entities, never with half of them.

    Args:
        folder: with a manifest.
        source: where entities come from.
        tags: the kinds that are kept; None = the authors' for multi-product retrieval.
        progress: show a bar.

    Returns:
        The manifest's entry: source, tags, hash, files, counts.

    Raises:
        DataError: no shard folder, what the source finds wrong, or not one entity in the training captions.
    """
    from datamodules.shard_folder import ShardFolder  # pulls in torch

    folder, tags = Path(folder), TagFilter() if tags is None else tags
    contents = ShardFolder(folder)
    manifest = contents.manifest
    settings = json.loads(json.dumps({"source": source.settings(), "tags": tags.settings()}))
    old = manifest["entities"]
    if old is not None and {key: old[key] for key in settings} == settings and _whole(folder, manifest):
        log.info("%s: entities are up to date (%s).", folder, old["hash"])
        return old
    items = {
        split: [Item(*row) for row in contents.captions_by_row(split)] if manifest["splits"][split]["samples"] else []
        for split in SPLITS
    }
    source.prepare([item.caption for item in items["train"]])
    tally = _Tally()
    every = source.find(_shown(chain.from_iterable(items.values()), sum(map(len, items.values())), progress))
    rows = {}
    for split in SPLITS:
        rows[split] = tally.rows(islice(every, len(items[split])), len(items[split]), tags, split == "train")
    next(every, None)  # lets the source say what it finds wrong with all of them
    table, renumbered_N = tally.table()
    if not table["num_nodes"]:
        raise DataError(
            f"{folder}: not one entity in {len(items['train'])} training captions; {tally.dropped} were found and "
            f"dropped for their tags {sorted(tally.dropped_tags)[:8]}. Choose other --keep-tags or --drop-tags, or "
            "another source."
        )
    files = _write(folder, manifest, table, {split: renumbered_N[rows_NE] for split, rows_NE in rows.items()})
    lines = "".join(f"{name} {file['sha256']}\n" for name, file in files.items())
    counts = {
        "nodes": table["num_nodes"],
        "names": len(table["names"]),
        "captions_without": {split: int((rows_NE[:, 0] == NONE).sum()) for split, rows_NE in rows.items()},
        "captions_cut": tally.cut,
        "dropped_by_tag": tally.dropped,
        "names_with_several_tags": tally.num_ambiguous,
        "problems": source.problems(),
    }
    entry = {**settings, "hash": hashlib.sha256(lines.encode()).hexdigest()[:16], "files": files, "counts": counts}
    _list(folder, manifest, entry)
    return entry


def read_table(folder: Path | str, manifest: Manifest) -> EntityTable:
    """The entity table of a folder.

    Raises:
        DataError: the folder has none, or its file is missing or not the manifest's.
    """
    folder, entry = Path(folder), manifest["entities"]
    if entry is None:
        raise DataError(f"The model reads the entities of captions, but {folder} holds none. {how_to_add(folder)}")
    path = folder / ENTITIES / TABLE_FILE
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} is not readable ({error.strerror}). {how_to_add(folder)}") from None
    if hashlib.sha256(data).hexdigest() != entry["files"].get(TABLE_FILE, {}).get("sha256"):
        raise DataError(f"{path} is not the one of the manifest: of another data set, or changed. {how_to_add(folder)}")
    try:
        value = json.loads(data)
        table = EntityTable(value["names"], value["tags"], value["counts"], value["num_nodes"], entry["hash"])
        good = _is_sound(table)
    except (ValueError, KeyError, TypeError, RecursionError):
        good = False
    if not good:
        raise DataError(f"{path} is no table of names, tags, counts and num_nodes. {how_to_add(folder)}")
    return table


def _is_sound(table: EntityTable) -> bool:
    texts, count = (table.names, table.tags), lambda value: type(value) is int and value >= 0
    return (
        all(isinstance(part, list) and all(isinstance(text, str) for text in part) for part in texts)
        and isinstance(table.counts, list)
        and all(map(count, table.counts))
        and len(table.names) == len(table.tags) == len(table.counts)
        and count(table.num_nodes)
        and table.num_nodes <= len(table.names)
    )


def open_rows(folder: Path | str, split: str, manifest: Manifest) -> np.ndarray:
    """Rows of the table for each sample of a split, int32 [samples, 15], mapped into memory.

    Raises:
        DataError: missing, no such array, or of another number of samples.
    """
    path = Path(folder) / ENTITIES / f"{split}.npy"
    samples = manifest["splits"][split]["samples"]
    try:
        rows_NE = np.load(path, mmap_mode="r" if samples else None, allow_pickle=False)
    except Exception as error:  # of damaged headers numpy makes many kinds
        raise DataError(f"{path} is not readable ({error}). {how_to_add(folder)}") from None
    if not isinstance(rows_NE, np.ndarray):
        raise DataError(f"{path} is an archive, not one array. {how_to_add(folder)}")
    if rows_NE.dtype != np.int32 or rows_NE.shape != (samples, MOST_ENTITIES):
        raise DataError(
            f"{path} holds {rows_NE.dtype} {list(rows_NE.shape)}, not int32 [{samples}, {MOST_ENTITIES}]: of another "
            f"data set. {how_to_add(folder)}"
        )
    return rows_NE


def entity_problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    """What is wrong with the stored entities, for `verify`; one line each."""
    entry, home = manifest["entities"], folder / ENTITIES
    if entry is None:
        if home.exists():
            yield f"{home}: not in the manifest. {how_to_add(folder)}"
        return
    for name in (TABLE_FILE, *(f"{split}.npy" for split in SPLITS)):
        file = entry["files"].get(name, {})
        if not (home / name).is_file():
            yield f"{home / name}: missing. {how_to_add(folder)}"
        elif file_sha256(home / name) != file.get("sha256"):
            yield f"{home / name}: sha256 differs from the manifest. {how_to_add(folder)}"
    try:
        table = read_table(folder, manifest)
        rows = {split: open_rows(folder, split, manifest) for split in SPLITS}
    except DataError as error:
        yield str(error)
        return
    num_names = len(table.names)
    if len(set(table.names)) < num_names or not num_names == len(table.tags) == len(table.counts):
        yield f"{home / TABLE_FILE}: names repeat, or names, tags and counts are not equally many. {how_to_add(folder)}"
    for split, rows_NE in rows.items():
        most = table.num_nodes if split == "train" else num_names
        bad = (rows_NE < NONE) | (rows_NE >= most)
        bad[:, 1:] |= (rows_NE[:, :-1] == NONE) & (rows_NE[:, 1:] != NONE)
        if bad.any():
            row = int(bad.any(1).argmax())
            yield f"{home / f'{split}.npy'}, row {row}: {rows_NE[row].tolist()} does not fit the table of {most} names."
    known_N = rows["train"][(rows["train"] >= 0) & (rows["train"] < num_names)]  # room is made for the largest
    counts_N = np.bincount(known_N, minlength=num_names)
    if counts_N.tolist() != table.counts:
        yield f"{home / TABLE_FILE}: counts differ from the rows of train. {how_to_add(folder)}"


class _Tally:
    """Numbers names as they come, and counts."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._tags: list[Counter[str]] = []
        self._counts: list[int] = []
        self.cut = self.dropped = 0
        self.dropped_tags: set[str] = set()

    def rows(self, found: Iterator[list], num_samples: int, tags: TagFilter, training: bool) -> np.ndarray:
        """Rows of a split by provisional number."""
        rows_NE = np.full((num_samples, MOST_ENTITIES), NONE, np.int32)
        for sample, entities in enumerate(found):
            kept = []
            for entity in entities:
                if not tags(entity.tag):
                    self.dropped += 1
                    self.dropped_tags.add(entity.tag)
                    continue
                number = self._numbers.setdefault(entity.name, len(self._numbers))
                if number == len(self._tags):
                    self._tags.append(Counter())
                    self._counts.append(0)
                self._tags[number][entity.tag] += 1
                kept.append(number)
            kept = list(dict.fromkeys(kept))
            self.cut += len(kept) > MOST_ENTITIES
            for place, number in enumerate(kept[:MOST_ENTITIES]):
                rows_NE[sample, place] = number
                self._counts[number] += training
        return rows_NE

    def table(self) -> tuple[dict[str, Any], np.ndarray]:
        """The table, and the final row of each provisional number with -1 for -1 (the last entry)."""
        names, counts = list(self._numbers), self._counts
        order = sorted(range(len(names)), key=lambda number: (-counts[number], names[number]))
        renumbered_N = np.full(len(names) + 1, NONE, np.int32)
        renumbered_N[order] = np.arange(len(names))
        commonest = [min(tags, key=lambda tag: (-tags[tag], tag)) for tags in self._tags]
        return {
            "num_nodes": sum(count > 0 for count in counts),
            "names": [names[number] for number in order],
            "tags": [commonest[number] for number in order],
            "counts": [counts[number] for number in order],
        }, renumbered_N

    @property
    def num_ambiguous(self) -> int:
        return sum(len(tags) > 1 for tags in self._tags)


def _write(
    folder: Path, manifest: Manifest, table: dict[str, Any], rows: dict[str, np.ndarray]
) -> dict[str, dict[str, Any]]:
    """The files, in one step: beside the old ones, which the manifest forgets before they are replaced."""
    temporary, home = folder / f".{ENTITIES}.tmp", folder / ENTITIES
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    text = json.dumps(table, ensure_ascii=False, indent=0)
    (temporary / TABLE_FILE).write_text(text + "\n", encoding="utf-8")
    for split, rows_NE in rows.items():
        np.save(temporary / f"{split}.npy", rows_NE)
    names = [TABLE_FILE, *(f"{split}.npy" for split in rows)]
    files = {
        name: {"bytes": (temporary / name).stat().st_size, "sha256": file_sha256(temporary / name)} for name in names
    }
    _list(folder, manifest, None)
    shutil.rmtree(home, ignore_errors=True)
    temporary.rename(home)
    return files


def _list(folder: Path, manifest: Manifest, entry: dict[str, Any] | None) -> None:
    """Note the entities in the manifest as it is now: a region set may have been finished since it was read."""
    now = read_manifest(folder)
    if now["data_hash"] != manifest["data_hash"]:
        raise DataError(f"{folder} was built again while its entities were looked for. {how_to_add(folder)}")
    if now["entities"] != entry:
        write_manifest(folder, {**now, "entities": entry})


def _whole(folder: Path, manifest: Manifest) -> bool:
    try:
        read_table(folder, manifest)
        return all(len(open_rows(folder, split, manifest)) >= 0 for split in SPLITS)
    except DataError as error:
        log.warning("Finding entities again: %s", error)
        return False


def _shown(items: Iterator[Item], number: int, progress: bool) -> Iterator[Item]:
    from rich.progress import track

    return iter(track(items, "entities", total=number, disable=not progress))
