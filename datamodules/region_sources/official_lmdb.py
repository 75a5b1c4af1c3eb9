"""The LMDB of the CAPTURE release, written by tensorpack's `LMDBSerializer`. The only file that imports lmdb.

A value is a list [features, boxes, num_boxes, image_h, image_w, image_id, caption], or a dict with these keys, as
msgpack with arrays as msgpack_numpy encodes them. ViLBERT's converter, the older one, has cls_prob after features.
tensorpack's newer default is pickle; that is refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from datamodules.errors import DataError
from datamodules.region_sources.official_record import OfficialFile, OfficialRecord
from datamodules.regions import BadRegionsError

_FIELDS = ("features", "boxes", "num_boxes", "image_h", "image_w", "image_id", "caption")
_FIELDS_OF_VILBERT = ("features", "cls_prob", *_FIELDS[1:])
_NEEDED = set(OfficialRecord._fields) - {"cls_prob"}
_KEY_LIST = b"__keys__"  # tensorpack's own entry: the list of keys
_MAGIC = b"\xde\xc0\xef\xbe"  # 0xBEEFC0DE, after the header of the first page
_MAGIC_AT = 16
_DTYPE = re.compile(r"[<>|=]?[fiu][1248]")  # numbers; above all no objects, which msgpack_numpy would unpickle
_AS_MSGPACK = (
    "set TENSORPACK_SERIALIZE=msgpack and convert again, or give the TSV it was converted from (docs/regions.md)."
)
_MALFORMED = (KeyError, TypeError, ValueError, IndexError, OverflowError, MemoryError)  # what `_decoded` may raise
_PICKLE = re.compile(rb"\x80[\x02-\x05]")  # protocols 2 to 5; in msgpack this is an empty dict with something behind it


def is_lmdb(path: Path) -> bool:
    """Whether a file, or the `data.mdb` of a folder, begins as an LMDB does."""
    path = path / "data.mdb" if path.is_dir() else path
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(_MAGIC_AT + len(_MAGIC))[_MAGIC_AT:] == _MAGIC


class OfficialLmdb(OfficialFile):
    """Region features by image id from the LMDB.

    Args:
        path: the file, or the folder that holds its `data.mdb`.
    """

    def settings(self) -> dict[str, Any]:
        """Bytes, number of records, and a hash of the first and the last one. What changes between is not noticed.

        Raises:
            DataError: not an LMDB, or one of the two records is pickled or not of the release.
        """
        digest = hashlib.sha256()
        with self._opened() as transaction:
            records = transaction.stat()["entries"] - (transaction.get(_KEY_LIST) is not None)
            for walk in (transaction.cursor().iternext, transaction.cursor().iterprev):
                for key, value in islice(_without_key_list(walk()), 1):
                    self._fields(key, value)
                    digest.update(key + bytes(value))
        size = (self.path / "data.mdb" if self.path.is_dir() else self.path).stat().st_size
        name = self.path.resolve().name
        return {"kind": "lmdb", "name": name, "bytes": size, "records": records, "digest": digest.hexdigest()[:16]}

    def ids(self) -> Iterator[tuple[str, bytes]]:
        """(image id, key) of every record.

        Raises:
            DataError: a record is pickled, or not of the release.
        """
        with self._opened() as transaction:
            for key, value in _without_key_list(transaction.cursor().iternext()):
                yield self._fields(key, value)["image_id"], key

    def read(self, place: bytes) -> OfficialRecord:
        """The record under a key.

        Raises:
            BadRegionsError: its arrays do not decode.
        """
        with self._opened() as transaction:
            value = transaction.get(place)
            if value is None:
                raise DataError(f"{self.path}: record {place!r} is gone; the file was changed. Build again.")
            fields = self._fields(place, value)
        try:
            return OfficialRecord(**{key: _decoded(fields[key]) for key in OfficialRecord._fields if key in fields})
        except _MALFORMED as error:
            message = f"record {place!r} does not decode ({error}); run the detector on this picture again"
            raise BadRegionsError("malformed_regions", message) from None

    def _fields(self, key: bytes, value: memoryview) -> dict[str, Any]:
        """A value by field; arrays are left as msgpack_numpy encodes them.

        Raises:
            DataError: it is pickled, not msgpack, or holds something else.
        """
        where = f"region features {self.path}, record {key!r}"
        if _PICKLE.match(value):
            raise DataError(
                f"{where} is pickled, and reading a pickle can run any program; it is refused. In the environment that "
                f"made the file, {_AS_MSGPACK}"
            )
        try:
            found = msgpack.unpackb(value, raw=False)
        except Exception as error:  # msgpack raises its own, ValueError, UnicodeDecodeError and others
            raise DataError(
                f"{where} is not msgpack ({type(error).__name__}). In the environment that made the file, {_AS_MSGPACK}"
            ) from None
        for names in (_FIELDS, _FIELDS_OF_VILBERT):
            if isinstance(found, list) and len(found) == len(names):
                found = dict(zip(names, found, strict=True))
        if not isinstance(found, dict) or not found.keys() >= _NEEDED:
            raise DataError(f"{where} is not a list or dict of {', '.join(_FIELDS)}; give the LMDB of the features")
        try:
            image_id = _decoded(found["image_id"])
        except _MALFORMED:
            image_id = None
        if not isinstance(image_id, (str, int)):
            raise DataError(f"{where}: image_id is neither text nor a number; give the LMDB of the features")
        return found | {"image_id": str(image_id)}

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """A reading transaction that hands out views of the file; nothing is written, not even a lock file."""
        lmdb = _import_lmdb()
        try:
            with (
                lmdb.open(str(self.path), subdir=self.path.is_dir(), readonly=True, lock=False) as environment,
                environment.begin(buffers=True) as transaction,
            ):
                yield transaction
        except lmdb.Error as error:
            raise DataError(f"region features {self.path}: not readable as LMDB ({error}); copy it again") from None


def _without_key_list(entries: Iterator[tuple[memoryview, memoryview]]) -> Iterator[tuple[bytes, memoryview]]:
    for key, value in entries:
        if key != _KEY_LIST:
            yield bytes(key), value


def _decoded(value: Any) -> Any:
    """What msgpack_numpy encoded as {nd, type, kind, shape, data}: an array or a number; anything else as it is.

    Raises:
        One of `_MALFORMED`: an array of something else than numbers, or of another size than it says.
    """
    if not isinstance(value, dict):
        return value
    fields = {key.decode() if isinstance(key, bytes) else key: content for key, content in value.items()}
    if not isinstance(fields["type"], str) or not _DTYPE.fullmatch(fields["type"]):
        raise ValueError(f"an array of {fields['type']!r}")
    array = np.frombuffer(fields["data"], np.dtype(fields["type"]))
    return array.reshape(fields["shape"]) if fields["nd"] else array[0].item()


def _import_lmdb() -> Any:
    try:
        import lmdb
    except Exception as error:  # a wheel for another system raises OSError, SystemError or ImportError
        raise DataError(
            f"lmdb cannot be imported ({error}), the LMDB cannot be read. Run `make setup`, or give the TSV."
        ) from None
    return lmdb
