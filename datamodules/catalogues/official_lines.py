"""The official list format: `item_id#####caption#####url#####url#####label#;#label…`, train lines end early."""

from __future__ import annotations

import re
from typing import NamedTuple

from datamodules.errors import DataError

FIELD = "#####"
LABEL = "#;#"
ID_PATTERN = re.compile(r"[A-Za-z0-9_.-]+")


class OfficialLine(NamedTuple):
    id: str
    caption: str
    urls: tuple[str, str]
    labels: tuple[str, ...]  # repeats kept; empty in a train line


def check_id(item_id: str, where: str) -> str:
    """The id, if it may stand in a list and in a shard.

    Raises:
        DataError: it has other characters than the format allows.
    """
    if not ID_PATTERN.fullmatch(item_id):
        raise DataError(f"{where}: item id {item_id!r} is not allowed; use letters, digits, '_', '.' and '-' only")
    return item_id


def parse_line(line: str, where: str, labels_required: bool) -> OfficialLine:
    """One line of an official list.

    Args:
        line: without or with its line end.
        where: "file:line", for messages.
        labels_required: five fields with at least one label; else four fields do, too.

    Raises:
        DataError: wrong number of fields, no label, or an id that is not allowed.
    """
    fields = [field.strip() for field in line.rstrip("\r\n").split(FIELD)]
    if len(fields) != 5 and (labels_required or len(fields) != 4):
        wanted = "5 fields" if labels_required else "4 or 5 fields"
        form = FIELD.join(("id", "caption", "url", "url", "labels"))
        raise DataError(f"{where}: {len(fields)} fields where {wanted} are expected ({form})")
    labels = tuple(label.strip() for label in fields[4].split(LABEL)) if len(fields) == 5 and fields[4] else ()
    if (labels_required and not labels) or "" in labels:
        raise DataError(f"{where}: empty label; give at least one, joined by {LABEL}")
    return OfficialLine(check_id(fields[0], where), fields[1], (fields[2], fields[3]), labels)
