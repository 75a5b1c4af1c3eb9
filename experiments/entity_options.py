"""Options that say where the entities of captions come from: the same for `data build` and `data entities`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

from experiments.config import Loader
from experiments.errors import UsageError, nearest
from experiments.output import say
from experiments.parser import Parser


def add_entity_options(parser: Parser) -> None:
    """Add the options; without one, entities are mined from the training captions."""
    group = parser.add_argument_group("entities (docs/entities.md)")
    one = group.add_mutually_exclusive_group()
    one.add_argument("--lexicon", type=Path, metavar="FILE", help="terms with tags, tab-separated or JSON")
    one.add_argument("--tagger", metavar="NAME", help="a Hugging Face token-classification model, by name or path")
    one.add_argument("--answers", type=Path, nargs="+", metavar="FILE", help="stored answers of the authors' tagger")
    group.add_argument(
        "--mine", action="append", default=[], metavar="KEY=VALUE", help="a rule of mining without labels (the default)"
    )
    group.add_argument("--keep-tags", default="", metavar="A,B", help="keep these kinds only")
    group.add_argument(
        "--drop-tags",
        default="multi-product",
        metavar="LIST",
        help="multi-product, identical-product (what the authors drop), none, or tags with commas",
    )


def entity_settings(options: argparse.Namespace) -> tuple[Any, Any]:
    """The source and the filter of tags that the options ask for.

    Raises:
        UsageError: options that contradict each other, or an unknown rule.
        DataError: what the source finds wrong.
    """
    from datamodules.entity_sources import AnswersSource, LexiconSource, MinedSource, TaggerSource, tag_filter

    tags = tag_filter(_words(options.keep_tags), _words(options.drop_tags))
    others = [name for name in ("lexicon", "tagger", "answers") if getattr(options, name) is not None]
    if options.mine and others:
        raise UsageError(f"--mine is for mining and --{others[0]} takes its place: leave out one of them")
    if options.lexicon is not None:
        return LexiconSource(options.lexicon), tags
    if options.tagger is not None:
        return TaggerSource(options.tagger), tags
    if options.answers is not None:
        return AnswersSource(options.answers), tags
    return MinedSource(mining_rules(options.mine)), tags


def mining_rules(texts: list[str]) -> Any:
    """Rules from `KEY=VALUE` texts.

    Raises:
        UsageError: unknown key, or a value of another type.
    """
    from datamodules.entity_sources import MiningRules

    rules = MiningRules()
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or key not in rules._fields:
            raise UsageError(f"--mine {text}: write KEY=VALUE; {nearest(key, rules._fields)}")
        wanted, read = type(getattr(rules, key)), value if key == "stop_words" else yaml.load(value, Loader)
        if wanted is float and isinstance(read, int) and not isinstance(read, bool):
            read = float(read)
        if not isinstance(read, wanted) or isinstance(read, bool):
            raise UsageError(f"--mine {text}: {key} is a {wanted.__name__}")
        rules = rules._replace(**{key: read})
    return rules


def chosen(options: argparse.Namespace) -> bool:
    """Whether any option about entities was given."""
    given = (options.lexicon, options.tagger, options.answers, options.mine, options.keep_tags)
    return any(given) or options.drop_tags != "multi-product"


def say_entities(entry: dict[str, Any]) -> None:
    """One or two lines about the stored entities."""
    counts = entry["counts"]
    without = ", ".join(f"{split} {number}" for split, number in counts["captions_without"].items())
    say(f"entities {counts['nodes']} in training captions, {counts['names']} in all; captions without: {without}")
    said = {key: counts[key] for key in ("captions_cut", "dropped_by_tag", "names_with_several_tags") if counts[key]}
    if said or counts["problems"]:
        say("         " + ", ".join(f"{key} {number}" for key, number in {**said, **counts["problems"]}.items()))


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
