"""Lists of single-product photos: the official line format, CSV or JSONL with the columns id, caption, image, label."""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.catalogues.official_lines import check_id, parse_line
from datamodules.errors import DataError

COLUMNS = ("id", "caption", "image", "label")


class PhotoRow(NamedTuple):
    """One photo of one product; an empty label means that it can only be trained on."""

    id: str
    caption: str
    urls: tuple[str, ...]
    label: str


def find_list(raw: Path, list_file: str = "") -> Path:
    """The list in folder `raw`: the one named, or the only one there is.

    Raises:
        DataError: none, or several and none named.
    """
    if not raw.is_dir():
        raise DataError(f"raw folder {raw} does not exist; give the folder with the list file and its pictures")
    if list_file:
        path = raw / list_file
        if not path.is_file():
            raise DataError(f"list_file {list_file!r} is not in {raw}")
        return path
    found = sorted(
        path for path in raw.iterdir() if path.name == "products.txt" or path.suffix.lower() in (".csv", ".jsonl")
    )
    if not found:
        raise DataError(f"no list in {raw}: expected products.txt (official lines), a .csv or a .jsonl")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(f"several lists in {raw} ({names}); choose one with the option list_file")
    return found[0]


def _check_columns(names: list[str], where: str) -> None:
    for column in COLUMNS:
        if column not in names:
            near = difflib.get_close_matches(column, [name for name in names if name not in COLUMNS], n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DataError(f"{where}: column {column!r} is missing (found: {', '.join(names) or 'none'}){hint}")


def _from_fields(fields: dict[str, Any], where: str) -> PhotoRow:
    value = {key: str(fields[key]).strip() if fields[key] is not None else "" for key in COLUMNS}
    for key, text in value.items():
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise DataError(f"{where}: column {key!r} holds half a character (a lone \\ud…); write the list again")
    return PhotoRow(check_id(value["id"], where), value["caption"], (value["image"],), value["label"])


def _official_rows(path: Path) -> Iterator[tuple[int, PhotoRow]]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, text in enumerate(lines, start=1):
            if not text.strip():
                continue
            line = parse_line(text, f"{path}:{number}", labels_required=False)
            if len(line.labels) > 1:
                raise DataError(
                    f"{path}:{number}: {line.id} has {len(line.labels)} labels, but photos takes single-product "
                    "pictures; remove the line or use the source product1m"
                )
            yield number, PhotoRow(line.id, line.caption, line.urls, line.labels[0] if line.labels else "")


def _csv_rows(path: Path) -> Iterator[tuple[int, PhotoRow]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        _check_columns([name.strip() for name in reader.fieldnames or ()], f"{path}:1")
        for fields in reader:
            yield reader.line_num, _from_fields({(key or "").strip(): text for key, text in fields.items()},
                                                f"{path}:{reader.line_num}")  # fmt: skip


def _jsonl_rows(path: Path) -> Iterator[tuple[int, PhotoRow]]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, text in enumerate(lines, start=1):
            if not text.strip():
                continue
            try:
                fields = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}:{number}: not JSON ({str(error).splitlines()[0]})") from None
            if not isinstance(fields, dict):
                raise DataError(f"{path}:{number}: expected an object with {', '.join(COLUMNS)}")
            _check_columns(list(fields), f"{path}:{number}")
            yield number, _from_fields(fields, f"{path}:{number}")


@lru_cache(maxsize=2)
def read_list(path: Path) -> tuple[PhotoRow, ...]:
    """All rows of a list, in its order.

    Raises:
        DataError: a malformed row, an id twice (naming both lines), text that is not UTF-8, or no row at all.
    """
    reader = {".csv": _csv_rows, ".jsonl": _jsonl_rows}.get(path.suffix.lower(), _official_rows)
    rows: list[PhotoRow] = []
    line_of: dict[str, int] = {}
    try:
        for number, row in reader(path):
            if row.id in line_of:
                raise DataError(f"{path}: item id {row.id} stands in line {line_of[row.id]} and in line {number}")
            line_of[row.id] = number
            rows.append(row)
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; convert the list") from None
    except csv.Error as error:
        raise DataError(f"{path}: not readable as CSV ({error})") from None
    if not rows:
        raise DataError(f"{path}: the list is empty")
    return tuple(rows)
