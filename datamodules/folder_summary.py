"""What the receipts of a build add up to: counts, annotations, tokenizer, and what is worth a warning."""

from __future__ import annotations

import json
import logging
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.annotations import AnnotationRow, write_rows
from datamodules.catalogues.record import SPLITS, Catalogue
from datamodules.errors import DataError
from datamodules.manifest import (
    SCHEMA_VERSION,
    TOKENIZER_FILE,
    Manifest,
    SplitEntry,
    data_hash,
    write_atomically,
)
from datamodules.near_duplicates import METHOD, Fingerprint, Prints, across_splits
from datamodules.shard_writer import RegionSizes, ShardJob, larger_of, read_receipt

log = logging.getLogger(__name__)

SKIPPED_FILE = "skipped.tsv"

_QUERY_SPLITS = ("val", "test")


class _Tally:
    """Sums over receipts, in row order. Of a training sample some 80 bytes are kept: there may be millions."""

    def __init__(self) -> None:
        self.splits: dict[str, SplitEntry] = {
            split: SplitEntry(samples=0, single=0, multi=0, unknown=0, skipped={}, unscorable=0, shards=[])
            for split in SPLITS
        }
        self.rows: dict[str, list[AnnotationRow]] = {split: [] for split in SPLITS[1:]}
        self.prints: dict[str, Prints] = {split: Prints() for split in SPLITS}
        self.regions = RegionSizes()
        self.labels: set[str] = set()
        self.id_hashes = array("q")

    def add(self, job: ShardJob, receipt: dict[str, Any]) -> None:
        entry, kinds = self.splits[job.split], receipt["kinds"]
        entry["samples"] += receipt["shard"]["samples"]
        entry["single"] += kinds.get("single", 0)
        entry["multi"] += kinds.get("multi", 0)
        entry["unknown"] += kinds.get("unknown", 0)
        entry["skipped"] = dict(sorted((Counter(entry["skipped"]) + Counter(receipt["skipped"])).items()))
        if receipt["shard"]["samples"]:
            entry["shards"].append(receipt["shard"])
        self.regions = larger_of(self.regions, RegionSizes(*receipt["regions"]), f"shard {job.file}")
        for row in receipt["rows"]:
            self.id_hashes.append(hash(row["id"]))
            self.labels.update(row["labels"])
            if job.split != "train":
                row_read = AnnotationRow(row["id"], row["caption"], row["source"], tuple(row["labels"]))
                self.rows[job.split].append(row_read)
            if row["print"] is not None:
                self.prints[job.split].add(row["id"], Fingerprint(*row["print"]))


def summarise(
    folder: Path, jobs: Sequence[ShardJob], catalogue: Catalogue, name: str, build: dict[str, Any], pictures: bool
) -> Manifest:
    """The manifest of the written shards; writes annotations, tokenizer and the list of skipped items on the way.

    Args:
        build: settings of the writer, kept for the next build to compare with.

    Raises:
        DataError: a duplicate id, or nothing to train on.
    """
    tally = _Tally()
    for job in jobs:
        tally.add(job, receipt_of(job))
    _refuse_duplicates(jobs, tally.id_hashes)
    if not tally.splits["train"]["samples"]:
        raise DataError(f"{folder}: not one usable training sample; skipped: {tally.splits['train']['skipped']}.")
    for split in SPLITS[1:]:
        write_rows(folder, split, tally.rows[split])
    _write_skipped(folder, jobs)
    tokenizer = _write_tokenizer(folder, lambda: _train_captions(jobs), build["vocab_size"])
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=name,
        source=catalogue.name,
        settings=plain(catalogue.settings()),
        build=build,
        tokenizer=tokenizer,
        pictures=pictures,
        splits=tally.splits,
        labels={"count": len(tally.labels), "without_gallery": _count_unscorable(tally)},
        regions=_regions(tally.regions),
        near_duplicates=_near_duplicates(folder, tally.prints),
        entities=None,
        region_sets={},
        data_hash=data_hash(folder, tally.splits),
    )


