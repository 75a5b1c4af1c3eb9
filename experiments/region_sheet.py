"""A look at a region set: some pictures of each split with the boxes found in them, and the true ones dashed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datamodules.catalogues.record import SPLITS
from datamodules.manifest import Manifest, RegionSetEntry
from datamodules.pictures import decode_picture
from datamodules.regions import unpack_regions
from datamodules.shard_reader import read_shard
from experiments.runs import atomic

PICTURES_PER_SPLIT = 4
SURE = 0.5  # boxes with a better score are drawn thick and with their score; of the others the best has one
SIDE_PX = 320  # pictures are shown no larger
FOUND, TRUE = "#e6194b", "#1f77b4"


class Shown(NamedTuple):
    """One picture of the sheet."""

    item: str
    picture: bytes
    found: bytes
    truth: bytes | None


def write_sheet(folder: Path, manifest: Manifest, name: str, entry: RegionSetEntry, file: Path) -> None:
    """Draw the sheet: a row per split, with one picture in which nothing was found if there is any."""
    import matplotlib
    from matplotlib.figure import Figure

    rows = {split: chosen(folder, manifest, entry, split) for split in SPLITS if manifest["splits"][split]["shards"]}
    with matplotlib.rc_context({"font.size": 7}):
        figure = Figure(figsize=(3 * PICTURES_PER_SPLIT, 3.2 * len(rows)), layout="constrained")
        figure.suptitle(f"region set '{name}', detector {entry['about'].get('run_id')}: found red, true blue dashed")
        grid = figure.subplots(len(rows), PICTURES_PER_SPLIT, squeeze=False)
        for axes_row, (split, pictures) in zip(grid, rows.items(), strict=True):
            for axes in axes_row:
                axes.set_axis_off()
            for axes, shown in zip(axes_row, pictures, strict=False):
                _draw(axes, split, shown)
        with atomic(file) as temporary:
            figure.savefig(temporary, format="png", dpi=100)


def chosen(folder: Path, manifest: Manifest, entry: RegionSetEntry, split: str) -> list[Shown]:
    """Pictures of one shard, evenly spread, one without boxes among them; that of the shard with the most such."""
    sidecars = entry["splits"][split]["shards"]
    number = max(range(len(sidecars)), key=lambda number: sidecars[number]["without"])
    shard = folder / manifest["splits"][split]["shards"][number]["file"]
    samples = list(read_shard(shard, 0, folder / sidecars[number]["file"], truth=True))  # fits memory by construction
    empty = [
        row for row, one in enumerate(samples) if not (unpack_regions(one.members["regions.npz"]).scores_R > 0).any()
    ]
    others = [row for row in range(len(samples)) if row not in set(empty)]
    rows = empty[:1]
    wanted = min(PICTURES_PER_SPLIT - len(rows), len(others))
    rows += [others[place] for place in np.linspace(0, len(others) - 1, wanted).round().astype(int)] if wanted else []
    return [
        Shown(
            json.loads(samples[row].members["json"])["id"],
            samples[row].members["jpg"],
            samples[row].members["regions.npz"],
            samples[row].members.get("truth.npz"),
        )
        for row in rows
    ]


def _draw(axes: Any, split: str, shown: Shown) -> None:
    from matplotlib.patches import Rectangle

    image = decode_picture(shown.picture, needed_px=SIDE_PX).image
    found = unpack_regions(shown.found)
    height, width = found.size_hw
    axes.imshow(np.asarray(image.convert("RGB")), extent=(0, width, height, 0))
    sure = int((found.scores_R >= SURE).sum())
    number = int((found.scores_R > 0).sum())
    for rank, (box, score) in enumerate(zip(found.boxes_R4, found.scores_R, strict=True)):
        x1, y1, x2, y2 = box
        thick = score >= SURE
        style: dict[str, Any] = {"edgecolor": FOUND, "linewidth": 1.6 if thick else 0.4, "alpha": 1 if thick else 0.6}
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, **style))
        if thick or rank == 0:
            axes.text(
                x1, y1, f"{score:.2f}", color="white", fontsize=5, va="top", bbox={"pad": 0.5, "fc": FOUND, "lw": 0}
            )
    for x1, y1, x2, y2 in unpack_regions(shown.truth).boxes_R4 if shown.truth else []:
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=TRUE, lw=1.2, ls="--"))
    axes.set_title(f"{split} {shown.item}\n" + (f"{number} found, {sure} above {SURE}" if number else "nothing found"))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
