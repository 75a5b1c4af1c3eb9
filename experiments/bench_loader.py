"""Throughput of the training loader beside a bare decoding loop, in the same run with the same workers."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PHOTO_PX = 224
BATCH_SIZE = 64
_SECONDS = 1.5  # per measurement and round
_ROUNDS = 9  # alternating, with the median of the ratios: other programs disturb both sides of a round alike


def bench_loader(folder: str | None = None, workers: int = 1) -> list[dict[str, Any]]:
    """Measure samples per second: shards to batches (tokens included) against only decoding the same pictures.

    Args:
        folder: a shard folder with pictures; None = 1,500 rendered 224-px photos in a temporary folder.
        workers: loader processes, and processes of the bare loop.

    Returns:
        One row each for the loader, the bare loop and their ratio (the aim is at least 0.8).
    """
    if folder is not None:
        return _measure(Path(folder), workers)
    with tempfile.TemporaryDirectory() as temporary:
        from datamodules.write_shards import build

        out = Path(temporary) / "photos"
        build(_Photos(), out, shard_size=250, workers=1, progress=False)
        return _measure(out, workers)


def _measure(folder: Path, workers: int) -> list[dict[str, Any]]:
    loader, bare = _loader_counts(folder, workers), _bare_counts(folder, workers)
    queued = 2 * workers + 1  # batches made while the other side was measured
    pairs = [(_rate(bare, queued), _rate(loader, queued)) for _ in range(_ROUNDS + 1)][1:]  # the first starts workers
    loader.close()
    bare.close()
    rates = np.array(pairs)
    common = {"workers": workers, "photo_px": PHOTO_PX, "unit": "samples/s"}
    ratio = float(np.median(rates[:, 1] / rates[:, 0]))
    return [
        {"what": "training loader, tokens included", "value": round(float(np.median(rates[:, 1])), 1), **common},
        {"what": "bare decoding loop", "value": round(float(np.median(rates[:, 0])), 1), **common},
        {"what": "loader / bare loop", "value": round(ratio, 3), **common, "unit": "", "aim": 0.8},
    ]


def _rate(counts: Iterator[int], queued: int) -> float:
    """Samples per second, not counting what lay in the queue already."""
    for _ in range(queued):
        next(counts)
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < _SECONDS:
        done += next(counts)
    return done / (time.perf_counter() - start)


def _loader_counts(folder: Path, workers: int) -> Generator[int, None, None]:
    from datamodules.batch import InputSpec
    from datamodules.product1m import Product1M

    data = Product1M(str(folder), batch_size=BATCH_SIZE, num_workers=workers)
    data.use_input_spec(InputSpec(visual_input="grid", image_size_px=PHOTO_PX))
    data.setup("fit")
    loader = data.train_dataloader()
    try:
        while True:
            for batch in loader:
                yield len(batch.index_B)
    finally:
        loader.close()


def _bare_counts(folder: Path, workers: int) -> Generator[int, None, None]:
    """What could not be faster: pictures from memory to pixels, nothing kept, nothing passed on but a number."""
    from torch.utils.data import DataLoader

    from datamodules.manifest import read_manifest
    from datamodules.shard_reader import read_shard
    from datamodules.shards import unchanged
    from datamodules.workers import start_worker

    shards = read_manifest(folder)["splits"]["train"]["shards"]
    pictures = [one.members["jpg"] for shard in shards[:8] for one in read_shard(folder / shard["file"])]
    loop: Any = _BareLoop(pictures)
    yield from DataLoader(
        loop,
        batch_size=None,
        collate_fn=unchanged,
        num_workers=workers,
        worker_init_fn=start_worker if workers else None,
    )


class _BareLoop:
    """Map-style data set whose item is a batch of pictures decoded and dropped."""

    def __init__(self, pictures: Sequence[bytes]) -> None:
        self._pictures = pictures

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, number: int) -> int:
        from PIL import Image

        for offset in range(BATCH_SIZE):
            data = self._pictures[(number * BATCH_SIZE + offset) % len(self._pictures)]
            np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        return BATCH_SIZE


@dataclass
class _Photos:
    """A catalogue of textured pictures that compress like photographs (about 17 KB each)."""

    name: str = "bench"

    def plan(self, split: str) -> Sequence[int]:
        return range(1500 if split == "train" else 1)

    def settings(self) -> dict[str, Any]:
        return {}

    def make(self, split: str, item: int) -> Any:
        from PIL import Image

        from datamodules.catalogues.record import ProductRecord

        rng = np.random.default_rng((item, len(split)))
        layers = [
            np.asarray(Image.fromarray(_noise(rng, side)).resize((PHOTO_PX, PHOTO_PX), Image.Resampling.BICUBIC), float)
            for side in (4, 14, 56, PHOTO_PX)
        ]
        pixels = np.average(layers, axis=0, weights=(8, 4, 2, 1)).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        caption = f"韩国正品{item}蜗牛玻尿酸水补水抗皱紧致提亮水润精华三件套装 {item % 97} ml"
        return ProductRecord(f"{split}-{item}", buffer.getvalue(), caption, ("one",), "single", "bench")


def _noise(rng: np.random.Generator, side: int) -> np.ndarray:
    return rng.integers(0, 256, (side, side, 3)).astype(np.uint8)
