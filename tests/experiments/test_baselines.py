"""Every baseline from shards to metrics, and again from its checkpoint; at paper scale on stored region features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.catalogues.record import ProductRecord
from datamodules.entities import add_entities, read_table
from datamodules.entity_sources import LexiconSource
from datamodules.manifest import read_manifest
from datamodules.regions import Regions
from datamodules.write_shards import build
from experiments.cli import main
from tests.datamodules.tiny_catalogue import TinyCatalogue

SHORT = [
    *("--data.num_workers=0", "--data.batch_size=8", "--data.steps_per_epoch=2", "--trainer.max_steps=4"),
    *("--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.enable_progress_bar=false"),
]
SMALL = ["--model.width=32", "--model.output_width=16", "--model.whitening_samples=64"]
PIXELS = ["--model.image_size_px=32"]
CONTRAST = "--model.objectives=[mlm,mrm,itm,clr]"
CASES: dict[str, tuple[str, tuple[str, ...], list[str]]] = {  # name -> experiment, modalities, settings
    "uniter": ("uniter", ("image", "text"), PIXELS),
    "uniter with contrast": ("uniter", ("image", "text"), [*PIXELS, "--model.objectives=[mlm,mrm,itm,wra,clr]"]),
    "vilbert": ("vilbert", ("image", "text"), [*PIXELS, "--model.image_width=24", "--model.cross_width=16"]),
    "vilbert with contrast": ("vilbert", ("image", "text"), [*PIXELS, CONTRAST]),
    "lxmert": ("lxmert", ("image", "text"), PIXELS),
    "lxmert with contrast": ("lxmert", ("image", "text"), [*PIXELS, CONTRAST]),
    "ege_cmp": ("ege_cmp", ("image", "text"), [*PIXELS, "--model.graph_rounds=2", "--model.graph_steps=3"]),
    "image only": ("image_only", ("image",), PIXELS),
    "text only": ("text_only", ("text",), []),
}


@pytest.mark.parametrize(("experiment", "modalities", "settings"), CASES.values(), ids=CASES)
def test_trained_and_evaluated_again(
    experiment: str, modalities: tuple[str, ...], settings: list[str], shards: Path, tmp_path: Path
) -> None:
    where = ["--data", str(shards), "--runs", str(tmp_path)]
    assert main(["fit", "--exp", experiment, "--scale", "tiny", *where, *SHORT, *SMALL, *settings]) == 0
    (folder,) = tmp_path.iterdir()
    trained = json.loads((folder / "metrics.json").read_text())
    assert trained["steps"] == 4
    test = trained["test"]
    for name in ("image", "text"):
        features = {f"feature/{name}_{kind}/mAP@10" for kind in ("stream", "whitened", "bag")}
        assert features <= set(test) if name in modalities else not features & set(test)
    if len(modalities) == 1:
        assert f"│ {modalities[0]} only" not in (folder / "log.txt").read_text()  # it would repeat the first row
        assert test[f"{modalities[0]}/mAP@10"] == test["mAP@10"]
    assert {"untrained", "random", "tfidf"} <= set(trained["floors"]["test"])
    assert main(["eval", "--run", str(folder)]) == 0
    assert json.loads((folder / "metrics.json").read_text())["test"] == test
    assert main(["table", str(folder)]) == 0
    assert main(["report", "--run", str(folder)]) == 0


def test_the_top_of_a_ranking_is_decided_by_the_matching_head(shards: Path, tmp_path: Path) -> None:
    where = ["--data", str(shards), "--runs", str(tmp_path)]
    more = [*SHORT, *SMALL, *PIXELS, "--evaluation.rerank=5"]
    assert main(["fit", "--exp", "uniter", "--scale", "tiny", *where, *more]) == 0
    (folder,) = tmp_path.iterdir()
    record = json.loads((folder / "metrics.json").read_text())
    assert {"rerank/mAP@10", "rerank/mAR@10"} <= set(record["test"])
    assert record["rerank"]["pairs"] == 5 * 12
    assert record["rerank"]["seconds"] > 0


def test_captions_without_dropout_are_refused_before_anything_runs(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", "--exp", "text_only", "--scale", "tiny", "--data", str(shards), "--runs", str(tmp_path)]
    assert main([*words, *SHORT, *SMALL, "--model.dropout=0.0"]) == 2
    said = capsys.readouterr().err
    assert "model.dropout 0.0 must lie between 0 and 1" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["uniter", "--model.objectives=[mlm,mrc_kl]"], "needs a detector's class scores"),
        (["vilbert", "--data.batch_size=1"], "data.batch_size"),
        (["lxmert", "--model.objectives=[mlm]", "--evaluation.rerank=5"], "no matching head"),
        (["clip", "--model.architecture=ViT-B-23"], "near: ViT-B-32"),
    ],
)
def test_what_cannot_work_is_told_before_training(
    words: list[str], told: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment, *settings = words
    where = ["--scale", "tiny", "--data", str(shards), "--runs", str(tmp_path)]
    assert main(["fit", "--exp", experiment, *where, *SHORT, *settings]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert "Traceback" not in said


# ---- paper scale -------------------------------------------------------------------------------------------------

NUM_CLASSES = 40


def _full_regions(record: ProductRecord) -> Regions:
    """36 regions of 2,048 numbers and scores of some classes, a function of the id."""
    rng = np.random.default_rng(list(record.id.encode()))
    corners = rng.uniform(0, 1, (36, 2, 2)) * (80, 60)
    boxes = np.concatenate([corners.min(1), corners.max(1)], 1).astype(np.float32)
    scores = rng.dirichlet(np.full(NUM_CLASSES, 0.5), 36).astype(np.float32)
    features = np.abs(rng.normal(size=(36, 2048))).astype(np.float32)
    return Regions(boxes, features, np.ones(36, np.float32), (60, 80), scores)


@pytest.fixture(scope="module")
def region_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Named as the data set whose overlay reads region features."""
    folder = tmp_path_factory.mktemp("data") / "product1m"
    counts = {"train": 8, "val": 3, "test": 4, "gallery": 6}
    options: dict[str, Any] = {"vocab_size": 60, "progress": False, "pictures": False}
    build(TinyCatalogue(counts, size_px=8), folder, regions=_full_regions, **options)
    lexicon = folder.parent / "lexicon.txt"
    lexicon.write_text("口红\nlipstick\nseries0\nseries1\nseries2\n", encoding="utf-8")
    add_entities(folder, LexiconSource(lexicon), progress=False)
    return folder


