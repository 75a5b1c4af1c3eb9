"""Evaluation by instance: a model that sees mean colours tells products apart only when each has a row of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lightning import Trainer
from torch import Tensor

from datamodules import InputSpec, Product1M, ProductBatch
from datamodules.write_shards import build
from lightning_modules import ModelError, RetrievalModule
from lightning_modules.callbacks.retrieval_evaluation import RetrievalEvaluation, SplitResult
from lightning_modules.embedding_store import InstanceStore
from lightning_modules.objectives.draws import Draws
from retrieval import merge_instances, official_metrics
from tests.datamodules.coloured_squares import PLACES, SIDE_PX, ColouredSquares, squares_regions
from tests.distributed.gloo import run_on_ranks

SHOP = ColouredSquares(queries=10, bare=5)


class MeanColour(RetrievalModule):
    """`colour` is the mean of the pixels that are neither white nor grey, `blind` the same for all."""

    candidate_features = ("blind", "colour", "dark")
    modalities: ClassVar = {"image": ("colour",)}
    uses_in_batch_negatives = False

    def __init__(self, retrieval_feature: str = "colour") -> None:
        super().__init__(retrieval_feature, 1e-3, 0.0, 0.1)
        self.rows: list[int] = []

    def input_spec(self) -> InputSpec:
        return InputSpec(visual_input="grid", image_size_px=32, text_length=6)

    def losses(self, batch: ProductBatch, draws: Draws) -> dict[str, Tensor]:
        raise AssertionError("these tests only evaluate")

    def embed(self, batch: ProductBatch) -> dict[str, Tensor]:
        assert batch.images_B3HW is not None
        self.rows.append(len(batch.index_B))
        pixels_B3HW = batch.images_B3HW.float() / 255
        spread_BHW = pixels_B3HW.amax(1) - pixels_B3HW.amin(1)
        weight_B1HW = (spread_BHW > 0.3).float().unsqueeze(1)
        colour_B3 = (pixels_B3HW * weight_B1HW).sum((2, 3)) / weight_B1HW.sum((2, 3)).clamp(min=1) - 0.45
        blind_B3 = torch.ones_like(colour_B3)
        # Blind to a crop that a colour fills; it serves pictures of several.
        dark_B3 = torch.where(weight_B1HW.mean((1, 2, 3)).unsqueeze(1) > 0.6, blind_B3, colour_B3)
        return {"blind": blind_B3, "colour": colour_B3, "dark": dark_B3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("squares")
    build(SHOP, folder, shard_size=4, vocab_size=60, progress=False, regions=squares_regions)
    return folder


def _evaluated(
    folder: Path, model: MeanColour | None = None, instances: tuple[str, ...] = ("detected", "true"), **options: Any
) -> dict[str, SplitResult]:
    model = model or MeanColour()
    more = {"ks": (2, 6), "depth": 18} | options
    data_options = {key: more.pop(key) for key in ("max_instances", "instance_min_score") if key in more}
    data = Product1M(str(folder), eval_batch_size=6, num_workers=0, instances=list(instances), **data_options)
    data.use_input_spec(model.input_spec())
    evaluation = RetrievalEvaluation(**more)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", devices=1, callbacks=[evaluation], enable_checkpointing=False, **quiet)
    for evaluate in (trainer.validate, trainer.test):
        evaluate(model, datamodule=data, verbose=False)
    return evaluation.results


def test_each_product_is_found_by_its_own_row_and_not_by_the_whole_picture(folder: Path) -> None:
    result = _evaluated(folder)["test"]
    assert list(result.levels) == ["detected", "whole", "true"], "the headline first"
    several = [query for query in range(10) if len(SHOP.colours("test", query)) > 1]
    for level in ("detected", "true"):
        found = result.levels[level].per_query["mAR@6"][several]
        assert found.tolist() == pytest.approx([1.0] * len(several)), level
    assert result.levels["whole"].per_query["mAR@6"][several].mean() < 0.7
    assert result.metrics["mAR@6"] == pytest.approx(1.0)
    assert result.metrics["whole/mAR@6"] < 0.7


def test_each_instance_has_its_own_list(folder: Path) -> None:
    result = _evaluated(folder)["test"]
    about = result.levels["detected"].instances
    assert about is not None
    assert len(about.owner_I) == len(about.ranking.query_ids) == sum(len(SHOP.colours("test", q)) for q in range(10))
    gallery = [SHOP.colours("gallery", item)[0] for item in range(SHOP.items)]
    for row, (owner, box) in enumerate(zip(about.owner_I.tolist(), about.boxes_I4 * SIDE_PX, strict=True)):
        number = int(about.ranking.query_ids[row].rpartition(".")[2])
        assert about.ranking.query_ids[row] == f"test{owner:03d}.{number}"
        place = PLACES.index(tuple(round(float(value)) for value in box))
        shown = SHOP.colours("test", owner)
        assert place == len(shown) - 1 - number, "the surest first"
        assert {gallery[item] for item in about.ranking.index_QK[row, :3]} == {shown[place]}
    assert about.scores_I.min() > 0.5
    assert about.without == 0
    merged = merge_instances(about.ranking, about.owner_I, result.ranking.query_ids, 18)
    assert (merged.index_QK == result.ranking.index_QK).all()


def test_metrics_stand_under_their_level(folder: Path) -> None:
    data = Product1M(str(folder))
    labels = data.labels("test"), data.labels("gallery")
    result = _evaluated(folder)["test"]
    for level, found in result.levels.items():
        prefix = "" if level == "detected" else f"{level}/"
        expected = official_metrics(found.ranking, *labels, ks=(2, 6))
        assert {key: result.metrics[prefix + key] for key in expected} == pytest.approx(expected)
        assert result.per_query[f"{prefix}mAP@2"].mean() == pytest.approx(expected["mAP@2"])
    assert result.metrics["instances/without"] == 0
    assert result.metrics["true/instances/without"] == 2
    assert result.levels["true"].instances is not None
    assert result.levels["true"].instances.without == 2, "of two queries no box is known"
    assert result.metrics["instances/per_query"] == result.metrics["true/instances/per_query"] == 2.2
    assert result.levels["whole"].instances is None
    assert set(result.features) == {"product", "image", "whole", "true"}
    assert not any(key.startswith(("whole/same", "true/same", "detected/")) for key in result.metrics)
    plain = _evaluated(folder, instances=())["test"]
    assert plain.metrics["same/mAP@10"] == result.metrics["same/mAP@10"]
    assert {key: plain.metrics[key] for key in expected} == {key: result.metrics[f"whole/{key}"] for key in expected}
    assert list(plain.levels) == ["whole"]


def test_the_headline_is_chosen_by_argument_and_never_the_true_boxes(folder: Path) -> None:
    result = _evaluated(folder, instances=("true",))["test"]
    assert list(result.levels) == ["whole", "true"]
    assert "true/mAP@2" in result.metrics
    assert "whole/mAP@2" not in result.metrics
    both = _evaluated(folder, level="whole")["test"]
    assert both.metrics["mAP@2"] == result.metrics["mAP@2"]
    assert {"detected/mAP@2", "true/mAP@2"} <= set(both.metrics)
    with pytest.raises(ModelError, match=r"evaluation\.level=true: true boxes are an upper bound"):
        RetrievalEvaluation(level="true")
    with pytest.raises(ModelError, match=r"evaluation\.level 'hole' is unknown; did you mean 'whole'"):
        RetrievalEvaluation(level="hole")
    with pytest.raises(ModelError, match=r"evaluation\.merge 'bst' is unknown; did you mean 'best'"):
        RetrievalEvaluation(merge="bst")
    with pytest.raises(ModelError, match=r"evaluation\.level=detected: .* set data\.instances=\[detected\]"):
        _evaluated(folder, instances=("true",), level="detected")


def test_each_level_takes_its_own_best_feature_on_val(folder: Path, tmp_path: Path) -> None:
    model = MeanColour("auto")
    result = _evaluated(folder, model)
    assert result["val"].features["product"] == "colour"
    for level in ("whole", "true"):
        chosen = model.selected_features[level]
        assert chosen == result["test"].features[level] == result["test"].levels[level].feature
        others = []
        for name in model.candidate_features:
            fixed = _evaluated(folder, MeanColour(name))["val"].levels[level]
            others.append((fixed.metrics["mAP@2"], name == chosen))
        assert max(score for score, _ in others) == max(score for score, is_chosen in others if is_chosen)
    model.save_pretrained(tmp_path)
    assert MeanColour.from_pretrained(tmp_path).selected_features == model.selected_features
    checkpoint: dict[str, Any] = {}
    model.on_save_checkpoint(checkpoint)
    again = MeanColour("auto")
    again.on_load_checkpoint(checkpoint)
    assert again.selected_features == model.selected_features
    data = Product1M(str(folder), num_workers=0, instances=["true"])
    data.use_input_spec(model.input_spec())
    vectors = again.encode(next(iter(data.test_dataloader()[2])))
    assert torch.equal(vectors["whole"], vectors[model.selected_features["whole"]])


def test_a_checkpoint_that_knows_no_levels_uses_its_product_feature(folder: Path) -> None:
    model = MeanColour("auto")
    model.on_load_checkpoint({"selected_features": {"product": "colour", "image": "colour"}})
    data = Product1M(str(folder), num_workers=0, instances=["true"])
    data.use_input_spec(model.input_spec())
    evaluation = RetrievalEvaluation(ks=(2,), depth=18)
    trainer = Trainer(accelerator="cpu", devices=1, callbacks=[evaluation], logger=False, enable_progress_bar=False)
    trainer.test(model, datamodule=data, verbose=False)
    assert evaluation.results["test"].features == {"product": "colour", "image": "colour", "true": "colour"}


def test_ways_to_merge_differ_and_are_taken_over(folder: Path) -> None:
    rankings = {}
    for merge in ("round_robin", "best", "normalised"):
        result = _evaluated(folder, merge=merge)["test"]
        about = result.levels["detected"].instances
        assert about is not None
        expected = merge_instances(about.ranking, about.owner_I, result.ranking.query_ids, 18, merge)
        assert (result.ranking.index_QK == expected.index_QK).all()
        rankings[merge] = result.ranking.index_QK
    assert (rankings["round_robin"] != rankings["best"]).any()


def test_a_query_of_many_instances_is_one_forward(folder: Path) -> None:
    model = MeanColour()
    _evaluated(folder, model, instances=("true",), max_instances=36)
    rows = [len(SHOP.colours("val", query)) for query in range(10)]
    # 10 queries and 18 items in batches of 6, then one batch per query of all its instances; test likewise.
    assert model.rows[:5] == [6, 4, 6, 6, 6]
    assert model.rows[5:15] == rows
    assert len(model.rows) == 30


def test_nothing_found_is_the_whole_picture(folder: Path) -> None:
    result = _evaluated(folder, instances=("detected",), instance_min_score=0.99)["test"]
    assert result.metrics["instances/without"] == 10
    assert (result.ranking.index_QK == result.levels["whole"].ranking.index_QK).all()


def test_a_query_without_any_row_raises(folder: Path) -> None:
    store = InstanceStore()
    batch = ProductBatch(
        torch.tensor([0, 1, 20]),
        torch.zeros(3, 2),
        torch.zeros(3, 2),
        owner_B=torch.tensor([0, 0, 2]),
        instance_box_B5=torch.zeros(3, 5),
        instance_score_B=torch.ones(3),
    )
    store.update(batch, {"colour": torch.ones(3, 3)})
    ids = np.array(["a", "b", "c"])
    with pytest.raises(ModelError, match=r"1 of 3 items of split 'test' were not embedded \(first: b\)"):
        store.check_complete(ids, "test", torch.device("cpu"))
    store.check_complete(ids[[0]], "test", torch.device("cpu"))
    with pytest.raises(ModelError, match="must hold owner_B"):
        store.update(batch._replace(owner_B=None), {})


def _numbers(folder: Path) -> dict[str, Tensor]:
    """What an evaluation on this rank reports; where a process group exists, each rank reads its share."""
    found: dict[str, Tensor] = {}
    for split, result in _evaluated_on_ranks(folder).items():
        found |= {f"{split} {key}": torch.tensor(value) for key, value in result.metrics.items()}
        found |= {f"{split} per query {key}": torch.from_numpy(score) for key, score in result.per_query.items()}
        for level, about in result.levels.items():
            found[f"{split} {level} order"] = torch.from_numpy(about.ranking.index_QK)
            if about.instances is not None:
                lists = about.instances
                found[f"{split} {level} lists"] = torch.from_numpy(lists.ranking.index_QK)
                found[f"{split} {level} owners"] = torch.from_numpy(lists.owner_I)
                found[f"{split} {level} boxes"] = torch.from_numpy(lists.boxes_I4)
                found[f"{split} {level} scores"] = torch.from_numpy(lists.scores_I)
    return found


class _OnRanks(Product1M):
    """Reads its place from the process group: these ranks are not Lightning's."""

    @property
    def _place(self) -> Any:
        from datamodules.shards import Place
        from lightning_modules.distributed import rank, world_size

        return Place(rank(), world_size(), 1)


