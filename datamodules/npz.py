"""Arrays of an `.npz` in memory: a view of the bytes where they lie there plainly, decoded where they do not.

`np.load` copies an array twice on its way out (zip entry, then array), which at 36 × 2048 features costs more than the
rest of a sample. Nothing here unpickles: arrays of objects are refused.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import IO

import numpy as np
from numpy.lib import format as npy

MAX_BYTES = 64 << 20  # a zip can promise more than it weighs; 100 regions × 2048 × 2 bytes are 0.4 MB

_LOCAL_HEADER = 30  # bytes before an entry's name; lengths of name and extra field stand at 26 and 28
_NPY_VERSION_1 = b"\x93NUMPY\x01\x00"
_UNUSUAL = 0x61  # flags of an entry: encrypted, or a patch


def read_npz(data: bytes, names: Sequence[str], most_bytes: int = MAX_BYTES) -> dict[str, np.ndarray]:
    """Those of the named arrays that an npz holds.

    Args:
        data: the whole file; the arrays may be read-only views of it.
        names: as given to `np.savez`. Other entries are not read.
        most_bytes: that the whole file may unpack to.

    Raises:
        Exception: of nearly any kind on damaged bytes; ValueError for arrays of objects and for more than `most_bytes`.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > most_bytes:
            raise ValueError(f"unpacks to more than {most_bytes} bytes")
        found = {}
        for name in names:
            entry = archive.NameToInfo.get(f"{name}.npy")
            if entry is not None:
                array = _view(data, entry)
                found[name] = _decoded(archive, entry) if array is None else array
    return found


def _view(data: bytes, entry: zipfile.ZipInfo) -> np.ndarray | None:
    """The array where it lies; None = anything unusual, which is left to `_decoded` to read or to refuse."""
    plain = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
    name = entry.orig_filename.encode()
    header = data[entry.header_offset : entry.header_offset + _LOCAL_HEADER + len(name)]
    if not plain or entry.flag_bits & _UNUSUAL or not header.startswith(b"PK\x03\x04") or not header.endswith(name):
        return None
    name_length, extra_length = struct.unpack_from("<HH", header, 26)
    start = entry.header_offset + _LOCAL_HEADER + name_length + extra_length
    content = memoryview(data)[start : start + entry.file_size]
    if len(content) < entry.file_size or zlib.crc32(content) != entry.CRC:
        return None
    return _npy_view(content)


def _npy_view(content: memoryview) -> np.ndarray | None:
    prefix = bytes(content[:10])
    if len(prefix) < 10 or not prefix.startswith(_NPY_VERSION_1):
        return None
    first = 10 + struct.unpack_from("<H", prefix, 8)[0]
    shape, fortran_order, dtype = _header(bytes(content[8:first]))
    count = prod(shape)
    if dtype.hasobject or not 0 < count * dtype.itemsize <= len(content) - first:
        return None
    return np.frombuffer(content, dtype, count, first).reshape(shape, order="F" if fortran_order else "C")


@lru_cache(maxsize=256)  # numpy takes longer to parse a header than to copy the features, and most are alike
def _header(length_and_text: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    return npy.read_array_header_1_0(io.BytesIO(length_and_text))


def _decoded(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(entry) as file:
        _check_shape(file, entry.file_size)
    with archive.open(entry) as file:
        return npy.read_array(file, allow_pickle=False)


def _check_shape(file: IO[bytes], num_bytes: int) -> None:
    """numpy makes room for what a header declares before it reads on, and finds that there is less."""
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(file)
    if version not in readers:
        raise ValueError(f"npy version {version}")
    shape, _, dtype = readers[version](file)
    if min(shape, default=1) < 0 or prod(shape) * dtype.itemsize > num_bytes:
        raise ValueError(f"an array of {list(shape)} in {num_bytes} bytes")