FULL: dict[str, tuple[str, str]] = {  # objectives beside those of the overlay for Product1M, which has no class scores
    "capture": ("capture", ""),
    "ege_cmp": ("ege_cmp", ""),
    "uniter": ("uniter", ""),
    "uniter, classes and contrast": ("uniter", "[mlm,mrm,mrc,mrc_kl,itm,wra,clr]"),
    "vilbert": ("vilbert", ""),
    "vilbert, classes and contrast": ("vilbert", "[mlm,mrc_kl,itm,clr]"),
    "lxmert": ("lxmert", ""),
    "lxmert, classes and contrast": ("lxmert", "[mlm,mrm,mrc,itm,clr]"),
    "image only": ("image_only", ""),
    "text only": ("text_only", ""),
}


@pytest.mark.slow
@pytest.mark.parametrize(("experiment", "objectives"), FULL.values(), ids=FULL)
def test_two_steps_at_paper_scale_on_region_features(
    experiment: str, objectives: str, region_shards: Path, tmp_path: Path
) -> None:
    """The published sizes, only the text from random weights: a batch of two, trained, evaluated and tested."""
    words = ["--exp", experiment, "--scale", "paper", "--data", str(region_shards), "--runs", str(tmp_path)]
    words += [*SHORT, "--data.batch_size=2", "--data.steps_per_epoch=1", "--trainer.max_steps=2"]
    words += ["--trainer.precision=32-true", "--model.tokenizer=shards"]
    if experiment != "image_only":
        words += ["--model.text_weights=null"]
    if objectives:
        words += [f"--model.objectives={objectives}", f"--model.region_classes={NUM_CLASSES}"]
    if experiment == "ege_cmp":
        assert read_table(region_shards, read_manifest(region_shards)).num_nodes > 1
    assert main(["fit", *words]) == 0
    (folder,) = tmp_path.iterdir()
    record = json.loads((folder / "metrics.json").read_text())
    assert record["steps"] == 2
    assert record["scale"] == "paper"
    assert record["parameters"] > 1e7
    assert 0 <= record["test"]["mAP@10"] <= 1
