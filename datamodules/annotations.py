"""The official list of an evaluation split: `id#####caption#####url#####url#####label#;#label…`, one line per row."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from datamodules.catalogues.official_lines import ID_PATTERN
from datamodules.errors import DataError
from datamodules.manifest import annotation_path, how_to_build, write_atomically

FIELD_SEPARATOR = "#####"
LABEL_SEPARATOR = "#;#"


class AnnotationRow(NamedTuple):
    """What is known of a row without opening a tar."""

    id: str
    caption: str
    source: str
    labels: tuple[str, ...]  # repeats kept


def write_rows(folder: Path, split: str, rows: Iterable[AnnotationRow]) -> None:
    """Write a split's list in row order."""
    lines = (
        FIELD_SEPARATOR.join((row.id, row.caption, row.source, row.source, LABEL_SEPARATOR.join(row.labels)))
        for row in rows
    )
    path = annotation_path(folder, split)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode("utf-8"))


def read_rows(folder: Path, split: str, num_samples: int) -> list[AnnotationRow]:
    """Read a split's list back.

    Raises:
        DataError: missing, not UTF-8, a line without five fields, an id with other characters than the format allows,
            or not as many lines as samples in the manifest.
    """
    path = annotation_path(folder, split)
    try:
        # Only \n ends a line: captions may hold characters that str.splitlines() takes for line ends.
        lines = path.read_bytes().decode("utf-8").split("\n")
    except OSError as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"is not readable ({error.strerror})"
        raise DataError(f"{path} {what}. {how_to_build(folder)}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8. {how_to_build(folder)}") from None
    if lines and not lines[-1]:
        lines.pop()
    if len(lines) != num_samples:
        raise DataError(f"{path} has {len(lines)} lines, manifest.json says {num_samples}. {how_to_build(folder)}")
    rows = []
    for number, line in enumerate(lines, start=1):
        fields = line.rstrip("\r").split(FIELD_SEPARATOR)
        if len(fields) != 5:
            raise DataError(f"{path}, line {number}: {len(fields)} fields instead of 5. {how_to_build(folder)}")
        if not ID_PATTERN.fullmatch(fields[0]):
            raise DataError(f"{path}, line {number}: {fields[0][:100]!r} is no item id. {how_to_build(folder)}")
        labels = tuple(label for label in fields[4].split(LABEL_SEPARATOR) if label)
        rows.append(AnnotationRow(fields[0], fields[1], fields[2], labels))
    return rows
