"""A lexicon of one's own: terms with tags in a file, matched in every caption."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datamodules.entity_sources.entity import Entity, Item, Span
from datamodules.entity_sources.matcher import Matcher
from datamodules.entity_sources.text import normalise
from datamodules.errors import DataError

log = logging.getLogger(__name__)

_NAMED = 3  # contradictions that a warning names; all are counted
_FORMS = 'lines "term<TAB>tag" (the tag may be missing), a JSON object {"term": "tag"}, or a JSON list of either form'


class Lexicon:
    """Terms with one tag each.

    Terms are compared as `text.normalise` writes them, so `AHC` and `ａｈｃ` are one. Of a term with several tags the
    first in the file counts, and the others are named in a warning.

    Args:
        path: tab-separated or JSON, UTF-8.

    Raises:
        DataError: missing, not UTF-8, malformed (with the line or entry), or without a term.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            data = self.path.read_bytes()
            text = data.decode("utf-8-sig")
        except OSError as error:
            raise DataError(f"lexicon {self.path}: not readable ({error.strerror}); give a file of {_FORMS}") from None
        except UnicodeDecodeError as error:
            raise DataError(f"lexicon {self.path}: not UTF-8 at byte {error.start}; convert it") from None
        self.digest = hashlib.sha256(data).hexdigest()[:16]
        self.tags: dict[str, str] = {}  # normalised term -> tag
        self.num_duplicates, self.num_contradictions = 0, 0
        self._collect(text)

    def _collect(self, text: str) -> None:
        places: dict[str, str] = {}
        named: list[str] = []
        is_json = text.lstrip()[:1] in ("{", "[")
        for place, term, tag in self._from_json(text) if is_json else self._from_lines(text):
            name = normalise(term)
            if not name:
                raise DataError(f"lexicon {self.path}, {place}: an empty term; write {_FORMS}")
            if name not in self.tags:
                self.tags[name], places[name] = tag, place
            elif self.tags[name] == tag:
                self.num_duplicates += 1
            else:
                self.num_contradictions += 1
                named.append(f"'{name}' is '{self.tags[name]}' in {places[name]} and '{tag}' in {place}")
        if not self.tags:
            raise DataError(f"lexicon {self.path}: it holds no term; write {_FORMS}")
        if named:
            more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
            log.warning(
                "lexicon %s: contradictory tags, the first counts: %s%s", self.path, "; ".join(named[:_NAMED]), more
            )

    def _from_lines(self, text: str) -> Iterator[tuple[str, str, str]]:
        for number, line in enumerate(text.split("\n"), start=1):
            fields = line.rstrip("\r").split("\t")
            if len(fields) > 2:
                raise DataError(f"lexicon {self.path}, line {number}: {len(fields)} fields; write {_FORMS}")
            if any(field.strip() for field in fields):
                yield f"line {number}", fields[0], fields[1].strip() if len(fields) == 2 else ""

    def _from_json(self, text: str) -> Iterator[tuple[str, str, str]]:
        try:  # pairs, so that a key that stands twice is seen twice
            value = json.loads(text, object_pairs_hook=_Pairs)
        except (ValueError, RecursionError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"lexicon {self.path}: not readable as JSON ({reason}); write {_FORMS}") from None
        entries = [value] if isinstance(value, _Pairs) else value
        for number, entry in enumerate(entries, start=1):
            place = f"entry {number}"
            if isinstance(entry, str):
                entry = [entry, ""]
            if isinstance(entry, _Pairs):
                for key, tag in entry:
                    yield f"entry '{key}'" if entry is value else place, key, self._tag(tag, key)
            elif isinstance(entry, list) and 1 <= len(entry) <= 2 and isinstance(entry[0], str):
                yield place, entry[0], self._tag(entry[1] if len(entry) == 2 else "", entry[0])
            else:
                raise DataError(f"lexicon {self.path}, {place}: neither term nor [term, tag]; write {_FORMS}")

    def _tag(self, tag: Any, term: str) -> str:
        if tag is None or isinstance(tag, str):
            return (tag or "").strip()
        raise DataError(f"lexicon {self.path}, term '{term}': its tag is no text; write {_FORMS}")


class _Pairs(list):
    """The pairs of a JSON object."""


class LexiconSource:
    """Entities by longest match of a lexicon's terms; see `Matcher`.

    Args:
        path: of the lexicon, see `Lexicon`.
    """

    def __init__(self, path: Path | str) -> None:
        self.lexicon = Lexicon(path)
        self._matcher: Matcher | None = None

    def settings(self) -> dict[str, Any]:
        """The file's name and hash."""
        return {"kind": "lexicon", "name": self.lexicon.path.name, "digest": self.lexicon.digest}

    def prepare(self, train_captions: Iterable[str]) -> None:
        """Build the automaton; captions are not looked at."""
        self._matcher = Matcher(self.lexicon.tags)

    def find(self, items: Iterable[Item]) -> Iterator[list[Entity]]:
        """As `EntitySource.find`."""
        for item in items:
            text = normalise(item.caption)
            yield [Entity(text[span.start : span.end], span.tag) for span in self.spans(text)]

    def spans(self, text: str) -> list[Span]:
        """The terms in a normalised text."""
        assert self._matcher is not None, "prepare first"
        return self._matcher.spans(text)

    def problems(self) -> dict[str, int]:
        """Terms of the file that stand in it with another tag."""
        found = {"contradictory_tags": self.lexicon.num_contradictions, "duplicate_terms": self.lexicon.num_duplicates}
        return {kind: count for kind, count in found.items() if count}
