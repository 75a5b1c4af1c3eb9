"""Where the entities of captions come from; one file per source. See docs/entities.md."""

from __future__ import annotations

from datamodules.entity_sources.answers import AnswersSource
from datamodules.entity_sources.entity import Entity, EntitySource, Item, Span
from datamodules.entity_sources.lexicon import Lexicon, LexiconSource
from datamodules.entity_sources.mined import MinedSource, MiningRules
from datamodules.entity_sources.tagger import TaggerSource
from datamodules.entity_sources.tags import DROP_LISTS, TagFilter, tag_filter

__all__ = [
    "DROP_LISTS", "AnswersSource", "Entity", "EntitySource", "Item", "Lexicon", "LexiconSource", "MinedSource",
    "MiningRules", "Span", "TagFilter", "TaggerSource", "tag_filter",
]  # fmt: skip