def _refuse_duplicates(jobs: Sequence[ShardJob], hashes: array[int]) -> None:
    """Hashes tell whether to look at all; only then are ids kept, of those that might stand twice."""
    values, counts = np.unique(np.asarray(hashes), return_counts=True)
    suspects = set(values[counts > 1].tolist())
    if not suspects:
        return
    seen: dict[str, str] = {}
    for job in jobs:
        for row in receipt_of(job)["rows"]:
            if hash(row["id"]) not in suspects:
                continue
            here = f"{job.split} ({row['source']})"
            if row["id"] in seen:
                raise DataError(
                    f"Duplicate item id '{row['id']}': once in {seen[row['id']]}, once in {here}. "
                    "Give each item an id of its own in the raw data, then build again."
                )
            seen[row["id"]] = here


def _train_captions(jobs: Sequence[ShardJob]) -> Iterator[str]:
    for job in jobs:
        if job.split == "train":
            for row in receipt_of(job)["rows"]:
                yield row["caption"]


def _write_skipped(folder: Path, jobs: Sequence[ShardJob]) -> None:
    """Every item that did not get in, by name: the manifest only counts them."""
    temporary = folder / f".{SKIPPED_FILE}.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        file.write("split\treason\tid\tdetail\n")
        for job in jobs:
            for reason, item_id, detail in receipt_of(job)["left_out"]:
                file.write("\t".join((job.split, reason, item_id, " ".join(detail.split()))) + "\n")
    temporary.replace(folder / SKIPPED_FILE)


def _regions(sizes: RegionSizes) -> dict[str, Any] | None:
    if not sizes.width:
        return None
    classes = {"classes": sizes.classes} if sizes.classes else {}  # as folders were before there were class scores
    return {"width": sizes.width, "max": sizes.most, **classes, "files": []}


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    """As it will be read back from JSON, so that comparing with a manifest is fair."""
    return json.loads(json.dumps(settings, default=str))


def receipt_of(job: ShardJob) -> dict[str, Any]:
    receipt = read_receipt(job)
    if receipt is None:
        raise DataError(f"Shard {job.folder / job.file} vanished while the folder was built. Run the build again.")
    return receipt


def _count_unscorable(tally: _Tally) -> list[str]:
    """Count queries with a label that no gallery item has (they score 0), and list such labels."""
    known = {label for row in tally.rows["gallery"] for label in row.labels}
    missing: set[str] = set()
    for split in _QUERY_SPLITS:
        bad = [row for row in tally.rows[split] if not row.labels or not known.issuperset(row.labels)]
        tally.splits[split]["unscorable"] = len(bad)
        missing.update(label for row in bad for label in row.labels if label not in known)
        if bad:
            example = f"'{bad[0].id}' with {list(bad[0].labels)}"
            share = f"{len(bad)} of {len(tally.rows[split])} {split} queries"
            log.warning("%s have a label without gallery item and count as 0, e.g. %s.", share, example)
    return sorted(missing)


def _write_tokenizer(folder: Path, captions: Callable[[], Iterable[str]], vocab_size: int) -> dict[str, Any]:
    from datamodules.tokenizer import train_wordpiece

    text = train_wordpiece(captions, vocab_size)
    write_atomically(folder / TOKENIZER_FILE, text.encode("utf-8"))
    return {"file": TOKENIZER_FILE, "vocab_size": len(json.loads(text)["model"]["vocab"])}


def _near_duplicates(folder: Path, prints: Mapping[Any, Prints]) -> dict[str, Any]:
    report = across_splits(prints)
    if report["pairs_across_splits"]:
        split, item, other_split, other = report["examples"][0]
        example = f"{split} '{item}' and {other_split} '{other}'"
        number = report["pairs_across_splits"]
        log.warning("%s: %d near-duplicate pictures across splits, e.g. %s (%s).", folder, number, example, METHOD)
    return report
