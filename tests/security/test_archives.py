"""Tars and npz files of strangers: nothing leaves the archive, nothing is unpickled, and sizes are not believed."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from datamodules import plain_tar
from datamodules.errors import DataError
from datamodules.manifest import read_manifest
from datamodules.plain_tar import tar_members
from datamodules.region_set_writer import RegionSetWriter, whole_picture
from datamodules.regions import BadRegionsError, unpack_regions
from datamodules.shard_reader import read_shard
from datamodules.stored_pictures import stored_pictures
from datamodules.write_shards import build
from experiments.errors import UsageError
from experiments.stored_scores import read_arrays
from tests.datamodules.tiny_catalogue import TinyCatalogue
from tests.security.payload import Payload

SECRET = b"not for strangers"
LINKS = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]


def _entry(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.size, entry.linkname = kind, size, link
    return entry


def _tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for entry, data in members:
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    build(TinyCatalogue({"train": 2, "val": 1, "test": 1, "gallery": 1}), tmp_path / "shop", progress=False)
    return tmp_path / "shop"


@pytest.mark.parametrize("kind", LINKS)
def test_what_is_no_file_is_passed_over(kind: bytes, shop: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(SECRET)
    links = (str(tmp_path / "secret"), "../secret", "000.jpg", "missing.jpg")  # outside, itself, and nothing
    members = [(_entry(f"{n:03}.jpg", kind, link=link), b"") for n, link in enumerate(links)]
    path = _tar(shop / "train-000000.tar", *members, (_entry("009.json"), b'{"id": "a"}'))
    assert [sample.members for sample in read_shard(path)] == [{"json": b'{"id": "a"}'}]
    assert stored_pictures(shop, read_manifest(shop), "train", [0, 1]) == {}
    writer = RegionSetWriter(shop, "found", {})
    with pytest.raises(DataError, match=r"2 pictures were looked at, .* holds 1"):
        writer.write("train", 0, [(whole_picture((4, 4), np.ones(2)), None)] * 2)


@pytest.mark.parametrize("name", ["../escaped.json", "/tmp/escaped.json", "a/../../escaped.json", "escaped\0.json"])
def test_no_member_is_written_anywhere(name: str, tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    path = _tar(tmp_path / "inside" / "x.tar", (_entry(name), b"{}"), (_entry("x" * 120 + ".json"), b"{}"))
    before = set(tmp_path.rglob("*"))
    assert [sample.members for sample in read_shard(path)][-1] == {"json": b"{}"}
    assert set(tmp_path.rglob("*")) == before
    assert not Path("/tmp/escaped.json").exists()


def test_pickled_members_are_not_looked_at(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    evil = pickle.dumps(Payload(mark))
    names = [f"000.{suffix}" for suffix in ("json", "pyd", "pickle", "pkl", "pth", "pt", "jpg.pyd", "npy")]
    (sample,) = read_shard(_tar(tmp_path / "x.tar", *((_entry(name), evil) for name in names)))
    assert sample.members == {"json": evil}
    assert not mark.exists()


@pytest.mark.parametrize("plain", [True, False])
def test_a_member_that_claims_gigabytes_is_refused_before_there_is_room_for_it(plain: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    header = _entry("000.jpg", size=8 << 30 if not plain else 7 << 30).tobuf(tarfile.GNU_FORMAT)
    path.write_bytes((b"" if plain else _entry("a/", tarfile.DIRTYPE).tobuf()) + header + b"x" * 512)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"x\.tar cannot be read \(member '000.jpg' claims \d+ bytes"):
        list(read_shard(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


def test_a_gzipped_tar_unpacks_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_tar, "MAX_UNPACKED_BYTES", 1 << 20)
    whole = _tar(tmp_path / "x.tar", *((_entry(f"{n:03}.jpg"), bytes(1 << 17)) for n in range(20))).read_bytes()
    (tmp_path / "x.tar").write_bytes(gzip.compress(whole))
    with pytest.raises(DataError, match="unpacks to more than 1048576 bytes"):
        list(read_shard(tmp_path / "x.tar"))


def test_a_file_of_holes_is_bounded_by_what_it_unpacks_to(tmp_path: Path) -> None:
    hole = _entry("000.jpg", tarfile.GNUTYPE_SPARSE, size=0).tobuf(tarfile.GNU_FORMAT)
    real = f"{8 << 30:011o}\0".encode() if (8 << 30) < 8**11 else b"77777777777\0"
    header = bytearray(hole)
    header[483:495] = real  # the size of the whole, holes included
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    (tmp_path / "x.tar").write_bytes(bytes(header) + bytes(1024))
    with pytest.raises(plain_tar.DamagedTarError, match="claims"):
        list(tar_members(tmp_path / "x.tar"))


def _npz(**entries: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def _npy(shape: str, dtype: str = "'<f4'") -> bytes:
    header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64)


@pytest.mark.parametrize("shape", ["(1000000000000,)", "(4000000000, 4)", "(-1, -4)"])
def test_an_array_of_a_declared_shape_is_not_made_room_for(shape: str) -> None:
    tracemalloc.start()
    with pytest.raises(BadRegionsError, match="not readable"):
        unpack_regions(_npz(boxes=_npy(shape), features=_npy("(1, 1)"), size=_npy("(2,)")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_an_npz_that_unpacks_to_more_than_it_may_is_refused() -> None:
    with pytest.raises(BadRegionsError, match="unpacks to more than"):
        unpack_regions(_npz(boxes=bytes(65 << 20)))


def test_objects_in_arrays_are_not_unpickled(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    np.savez(tmp_path / "x.npz", boxes=np.array([Payload(mark)], object), query_ids=np.array([Payload(mark)], object))
    with pytest.raises(BadRegionsError, match="not readable"):
        unpack_regions((tmp_path / "x.npz").read_bytes())
    with pytest.raises(UsageError, match=r"x\.npz: cannot be read"):
        read_arrays(tmp_path / "x.npz")
    assert not mark.exists()
