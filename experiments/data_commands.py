"""`data build` and `data verify`: from a raw source to a shard folder, and back to every byte of it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import yaml

from experiments.config import Loader
from experiments.errors import UsageError, nearest
from experiments.output import say
from experiments.parser import Parser

ACTIONS = ("build", "verify")


def data_command(words: list[str]) -> int:
    """Run `data build …` or `data verify …`; the exit code."""
    if words and words[0] in ACTIONS:
        return _build(words[1:]) if words[0] == "build" else _verify(words[1:])
    if words and words[0] not in ("-h", "--help"):
        raise UsageError(f"data {words[0]}: {nearest(words[0], ACTIONS)}")
    say("usage: python -m experiments data build SOURCE --raw R --out O | data verify O   (--help after either)")
    return 0 if words else 2


def _build(words: list[str]) -> int:
    parser = Parser("data build", "raw source to shard folder; continues where an interrupted build stopped")
    parser.add_argument("source", metavar="SOURCE", help="synthetic, grocery, photos or product1m")
    parser.add_argument("--raw", type=Path, metavar="R", help="folder with the raw data; synthetic needs none")
    parser.add_argument("--out", type=Path, metavar="O", help="shard folder (default: data/<SOURCE>)")
    parser.add_argument("--shard-size", type=int, metavar="N", help="samples per shard")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    parser.add_argument("--seed", type=int, metavar="N", help="of rendering, composition and order")
    parser.add_argument("--vocab-size", type=int, metavar="N", help="of the tokenizer trained on the captions")
    parser.add_argument("--regions", metavar="PATH", help="region features: folder of <item id>.npz, .lmdb or .tsv")
    parser.add_argument("--no-pictures", action="store_true", help="store the regions only; pictures may be missing")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="further setting of the source")
    options = parser.parse(words)
    out = options.out or Path("data") / options.source
    chosen: dict[str, Any] = {name: getattr(options, name) for name in ("shard_size", "workers", "seed", "vocab_size")}
    settings = dict(_setting(text) for text in options.set)
    if options.no_pictures and options.regions is None:
        raise UsageError("--no-pictures: give --regions PATH too, or the samples hold nothing to look at")
    if options.no_pictures:
        chosen["pictures"] = False
    if options.regions is not None:
        from datamodules.region_sources import open_region_store

        chosen["regions"] = open_region_store(options.regions)
    build(options.source, options.raw, out, settings, {k: v for k, v in chosen.items() if v is not None})
    return 0


def build(source: str, raw: Path | None, out: Path, settings: dict[str, Any], writing: dict[str, Any]) -> None:
    """Build a shard folder and say what is in it.

    Args:
        settings: Constructor arguments of the catalogue.
        writing: Arguments of the writer; `seed` and `pictures` go to a catalogue that takes them, too.
    """
    from datamodules.catalogues import open_catalogue, options_of
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
    if manifest["regions"]:
        sizes = manifest["regions"]
        classes = f", scores of {sizes['classes']} classes" if sizes.get("classes") else ""
        say(f"regions  {sizes['max']} a picture at most, {sizes['width']} wide{classes}")
        left_out = {reason for entry in manifest["splits"].values() for reason in entry["skipped"]}
        damage = {"malformed_regions", "non_finite_regions", "misplaced_boxes", "bad_class_scores", "missing_regions"}
        if left_out & damage:
            say("         features mended in place are not noticed: build those into a new --out (docs/regions.md)")
    say(f"{out} (data hash {manifest['data_hash']}) in {time.perf_counter() - started:.0f} s")


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
