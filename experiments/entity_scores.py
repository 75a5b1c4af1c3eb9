"""How well entities are found where people marked them: a table of precision, recall and F1 of exact spans."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.entity_options import mining_rules
from experiments.output import say
from experiments.parser import Parser


def score_entities_command(words: list[str]) -> None:
    """Run `data score-entities …`."""
    parser = Parser(
        "data score-entities",
        "a lexicon collected from tagged captions, and one mined from their bare text, on other tagged captions",
    )
    parser.add_argument("--train", type=Path, required=True, metavar="F", help="BIO file to collect and to mine from")
    parser.add_argument("--gold", type=Path, required=True, metavar="F", help="BIO file to score on")
    parser.add_argument("--tags", default="HPPX,HCCX", metavar="A,B", help="tags that count (default: HPPX,HCCX)")
    parser.add_argument(
        "--min-share", type=float, default=0.3, metavar="X", help="of a term's matches, the share that is an entity"
    )
    parser.add_argument("--lexicon", type=Path, metavar="FILE", help="score this lexicon, too")
    parser.add_argument("--tagger", metavar="NAME", help="score this token-classification model, too")
    parser.add_argument("--mine", action="append", default=[], metavar="KEY=VALUE", help="a rule of mining")
    parser.add_argument("--save-lexicon", type=Path, metavar="FILE", help="write the collected lexicon, tab-separated")
    options = parser.parse(words)

    from datamodules.entity_sources import LexiconSource, MinedSource
    from datamodules.entity_sources.bio import collect_lexicon, read_bio
    from datamodules.entity_sources.matcher import Matcher
    from experiments.runs import write_text

    train, gold = read_bio(options.train), read_bio(options.gold)
    tags = tuple(word for word in options.tags.split(",") if word)
    lexicon = collect_lexicon(train, tags, options.min_share)
    if options.save_lexicon:
        write_text(options.save_lexicon, "".join(f"{term}\t{tag}\n" for term, tag in lexicon.items()))
    say(f"{len(train)} captions in {options.train.name}, {len(gold)} in {options.gold.name}")
    say("| source | terms | counts | precision | recall | F1 |\n|---|---:|---|---:|---:|---:|")
    matcher = Matcher(lexicon)
    _say_rows("lexicon from tagged captions", len(lexicon), [matcher.spans(one.text) for one in gold], gold, tags, True)
    mined = MinedSource(mining_rules(options.mine))
    started = time.perf_counter()
    mined.prepare(one.text for one in train)
    seconds = time.perf_counter() - started
    _say_rows("mined, without labels", len(mined.terms), [mined.spans(one.text) for one in gold], gold, tags, False)
    if options.lexicon:
        own = LexiconSource(options.lexicon)
        own.prepare(())
        found = [own.spans(one.text) for one in gold]
        _say_rows(options.lexicon.name, len(own.lexicon.tags), found, gold, tags, True)
    if options.tagger:
        from datamodules.entity_sources import TaggerSource

        tagger = TaggerSource(options.tagger)
        tagger.prepare(())
        _say_rows(options.tagger, 0, tagger.spans([one.text for one in gold]), gold, tags, True)
    say(f"mining took {seconds:.1f} s")


def _say_rows(name: str, terms: int, found: list, gold: Sequence[Any], tags: tuple[str, ...], typed: bool) -> None:
    """Rows for all tags together, with and without the tag, and for each tag."""
    from datamodules.entity_sources.bio import score

    rows = [("spans", found, tags, False)]
    if typed:
        rows.append(("spans and tags", found, tags, True))
        rows += [(tag, [[span for span in spans if span.tag == tag] for spans in found], (tag,), True) for tag in tags]
    for what, spans, of, with_tag in rows:
        result = score(spans, gold, of, with_tag)
        say(f"| {name} | {terms} | {what} | {result.precision:.3f} | {result.recall:.3f} | {result.f1:.3f} |")
