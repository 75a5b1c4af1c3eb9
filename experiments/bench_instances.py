"""How fast products are found, and what a query of many instances costs: one forward, not one for each."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lightning_modules.flops import seconds_of

MOST = 36  # instances of a query
_REPEATS = 3


class Detector(NamedTuple):
    """A detector to be measured."""

    name: str
    batch_size: int
    arguments: dict[str, Any]


# Those of SCALE=tiny and SCALE=paper.
DETECTORS = (
    Detector("light, 128 px", 32, {"network": "light", "image_size_px": 128, "rois": 64, "proposals": 100}),
    Detector("ResNet-50 FPN, 800 px", 1, {}),
)


def bench_instances(detectors: tuple[Detector, ...] = DETECTORS, model: Any = None, queries: int = 64) -> list[dict]:
    """Proposals with their features per second; reading queries as rows; and encoding a query of 36 instances.

    Args:
        model: the retrieval model whose encoding is timed; None = CAPTURE at its published size.
        queries: of the temporary shard folder that is read.

    Returns: rows {"what", "value", "unit", "per_core", "ratio"}.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cores = 1 if device.type == "cuda" else torch.get_num_threads()
    rows = [_proposals(detector, device, cores) for detector in detectors]
    return rows + _encoding(model, device) + _reading(queries)


def _proposals(detector: Detector, device: torch.device, cores: int) -> dict[str, Any]:
    """Random weights propose as many boxes as may be, so this is the slow end."""
    from datamodules.batch import DetectionBatch
    from lightning_modules import InstanceDetector

    torch.manual_seed(0)
    model = InstanceDetector(**detector.arguments).to(device).eval()
    size, number = model.image_size_px, detector.batch_size
    nothing = torch.zeros(number, 0)
    batch = DetectionBatch(
        torch.arange(number, device=device),
        torch.randint(0, 255, (number, 3, size, size), dtype=torch.uint8, device=device),
        *(nothing for _ in range(4)),
    )
    pace = number / seconds_of(lambda: model.propose(batch), device, _REPEATS)
    return _row(f"proposals and features: {detector.name}", pace, "pictures/s", pace / cores)


def _encoding(model: Any, device: torch.device) -> list[dict[str, Any]]:
    from lightning_modules import CAPTURE
    from lightning_modules.example_batch import example_batch

    torch.manual_seed(0)
    model = (model or CAPTURE()).to(device).eval()
    rows = example_batch(model.input_spec(), device, batch_size=MOST)
    alone = [rows.rows(slice(row, row + 1)) for row in range(MOST)]

    def one_by_one() -> None:
        for row in alone:
            model.encode(row)

    together = seconds_of(lambda: model.encode(rows), device, _REPEATS)
    apart = seconds_of(one_by_one, device, _REPEATS)
    whole = seconds_of(lambda: model.encode(alone[0]), device, _REPEATS)
    name = type(model).__name__
    return [
        _row(f"{name}: a whole picture", 1 / whole, "queries/s"),
        _row(f"{name}: a query of {MOST} instances, one forward", 1 / together, "queries/s", ratio=apart / together),
        _row(f"{name}: the same, {MOST} forwards", 1 / apart, "queries/s", ratio=1.0),
    ]


def _reading(queries: int) -> list[dict[str, Any]]:
    """Queries of five products, read as whole pictures and as crops of their boxes."""
    from datamodules import Product1M
    from datamodules.batch import InputSpec
    from datamodules.write_shards import build

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "photos"
        build(_Composites(queries), folder, workers=1, progress=False)
        data = Product1M(str(folder), batch_size=2, num_workers=0, instances=["true"])
        data.use_input_spec(InputSpec("shards", visual_input="grid", image_size_px=128))
        data.setup("test")

        def rate(read: Callable[[], Any]) -> float:
            return queries / seconds_of(lambda: [None for _ in read()], torch.device("cpu"), _REPEATS)

        whole = rate(lambda: data.evaluation_loader("test"))
        crops = rate(lambda: data.instance_loader("test", "true"))
    return [
        _row("reading: whole pictures of 256 px", whole, "queries/s", whole),
        _row(f"reading: the same as {_Composites.PRODUCTS} crops each", crops, "queries/s", crops, ratio=crops / whole),
    ]


def _row(what: str, value: float, unit: str, per_core: float | None = None, ratio: float | None = None) -> dict:
    return {"what": what, "value": value, "unit": unit, "per_core": per_core, "ratio": ratio}


class _Composites:
    """A catalogue of noisy squares with known boxes."""

    name = "bench"
    PRODUCTS = 5
    SIDE_PX = 256

    def __init__(self, queries: int) -> None:
        self.queries = queries

    def plan(self, split: str) -> list[int]:
        return list(range({"test": self.queries, "val": 2}.get(split, 4)))

    def make(self, split: str, item: int) -> Any:
        from PIL import Image

        from datamodules.catalogues.record import ProductRecord

        draw = np.random.default_rng((len(split), item))
        pixels = draw.integers(0, 255, (self.SIDE_PX // 8, self.SIDE_PX // 8, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).resize((self.SIDE_PX, self.SIDE_PX)).save(buffer, "JPEG")
        single = split in ("train", "gallery")
        number = 1 if single else self.PRODUCTS
        corners = draw.integers(0, self.SIDE_PX - 100, (number, 2))
        return ProductRecord(
            id=f"{split}-{item}",
            image=buffer.getvalue(),
            caption=json.dumps(corners.tolist()),
            labels=("a",) * number,
            kind="single" if single else "multi",
            source="bench",
            boxes=tuple((float(x), float(y), float(x + 100), float(y + 100)) for x, y in corners),
        )

    def settings(self) -> dict[str, Any]:
        return {"source": self.name, "queries": self.queries}
