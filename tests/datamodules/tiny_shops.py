"""Raw folders small enough to build in a test: grocery, photos and product1m, with pictures that differ."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

SHARED = Path(os.environ.get("SHARED_DATA") or Path(__file__).parents[3] / "shared" / "data")


def photo(seed: int, size_px: tuple[int, int] = (48, 48), white_ground: bool = False) -> bytes:
    """A random pattern as JPEG, with detail at all scales as photos have; on white ground it stands in the middle."""
    rng = np.random.default_rng(seed)
    layers = [Image.fromarray(rng.integers(0, 220, (n, n, 3)).astype(np.uint8)) for n in (4, 18)]
    picture = Image.blend(*(layer.resize(size_px, Image.Resampling.BICUBIC) for layer in layers), 0.5)
    if white_ground:
        sheet = Image.new("RGB", size_px, (255, 255, 255))
        sheet.paste(picture.resize((size_px[0] // 2, size_px[1] // 2)), (size_px[0] // 4, size_px[1] // 4))
        picture = sheet
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=95)
    return out.getvalue()


def write_photos(raw: Path, num_labels: int = 4, per_label: int = 6, rare: int = 2) -> Path:
    """`products.txt` and pictures: `num_labels` labels with `per_label` photos each, and `rare` labels with one."""
    (raw / "images").mkdir(parents=True)
    names = [f"Acme Men Shade{label} Shirt" for label in range(num_labels) for _ in range(per_label)]
    names += [f"Rare Thing Number{number}" for number in range(rare)]
    lines = []
    for number, name in enumerate(names):
        (raw / f"images/{number}.jpg").write_bytes(photo(number, white_ground=number % 2 == 0))
        lines.append(f"{number}#####{name} Model Nr{number}#####images/{number}.jpg#####images/{number}.jpg#####{name}")
    (raw / "products.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return raw


GROCERY_CLASSES = (
    ("Granny-Smith", "Apple", "Fruit", "Granny Smith is a green apple with white, firm pulp and clear acidity."),
    ("Kiwi", "Kiwi", "Fruit", "Kiwi has a sweet taste and is rich in vitamin C."),
    ("Arla-Sour-Milk", "Sour-Milk", "Packages", "Classic sour milk made from Swedish milk, thick texture."),
)


def write_grocery(root: Path, per_class: int = 8) -> Path:
    """The repository's layout with three classes."""
    folder = root / "dataset"
    rows = [
        "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),Iconic Image Path (str),Path"
    ]
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    seed = 0
    for number, (name, coarse, aisle, description) in enumerate(GROCERY_CLASSES):
        base = f"iconic-images-and-descriptions/{aisle}/{coarse}/{name}"
        (folder / base).mkdir(parents=True)
        (folder / base / f"{name}_Description.txt").write_text(description)
        (folder / base / f"{name}_Iconic.jpg").write_bytes(photo(1000 + number, white_ground=True))
        rows.append(f"{name},{number},{coarse},{number},/{base}/{name}_Iconic.jpg,/{base}/{name}_Description.txt")
        for split, lines in lists.items():
            (folder / f"{split}/{aisle}/{name}").mkdir(parents=True)
            for index in range(per_class):
                path = f"{split}/{aisle}/{name}/{name}_{index:03d}.jpg"
                (folder / path).write_bytes(photo(seed))
                seed += 1
                lines.append(f"{path}, {number}, {number}")
    (folder / "classes.csv").write_text("\n".join(rows) + "\n")
    for split, lines in lists.items():
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return root


def official(item_id: str, caption: str, url: str, labels: str | None) -> str:
    """One official line; without labels a train line."""
    fields = [item_id, caption, url, url]
    return "#####".join(fields if labels is None else [*fields, labels])


def write_product1m(raw: Path) -> Path:
    """Two samples per list; pictures partly at their relative url, partly at images/<id>.*."""
    (raw / "images").mkdir(parents=True)
    (raw / "pictures").mkdir()
    seed = 0
    for split, labels in (("train", None), ("dev", "a#;#b#;#a"), ("test", "a#;#b"), ("gallery", "a")):
        lines = []
        for number in range(2):
            item_id = f"{split}{number}"
            path = f"pictures/{item_id}.jpg" if number else f"images/{item_id}.png"
            (raw / path).write_bytes(photo(seed))
            seed += 1
            url = path if number else f"https://example.com/{item_id}.jpg"
            lines.append(official(item_id, f"标题 {item_id}", url, labels))
        (raw / f"product1m_{split}_ossurl_v2.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return raw
