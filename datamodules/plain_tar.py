"""Members of a tar of unknown origin, in memory: regular files only, bounded in size, none ever extracted to disk.

Two readers. `tarfile`'s streaming mode costs a fifth of decoding the picture; `plain_members`, which understands only
what our own writer produces (regular files with short names), a twentieth. What it does not is left to `tar_members`.
"""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

MAX_MEMBER_BYTES = 128 << 20  # twice what a picture or the regions of one may have; a header can promise 8 GiB
MAX_UNPACKED_BYTES = 4 << 30  # of a gzipped tar: a kilobyte of gzip can promise a megabyte

_BLOCK = 512
_REGULAR = (b"0", b"\0")
_GZIP = b"\x1f\x8b"


class NotPlainError(Exception):
    """The archive uses an extension (long names, pax, links, directories, compression)."""


class DamagedTarError(Exception):
    """The archive is cut short, a header is corrupt, or a member is larger than any sample needs."""


def plain_members(stream: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of every member in order.

    Raises:
        NotPlainError: at a member this reader does not understand.
        DamagedTarError: at a corrupt header, a member that is too large, or where the data ends too early.
    """
    first = True
    while True:
        header = stream.read(_BLOCK)
        if len(header) < _BLOCK:
            raise DamagedTarError("unexpected end of data")
        if header == bytes(_BLOCK):
            return
        name, size = _parse(header, first)
        _check_size(name, size)
        first = False
        content = stream.read(size)
        padding = -size % _BLOCK  # read apart: cutting it off would copy the content
        if len(content) < size or len(stream.read(padding)) < padding:
            raise DamagedTarError("unexpected end of data")
        yield name, content


def tar_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of every regular file of any tar, perhaps gzipped, in order.

    Raises:
        Exception: of many kinds on damaged bytes; DamagedTarError for a member or an archive that is too large.
    """
    with open_tar(path) as tar:
        for member in regular_members(tar):
            yield member.name, content_of(tar, member)


@contextmanager
def open_tar(path: Path) -> Iterator[tarfile.TarFile]:
    """A tar, perhaps gzipped, to be read from front to back. Errors as in `tar_members`."""
    with path.open("rb") as stream:
        gzipped = stream.read(len(_GZIP)) == _GZIP
        stream.seek(0)
        if not gzipped:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                yield tar
            return
        with gzip.GzipFile(fileobj=stream) as unpacked, _streamed(_Bounded(unpacked)) as tar:
            yield tar


def regular_members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members that are files: links, which could name others, devices and folders are passed over.

    Raises:
        DamagedTarError: one is too large.
    """
    for member in tar:
        _check_size(member.name, member.size)
        if member.isreg():
            yield member


def content_of(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The bytes of a regular member."""
    file = tar.extractfile(member)
    assert file is not None, "regular_members"
    return file.read()


def _streamed(file: Any) -> tarfile.TarFile:
    return tarfile.open(fileobj=file, mode="r|")


class _Bounded:
    """A file that unpacks as it is read, up to a limit."""

    def __init__(self, file: gzip.GzipFile) -> None:
        self._file, self._left = file, MAX_UNPACKED_BYTES

    def read(self, size: int) -> bytes:
        data = self._file.read(min(size, self._left + 1))
        self._left -= len(data)
        if self._left < 0:
            raise DamagedTarError(f"unpacks to more than {MAX_UNPACKED_BYTES} bytes")
        return data


def _check_size(name: str, size: int) -> None:
    if size > MAX_MEMBER_BYTES:
        raise DamagedTarError(f"member {name[:100]!r} claims {size} bytes, the limit is {MAX_MEMBER_BYTES}")


def _parse(header: bytes, first: bool) -> tuple[str, int]:
    try:
        checksum = int(header[148:156].strip(b" \0"), 8)
        if checksum != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            raise ValueError
    except ValueError:
        if first:  # perhaps gzipped, which the other reader finds out
            raise NotPlainError from None
        raise DamagedTarError("corrupt member header") from None
    if header[156:157] not in _REGULAR or header[345:346] != b"\0":
        raise NotPlainError
    try:
        name, size = header[:100].partition(b"\0")[0].decode("ascii"), int(header[124:136].strip(b" \0"), 8)
        if size < 0:  # int() understands a sign, tar does not
            raise ValueError
        return name, size
    except ValueError:
        raise NotPlainError from None
