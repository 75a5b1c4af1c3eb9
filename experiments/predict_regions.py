"""A detector's proposals as a region set beside the shards: every picture once, on all ranks, going on after a kill."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.batch import DetectionBatch
from datamodules.errors import DataError
from datamodules.manifest import RegionSetEntry, iterate_shards
from datamodules.region_set_writer import RegionSetWriter, whole_picture
from datamodules.region_sets import DEFAULT_SET, WITH_TRUTH, check_name, remove_region_set
from datamodules.regions import BOX_TOLERANCE_PX, Regions
from experiments import machine
from experiments.config import Composition
from experiments.engine import Engine, build
from experiments.errors import UsageError
from experiments.evaluate import checkpoint_of
from experiments.output import say
from experiments.region_sheet import write_sheet
from experiments.run_lock import opened
from experiments.runs import RunFolder, run_folder

SCHEMA = 1  # raised when the same detector and settings come to give other regions
SETTINGS = ("network", "image_size_px", "num_regions", "min_score", "nms_iou", "proposals")  # of the detector
LEAST_SIDE_PX = 1.0  # of the picture; a box with less of it lies on the square's margin

Row = tuple[Regions, Regions | None]


def _way_on(run: RunFolder, composition: Composition) -> str:
    """What to do where the words given are not those of a trained detector."""
    alike = f"{run.run_id.rpartition('-')[0]}-*/checkpoints/{run.best.name}"
    others = sorted(run.root.parent.glob(alike))
    if others:
        return (
            f"There is {others[-1].parent.parent}, trained with other words: give the same ones again, or name it with "
            f"--ckpt_path {others[-1]}"
        )
    return (
        f"Train it with `make train EXP={composition.experiment} DATA={composition.data.path} "
        f"SCALE={composition.scale}`, or name one with --ckpt_path"
    )


def predict_regions(
    composition: Composition, home: Path, checkpoint: str | None, name: str | None = None, fresh: bool = False
) -> Path:
    """Write the region set `name` of a detector's best or given checkpoint; the contact sheet's path.

    Args:
        fresh: remove a set of that name first.

    Raises:
        UsageError: nothing trained, or no pictures to look at.
        DataError: a set of that name by another detector, or a detector that gives boxes no picture has.
    """
    name = check_name(DEFAULT_SET if name is None else name)
    machine.check_devices(composition.config["trainer"])
    run = run_folder(composition, home)
    path = checkpoint_of(run, checkpoint)
    data = composition.data
    if path is None:
        raise UsageError(f"{run.best}: missing, so there is no detector to predict with. {_way_on(run, composition)}")
    if not data.manifest["pictures"]:
        raise UsageError(
            f"{data.path} holds no pictures, only regions: there is nothing to look at; build it with them"
        )
    if checkpoint is None and run.finished() is None:
        say(f"{run.root} has not finished its training: these are boxes of its best checkpoint so far")
    with opened(run):
        engine = build(composition, run)
        engine.data.trainer = engine.trainer
        weights = _load(engine.model, path)
        about = {"run_id": _run_of(path), "weights": weights, **_settings(engine.model), "schema": SCHEMA}
        sheet = run.root / f"regions-{name}.png"
        _on_all_ranks(engine, lambda: _predict(engine, data.path, name, about, fresh, sheet))
    return sheet


def _load(model: Any, path: str) -> str:
    """Load a checkpoint's weights; their hash, which is that of the numbers and not of the file."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        model.load_state_dict(state)
    except Exception as problem:  # torch has many for what is no checkpoint
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise UsageError(f"{path}: no checkpoint of this {type(model).__name__} ({reason})") from problem
    digest = hashlib.sha256()
    for key, tensor in sorted(state.items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _run_of(path: str) -> str:
    """The run a checkpoint lies in; the file's name where it lies in none."""
    root = Path(path).resolve().parent.parent
    return root.name if RunFolder(root).config.is_file() else Path(path).name


def _settings(model: Any) -> dict[str, Any]:
    return {key: model.hparams[key] for key in SETTINGS if key in model.hparams}


def _on_all_ranks(engine: Engine, work: Any) -> None:
    """Start the ranks as a training would, put the model on this one's device, and work."""
    strategy = engine.trainer.strategy

    def ready() -> None:
        strategy.setup_environment()
        engine.model.to(strategy.root_device)
        try:
            work()
        finally:
            strategy.teardown()

    strategy.connect(engine.model)
    if strategy.launcher is None:
        ready()
    else:
        strategy.launcher.launch(ready, trainer=engine.trainer)


def _predict(engine: Engine, folder: Path, name: str, about: dict[str, Any], fresh: bool, sheet: Path) -> None:
    trainer = engine.trainer
    if fresh and trainer.is_global_zero:
        remove_region_set(folder, name)
    trainer.strategy.barrier("a fresh start")
    writer = RegionSetWriter(folder, name, about)
    pictures = _announce(writer)
    started = time.perf_counter()
    trainer.strategy.barrier("before the first shard")  # every rank has counted what is left, so it may become less
    _meet(engine, _written(engine, writer))
    seconds = time.perf_counter() - started
    if trainer.is_global_zero:
        entry = writer.finish()
        _tell(entry, name, pictures, seconds)
        write_sheet(folder, writer.manifest, name, entry, sheet)
        say(f"contact sheet {sheet}\nread it with --data.region_set={name}; check it with data verify {folder}")
    trainer.strategy.barrier("the manifest")


def _announce(writer: RegionSetWriter) -> int:
    """Say how much is to be done; the number of pictures, over all ranks."""
    splits, left = writer.manifest["splits"], writer.pending()
    pictures = sum(splits[split]["shards"][number]["samples"] for split, number in left)
    every = sum(1 for _ in iterate_shards(splits))
    done = f", {every - len(left)} of {every} shards are finished already" if len(left) < every else ""
    say(f"region set '{writer.name}' of {writer.folder}, detector {writer.about['run_id']}: {pictures} pictures{done}")
    return pictures


def _written(engine: Engine, writer: RegionSetWriter) -> str:
    """Write this rank's shards; what went wrong, for all ranks to stop at."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from experiments.cli import is_user_error

    trainer = engine.trainer
    jobs = writer.pending(trainer.global_rank, trainer.world_size)
    counts = {job: writer.manifest["splits"][job[0]]["shards"][job[1]]["samples"] for job in jobs}
    columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = bool(jobs) and trainer.is_global_zero and trainer.progress_bar_callback is not None
    try:
        with Progress(*columns, TextColumn("pictures"), disable=not shown) as bar:
            task = bar.add_task(f"{writer.name}: rank {trainer.global_rank}", total=sum(counts.values()))
            for split, number in jobs:
                rows: list[Row] = []
                for batch in engine.data.prediction_loader(split, number):
                    rows += regions_of(engine.model, batch, split in WITH_TRUTH)
                    bar.advance(task, len(batch.index_B))
                writer.write(split, number, rows)
    except Exception as problem:
        if not isinstance(problem, DataError) and not is_user_error(problem):
            raise
        return str(problem)
    return ""


def _meet(engine: Engine, problem: str) -> None:
    """Wait for the other ranks; one that could not go on stops all, or they would wait for it forever."""
    problems = [problem]
    if engine.trainer.world_size > 1:
        problems = [""] * engine.trainer.world_size
        torch.distributed.all_gather_object(problems, problem)
    for found in problems:
        if found:
            raise UsageError(found)


@torch.no_grad()
def regions_of(model: Any, batch: DetectionBatch, true_boxes: bool) -> list[Row]:
    """What the detector finds in each picture, and the regions of its true boxes; boxes in px of the upright picture.

    Where nothing is found, the whole picture stands with score 0.
    """
    batch = DetectionBatch._make(None if field is None else field.to(model.device) for field in batch)
    rows: list[Row] = []
    for found, letterbox_4, (height, width) in zip(
        model.propose(batch), batch.letterbox_B4.cpu().numpy(), batch.size_B2.tolist(), strict=True
    ):
        boxes_R4, kept_R = on_picture(found.boxes_R4.cpu().numpy(), letterbox_4, (height, width), model.image_size_px)
        features_RD, scores_R = found.features_RD.float().cpu().numpy(), found.scores_R.float().cpu().numpy()
        regions = Regions(boxes_R4[kept_R], features_RD[kept_R], scores_R[kept_R], (height, width))
        rows.append((regions, None))
    nothing = [number for number, (found, _) in enumerate(rows) if not len(found.boxes_R4)]
    for number, feature_D in zip(nothing, _features_of_all(model, batch, nothing), strict=True):
        rows[number] = (whole_picture(rows[number][0].size_hw, feature_D), None)
    if true_boxes:
        rows = [(found, truth) for (found, _), truth in zip(rows, _truth(model, batch), strict=True)]
    return rows


def on_picture(
    boxes_R4: np.ndarray, letterbox_4: np.ndarray, size_hw: tuple[int, int], square_px: int
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes moved from the square to the upright picture and clipped to it; bool, which of them lie on it at all.

    What is no box of the square (NaN, no area, outside it) stays as it is, for the writer to refuse with the item's id.
    """
    scale_4, offset_4 = np.tile(letterbox_4[:2], 2).astype(np.float64), np.tile(letterbox_4[2:], 2)
    moved_R4 = (boxes_R4 - offset_4) / scale_4
    clipped_R4 = np.clip(moved_R4, 0, (size_hw[1], size_hw[0]) * 2)
    within_R4 = (boxes_R4 >= -BOX_TOLERANCE_PX) & (boxes_R4 <= square_px + BOX_TOLERANCE_PX)
    sound_R = np.all(within_R4, axis=1) & np.all(boxes_R4[:, :2] < boxes_R4[:, 2:], axis=1)
    kept_R = ~sound_R | np.all(clipped_R4[:, 2:] - clipped_R4[:, :2] >= LEAST_SIDE_PX, axis=1)
    return np.where(sound_R[:, None], clipped_R4, moved_R4).astype(np.float32), kept_R


def _features_of_all(model: Any, batch: DetectionBatch, rows: list[int]) -> Iterator[np.ndarray]:
    """Of each of these pictures, the feature of all of it."""
    if not rows:
        return
    part = DetectionBatch._make(None if field is None else field[rows] for field in batch)
    scale_B2, offset_B2 = part.letterbox_B4.split(2, dim=1)
    corner_B2 = offset_B2 + scale_B2 * part.size_B2.flip(1)
    boxes: list[Tensor] = list(torch.cat([offset_B2, corner_B2], dim=1)[:, None])
    yield from (features_RD[0].float().cpu().numpy() for features_RD in model.roi_features(part, boxes))


def _truth(model: Any, batch: DetectionBatch) -> Iterator[Regions | None]:
    """Regions of the true boxes of each picture; None = it has none."""
    boxes = [boxes_N4[mask_N] for boxes_N4, mask_N in zip(batch.boxes_BN4, batch.box_mask_BN, strict=True)]
    if not any(len(boxes_N4) for boxes_N4 in boxes):
        yield from [None] * len(boxes)
        return
    features = model.roi_features(batch, boxes)
    letterboxes, sizes = batch.letterbox_B4.cpu().numpy(), batch.size_B2.tolist()
    for boxes_N4, features_ND, letterbox_4, (height, width) in zip(boxes, features, letterboxes, sizes, strict=True):
        if not len(boxes_N4):
            yield None
            continue
        moved_N4, _ = on_picture(boxes_N4.cpu().numpy(), letterbox_4, (height, width), model.image_size_px)
        ones_N = np.ones(len(moved_N4), np.float32)
        yield Regions(moved_N4, features_ND.float().cpu().numpy(), ones_N, (height, width))


def _tell(entry: RegionSetEntry, name: str, pictures: int, seconds: float) -> None:
    lines = [f"{'':<8} {'pictures':>9} {'boxes':>9} {'mean':>6} {'without':>8}"]
    for split, part in entry["splits"].items():
        mean = part["boxes"] / part["pictures"] if part["pictures"] else 0.0
        lines.append(f"{split:<8} {part['pictures']:>9} {part['boxes']:>9} {mean:>6.2f} {part['without']:>8}")
    pace = f"{pictures} pictures in {seconds:.0f} s, {pictures / seconds:.0f} pictures/s" if pictures else "up to date"
    lines.append(f"region set '{name}' (hash {entry['hash']}): {entry['width']} wide, at most {entry['max']}; {pace}")
    say("\n".join(lines))
