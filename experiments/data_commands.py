"""`data …`: from a raw source to a shard folder, its entities, and back to every byte of it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import yaml

from experiments.config import Loader
from experiments.download_options import SOURCE as DOWNLOADABLE
from experiments.download_options import add_download_options, check_download_options, download_pictures
from experiments.entity_options import add_entity_options, chosen, entity_settings, say_entities
from experiments.errors import UsageError, nearest
from experiments.output import say
from experiments.parser import Parser

ACTIONS = ("build", "link", "entities", "verify", "score-entities")


def data_command(words: list[str]) -> int:
    """Run `data build …` and so on; the exit code."""
    if words and words[0] == "score-entities":
        from experiments.entity_scores import score_entities_command

        score_entities_command(words[1:])
        return 0
    if words and words[0] in ACTIONS:
        return {"build": _build, "link": _link, "entities": _entities, "verify": _verify}[words[0]](words[1:])
    if words and words[0] not in ("-h", "--help"):
        raise UsageError(f"data {words[0]}: {nearest(words[0], ACTIONS)}")
    say(
        "usage: python -m experiments data build SOURCE --raw R --out O | data link ADDRESS --out O | "
        "data entities O | data verify O | "
        "data score-entities --train F --gold F   (--help after each)"
    )
    return 0 if words else 2


def _build(words: list[str]) -> int:
    parser = Parser("data build", "raw source to shard folder; continues where an interrupted build stopped")
    parser.add_argument("source", metavar="SOURCE", help="synthetic, million, grocery, photos or product1m")
    parser.add_argument("--raw", type=Path, metavar="R", help="folder with the raw data; some need none")
    parser.add_argument("--out", type=Path, metavar="O", help="shard folder (default: data/<SOURCE>)")
    parser.add_argument("--shard-size", type=int, metavar="N", help="samples per shard")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    parser.add_argument("--seed", type=int, metavar="N", help="of rendering, composition and order")
    parser.add_argument("--vocab-size", type=int, metavar="N", help="of the tokenizer trained on the captions")
    parser.add_argument("--regions", metavar="PATH", help="region features: folder of <item id>.npz, .lmdb or .tsv")
    parser.add_argument("--no-pictures", action="store_true", help="store the regions only; pictures may be missing")
    parser.add_argument("--again", action="store_true", help="also what looks up to date: raw data mended in place")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="further setting of the source")
    parser.add_argument("--no-entities", action="store_true", help="find none; `data entities` can add them later")
    add_download_options(parser)
    add_entity_options(parser)
    options = parser.parse(words)
    check_download_options(options)
    out = options.out or Path("data") / options.source
    writing: dict[str, Any] = {name: getattr(options, name) for name in ("shard_size", "workers", "seed", "vocab_size")}
    settings = dict(_setting(text) for text in options.set)
    if options.no_pictures and options.regions is None:
        raise UsageError("--no-pictures: give --regions PATH too, or the samples hold nothing to look at")
    if options.no_pictures:
        writing["pictures"] = False
    if options.again:
        writing["again"] = True
    if options.regions is not None:
        from datamodules.region_sources import open_region_store

        writing["regions"] = open_region_store(options.regions)
    if options.no_entities and chosen(options):
        raise UsageError("--no-entities: leave it out, or leave out the options that say where entities come from")
    entities = entity_settings(options) if chosen(options) else None  # a wrong option is told before the shards
    if options.source == DOWNLOADABLE and not options.no_download and not options.no_pictures:
        download_pictures(options.raw, settings, options)
    build(options.source, options.raw, out, settings, {k: v for k, v in writing.items() if v is not None}, False)
    if entities is not None:
        _add_entities(out, *entities)
    elif not options.no_entities:
        mine_entities(out)
    return 0


def _link(words: list[str]) -> int:
    parser = Parser("data link", "a local folder for shards that lie on a server; tars are fetched when they are read")
    parser.add_argument("address", metavar="ADDRESS", help="http(s)://…, s3://…, gs://…, or 'pipe:command with {}'")
    parser.add_argument("--out", type=Path, metavar="O", required=True, help="the local folder")
    parser.add_argument("--cache", action="store_true", help="keep fetched tars in it")
    options = parser.parse(words)
    from datamodules.remote import link

    manifest: Any = link(options.address, options.out, options.cache)
    shards = [shard for entry in manifest["splits"].values() for shard in entry["shards"]]
    size = sum(shard["bytes"] for shard in shards) / 1e9
    kept = "kept once fetched" if options.cache else "fetched at each reading"
    say(f"{options.out} (data hash {manifest['data_hash']}): {len(shards)} shards of {size:.1f} GB, {kept}")
    return 0


def _entities(words: list[str]) -> int:
    parser = Parser("data entities", "find the entities of the captions of a shard folder; tars and data hash stay")
    parser.add_argument("folder", type=Path, metavar="O", help="shard folder")
    add_entity_options(parser)
    options = parser.parse(words)
    _add_entities(options.folder, *entity_settings(options))
    return 0


def _add_entities(folder: Path, source: Any, tags: Any) -> None:
    from datamodules.entities import add_entities

    started = time.perf_counter()
    say_entities(add_entities(folder, source, tags))
    say(f"         in {time.perf_counter() - started:.0f} s")


def mine_entities(folder: Path) -> None:
    """Mine the entities of a folder that has none; captions that repeat nothing leave it without."""
    from datamodules.entity_sources import MinedSource, TagFilter
    from datamodules.errors import DataError
    from datamodules.manifest import read_manifest

    stored = read_manifest(folder)["entities"]
    if stored is not None:
        say_entities(stored)
        return
    try:
        _add_entities(folder, MinedSource(), TagFilter())
    except DataError as problem:
        say(f"entities none: {problem}")


def build(
    source: str, raw: Path | None, out: Path, settings: dict[str, Any], writing: dict[str, Any], mine: bool = True
) -> None:
    """Build a shard folder and say what is in it.

    Args:
        settings: Constructor arguments of the catalogue.
        writing: Arguments of the writer; `seed` and `pictures` go to a catalogue that takes them, too.
        mine: Mine entities from the training captions if the folder has none.
    """
    from datamodules.catalogues import open_catalogue, options_of
    from datamodules.folder_summary import SKIPPED_FILE
    from datamodules.manifest import read_manifest
    from datamodules.write_shards import build as write

    writing = {"workers": os.cpu_count() or 1, **writing}
    if "seed" in writing:
        settings = {"seed": writing["seed"], **settings}
    if not writing.get("pictures", True) and "pictures" in options_of(source):
        settings = {**settings, "pictures": False}
    started = time.perf_counter()
    write(open_catalogue(source, raw, **settings), out, **writing)
    manifest: Any = read_manifest(out)
    for name, entry in manifest["splits"].items():
        skipped = ", ".join(f"{reason} {count}" for reason, count in sorted(entry["skipped"].items())) or "none"
        say(f"{name:<8} {entry['samples']} samples in {len(entry['shards'])} shards, skipped: {skipped}")
    if any(entry["skipped"] for entry in manifest["splits"].values()):
        say(f"         which, and why: {out / SKIPPED_FILE}; what is mended in place is taken up with --again")
    if manifest["regions"]:
        sizes = manifest["regions"]
        classes = f", scores of {sizes['classes']} classes" if sizes.get("classes") else ""
        say(f"regions  {sizes['max']} a picture at most, {sizes['width']} wide{classes}")
    say(f"{out} (data hash {manifest['data_hash']}) in {time.perf_counter() - started:.0f} s")
    if mine:
        mine_entities(out)


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set {text}: write --set KEY=VALUE")
    return key, yaml.load(value, Loader)


def _verify(words: list[str]) -> int:
    parser = Parser("data verify", "check manifest, hashes and every sample; exit code 1 if anything is wrong")
    parser.add_argument("folder", type=Path, metavar="O", help="shard folder")
    options = parser.parse(words)
    from datamodules.verify import verify

    problems = verify(options.folder)
    for problem in problems:
        say(problem)
    say(f"{options.folder}: {len(problems)} problem(s)" if problems else f"{options.folder}: all in order")
    return 1 if problems else 0
