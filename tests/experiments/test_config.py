"""Layers, overlays, command-line settings, and the answers to what is misspelt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from experiments import config, schema
from experiments.errors import UsageError

TREES = st.recursive(
    st.integers() | st.text(max_size=3), lambda t: st.dictionaries(st.sampled_from("abc"), t), max_leaves=6
)
MAPS = st.dictionaries(st.sampled_from("abc"), TREES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A shard folder as far as configuration looks: manifest and tokenizer."""
    return write_folder(tmp_path / "synthetic", "synthetic")


def write_folder(path: Path, name: str, **changes: object) -> Path:
    path.mkdir()
    split = {"samples": 0, "single": 0, "multi": 0, "unknown": 0, "skipped": {}, "shards": []}
    manifest = {
        "schema_version": 1,
        "name": name,
        "source": "synthetic",
        "settings": {},
        "build": {},
        "tokenizer": {"file": "tokenizer.json", "vocab_size": 77},
        "pictures": True,
        "splits": {name: split for name in ("train", "val", "test", "gallery")},
        "labels": {"count": 1},
        "regions": None,
        "near_duplicates": {},
        "data_hash": "0123456789abcdef",
    }
    (path / "manifest.json").write_text(json.dumps({**manifest, **changes}))
    (path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"[SEP]": 8, "[MASK]": 9}}}))
    return path


def compose(folder: Path, *settings: str, scale: str = "tiny", seed: int | None = None) -> config.Composition:
    return config.compose("capture", str(folder), scale, seed, settings)


@given(MAPS, MAPS)
def test_merge_is_the_upper_layer_over_the_lower(below: dict, above: dict) -> None:
    merged = config.merge(below, above)
    assert set(merged) == set(below) | set(above)
    for key, value in merged.items():
        if key not in above:
            assert value == below[key]
        elif not isinstance(above[key], dict):
            assert value == above[key]
        else:
            assert value == config.merge(below[key] if isinstance(below.get(key), dict) else {}, above[key])


def test_later_layers_win_and_all_are_named(folder: Path) -> None:
    composed = compose(folder, "--trainer.max_steps=7")
    assert composed.config["trainer"]["gradient_clip_val"] == 1.0  # base.yaml
    assert composed.config["model"]["class_path"] == "lightning_modules.CAPTURE"  # capture.yaml
    assert composed.config["model"]["init_args"]["visual_input"] == "grid"  # data/synthetic.yaml
    assert composed.config["model"]["init_args"]["image_size_px"] == 64  # scale/tiny.yaml
    assert composed.config["trainer"]["max_steps"] == 7  # command line
    assert [Path(layer).name for layer in composed.layers] == [
        "base.yaml",
        "capture.yaml",
        "synthetic.yaml",
        "tiny.yaml",
    ]


def test_what_follows_from_the_shards_is_filled_in(folder: Path) -> None:
    composed = compose(folder, seed=3)
    assert composed.config["model"]["init_args"]["vocab_size"] == 77
    assert composed.config["model"]["init_args"]["mask_token_id"] == 9
    assert composed.config["data"]["init_args"]["folder"] == str(folder)
    assert composed.config["data"]["init_args"]["seed"] == composed.seed == 3


@pytest.mark.parametrize("data", sorted(config.overlays("data")))
@pytest.mark.parametrize("scale", sorted(config.overlays("scale")))
@pytest.mark.parametrize("experiment", sorted(config.experiments()))
def test_every_file_composes_with_every_other(tmp_path: Path, experiment: str, data: str, scale: str) -> None:
    folder = write_folder(tmp_path / data, data)
    composed = config.compose(experiment, str(folder), scale, None, [])
    assert composed.data.overlay == config.overlays("data")[data]


@pytest.mark.parametrize(
    ("experiment", "differing"),
    [
        ("capture", {"text_weights"}),
        ("ege_cmp", {"text_weights"}),
        ("text_only", {"text_weights"}),
        ("image_only", set()),
    ],
)
def test_paper_scale_on_product1m_is_the_constructor_default_from_bert(
    experiment: str, differing: set[str], tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "product1m", "product1m", tokenizer=None)
    composed = config.compose(experiment, str(folder), "paper", None, [])
    arguments = composed.config["model"]["init_args"]
    known = schema.signature(composed.config["model"]["class_path"])
    assert {key for key, value in arguments.items() if value != known[key].default} == differing
    steps = composed.config["trainer"]["max_steps"] * composed.config["data"]["init_args"]["batch_size"]
    assert steps == pytest.approx(10 * 1_132_830, rel=1e-3)  # ten passes


@pytest.mark.parametrize("scale", ["small", "tiny"])
@pytest.mark.parametrize("experiment", ["capture", "text_only"])
def test_what_starts_from_scratch_wants_no_bert(tmp_path: Path, experiment: str, scale: str) -> None:
    folder = write_folder(tmp_path / "product1m", "product1m", tokenizer=None)
    assert config.compose(experiment, str(folder), scale, None, []).config["model"]["init_args"]["text_weights"] is None


