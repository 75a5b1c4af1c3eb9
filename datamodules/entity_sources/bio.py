"""Captions with gold entities: reading the usual BIO files, collecting a lexicon from them, scoring against them.

One character (or word) and its label per line, separated by white space; an empty line ends a caption. LF or CRLF.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from datamodules.entity_sources.entity import Span
from datamodules.entity_sources.matcher import Matcher
from datamodules.entity_sources.text import is_unspaced, normalise
from datamodules.errors import DataError


class Tagged(NamedTuple):
    """A normalised caption with its gold entities."""

    text: str
    spans: list[Span]


class Score(NamedTuple):
    """Of exact spans, over all captions together."""

    precision: float
    recall: float
    f1: float


def read_bio(path: Path | str) -> list[Tagged]:
    """Read a BIO file.

    Raises:
        DataError: missing, not UTF-8, or a line that is not "character label" with B-X, I-X or O.
    """
    try:
        lines = Path(path).read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"gold entities {path}: not readable as UTF-8 ({error})") from None
    captions, text, spans = [], "", list[Span]()
    inside = ""  # tag of the entity that is going on
    for number, line in enumerate([*lines, ""], start=1):
        if not line.strip():
            if text:
                captions.append(Tagged(text, spans))
            text, spans, inside = "", [], ""
            continue
        unit, label = _unit_and_label(line.rstrip("\r"), number, path)
        unit = normalise(unit)
        if text and unit and len(unit) > 1 and not is_unspaced(unit[0]) and not is_unspaced(text[-1]):
            text += " "  # words, not characters
        prefix, _, tag = label.partition("-")
        if prefix == "I" and inside == tag:
            spans[-1] = spans[-1]._replace(end=len(text) + len(unit))
        elif prefix in ("B", "I"):
            spans.append(Span(len(text), len(text) + len(unit), tag))
        inside = tag if prefix in ("B", "I") else ""
        text += unit
    return captions


def collect_lexicon(captions: Iterable[Tagged], tags: Collection[str], min_share: float = 0.0) -> dict[str, str]:
    """The entities of tagged captions as a lexicon: term -> its commonest tag.

    Args:
        captions: with gold entities.
        tags: those to collect.
        min_share: of a term's matches in the captions, the share that has to be a gold entity of one of the tags.
    """
    captions = list(captions)
    found: dict[str, Counter[str]] = {}
    for caption in captions:
        for span in caption.spans:
            if span.tag in tags and len(name := caption.text[span.start : span.end].strip()) > 1:
                found.setdefault(name, Counter())[span.tag] += 1
    lexicon = {name: min(of, key=lambda tag: (-of[tag], tag)) for name, of in sorted(found.items())}
    if not min_share or not lexicon:
        return lexicon
    matcher, matches, right = Matcher(lexicon), Counter[str](), Counter[str]()
    for caption in captions:
        gold = {(span.start, span.end) for span in caption.spans if span.tag in tags}
        for span in matcher.spans(caption.text):
            name = caption.text[span.start : span.end]
            matches[name] += 1
            right[name] += (span.start, span.end) in gold
    return {name: tag for name, tag in lexicon.items() if not matches[name] or right[name] >= min_share * matches[name]}


def score(found: Iterable[Sequence[Span]], gold: Iterable[Tagged], tags: Collection[str], typed: bool) -> Score:
    """Precision, recall and F1 of exact spans.

    Args:
        found: spans of each caption.
        gold: the captions.
        tags: gold entities that count.
        typed: whether the tag has to be right, too.
    """
    right = num_found = num_gold = 0
    for spans, caption in zip(found, gold, strict=True):
        ours = {span if typed else span[:2] for span in spans}
        theirs = {span if typed else span[:2] for span in caption.spans if span.tag in tags}
        right, num_found, num_gold = right + len(ours & theirs), num_found + len(ours), num_gold + len(theirs)
    precision, recall = right / max(1, num_found), right / max(1, num_gold)
    return Score(precision, recall, 2 * precision * recall / max(precision + recall, 1e-12))


def _unit_and_label(line: str, number: int, path: Path | str) -> tuple[str, str]:
    unit, _, label = line.rpartition("\t" if "\t" in line else " ")
    if label != "O" and not (label[:2] in ("B-", "I-") and len(label) > 2):
        raise DataError(f'gold entities {path}, line {number}: {line!r}; write "character label" with B-X, I-X or O')
    return unit, label
