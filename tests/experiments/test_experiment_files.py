"""Every experiment file and every row of every table is parsed, built and trained for two steps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from experiments import config, schema, table_rows
from experiments.config import HOME, Composition, compose
from experiments.engine import Engine, build
from experiments.errors import UsageError
from experiments.runs import run_folder
from tests.datamodules.tiny_sets import write_set

TABLES = sorted(file.stem for file in (HOME / "ablations").glob("*.yaml"))
# What a machine without a network, a GPU or time can build, of the arguments a class has and a row leaves alone.
SHRUNK = {
    **{"model.width": 32, "model.output_width": 16, "model.image_width": 32, "model.cross_width": 16},
    **{"model.text_heads": 4, "model.image_heads": 4, "model.cross_heads": 4, "model.co_heads": 4, "model.heads": 4},
    **{"model.text_ffn": 32, "model.image_ffn": 32, "model.ffn": 32, "model.whitening_samples": 64},
    **{"model.tokenizer": "shards", "model.text_weights": "null", "model.graph_rounds": 2, "model.graph_steps": 2},
    **{"data.num_workers": 0, "data.batch_size": 8, "data.steps_per_epoch": 4, "data.num_cut_outs": 8},
    **{"trainer.max_steps": 2, "trainer.accelerator": "cpu", "trainer.precision": "32-true"},
    **{"trainer.logger": "false", "trainer.enable_progress_bar": "false"},
}


ALWAYS = {"trainer.max_steps", "data.steps_per_epoch", "data.num_workers"}  # whatever a row says


class Case(NamedTuple):
    """A row, completed by what its table says for all."""

    file: Path
    entry: dict[str, Any]

    def composed(self, *more: str) -> Composition:
        """With further settings over its own."""
        entry, settings = self.entry, table_rows.row_settings(self.entry)
        with told(self):
            return compose(entry["experiment"], entry["data"], entry["scale"], 0, [*settings, *more])


def cases() -> list[Case]:
    tables = [table_rows.open_table(name) for name in TABLES]
    return [Case(table.file, entry) for table in tables for entry in table.entries]


def shrinking(experiment: str, own: dict[str, Any]) -> list[str]:
    """The settings that make an experiment small, those of a row left alone but for its length."""
    known = {name: schema.signature(path) for name, path in config.classes_of(experiment).items()}
    fitting = {k: v for k, v in SHRUNK.items() if k.partition(".")[2] in known.get(k.partition(".")[0], ())}
    return [f"--{key}={value}" for key, value in fitting.items() if key not in own or key in ALWAYS]


@pytest.fixture(scope="module")
def home(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny shards under the name of each data set, entities and a region set among them."""
    home = tmp_path_factory.mktemp("home")
    for name in config.overlays("data"):
        folder = shutil.copytree(shards, home / "data" / name)
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, "name": name}))
        write_set(folder)
    return home


@pytest.fixture(autouse=True)
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)


@contextmanager
def told(case: Case) -> Iterator[None]:
    """Failures name file and row: many are looked at by one test."""
    try:
        yield
    except Exception as problem:
        raise AssertionError(f"{case.file.name}: {case.entry['label']}: {problem}") from problem


def composed(case: Case) -> Composition:
    """The row as it is run, but small."""
    own = case.entry.get("set") or {}
    regions = []
    if case.entry["data"] == "product1m" and "data.region_set" not in own:
        regions = ["--data.region_set=detected"]  # there they lie in the shards
    small = shrinking(case.entry["experiment"], own)
    return case.composed(*small, *regions)


def engine_of(composition: Composition, home: Path) -> Engine:
    engine = build(composition, run_folder(composition, home / "runs"))
    engine.model.check_training(engine.trainer, engine.data.batch_size)
    return engine


def distinct() -> list[list[Case]]:
    """Rows by what they compute: many share a run, others differ in their data only."""
    groups: dict[str, list[Case]] = {}
    for case in cases():
        found = composed(case).config
        found["data"]["init_args"].pop("folder")
        groups.setdefault(json.dumps(found, sort_keys=True), []).append(case)
    return list(groups.values())


def test_rows_are_checked_at_their_own_scale_and_no_two_of_a_table_are_the_same(home: Path) -> None:
    seen: dict[tuple[str, str, str | None], str] = {}
    for case in cases():
        run = run_folder(case.composed(), Path("runs")).run_id
        label = seen.setdefault((case.file.name, run, case.entry.get("feature")), case.entry["label"])
        assert label == case.entry["label"], f"{case.file.name}: {label} and {case.entry['label']} are one run"


def test_every_row_of_every_table_is_built(home: Path) -> None:
    for group in distinct():
        with told(group[0]):
            model = engine_of(composed(group[0]), home).model
        known = {*model.candidate_features, *(name for names in model.modalities.values() for name in names)}
        for case in group:
            named = {case.entry.get(key) for key in ("feature", "own_feature")} - {None}
            assert named <= known, f"{case.file.name}: {case.entry['label']}: {named - known}"


@pytest.mark.slow
@pytest.mark.timeout(1800)  # some eighty models one after the other: beside other work it has taken over ten minutes
def test_every_row_of_every_table_takes_two_steps(home: Path) -> None:
    for group in distinct():
        with told(group[0]):
            two_steps(engine_of(composed(group[0]), home))


@pytest.mark.parametrize("experiment", sorted(config.experiments()))
def test_every_experiment_takes_two_steps(home: Path, experiment: str) -> None:
    composition = compose(experiment, "synthetic", "tiny", 0, shrinking(experiment, {}))
    two_steps(engine_of(composition, home))


def two_steps(engine: Engine) -> None:
    engine.trainer.fit(engine.model, datamodule=engine.data)
    assert engine.trainer.global_step == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("set: {model.temprature: 0.1}", "unknown key model.temprature: did you mean 'temperature'"),
        ("set: {model.temperature: warm}", "model.temperature expects float, got 'warm'"),
        ("set: {temperature: 0.1}", "unknown key temperature: did you mean --model.temperature"),
        ("experiment: captre", "unknown experiment 'captre': did you mean 'capture'"),
        ("scale: tny", "unknown scale 'tny': did you mean 'tiny'"),
        ("data: grocry", "unknown data set 'grocry': did you mean 'grocery'"),
        ("set: {data.region_set: detectd}", "detectd"),
    ],
)
def test_a_typo_in_a_row_is_answered_with_file_and_row(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str, message: str
) -> None:
    (tmp_path / "ablations").mkdir()
    (tmp_path / "ablations" / "mine.yaml").write_text(f"data: grocery\nrows: [{{label: a}}, {{label: hot, {wrong}}}]\n")
    monkeypatch.setattr(table_rows, "HOME", tmp_path)
    with pytest.raises(UsageError, match=rf"mine\.yaml: hot: .*{message}"):
        table_rows.read_plan("mine")
