"""A table without a word of choice is that of the last runs: `make ablation TABLE=t DATA=d && make table TABLE=t`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.cli import main
from experiments.last_choice import remember, shown_choice
from experiments.table_rows import AS_IN_FILE, Choice
from experiments.wandb_sync import folders_of
from tests.experiments.ablation_stub import ablate

HERE = Choice(data="elsewhere", seeds=(0, 2), rows="a,b")


def test_what_was_run_last_is_what_is_shown(
    home: Path,
    write: Callable[..., None],
    shards: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(data="grocery")
    monkeypatch.chdir(home)  # without grocery: the file's own choice cannot be shown
    table = ["table", "--table", "mine", "--runs", str(home / "runs"), "--format", "csv"]
    assert main(table) == 2
    assert "no shards at data/grocery" in capsys.readouterr().err
    assert ablate(home, "--data", str(shards), "--seeds", "1", all="fail", MLM="fail", **{"CLR, alone": "fail"}) == 1
    capsys.readouterr()
    assert main(table) == 0
    shown = capsys.readouterr()
    assert f"mine as last run in {home / 'runs'}: data {shards}, seeds 1; choose with DATA=" in shown.err
    assert main([*table, "--data", str(shards), "--seeds", "1"]) == 0
    assert capsys.readouterr().out == shown.out


def test_a_plan_alone_is_not_remembered(home: Path, write: Callable[..., None]) -> None:
    write()
    assert ablate(home, "--seeds", "1", "--dry") == 0
    assert shown_choice("mine", AS_IN_FILE, home / "runs", []) == (AS_IN_FILE, [])


def test_a_word_of_choice_is_all_that_counts(tmp_path: Path) -> None:
    remember("mine", HERE, tmp_path)
    chosen = Choice(scale="small")
    assert shown_choice("mine", chosen, tmp_path, ["--scale", "small"]) == (chosen, ["--scale", "small"])


def test_the_record_of_the_command_says_what_was_chosen(tmp_path: Path) -> None:
    remember("mine", HERE, tmp_path)
    choice, words = shown_choice("mine", AS_IN_FILE, tmp_path, ["--table", "mine"])
    assert choice == HERE
    assert words == ["--table", "mine", "--data", "elsewhere", "--seeds", "0,2", "--rows", "a,b"]
    remember("mine", AS_IN_FILE, tmp_path)
    assert shown_choice("mine", AS_IN_FILE, tmp_path, ["--table", "mine"]) == (AS_IN_FILE, ["--table", "mine"])


@pytest.mark.parametrize(
    "text", ["", "[]", '{"seeds": 3}', '{"seeds": ["x"]}', '{"rows": 3}', '{"data": ["a"]}', "\xff"]
)
def test_what_cannot_be_read_is_left(tmp_path: Path, text: str) -> None:
    remember("mine", HERE, tmp_path)
    (file,) = (tmp_path / "output").iterdir()
    file.write_text(text, encoding="latin-1")
    assert shown_choice("mine", AS_IN_FILE, tmp_path, []) == (AS_IN_FILE, [])


def test_only_the_chosen_rows_are_uploaded(home: Path, write: Callable[..., None]) -> None:
    write(seeds=[0])
    assert ablate(home) == 0
    runs = home / "runs"
    chosen = [folders_of("mine", Choice(rows=rows), runs) for rows in ("all", "CLR, alone,MLM", None)]
    assert list(map(len, chosen)) == [1, 2, 3]
    assert chosen[2] == [*chosen[0], *chosen[1]]
