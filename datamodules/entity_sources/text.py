"""How captions and terms are written before they are compared, and where a word may begin and end."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

# Scripts that are written without spaces; all others part their words by them (Korean too).
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"  # kana, the repetition mark and the zero of Chinese
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # ideographs
)
_IS_UNSPACED = re.compile(f"[{_UNSPACED}]")
# A unit is an ideograph, a word with its inner marks (g-shock, l'oreal, 0.5ml) or a lone "&"; what lies between parts.
_WORD = rf"[^\W_{_UNSPACED}]"
_UNITS = re.compile(rf"[{_UNSPACED}]|{_WORD}+(?:['’.\-]{_WORD}+)*|&")


def normalise(text: str) -> str:
    """NFKC (full-width forms become plain ones), lower case, single spaces: what a BERT-style tokenizer hardly tells
    apart is one entity."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.lower().split())


def is_unspaced(character: str) -> bool:
    """Whether a character's script is written without spaces."""
    return _IS_UNSPACED.match(character) is not None


def cuts_word(text: str, position: int) -> bool:
    """Whether an edge between `position - 1` and `position` lies inside a word of a script with spaces."""
    if position <= 0 or position >= len(text):
        return False
    before, after = text[position - 1], text[position]
    return before.isalnum() and after.isalnum() and not is_unspaced(before) and not is_unspaced(after)


def units(text: str) -> list[list[str]]:
    """A normalised text as runs of units; an n-gram may not reach over the end of a run.

    A space joins two words of a script with spaces and parts everything else, as sellers put it between phrases.
    """
    runs: list[list[str]] = []
    end, joined = -1, False
    for match in _UNITS.finditer(text):
        unspaced = is_unspaced(match[0])
        if match.start() == end or (joined and not unspaced and text[end : match.start()] == " "):
            runs[-1].append(match[0])
        else:
            runs.append([match[0]])
        end, joined = match.end(), not unspaced
    return runs


def join_units(run: Sequence[str]) -> str:
    """The text of a run of units: a space between two words, none at an ideograph."""
    text = run[0]
    for before, after in pairwise(run):
        text += after if is_unspaced(before) or is_unspaced(after) else f" {after}"
    return text
