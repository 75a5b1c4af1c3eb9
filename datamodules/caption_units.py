"""BERT's tokenisation by remembered units: the same ids as the whole pipeline, several times faster.

BERT's rules never look across a space or a Chinese character, so a caption's tokens are those of its units one after
another, and units repeat. Each is sent through `tokenizers` once and remembered.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer as RustTokenizer

# Blocks that every version of the rules splits at; rarer ideographs stay inside a unit, where the library splits them.
_UNITS = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|[^ \u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+")

_MOST_UNITS = 50_000  # some ten megabytes; more than there are common characters and words. Then it starts afresh


def splits_locally(rust: RustTokenizer) -> bool:
    """True if the tokenizer follows BERT's rules, so that units may be tokenised apart."""
    normalizer, model = rust.normalizer, rust.model
    return (
        type(normalizer).__name__ == "BertNormalizer"
        and bool(normalizer.handle_chinese_chars)
        and type(rust.pre_tokenizer).__name__ == "BertPreTokenizer"
        and type(model).__name__ == "WordPiece"
    )


class CaptionUnits(dict[str, list[int]]):
    """Unit -> its token ids, filled on demand.

    Args:
        rust: a tokenizer for which `splits_locally` holds.
    """

    def __init__(self, rust: RustTokenizer) -> None:
        super().__init__()
        self._rust = rust

    def tokens(self, caption: str) -> list[int]:
        """Token ids without special tokens, however many."""
        return [token for unit in _UNITS.findall(caption) for token in self[unit]]

    def __missing__(self, unit: str) -> list[int]:
        if len(self) >= _MOST_UNITS:
            self.clear()
        self[unit] = tokens = self._rust.encode(unit, add_special_tokens=False).ids
        return tokens
