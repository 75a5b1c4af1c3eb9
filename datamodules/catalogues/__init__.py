"""Raw sources of products, one file each, behind one protocol: `plan` a split, `make` its items."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from datamodules.catalogues.record import Catalogue
from datamodules.errors import DataError

NEEDS = {
    "synthetic": "",
    "million": "",
    "grocery": "the GroceryStoreDataset folder",
    "photos": "a folder with products.txt, a .csv or a .jsonl, and the pictures it names",
    "product1m": "a folder with the four product1m_*_ossurl_v2.txt and the pictures",
}


def _catalogue_class(source: str) -> Callable[..., Any]:
    if source == "synthetic":
        from datamodules.catalogues.synthetic import Synthetic

        return Synthetic
    if source == "million":
        from datamodules.catalogues.million import Million

        return Million
    if source == "grocery":
        from datamodules.catalogues.grocery import Grocery

        return Grocery
    if source == "photos":
        from datamodules.catalogues.photos import Photos

        return Photos
    from datamodules.catalogues.product1m import Product1MFiles

    return Product1MFiles


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f"did you mean {near[0]!r}? " if near else ""


def options_of(source: str) -> dict[str, tuple[type, Any]]:
    """The options of a source with their types and defaults; `raw` is given on its own."""
    made_by: Any = _catalogue_class(source)
    types = typing.get_type_hints(made_by)
    return {
        field.name: (types[field.name], field.default) for field in dataclasses.fields(made_by) if field.name != "raw"
    }


def _check_options(source: str, options: dict[str, Any]) -> None:
    known = options_of(source)
    for key, value in options.items():
        if key not in known:
            names = ", ".join(known) or "none"
            raise DataError(f"unknown option {key!r} of source {source!r}; {_nearest(key, known)}(known: {names})")
        wanted = known[key][0]
        # bool is an int to Python, but `num_val: true` is a mistake
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            raise DataError(f"option {key!r} of source {source!r} is {value!r}; give a value of type {wanted.__name__}")


def open_catalogue(source: str, raw: str | Path | None = None, **options: Any) -> Catalogue:
    """The catalogue of a raw source.

    Args:
        source: synthetic, million, grocery, photos or product1m.
        raw: its folder; synthetic and million have none.
        options: as the arguments of the source's class; see `options_of`.

    Raises:
        DataError: unknown source or option (with the nearest name), wrong type, missing folder, or what the source
            finds wrong with its folder.
    """
    if source not in NEEDS:
        raise DataError(f"unknown source {source!r}; {_nearest(source, NEEDS)}(known: {', '.join(NEEDS)})")
    _check_options(source, options)
    if not NEEDS[source]:
        if raw is not None:
            raise DataError(f"source {source!r} is rendered and takes no raw folder; leave out {str(raw)!r}")
        return _catalogue_class(source)(**options)
    if raw is None or not str(raw):
        raise DataError(f"source {source!r} needs a raw folder: give {NEEDS[source]} (RAW=… or --raw …)")
    if not Path(raw).is_dir():
        raise DataError(f"raw folder {str(raw)!r} does not exist; give {NEEDS[source]}")
    return _catalogue_class(source)(raw=str(raw), **options)


__all__ = ["Catalogue", "open_catalogue", "options_of"]
