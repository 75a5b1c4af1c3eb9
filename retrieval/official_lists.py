"""The official text lists: annotation lines and ranking lines. Every error names the file and the line.

Annotation: `item_id#####caption#####url#####url#####label#;#label…`; training lines end after the urls.
Ranking: `query_id,item_id,item_id,…`, best first, up to 100 items.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from retrieval.errors import RetrievalError
from retrieval.ranking import UNKNOWN_ITEM, Ranking, as_ids, check_ranking, check_unique

FIELD, LABEL = "#####", "#;#"
_ID = re.compile(r"[A-Za-z0-9_.-]+")
# For captions that hold or end in '#': the caption is whatever stands before the urls, and no url starts with '#'.
_LOOSE_LINE = re.compile(
    r"(?P<id>[^#]+)#####(?P<caption>.*?)#####(?P<url>(?:(?!#)(?:(?!#####).)*)?)#####(?:(?!#)(?:(?!#####).)*)?"
    r"(?:#####(?P<labels>(?:(?!#####).)*))?"
)


class Annotations(NamedTuple):
    """One annotation file, in the order of its lines."""

    ids: np.ndarray  # str
    captions: list[str]
    labels: list[tuple[str, ...]]  # repeats kept; () where the file has none
    urls: list[str]


def read_annotations(path: str | Path) -> Annotations:
    """Read an official annotation file (UTF-8, with or without byte-order mark, LF or CRLF).

    Blanks around ids and labels are dropped: the released lists have the same label with and without one.

    Raises: RetrievalError naming file and line on a missing file, bytes that are not UTF-8, a wrong number of fields,
        an id with other characters than [A-Za-z0-9_.-], or an id that occurred before.
    """
    line_of: dict[str, int] = {}
    captions, labels, urls = [], [], []
    for number, line in _lines(path):
        item, caption, url, names = _annotation(line, f"{path}, line {number}")
        if item in line_of:
            raise RetrievalError(
                f"{path}, line {number}: duplicate item id {item}, first seen in line {line_of[item]}; keep one of them"
            )
        line_of[item] = number
        captions.append(caption)
        labels.append(names)
        urls.append(url)
    return Annotations(as_ids(list(line_of)), captions, labels, urls)


def write_annotations(annotations: Annotations, path: str | Path) -> None:
    """Write an annotation file; items without labels get a line of four fields, as in the training list.

    Raises: RetrievalError when an item could not be read back as it is (a caption with a line break, say).
    """
    lines = []
    for item, caption, names, url in zip(*annotations, strict=True):
        line = FIELD.join([str(item), caption, url, url, *([LABEL.join(names)] if names else [])])
        if "\n" in line or "\r" in line or _annotation(line, f"item {item}") != (item, caption, url, tuple(names)):
            raise RetrievalError(
                f"{path}: item {item} would not read back as written; "
                f"its caption, url or labels hold a line break, '{FIELD}' or '{LABEL}', or a label has outer blanks"
            )
        lines.append(line + "\n")
    Path(path).write_bytes("".join(lines).encode())


def read_ranking(path: str | Path, gallery_ids: Sequence[str] | np.ndarray | None = None) -> Ranking:
    """Read an official ranking file.

    Args:
        gallery_ids: the rows that index_QK shall point to; ids beside them become UNKNOWN_ITEM.
            None: the gallery is the ids that the file names, in code-point order.

    Returns: Ranking with nan scores (the format has none); shorter lists are filled up with NO_ITEM.

    Raises: RetrievalError naming file and line on a missing file, bytes that are not UTF-8, an empty id, one
        with a NUL character, or a query that occurred before.
    """
    line_of: dict[str, int] = {}
    found: list[list[str]] = []
    for number, line in _lines(path):
        query, *items = map(str.strip, line.split(","))
        if "\0" in line:  # NumPy drops it at the end of an id, and two ids become one
            raise RetrievalError(f"{path}, line {number}: a NUL character, so the file is damaged")
        if not query or not all(items):
            raise RetrievalError(f"{path}, line {number}: empty id; expected query_id,item_id,item_id,…")
        if query in line_of:
            raise RetrievalError(
                f"{path}, line {number}: duplicate query {query}, first seen in line {line_of[query]}; keep one of them"
            )
        line_of[query] = number
        found.append(items)
    if gallery_ids is None:
        gallery_ids = as_ids(sorted(set(chain.from_iterable(found))))
    gallery_ids = as_ids(gallery_ids)
    check_unique(gallery_ids, "gallery")
    return _ranking_of(list(line_of), found, gallery_ids)


def write_ranking(ranking: Ranking, path: str | Path) -> None:
    """Write a ranking in the official list format, one line per query.

    Raises: RetrievalError when a list holds items whose ids are not known.
    """
    ranking = check_ranking(ranking)
    if (ranking.index_QK == UNKNOWN_ITEM).any():
        raise RetrievalError(f"{path}: the ranking holds items outside its gallery, so their ids cannot be written")
    query_ids, gallery_ids = ranking.query_ids.tolist(), ranking.gallery_ids.tolist()
    lines = []
    for query, index_K in zip(query_ids, ranking.index_QK.tolist(), strict=True):
        lines.append(",".join([query, *(gallery_ids[index] for index in index_K if index >= 0)]) + "\n")
    Path(path).write_bytes("".join(lines).encode())


def _ranking_of(query_ids: list[str], found: list[list[str]], gallery_ids: np.ndarray) -> Ranking:
    row_of = {item: row for row, item in enumerate(gallery_ids.tolist())}
    lengths_Q = np.array([len(items) for items in found], np.int64)
    index_QK = np.full((len(found), int(lengths_Q.max(initial=0))), -1, np.int64)
    score_QK = np.full(index_QK.shape, -np.inf, np.float32)
    filled_QK = np.arange(index_QK.shape[1]) < lengths_Q[:, None]
    index_QK[filled_QK] = [row_of.get(item, UNKNOWN_ITEM) for items in found for item in items]
    score_QK[filled_QK] = np.nan
    return Ranking(as_ids(query_ids), gallery_ids, index_QK, score_QK)


def _annotation(line: str, place: str) -> tuple[str, str, str, tuple[str, ...]]:
    """Id, caption, first url and labels of one line."""
    fields = line.split(FIELD)
    if len(fields) not in (4, 5) or fields[2].startswith("#") or fields[3].startswith("#"):
        match = _LOOSE_LINE.fullmatch(line)
        if not match:
            raise RetrievalError(
                f"{place}: expected item_id, caption, url, url and labels separated by '{FIELD}' "
                f"(4 fields without labels, or 5), found {len(fields)}"
            )
        fields = [match["id"], match["caption"], match["url"], "", *([match["labels"]] if match["labels"] else [])]
    item = fields[0].strip()
    if not _ID.fullmatch(item):
        raise RetrievalError(f"{place}: item id {item!r} must be made of letters, digits, '_', '.' and '-'")
    names = fields[4].split(LABEL) if len(fields) == 5 else []
    return item, fields[1], fields[2], tuple(name.strip() for name in names if name.strip())


def _lines(path: str | Path) -> list[tuple[int, str]]:
    """Numbered lines that are not blank. Only line feeds end a line: captions may hold U+2028 and its like."""
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise RetrievalError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # `object` and `start` belong together: the codec has already dropped a byte-order mark from both.
        number = error.object.count(b"\n", 0, error.start) + 1
        raise RetrievalError(f"{path}, line {number}: not valid UTF-8; convert the file to UTF-8") from error
    lines = [(number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise RetrievalError(f"{path}: the file holds no lines")
    return lines
