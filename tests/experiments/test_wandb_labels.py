"""Group and tags of a run in W&B: of the tables it stands in, whoever started it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.ablation_plan import plan_runs
from experiments.config import compose
from experiments.run_commands import _run_parser
from experiments.runs import run_folder
from experiments.table_rows import Choice, open_table
from experiments.wandb_labels import TAG_LENGTH, labels_of, shorten, table_folder

CLR = ["--model.objectives=[clr]"]


def test_a_run_that_was_typed_by_hand_has_the_tags_of_its_row(write: Callable[..., None], shards: Path) -> None:
    write()
    labels = labels_of(compose("capture", str(shards), "tiny", 1, CLR))
    assert labels == ("mine", ("mine", "mine: CLR, alone", "seed 1"))


def test_a_run_of_no_table_has_its_seed_only(write: Callable[..., None], shards: Path) -> None:
    write()
    assert labels_of(compose("capture", str(shards), "tiny", 0, ["--model.lr=0.5"])) == (None, ("seed 0",))


def test_a_run_of_two_tables_has_the_tags_of_both_and_the_group_of_the_one_that_started_it(
    home: Path, write: Callable[..., None], shards: Path
) -> None:
    write()
    text = (home / "ablations" / "mine.yaml").read_text()
    (home / "ablations" / "other.yaml").write_text(text.replace("CLR, alone", "contrast"))
    composition = compose("capture", str(shards), "tiny", 0, CLR)
    assert labels_of(composition).group == "mine"
    labels = labels_of(composition, "other")
    assert labels.group == "other"
    assert set(labels.tags) == {"mine", "other", "mine: CLR, alone", "other: contrast", "seed 0"}


def test_rows_that_show_features_of_one_run_do_not_tag_it(write: Callable[..., None], shards: Path) -> None:
    write("\n  - {label: chosen}\n  - {label: streams, feature: product_stream}", base="chosen", blocks=False)
    assert labels_of(compose("capture", str(shards), "tiny", 0, [])).tags == ("mine", "mine: chosen", "seed 0")


def test_a_row_of_other_data_is_not_the_runs(write: Callable[..., None], shards: Path) -> None:
    write("\n  - {label: here}\n  - {label: elsewhere, data: grocery}")
    assert "mine: elsewhere" not in labels_of(compose("capture", str(shards), "tiny", 0, [])).tags


def test_a_table_that_cannot_be_read_costs_no_tags_of_others(
    home: Path, write: Callable[..., None], shards: Path
) -> None:
    write()
    (home / "ablations" / "broken.yaml").write_text("rows: 3\n")
    assert labels_of(compose("capture", str(shards), "tiny", 0, [])).group == "mine"


def test_ablate_passes_its_table_on_and_changes_no_run_by_it(
    home: Path, write: Callable[..., None], shards: Path
) -> None:
    write()
    for run in plan_runs(open_table("mine"), None, home / "runs").runs:
        options, settings = _run_parser("fit", "").parse_known_args(run.words[1:])
        assert options.table == "mine"
        composition = compose(options.exp, options.data, options.scale, options.seed, settings)
        assert run_folder(composition, home / "runs") == run.folder


@pytest.mark.parametrize("text", ["a" * 200, "双" * 100, "a row,  with\nbreaks", "x" * TAG_LENGTH])
def test_a_long_tag_is_cut_to_what_wandb_takes(text: str) -> None:
    assert 0 < len(shorten(text)) <= TAG_LENGTH
    assert shorten(text) != shorten(text + "!")


def test_a_table_with_other_data_is_another_table() -> None:
    folders = {
        table_folder(Path("runs"), "pretext", choice) for choice in (Choice(), Choice("grocery"), Choice(seeds=(0,)))
    }
    assert len(folders) == 3
    assert all(folder.parent == Path("runs/tables") for folder in folders)
