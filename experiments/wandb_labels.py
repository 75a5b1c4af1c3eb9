"""By what runs are found again in W&B: the table a run was made for as its group, tables, rows and seed as its tags.

A run belongs to a row of a table if it is what the row resolves to with the run's own data, scale and seed. So a run
that was typed by hand is found beside those of `ablate`, and one that several tables share has the tags of all.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

import yaml

from experiments.config import Composition
from experiments.runs import config_hash
from experiments.table_rows import Choice, complete, compose_row, read_file, table_files

TAG_LENGTH = 64  # W&B refuses longer ones
DIGEST_LENGTH = 6


class Labels(NamedTuple):
    """Group and tags of a run."""

    group: str | None
    tags: tuple[str, ...]


def labels_of(composition: Composition, made_for: str | None = None) -> Labels:
    """What a run is filed under.

    Args:
        made_for: The table whose `ablate` started it; its group, and first of its tags.
    """
    found = sorted(rows_of(composition), key=lambda place: place[0] != made_for)
    tables = list(dict.fromkeys([*([made_for] if made_for else []), *(table for table, _ in found)]))
    rows = [f"{table}: {label}" for table, label in found if label]
    tags = dict.fromkeys(shorten(text) for text in [*tables, *rows, f"seed {composition.seed}"])
    return Labels(tables[0] if tables else None, tuple(tags))


def rows_of(composition: Composition) -> list[tuple[str, str]]:
    """Table and label of the rows that a run is of; a file that cannot be read has none.

    The label is empty where rows show retrieval features of one run: they say nothing of how it was made.
    """
    wanted = config_hash(composition)
    found = []
    for file in table_files().values():
        try:
            content = read_file(file)
        except (ValueError, yaml.YAMLError):
            continue
        for row in content["rows"]:
            entry = complete(content, row)
            elsewhere = "data" in row and row["data"] != composition.data.name
            if entry["experiment"] != composition.experiment or elsewhere:
                continue
            if _resolves_to(entry, composition, wanted):
                found.append((file.stem, "" if row.get("feature") else str(row["label"])))
    return found


def _resolves_to(entry: dict[str, object], composition: Composition, wanted: str) -> bool:
    same_place = {"data": str(composition.data.path), "scale": composition.scale}
    try:
        return config_hash(compose_row({**entry, **same_place}, composition.seed)) == wanted
    except ValueError:  # the row wants what this data does not have, a region set say
        return False


def table_folder(home: Path, table: str, choice: Choice) -> Path:
    """Where W&B's files of a table go, below the runs; with other data, scale, seeds or rows it is another table."""
    words = [table, choice.data, choice.scale, choice.seeds and f"seeds {' '.join(map(str, choice.seeds))}"]
    words += [choice.rows and f"rows {choice.rows.replace('/', ' ')}"]
    name = "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", Path(str(word)).name) for word in words if word)
    return home / "tables" / name


def shorten(text: str, length: int = TAG_LENGTH) -> str:
    """The text itself where W&B takes it, else its beginning and a digest that keeps different ones apart."""
    text = " ".join(text.split())
    if len(text) <= length:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]
    return f"{text[: length - DIGEST_LENGTH - 1].rstrip()}…{digest}"[:length]