def _evaluated_on_ranks(folder: Path) -> dict[str, SplitResult]:
    model = MeanColour("auto")
    data = _OnRanks(str(folder), eval_batch_size=6, num_workers=0, instances=["detected", "true"], max_instances=3)
    data.use_input_spec(model.input_spec())
    evaluation = RetrievalEvaluation(ks=(2, 6), depth=18)
    trainer = Trainer(accelerator="cpu", devices=1, callbacks=[evaluation], logger=False, enable_progress_bar=False)
    for evaluate in (trainer.validate, trainer.test):
        evaluate(model, datamodule=data, verbose=False)
    return evaluation.results


def test_two_processes_find_what_one_finds(folder: Path, tmp_path: Path) -> None:
    expected = _numbers(folder)
    for found in run_on_ranks(2, tmp_path, _numbers, folder):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value), key


def test_the_metric_that_chooses_the_feature_is_an_argument(folder: Path) -> None:
    for metric in ("mAR@6", "coverage@2", "Prec@6"):
        result = _evaluated(folder, MeanColour("auto"), choose_by=metric)["val"]
        fixed = {name: _evaluated(folder, MeanColour(name))["val"].metrics for name in MeanColour.candidate_features}
        for role, prefix in (("product", ""), ("whole", "whole/"), ("true", "true/")):
            values = {name: metrics[prefix + metric] for name, metrics in fixed.items()}
            assert values[result.features[role]] == max(values.values()), (metric, role)
    with pytest.raises(ModelError, match=r"evaluation\.choose_by 'mAR@10' is unknown"):
        RetrievalEvaluation(ks=(2, 6), choose_by="mAR@10")
