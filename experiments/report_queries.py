"""The part of a run's page that shows what the model finds: queries, their boxes, and the hits, pictures embedded."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from experiments.errors import UsageError
from experiments.instance_files import Instance, read_instances
from experiments.page import data_url
from experiments.run_shards import RunShards
from experiments.runs import RunFolder
from experiments.stored_scores import read_arrays

if TYPE_CHECKING:
    from PIL import Image

QUERIES_SHOWN = 10
HITS_SHOWN = 5
PICTURE_SIDE_PX = 200
BOXED_SIDE_PX = 480  # of a query with boxes, which is shown larger than a hit
STRIP_SIDE_PX = 140  # of a box and its hits: a page has hundreds of them
# Numbered boxes in turn; white figures are readable on each, and none looks like the green and red of right and wrong.
COLOURS = (
    *("#2166d1", "#b85000", "#7b2fbf", "#007f7f", "#c518b5"),
    *("#7a4f1d", "#1b2a80", "#6b6b00", "#c73a74", "#4a5a6a"),
)


def shown_queries(folder: RunFolder, shards: RunShards) -> list[dict[str, Any]]:
    """Some queries with their top hits, evenly spread over the test split.

    Raises:
        DataError: If a picture cannot be read.
        UsageError: If the run's lists are damaged, or of other shards.
        OSError: If the run has no lists.
    """
    file = folder.rankings / "test.txt"
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        stored = read_arrays(file.with_suffix(".npz"), ("query_ids", "mAP@10"))
        score_of = dict(zip(stored["query_ids"].tolist(), stored["mAP@10"].tolist(), strict=True))
    except (UnicodeDecodeError, KeyError, ValueError, TypeError) as problem:
        raise UsageError(
            f"{file}, or the scores beside it: damaged ({problem}); `make eval` writes both again"
        ) from None
    row_of = {row.id: number for number, row in enumerate(shards.test)}
    lists = [line.split(",") for line in lines[:: max(1, len(lines) // QUERIES_SHOWN)][:QUERIES_SHOWN]]
    instances_of = read_instances(folder.rankings, "test")
    known = {row.id for row in shards.gallery}
    named = {item for _, *hits in lists for item in hits}
    named |= {item for of_query in instances_of.values() for one in of_query for item in one.hits}
    if not named <= known or any(query not in row_of or query not in score_of for query, *_ in lists):
        raise UsageError(f"{file}: queries or hits that {shards.path} does not have; `make eval` writes it again")
    pictures = shards.pictures("test", [row_of[query_id] for query_id, *_ in lists])
    found = [hits[:HITS_SHOWN] for _, *hits in lists]
    found += [one.hits[:HITS_SHOWN] for query_id, *_ in lists for one in instances_of.get(query_id, [])]
    gallery = _Gallery(shards, {item for hits in found for item in hits})
    shown = []
    for query_id, *hit_ids in lists:
        query = shards.test[row_of[query_id]]
        hits = gallery.hits(hit_ids, query.labels, PICTURE_SIDE_PX)
        about = {"id": query.id, "caption": query.caption, "labels": query.labels, "hits": hits, "boxes": []}
        image = _upright(pictures.get(row_of[query_id]))
        about |= {"picture": _embedded(image, PICTURE_SIDE_PX), "score": f"{score_of[query_id]:.2f}"}
        if query_id in instances_of:
            about |= _boxed(image, instances_of[query_id], query.labels, gallery)
        shown.append(about)
    return shown


def _boxed(image: Image.Image, instances: list[Instance], labels: tuple[str, ...], gallery: _Gallery) -> dict[str, Any]:
    """The query's picture in a size to draw boxes on, and each box with its own hits."""
    large = image.copy()
    large.thumbnail((BOXED_SIDE_PX, BOXED_SIDE_PX))
    width, height = large.size
    label_px = round(max(large.size) / 32, 1)  # radius of a number's disc
    boxes = []
    for number, instance in enumerate(instances):
        x1, y1, x2, y2 = (round(side * length, 1) for side, length in zip(instance.box, large.size * 2, strict=True))
        boxes.append(
            {
                "number": number + 1,
                "colour": COLOURS[number % len(COLOURS)],
                "found": instance.score > 0,
                "score": f"{instance.score:.2f}",
                **{"x": x1, "y": y1, "width": round(x2 - x1, 1), "height": round(y2 - y1, 1)},
                # At the box's corner, but inside the picture.
                "label_x": round(min(max(x1, label_px), width - label_px), 1),
                "label_y": round(min(max(y1, label_px), height - label_px), 1),
                "picture": _embedded(_crop(image, instance.box), STRIP_SIDE_PX),
                "hits": gallery.hits(instance.hits, labels, STRIP_SIDE_PX),
            }
        )
    size = {"width": width, "height": height, "label_px": label_px}
    return {"boxes": boxes, "large": _embedded(large, BOXED_SIDE_PX), **size}


class _Gallery:
    """Hits as the page wants them; their pictures are read once, and in one go."""

    def __init__(self, shards: RunShards, items: set[str]) -> None:
        self.rows = shards.gallery
        self.number_of = {row.id: number for number, row in enumerate(self.rows) if row.id in items}
        self.stored = shards.pictures("gallery", self.number_of.values())
        self.pictures: dict[tuple[str, int], str] = {}

    def hits(self, ids: list[str], wanted: tuple[str, ...], side_px: int) -> list[dict[str, Any]]:
        return [self._hit(item, wanted, side_px) for item in ids[:HITS_SHOWN]]

    def _hit(self, item: str, wanted: tuple[str, ...], side_px: int) -> dict[str, Any]:
        number = self.number_of[item]
        label = (*self.rows[number].labels, "")[0]  # an item counts by its first
        if (item, side_px) not in self.pictures:
            self.pictures[item, side_px] = _embedded(_upright(self.stored.get(number)), side_px)
        return {"id": item, "label": label, "right": label in wanted, "picture": self.pictures[item, side_px]}


def _upright(picture: bytes | None) -> Image.Image:
    """As the model sees it, which is also what boxes refer to; a grey square where there is none."""
    from PIL import Image

    from datamodules.pictures import decode_picture

    if picture is None:
        return Image.new("RGB", (PICTURE_SIDE_PX, PICTURE_SIDE_PX), "#bbb")
    return decode_picture(picture, BOXED_SIDE_PX).image


def _crop(image: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    """What a box holds, at least one pixel of it."""
    x1, y1 = min(int(box[0] * image.width), image.width - 1), min(int(box[1] * image.height), image.height - 1)
    return image.crop((x1, y1, max(x1 + 1, round(box[2] * image.width)), max(y1 + 1, round(box[3] * image.height))))


def _embedded(image: Image.Image, side_px: int) -> str:
    """A small JPEG as a data url."""
    small = image.copy()
    small.thumbnail((side_px, side_px))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return data_url("image/jpeg", buffer.getvalue())
