"""Options of `data build product1m` for the pictures that the official lists give by url."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from experiments.errors import UsageError
from experiments.output import say
from experiments.parser import Parser

SOURCE = "product1m"
_LIMITS = {"threads": 1, "retries": 0, "timeout_s": 1, "max_seconds": 1}


def add_download_options(parser: Parser) -> None:
    """Those of a download; all of them are for source product1m."""
    group = parser.add_argument_group("download of missing pictures (product1m)")
    group.add_argument("--no-download", action="store_true", help="build from the pictures that are there")
    group.add_argument("--retry-failed", action="store_true", help="try again what failed in an earlier download")
    group.add_argument("--threads", type=int, metavar="N", help="connections at a time, the limit of the rate (32)")
    group.add_argument("--retries", type=int, metavar="N", help="of a url, beside the first attempt (2)")
    group.add_argument("--timeout-s", type=int, metavar="S", help="seconds without an answer (10)")
    group.add_argument("--max-seconds", type=int, metavar="S", help="for one picture (60)")
    group.add_argument("--img2dataset", type=Path, metavar="PYTHON", help="interpreter that has img2dataset already")


def check_download_options(options: Namespace) -> None:
    """Refuse what makes no sense before anything is fetched.

    Raises:
        UsageError: naming the option.
    """
    numbers = {name: getattr(options, name) for name in _LIMITS if getattr(options, name) is not None}
    chosen = [*numbers, *(name for name in ("retry_failed", "img2dataset") if getattr(options, name))]
    flags = ", ".join(f"--{name.replace('_', '-')}" for name in chosen)
    if chosen and (options.source != SOURCE or options.no_download or options.no_pictures):
        raise UsageError(f"{flags}: for a download of source {SOURCE}; leave it out, or leave out what turns that off")
    if options.no_download and options.source != SOURCE:
        raise UsageError(f"--no-download: only source {SOURCE} downloads; leave it out")
    for name, value in numbers.items():
        if value < _LIMITS[name]:
            raise UsageError(f"--{name.replace('_', '-')} {value}: give at least {_LIMITS[name]}")
    if options.img2dataset is not None and not options.img2dataset.is_file():
        raise UsageError(f"--img2dataset {options.img2dataset}: no such file; name a Python that has img2dataset")


def download_pictures(raw: Path | None, settings: dict[str, Any], options: Namespace) -> None:
    """Fetch the pictures that are missing, if any, and say what came of it."""
    from datamodules.catalogues import open_catalogue
    from datamodules.catalogues.product1m import Product1MFiles
    from datamodules.downloads.download import FAILURES_LIST, download, wants_download
    from datamodules.downloads.fetcher import Img2Dataset, Limits

    catalogue = open_catalogue(SOURCE, raw, **settings)
    assert isinstance(catalogue, Product1MFiles)
    if not wants_download(catalogue):
        return
    numbers = {name: getattr(options, name) for name in _LIMITS if getattr(options, name) is not None}
    limits = Limits(**numbers)
    fetch = Img2Dataset(options.img2dataset, limits)
    report = download(catalogue, fetch, max_bytes=limits.max_bytes, retry_failed=options.retry_failed)
    failed = ", ".join(f"{cause} {count}" for cause, count in report.failed.items()) or "none"
    say(f"pictures {report.there} there, {report.fetched} fetched of {report.listed} listed; failed: {failed}")
    if report.failed:
        say(f"         which, and why: {Path(catalogue.raw) / FAILURES_LIST}; again with ARGS=--retry-failed")
