"""Tar shards -> samples. The only file that imports webdataset, which groups members and opens remote addresses."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from datamodules.batching import PICTURE, RECORD, REGIONS, TRUTH, RawSample
from datamodules.errors import DataError
from datamodules.manifest import ShardEntry, how_to_mend
from datamodules.plain_tar import NotPlainError, plain_members, tar_members
from datamodules.region_sets import how_to_write, made_here, set_of, sidecar_file
from datamodules.remote import at_hand

_IN_SHARDS, _IN_SIDECARS = {PICTURE, REGIONS, RECORD}, {REGIONS, TRUTH}


def read_shard(path: Path, first_row: int = 0, sidecar: Path | None = None, truth: bool = False) -> Iterator[RawSample]:
    """Samples of one tar in order, members of the schema only, nothing decoded.

    Args:
        first_row: row number of the shard's first sample.
        sidecar: tar of a region set, whose regions take the place of those in the shard.
        truth: also the set's regions of the true boxes, where there are any. Evaluation only.

    Raises:
        DataError: a tar is missing or damaged, or the two do not hold the same samples.
    """
    samples = enumerate(_grouped(path, _IN_SHARDS), start=first_row)
    if sidecar is None:
        yield from (RawSample(row, path.name, members) for row, (_, members) in samples)
        return
    wanted = _IN_SIDECARS if truth else {REGIONS}
    beside = _grouped(sidecar, _IN_SIDECARS)
    for row, (key, members) in samples:
        other, regions = next(beside, ("", {}))
        if other != key:
            raise _not_the_same(path, key, sidecar, other)
        members.pop(REGIONS, None)
        members |= {suffix: data for suffix, data in regions.items() if suffix in wanted}
        yield RawSample(row, path.name, members, sidecar.name)
    if more := next(beside, None):
        raise _not_the_same(path, "", sidecar, more[0])


def _grouped(path: Path, suffixes: set[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, members by suffix) of each sample of a tar."""
    from webdataset.tariterators import group_by_keys

    with at_hand(path) as local:
        yield from _samples(path, group_by_keys(_members(local, suffixes)), suffixes)


def _samples(
    path: Path, samples: Iterator[dict[str, Any]], suffixes: set[str]
) -> Iterator[tuple[str, dict[str, bytes]]]:
    while True:
        try:
            sample = next(samples)
        except StopIteration:
            return
        except Exception as error:  # OSError, TarError, RecursionError, ValueError of a doubled member
            reason = (str(error.args[0] if error.args else "").splitlines() or [""])[0] or type(error).__name__
            raise DataError(f"Shard {path} cannot be read ({reason}). {remedy(path)}") from None
        yield sample["__key__"], {key: sample[key] for key in suffixes if key in sample}


def _members(path: Path, suffixes: set[str]) -> Iterator[dict[str, Any]]:
    """What webdataset groups into samples, by our fast reader where the tar is plain, else by `tarfile`.

    The file is opened here and not by webdataset, to which a path that begins like an address would be one.
    """
    passed = 0
    try:
        with path.open("rb") as stream:
            for name, data in plain_members(stream):
                passed += 1
                if _suffix(name) in suffixes:
                    yield {"fname": name, "data": data, "__url__": str(path)}
        return
    except NotPlainError:
        pass
    for name, data in islice(tar_members(path), passed, None):
        if _suffix(name) in suffixes:
            yield {"fname": name, "data": data, "__url__": str(path)}


def read_range(folder: Path, shards: list[ShardEntry], rows: range) -> Iterator[RawSample]:
    """The samples of a range of rows, reading only the shards that overlap it."""
    first = 0
    for shard in shards:
        if first < rows.stop and rows.start < first + shard["samples"]:
            for sample in read_shard(folder / shard["file"], first):
                if sample.row >= rows.stop:
                    break
                if sample.row >= rows.start:
                    yield sample
        first += shard["samples"]


def open_url(url: str) -> Any:
    """A stream of what webdataset can open: http(s), object storage, `pipe:`. Closing it raises if it broke off.

    Raises:
        OSError: on the way, or at the end.
    """
    from webdataset.gopen import Pipe, gopen

    if url.startswith("s3://"):  # webdataset has no opener for it
        return Pipe(["aws", "s3", "cp", url, "-"], mode="r")
    return gopen(url, "rb")


def import_reader() -> None:
    """Import webdataset in the main process: forked workers have it then, or each would import it at each start.

    Raises:
        DataError: it is not installed, or broken.
    """
    try:
        import webdataset.tariterators  # noqa: F401
    except Exception as error:
        raise DataError(f"webdataset cannot be imported ({error}), shards cannot be read. Run `make setup`.") from None


def sidecar_of(path: Path, region_set: str | None) -> Path | None:
    """The tar of a set beside a shard; None = no set."""
    return None if region_set is None else path.with_name(sidecar_file(path.name, region_set))


def remedy(path: Path) -> str:
    """What to do about a damaged tar."""
    name = set_of(path.name)
    if name is None or not made_here(path):
        return how_to_mend(path.parent)
    listed = f"List all damage with `python -m experiments data verify {path.parent}`"
    return f"{listed}. {how_to_write(path.parent, name, again=True)}"


def _suffix(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[2]


def _not_the_same(path: Path, key: str, sidecar: Path, other: str) -> DataError:
    there, here = (f"sample {one}" if one else "the end" for one in (key, other))
    return DataError(
        f"{sidecar} has {here} where {path} has {there}: the region set belongs to other shards. {remedy(sidecar)}"
    )