@pytest.mark.parametrize("scale", ["small", "tiny"])
@pytest.mark.parametrize("experiment", ["image_only", "text_only"])
def test_a_baseline_of_one_modality_has_the_backbone_of_capture(folder: Path, experiment: str, scale: str) -> None:
    fused = config.compose("capture", str(folder), scale, None, []).config["model"]["init_args"]
    alone = config.compose(experiment, str(folder), scale, None, []).config["model"]["init_args"]
    on_purpose = {"dropout", "text_weights"} if experiment == "text_only" else {"text_weights"}
    assert {key for key, value in alone.items() if fused.get(key) != value} <= on_purpose
    assert len(alone) > 10


@pytest.mark.parametrize("scale", ["small", "tiny"])
def test_ege_cmp_has_the_recipe_of_capture(folder: Path, scale: str) -> None:
    capture, ege = (
        config.compose(name, str(folder), scale, None, []).config["model"]["init_args"]
        for name in ("capture", "ege_cmp")
    )
    own = {"ranked_entities", "graph_rounds"}
    assert {key: value for key, value in ege.items() if key not in own} == capture
    assert len(capture) > 20


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("--model.lr=5e-5", ("model", "init_args", "lr"), 5e-5),
        ("--model.init_args.lr=1e-4", ("model", "init_args", "lr"), 1e-4),
        ("--model.objectives=[mlm, clr]", ("model", "init_args", "objectives"), ["mlm", "clr"]),
        ("--data.batch_size=16", ("data", "init_args", "batch_size"), 16),
        ("--trainer.strategy=ddp", ("trainer", "strategy"), "ddp"),
        ("--trainer.precision=bf16-mixed", ("trainer", "precision"), "bf16-mixed"),
        (
            "--data.instances=[true]",
            ("data", "init_args", "instances"),
            ["true"],
        ),  # YAML's truth is a level's name here
        ("--evaluation.backend=faiss", ("evaluation", "backend"), "faiss"),
        ("--seed_everything=5", ("seed_everything",), 5),
    ],
)
def test_settings_reach_their_place(folder: Path, setting: str, path: tuple[str, ...], value: object) -> None:
    for words in ([setting], setting.split("=", 1)):
        found = config.compose("capture", str(folder), "tiny", None, words).config
        for key in path:
            found = found[key]
        assert found == value


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("--model.lrr=1", "unknown key model.lrr: did you mean 'lr'?"),
        ("--trainer.max_step=1", "unknown key trainer.max_step: did you mean 'max_steps'?"),
        ("--data.batchsize=1", "unknown key data.batchsize: did you mean 'batch_size'?"),
        ("--evaluation.k=1", "unknown key evaluation.k"),
        ("--modle.lr=1", "unknown key modle.lr: did you mean 'model'?"),
        ("--sede=1", "unknown key sede: did you mean 'seed'?"),
        ("--model.lr=high", "model.lr expects float, got 'high'"),
        ("--model.visual_input=gird", "model.visual_input expects Literal"),
        ("--model.text_layers=2.5", "model.text_layers expects int, got 2.5"),
        ("--trainer.max_steps=many", "trainer.max_steps expects int"),
        ("--seed_everything=-1", "seed_everything expects"),
        ("--model.lr", "--model.lr has no value"),
        ("--model=lightning_modules.CLIP", "an experiment file is for"),
        ("--model.class_path=lightning_modules.CLIP", "an experiment file is for"),
        ("--data.seed=1", "--data.seed follows from --seed"),
        ("--model.lr={", "not readable"),
        ("model.lr=1", "unexpected argument"),
    ],
)
def test_a_wrong_setting_is_answered_with_its_key(folder: Path, setting: str, message: str) -> None:
    with pytest.raises(UsageError) as problem:
        compose(folder, setting)
    assert message in str(problem.value)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("captrue", "synthetic", "tiny"), "unknown experiment 'captrue': did you mean 'capture'?"),
        (("capture", "sinthetic", "tiny"), "unknown data set 'sinthetic': did you mean 'synthetic'?"),
        (("capture", "synthetic", "tyni"), "unknown scale 'tyni': did you mean 'tiny'?"),
        (("capture", "no/such/folder", "tiny"), "no manifest.json there"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(
    words: tuple[str, str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as problem:
        config.compose(*words, None, [])
    assert message in str(problem.value)


@pytest.mark.parametrize("name", sorted(config.overlays("data")))
def test_missing_shards_name_the_command_that_builds_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as problem:
        config.compose("capture", name, "tiny", None, [])
    assert f"make data DATA={name}" in str(problem.value)
    assert ("make demo" in str(problem.value)) == (name != "synthetic")


def test_an_overlay_may_not_change_a_class(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "experiments"
    for file in config.HOME.rglob("*.yaml"):
        copy = home / file.relative_to(config.HOME)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(file.read_text())
    tiny = yaml.safe_load((home / "scale" / "tiny.yaml").read_text())
    tiny["experiments"]["capture"]["model"]["class_path"] = "lightning_modules.CLIP"
    (home / "scale" / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    monkeypatch.setattr(config, "HOME", home)
    with pytest.raises(UsageError, match=r"tiny.yaml: an overlay may not change a class \(model.class_path\)"):
        compose(folder)


def test_an_experiments_block_applies_to_its_experiment_only(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(
        "trainer: {max_steps: 1}\nexperiments: {capture: {trainer: {max_steps: 2}}, other: {model: {}}}\n"
    )
    monkeypatch.setattr(config, "experiments", lambda: {"capture": overlay, "other": overlay})
    assert config._overlay(overlay, "capture") == {"trainer": {"max_steps": 2}}
    assert config._overlay(overlay, "other") == {"trainer": {"max_steps": 1}, "model": {}}
    monkeypatch.setattr(config, "experiments", lambda: {"capture": overlay})
    with pytest.raises(UsageError, match=r"experiments\.other: unknown experiment"):
        config._overlay(overlay, "capture")


def test_a_dumped_configuration_reads_back(folder: Path) -> None:
    composed = compose(folder, "--model.lr=3e-5")
    assert yaml.load(config.dump(composed.config), config.Loader) == composed.config


def test_a_task_part_lies_below_the_experiments_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(
        "trainer: {max_steps: 1, min_steps: 1}\n"
        "tasks: {retrieval: {trainer: {max_steps: 2}}, detection: {trainer: {max_steps: 3}}}\n"
        "experiments: {mine: {trainer: {max_steps: 4}}}\n"
    )
    monkeypatch.setattr(config, "experiments", lambda: {"mine": overlay, "other": overlay})
    assert config._overlay(overlay, "mine", "detection") == {"trainer": {"max_steps": 4, "min_steps": 1}}
    assert config._overlay(overlay, "other", "detection") == {"trainer": {"max_steps": 3, "min_steps": 1}}
    assert config._overlay(overlay, "other") == {"trainer": {"max_steps": 2, "min_steps": 1}}
    overlay.write_text("tasks: {retrival: {}}\n")
    with pytest.raises(UsageError, match=r"tasks\.retrival: unknown task, did you mean 'retrieval'"):
        config._overlay(overlay, "mine")
    overlay.write_text("task: detection\n")
    with pytest.raises(UsageError, match="an overlay may not change the task"):
        config._overlay(overlay, "mine")


def test_the_checkpoint_of_a_detector_is_chosen_by_pasted_pictures(folder: Path) -> None:
    detector = config.compose("detector", str(folder), "tiny", None, [])
    assert detector.task.name == "detection"
    assert "task" not in detector.config
    assert detector.config["checkpoint"]["monitor"] == "pasted/recall@10/IoU75"
    assert "retrieval_feature" not in detector.config["model"]["init_args"]
    capture = compose(folder)
    assert capture.task.name == "retrieval"
    assert capture.config["checkpoint"]["monitor"] == "val/mAP@10"
    assert capture.config["model"]["init_args"]["retrieval_feature"] == "auto"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("--graph_refresh.every=2", "unknown key graph_refresh.every"),
        ("--evaluation.rerank=5", "unknown key evaluation.rerank"),
        ("--task=retrieval", "stands in its file"),
    ],
)
def test_a_detector_has_no_keys_of_retrieval(folder: Path, setting: str, message: str) -> None:
    with pytest.raises(UsageError) as problem:
        config.compose("detector", str(folder), "tiny", None, [setting])
    assert message in str(problem.value)


def test_an_unknown_task_is_answered_with_the_nearest(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("task: detecton\nmodel: {class_path: lightning_modules.CLIP}\n")
    monkeypatch.setattr(config, "experiments", lambda: {"mine": file})
    with pytest.raises(UsageError, match="unknown task 'detecton': did you mean 'detection'"):
        config.compose("mine", str(folder), "tiny", None, [])


def test_an_experiment_that_names_no_task_gets_what_is_retrievals(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "experiments"
    for file in config.HOME.rglob("*.yaml"):
        copy = home / file.relative_to(config.HOME)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(file.read_text())
    mine = "model: {class_path: lightning_modules.CAPTURE}\ndata: {class_path: datamodules.Product1M}\n"
    (home / "mine.yaml").write_text(mine)
    monkeypatch.setattr(config, "HOME", home)
    composed = config.compose("mine", str(folder), "tiny", None, [])
    assert composed.config["model"]["init_args"]["retrieval_feature"] == "auto"
    assert composed.config["evaluation"] == {"ks": [10, 50, 100], "depth": 100}
