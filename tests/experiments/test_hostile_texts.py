"""Texts of strangers in pages and tables: shown, never obeyed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from experiments.page import render
from experiments.report import write_report
from experiments.table_document import Column, Document, Grid, Line, Sentence
from experiments.table_html import html
from experiments.table_latex import latex
from experiments.table_markdown import markdown
from tests.experiments.page_reader import PageReader

ATTACKS = (
    '<script>alert("x")</script>',
    '" onerror="alert(1)" x="',
    "' onmouseover='alert(1)",
    "</style></title></textarea><svg onload=alert(1)>",
    "--><img src=x onerror=alert(1)><!--",
    "[x](javascript:alert(1))",
    "{{ 7 * 7 }}{% raw %}",
    "\\input{/etc/passwd}\\write18{touch x}",
)


def check_harmless(page: str) -> None:
    """Neither a script nor a tag or attribute that starts one, and a policy that would stop it."""
    reader = PageReader(page)
    assert {tag for tag, _ in reader.tags}.isdisjoint({"script", "iframe", "object", "embed", "link", "base", "form"})
    for tag, attributes in reader.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("href", "src"):
            assert not re.match(r"\s*(javascript|data:text|vbscript)", attributes.get(name) or "", re.I)
    policies = [tag["content"] for tag in reader.attributes("meta") if "http-equiv" in tag]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_captions_labels_and_settings_on_the_page_of_a_run(run: Path, shards: Path, tmp_path: Path) -> None:
    data, copy, attack = tmp_path / "data", tmp_path / "run", " ".join(ATTACKS)
    shutil.copytree(shards, data)
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("checkpoints", "wandb"))
    for split in ("test", "gallery"):
        file = data / "annotations" / f"{split}.txt"
        lines = [line.split("#####") for line in file.read_text().splitlines()]
        attacked = ["#####".join([line[0], attack, *line[2:4], f"{attack}{line[4]}"]) for line in lines]
        file.write_text("\n".join(attacked) + "\n")
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace(str(shards), str(data)) + f"# {attack}\n")
    page = write_report(copy, str(tmp_path / "page.html")).read_text()
    check_harmless(page)
    assert PageReader(page).text.count(attack) > 10, "shown as it is"


def _document(text: str) -> Document:
    sentence = Sentence(text, text)
    grid = Grid(text, [Column(text, text, (), False)], [Line(text, [text])], text, False, sentence, [text], [sentence])
    return Document("x", text, [grid], [text], [text], text, [text])


@pytest.mark.parametrize("attack", ATTACKS)
def test_labels_in_tables_of_every_form(attack: str) -> None:
    document = _document(attack)
    cells = [line for line in markdown(document).splitlines() if line.startswith("| ")]
    assert cells
    assert not [line for line in cells if re.search(r"(?<!\\)<[a-zA-Z/!?]|\]\(", line)]
    assert {tag for tag, _ in PageReader(str(html(document))).tags}.isdisjoint({"script", "svg", "img"})
    body = "\n".join(line for line in latex(document).splitlines() if not line.startswith("%"))
    assert "\\input" not in body
    assert "\\write" not in body


def test_templates_escape_by_themselves() -> None:
    texts = {"title": ATTACKS[3], "name": ATTACKS[0], "made_by": ATTACKS[4], "origin": list(ATTACKS)}
    numbers = {"num_finished": 0, "num_runs": 0, "linked": False, "symbols": "", "rankings": [], "definitions": []}
    page = render("table.html.j2", table="", plots=[], curves=[], settings=[], runs=[], **texts, **numbers)
    check_harmless(page)
