"""The plan of a table's runs: what it finds, what it says, and what it refuses before anything starts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.ablate import fit_command
from experiments.ablation_plan import plan_runs
from experiments.cli import main
from experiments.errors import UsageError
from experiments.row_check import check_rows
from experiments.runs import write_json, write_text
from experiments.table_rows import Choice, choose_rows, open_table
from tests.experiments.ablation_stub import ROOT, ablate, started


def test_a_dry_run_prints_the_plan_and_starts_nothing(
    home: Path, write: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    write()
    assert ablate(home, "--dry") == 0
    text = capsys.readouterr().out
    assert "Mine: synthetic, tiny: 6 runs, 0 of them finished" in text
    assert len(re.findall(r"^  to do +(?:all|CLR, alone|MLM), seed [01] +\S+/capture-synthetic-[01]-", text, re.M)) == 6
    assert "6 to run, 1 at a time: time unknown" in text
    assert not (home / "runs").exists()


def test_the_words_of_a_run_lead_to_the_folder_that_the_table_reads(
    home: Path, write: Callable[..., None], shards: Path
) -> None:
    from experiments.config import compose
    from experiments.run_commands import _run_parser
    from experiments.runs import run_folder

    write()
    plan = plan_runs(open_table("mine"), None, home / "runs")
    assert len({run.folder.root for run in plan.runs}) == 6
    for run in plan.runs:
        assert fit_command(run)[:4] == [sys.executable, "-m", "experiments", "fit"]
        options, settings = _run_parser("fit", "").parse_known_args(run.words[1:])
        composition = compose(options.exp, options.data, options.scale, options.seed, settings)
        assert run_folder(composition, Path(options.runs)) == run.folder
        assert f"[{','.join(composition.config['model']['init_args'].get('objectives', []))}]" in (
            *("[]", "[clr]", "[mlm]"),
        )


def test_an_unfinished_run_goes_on_and_its_share_is_told(
    home: Path, write: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    write("\n  - {label: all, set: {trainer.max_steps: 100}}", seeds=[0, 1])
    assert ablate(home, "--seeds", "1") == 0
    (run,) = plan_runs(open_table("mine", Choice(seeds=(0,))), None, home / "runs").runs
    write_text(run.folder.last, "")
    write_text(run.folder.history, '{"step": 0, "val/mAP@10": 0.1}\n{"step": 49, "val/mAP@10": 0.2}\n{"step": 60}\n')
    capsys.readouterr()
    assert ablate(home, "--dry") == 0
    text = capsys.readouterr().out
    assert re.search(r"  goes on   all, seed 0  \S+  \(evaluated at step 50 of 100, about 15 s\)", text)
    assert re.search(r"  finished  all, seed 1  \S+\n", text)
    write_text(run.folder.root / "run.lock", "elsewhere 12\n")
    assert ablate(home, "--dry") == 0
    assert re.search(r"  in use    all, seed 0", capsys.readouterr().out)


def test_rows_of_the_same_run_are_told_and_run_once(
    home: Path, write: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    write(
        "\n  - {label: a}\n  - {label: b, set: {model.objectives: [mlm, mrm, clr]}}\n  - {label: c, set: {model.lr: 1}}"
    )
    assert ablate(home, "--seeds", "0") == 0
    text = capsys.readouterr().out
    assert "Mine: synthetic, tiny [seeds 0]: 2 runs" in text
    assert re.search(r"a and b are the same run with seed 0, run once: \S+/capture-synthetic-0-\w+", text)
    assert len(started(home)) == 4


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            "\n  - {label: a}\n  - {label: b, set: {model.lrr: 1}}",
            r"row 'b': unknown key model\.lrr: did you mean 'lr'",
        ),
        (
            "\n  - {label: a}\n  - {label: b, set: {model.width: wide}}",
            r"row 'b': model\.width expects int, got 'wide'",
        ),
        ("\n  - {label: b, set: {model.objectives: clr}}", r"model\.objectives expects list\[str\].*write \[clr\]"),
        ("\n  - {label: b, experiment: captur}", r"row 'b': unknown experiment 'captur': did you mean 'capture'"),
        ("\n  - {label: b, experiment: detector}", r"row 'b': detector: detection has no retrieval metrics"),
        ("\n  - {label: b, scale: tinny}", r"row 'b': unknown scale 'tinny'"),
        ("\n  - {label: b, data: nowhere}", r"row 'b': unknown data set 'nowhere'"),
        ("\n  - {label: b, set: [model.lr]}", r"b: set: expected keys and values"),
        ("\n  - {label: b, seeds: 3}", r"b: seeds: expected a list of different numbers of 0 or more, got 3"),
        ("\n  - {label: b, seeds: [1, 1]}", r"b: seeds: expected a list of different numbers"),
        ("\n  - {label: b}\n  - {label: b}", r"two rows are called 'b'"),
        ("\n  - {label: a, set: {model.x: 1}}\n  - {label: b, set: {model.y: 1}}", r"row 'a': .*; row 'b': .*y"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--dry"], ["--rows", "a"]])
def test_a_wrong_row_is_told_before_any_starts(
    home: Path, write: Callable[..., None], rows: str, message: str, more: list[str]
) -> None:
    if more == ["--rows", "a"] and "label: a" not in rows:
        more = []
    write(rows)
    with pytest.raises(UsageError, match=rf"mine\.yaml: .*{message}"):
        ablate(home, *more)
    assert not started(home)


def test_values_that_only_a_model_can_refuse_are_told_before_any_starts(
    home: Path, write: Callable[..., None], shards: Path
) -> None:
    write(
        "\n  - {label: a, feature: product_c0}\n  - {label: b, set: {model.objectives: [clrr]}}"
        "\n  - {label: c, set: {model.temperature: -1.0}}\n  - {label: d, set: {model.temperature: -1.0}}"
        "\n  - {label: e}",
        base="e",
        blocks=False,
    )
    table = open_table("mine")
    with pytest.raises(UsageError) as told:
        check_rows(table, plan_runs(table, None, home / "runs").runs)
    text = str(told.value)
    assert "row 'a': feature product_c0: did you mean 'product_co'" in text
    assert re.search(r"row 'b': model\.objectives: 'clrr' is unknown; did you mean 'clr'", text)
    assert re.search(r"rows 'c', 'd': model\.temperature -1\.0 must be above 0", text)
    assert "'e'" not in text
    assert "nothing was started" in text
    assert not (home / "runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "0,x"], "--seeds 0,x: 'x' is no seed"),
        (["--seeds", "-1"], "seed"),
        (["--seeds", "1,1"], "given twice"),
        (["--rows", "CLR"], "mine has no row 'CLR': known: CLR, alone, MLM, all"),
        (["--jobs", "0"], "at least 1"),
        (["--jobs", "two"], "invalid int value"),
        (["--sede", "1"], "unknown argument '--sede': did you mean '--seeds'"),
    ],
)
def test_wrong_words_are_answered(home: Path, write: Callable[..., None], words: list[str], message: str) -> None:
    write()
    with pytest.raises(UsageError, match=re.escape(message)):
        ablate(home, *words)


def test_labels_may_have_commas(home: Path, write: Callable[..., None]) -> None:
    write()
    table = open_table("mine")
    assert choose_rows(table, "MLM,CLR, alone,all") == ["MLM", "CLR, alone", "all"]
    assert choose_rows(table, None) == ["all", "CLR, alone", "MLM"]


def test_what_the_command_chooses_replaces_the_files_and_its_rows_own(
    home: Path, write: Callable[..., None], shards: Path
) -> None:
    write("\n  - {label: a, data: nowhere, scale: small, seeds: [7]}\n  - {label: b, set: {model.lr: 1}}")
    plan = plan_runs(open_table("mine", Choice(str(shards), "tiny", (2,))), None, home)
    assert [run.folder.run_id.rsplit("-", 1)[0] for run in plan.runs] == ["capture-synthetic-2"] * 2
    assert plan.table.title == "Mine: synthetic, tiny [seeds 2]"


def test_the_table_finds_the_runs_of_the_same_choice(
    home: Path, write: Callable[..., None], shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("\n  - {label: a}", data="nowhere", scale="small")
    choice = ["--data", str(shards), "--scale", "tiny", "--seeds", "4"]
    (run,) = plan_runs(open_table("mine", Choice(str(shards), "tiny", (4,))), None, home / "runs").runs
    about = {"seed": 4, "experiment": "capture", "git": {}, "hardware": {}, "command": "x", "feature": "f"}
    write_json(run.folder.metrics, {**about, "test": {"mAP@10": 0.5}})
    assert main(["table", "--table", "mine", "--runs", str(home / "runs"), *choice]) == 0
    text = capsys.readouterr().out
    assert "**a** (n = 1, seed 4;" in text
    assert "### Mine: synthetic, tiny [seeds 4]" in text
    assert main(["table", "--data", "x", str(run.folder.root)]) == 2
    assert "only a table's file has other runs" in capsys.readouterr().err


def test_recorded_runs_count_where_that_is_asked_for(
    home: Path, write: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from experiments import ablate as command

    write(seeds=[0])
    kept = plan_runs(open_table("mine"), None, home / "runs").runs[1]
    write_json(home / "kept" / kept.folder.run_id / "metrics.json", {"test": {"mAP@10": 0.5}})
    monkeypatch.setattr(command, "runs_of", lambda: home / "kept")
    assert ablate(home, "--recorded") == 0
    text = capsys.readouterr().out
    assert "3 runs, 1 of them finished" in text
    assert f"ARGS='--runs {home / 'runs'} --recorded'" in text
    ran = {name for name, _, _ in started(home)}
    assert len(ran) == 2
    assert kept.folder.run_id not in ran
    assert ablate(home) == 0
    assert kept.folder.run_id in {name for name, _, _ in started(home)}


def test_a_run_whose_record_is_damaged_is_run_again(home: Path, write: Callable[..., None]) -> None:
    """Its own command writes the record again, as the message says to whom it concerns."""
    write(seeds=[0])
    assert ablate(home) == 0
    run = plan_runs(open_table("mine"), None, home / "runs").runs[1]
    assert run.state == "finished"
    run.folder.metrics.write_text("{")
    assert plan_runs(open_table("mine"), None, home / "runs").missing[0].folder == run.folder
    assert ablate(home) == 0
    ended = [name for name, kind, _ in started(home) if kind == "end"]
    assert (len(ended), ended.count(run.folder.run_id)) == (4, 2)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("checkpoint.save_top_k: 3", "row 'b': checkpoint.save_top_k=3: a run keeps the weights of its best interval"),
        ("evaluation.ks: [5]", "row 'b': checkpoint.monitor=val/mAP@10 is not measured by evaluation.ks=[5]"),
    ],
)
def test_a_row_that_could_not_be_tested_is_refused_before_the_first_starts(
    setting: str, message: str, home: Path, write: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    write(f"\n  - {{label: a}}\n  - {{label: b, set: {{{setting}}}}}")
    assert main(["ablate", "mine", "--dry", "--runs", str(home / "runs")]) == 2
    assert message in capsys.readouterr().err


def test_the_plan_and_its_errors_are_light(home: Path, write: Callable[..., None]) -> None:
    write()
    code = (
        "import sys\nfrom pathlib import Path\nfrom experiments import table_rows\nfrom experiments.cli import main\n"
        "table_rows.HOME = Path(sys.argv[1])\nassert main(['ablate', *sys.argv[2:]]) in (0, 2)\n"
        "assert not {'torch', 'lightning'} & set(sys.modules)\n"
    )
    for words in (["mine", "--dry"], ["mine", "--rows", "x"], ["my"], []):
        words = [sys.executable, "-c", code, str(home), *words]
        done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stderr


def test_settings_of_a_run_belong_into_the_file(home: Path, write: Callable[..., None]) -> None:
    write()
    with pytest.raises(UsageError, match=r"--model\.lr=1e-3: .* as `set: \{model\.lr: 1e-3\}` at its head"):
        ablate(home, "--model.lr=1e-3")


def test_a_shorter_run_is_expected_to_take_less(
    home: Path, write: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "\n  - {label: all, set: {trainer.max_steps: 100}}\n  - {label: half, set: {trainer.max_steps: 50}}"
    write(rows, seeds=[0])
    assert ablate(home, "--rows", "all") == 0
    file = next((home / "runs").glob("*/metrics.json"))
    write_json(file, {**json.loads(file.read_text()), "steps": 100})
    capsys.readouterr()
    assert ablate(home, "--dry") == 0
    assert re.search(r"  to do     half, seed 0 .*\(about 15 s\)", capsys.readouterr().out)


def test_a_file_that_is_no_yaml_is_told_with_its_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "ablations" / "mine.yaml").write_text("data: synthetic\nrows:\n  - {label: a, set: {model.lr: 1\n")
    assert main(["ablate", "mine", "--dry"]) == 2
    error = capsys.readouterr().err
    assert re.match(r"error: \S+mine\.yaml: not readable as YAML: .*line \d", error)
    assert error.count("\n") == 1
