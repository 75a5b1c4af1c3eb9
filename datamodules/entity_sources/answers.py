"""The stored answers of a tagger in the format of the EGE-CMP release.

A JSON object from item id to a JSON *string* `{"status": "OK", "result": [{"word": …, "tag": …}, …]}`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from datamodules.entity_sources.entity import Entity, Item
from datamodules.entity_sources.text import normalise
from datamodules.errors import DataError

log = logging.getLogger(__name__)

_NAMED = 3  # malformed answers that a warning names, by kind; all are counted
_FORM = 'a JSON object from item id to the string {"status": "OK", "result": [{"word": …, "tag": …}, …]}'


class AnswersSource:
    """Entities looked up by item id. An item without a usable answer has none, and is counted.

    Args:
        paths: files of answers, or folders of `*.json`. Of an id that is answered twice the first answer counts. Each
            file is read whole.

    Raises:
        DataError: a file is missing or no JSON object, or (in `find`, at the end) not one item has an answer.
    """

    def __init__(self, paths: Sequence[Path | str]) -> None:
        self.files: list[Path] = []
        for path in map(Path, paths):
            self.files += sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not self.files:
            raise DataError(f"tagger answers {', '.join(map(str, paths))}: no *.json there; give {_FORM}")
        self._digest = hashlib.sha256()
        for path in self.files:
            if not path.is_file():
                raise DataError(f"tagger answers {path}: no such file; give {_FORM}")
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    self._digest.update(block)
        self._answers: dict[str, tuple[Entity, ...]] = {}
        self._problems: Counter[str] = Counter()

    def settings(self) -> dict[str, Any]:
        """Names of the files and a hash of all of them."""
        names = [path.name for path in self.files]
        return {"kind": "answers", "files": names, "digest": self._digest.hexdigest()[:16]}

    def prepare(self, train_captions: Iterable[str]) -> None:
        """Read all answers; captions are not looked at."""
        known: dict[Entity, Entity] = {}
        for path in self.files:
            for item, answer in self._pairs(path):
                if item in self._answers:
                    self._report("answered_twice", item, path, "it was answered before; the first answer counts")
                    continue
                entities = self._parsed(item, answer, path)
                if entities is not None:
                    self._answers[item] = tuple(known.setdefault(entity, entity) for entity in entities)

    def find(self, items: Iterable[Item]) -> Iterator[list[Entity]]:
        """As `EntitySource.find`."""
        num_items = num_answered = 0
        for item in items:
            answer = self._answers.get(item.id)
            num_items, num_answered = num_items + 1, num_answered + (answer is not None)
            self._problems["no_usable_answer"] += answer is None
            yield list(answer or ())
        if num_items and not num_answered:
            raise DataError(
                f"tagger answers {', '.join(map(str, self.files))}: none of {num_items} items has one, so they are "
                "of another data set; give those of this one (ids as in its lists)"
            )

    def problems(self) -> dict[str, int]:
        """Malformed answers by kind, and items without a usable one."""
        return {kind: count for kind, count in sorted(self._problems.items()) if count}

    def _pairs(self, path: Path) -> list[tuple[str, Any]]:
        pairs: list[tuple[str, Any]] = []

        def keep(found: list[tuple[str, Any]]) -> dict[str, Any]:
            pairs[:] = found  # the outermost object is finished last
            return dict(found)

        try:
            value = json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=keep)
        except (ValueError, RecursionError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"tagger answers {path}: not readable as JSON ({reason}); give {_FORM}") from None
        if not isinstance(value, dict):
            raise DataError(f"tagger answers {path}: not an object; give {_FORM}")
        return pairs

    def _parsed(self, item: str, answer: Any, path: Path) -> list[Entity] | None:
        fault = None
        try:
            value = json.loads(answer) if isinstance(answer, str) else None
        except (ValueError, RecursionError) as error:
            fault = ("no_json_string", f"the answer is no JSON ({str(error).splitlines()[0]})")
        else:
            if not isinstance(answer, str):
                fault = ("no_json_string", f"the answer is a {type(answer).__name__}, not a string")
            elif not isinstance(value, dict) or value.get("status") != "OK":
                status = value.get("status") if isinstance(value, dict) else None
                fault = ("status_not_ok", f"its status is {status!r}")
            elif not isinstance(value.get("result"), list):
                fault = ("no_result", 'it has no list "result"')
        if fault is not None:
            self._report(fault[0], item, path, fault[1])
            return None
        assert isinstance(value, dict)
        entities = []
        for word in value["result"]:
            good = isinstance(word, dict) and isinstance(word.get("word"), str) and isinstance(word.get("tag"), str)
            name = normalise(word["word"]) if good else ""
            if not good:
                self._report("bad_word", item, path, f"{str(word)[:60]!r} has no texts word and tag; the others count")
            elif name:
                entities.append(Entity(name, word["tag"].strip()))
        return entities

    def _report(self, kind: str, item: str, path: Path, what: str) -> None:
        self._problems[kind] += 1
        if self._problems[kind] <= _NAMED:
            log.warning("tagger answers %s, item '%s' (%s): %s.", path, item, kind, what)
