"""Rows of a table that show another retrieval feature of the same runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments import table, table_rows
from experiments.errors import UsageError
from experiments.runs import open_run, read_metrics
from experiments.table_forms import FORMS
from experiments.table_rows import Plan, Row
from tests.experiments.conftest import SMALL
from tests.experiments.test_table import by_head, cells, write_run


def test_rows_by_feature_share_runs_and_have_no_intervals(tmp_path: Path) -> None:
    runs = [open_run(write_run(tmp_path, seed)) for seed in (0, 1)]
    records = [read_metrics(run) for run in runs]
    for record, value in zip(records, (0.25, 0.75), strict=True):
        record["test"]["feature/text_stream/mAP@10"] = value
    chosen, text = Row("chosen", runs, records), Row("text", runs, records, feature="text_stream")
    shown = Plan([chosen, text], base=chosen, blocks=False, columns=("mAP@10", "mAR@10", "same/mAP@10"))
    out = FORMS["md"](table.document(shown, "mine", "x"))
    assert by_head(out, "text") == {"n": "2", "mAP@10": "0.5000 ± 0.3536", "mAR@10": "–"}
    means = [record["test"]["mAP@10"] for record in records]
    assert by_head(out, "chosen")["mAP@10"].startswith(f"{sum(means) / 2:.4f} ± ")
    assert cells(out, "TF-IDF on captions")[1].count("±") == 1
    assert "* **chosen** (n = 2, seed 0, 1; feature chosen on val: product_co)" in out
    assert "* **text** (n = 2, seed 0, 1; feature: text_stream)" in out


def test_a_table_file_of_features_reads_one_run(
    tmp_path: Path, shards: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ablations").mkdir()
    settings = ", ".join(f"{word[2:].replace('=', ': ')}" for word in SMALL)
    rows = [
        f"{{label: {label}, set: {{{settings}}}{more}}}"
        for label, more in (("all", ""), ("one", ", feature: concat_co"))
    ]
    content = f"data: {shards}\nbase: all\nblocks: false\nrows: [{', '.join(rows)}]\n"
    file = tmp_path / "ablations" / "mine.yaml"
    file.write_text(content)
    monkeypatch.setattr(table_rows, "HOME", tmp_path)
    (tmp_path / "runs").symlink_to(run.parent)
    monkeypatch.chdir(tmp_path)
    test = read_metrics(open_run(run))["test"]
    out = table.make_table([], "mine", "x")
    assert cells(out, "one") == ["1", *(f"{test[f'feature/concat_co/{name}']:.4f}" for name in ("mAP@10", "mAR@10"))]
    assert cells(out, "all") == ["1", *(f"{test[name]:.4f}" for name in ("mAP@10", "mAR@10"))]

    file.write_text(content.replace("concat_co", "concat_c"))
    with pytest.raises(UsageError, match=r"mine\.yaml: one: feature concat_c: did you mean 'concat_co'"):
        table.make_table([], "mine", "x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("rows: [{label: a, feature: x}]", "feature wants a base row.*base: a"),
        ("base: a\nrows: [{label: a, feature: x}]", "share the floors of their run: blocks: false"),
    ],
)
def test_what_rows_by_feature_want_is_told(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(UsageError, match=rf"mine\.yaml: .*{message}"):
        table_rows.read_file(tmp_path / "mine.yaml")
