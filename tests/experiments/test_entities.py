"""`data build`, `data entities`, `data score-entities`: what they store and say, and wrong words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from datamodules.entities import read_table
from datamodules.manifest import read_manifest
from datamodules.write_shards import build
from experiments.cli import main
from experiments.data_commands import mine_entities
from tests.datamodules.tiny_catalogue import TinyCatalogue

TITLES = ("兰蔻口红", "兰蔻面霜", "ahc口红", "欧莱雅面霜")
LABELS = {"兰": "B-HPPX", "蔻": "I-HPPX", "口": "B-HCCX", "红": "I-HCCX", "面": "B-HCCX", "霜": "I-HCCX"}


@pytest.fixture
def folder(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "shop"))


@pytest.fixture
def gold(tmp_path: Path) -> Path:
    path = tmp_path / "gold.txt"
    captions = ["".join(f"{character} {LABELS.get(character, 'O')}\r\n" for character in title) for title in TITLES]
    path.write_bytes(("\r\n".join(captions) + "\r\n").encode())
    return path


def test_a_build_mines_entities_and_leaves_those_of_another_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "shop"
    sizes = ["num_train_singles=60", "num_train_multis=12", "num_gallery=72", "num_val=4", "num_test=4"]
    words = ["data", "build", "synthetic", "--out", str(out), "--workers", "1"]
    words += [word for size in [*sizes, "num_labels=24", "image_size_px=40"] for word in ("--set", size)]
    assert main([*words, "--no-entities"]) == 0
    before = read_manifest(out)
    assert before["entities"] is None
    assert main(words) == 0
    mined = read_manifest(out)
    assert mined["data_hash"] == before["data_hash"]
    assert (mined["entities"] or {})["source"]["kind"] == "mined"
    assert f"entities {read_table(out, mined).num_nodes} in training captions" in capsys.readouterr().out
    lexicon = tmp_path / "lexicon.json"
    lexicon.write_text('{"口红": "product", "精华": "型号"}')
    assert main(["data", "entities", str(out), "--lexicon", str(lexicon)]) == 0
    assert main(words) == 0
    kept = read_manifest(out)
    assert (kept["entities"] or {})["source"]["name"] == "lexicon.json", "a build without options leaves them"
    table = read_table(out, kept)
    assert (table.names, table.tags) == (["口红"], ["product"])
    assert main(["data", "verify", str(out)]) == 0
    assert main([*words, "--lexicon", str(lexicon), "--drop-tags", "none"]) == 0
    assert set(read_table(out, read_manifest(out)).names) == {"口红", "精华"}


def test_captions_that_repeat_nothing_leave_a_build_without_entities(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "shop"
    build(TinyCatalogue({"train": 2, "val": 1, "test": 1, "gallery": 5}), out, vocab_size=60, progress=False)
    mine_entities(out)
    assert "entities none: Mining found no entity in 2 training captions" in capsys.readouterr().out
    assert main(["data", "entities", str(out)]) == 2, "asked for, so it is an error"
    assert main(["data", "verify", str(out)]) == 0


def test_stored_answers_and_rules(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "entities", str(folder), "--mine", "max_share=1", "--mine", "stop_words=口红,套装"]) == 0
    table = read_table(folder, read_manifest(folder))
    assert not any("口红" in name or "套装" in name for name in table.names)
    answers = tmp_path / "a.json"
    answers.write_text(json.dumps({"train-single-000000": "{}"}))
    assert main(["data", "entities", str(folder), "--answers", str(answers)]) == 2
    assert "another data set" in capsys.readouterr().err


def test_scores_of_known_titles(gold: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lexicon = tmp_path / "collected.tsv"
    words = ["data", "score-entities", "--train", str(gold), "--gold", str(gold), "--save-lexicon", str(lexicon)]
    assert main([*words, "--mine", "min_captions=2", "--mine", "max_share=1", "--mine", "min_entropy=0"]) == 0
    said = capsys.readouterr().out
    assert "| lexicon from tagged captions | 3 | spans and tags | 1.000 | 1.000 | 1.000 |" in said
    assert "4 captions in gold.txt" in said
    # Mined are 口红, 面霜 and 兰蔻: all six gold spans.
    assert "| mined, without labels | 3 | spans | 1.000 | 1.000 | 1.000 |" in said
    assert sorted(lexicon.read_text(encoding="utf-8").split("\n")) == ["", "兰蔻\tHPPX", "口红\tHCCX", "面霜\tHCCX"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["data", "entitis", "x"], "did you mean 'entities'?"),
        (["data", "entities", "x", "--lexicon", "a", "--tagger", "b"], "not allowed with"),
        (["data", "entities", "x", "--mine", "max_shar=1"], "did you mean 'max_share'?"),
        (["data", "entities", "x", "--mine", "max_share=much"], "max_share is a float"),
        (["data", "entities", "x", "--mine", "max_share=2"], "give 0 to 1"),
        (["data", "entities", "x"], "no shard folder"),
        (["data", "entities", "x", "--lexicon", "missing.tsv"], "missing.tsv: not readable"),
        (["data", "build", "synthetic", "--no-entities", "--mine", "max_units=2"], "--no-entities"),
        (["data", "score-entities", "--train", "a", "--gold", "missing"], "not readable"),
    ],
)
def test_wrong_words_are_one_line(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert expected in capsys.readouterr().err


def test_a_line_that_is_no_label_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.txt").write_text("口 B-HCCX\n红 HCCX\n")
    assert main(["data", "score-entities", "--train", str(tmp_path / "bad.txt"), "--gold", "x"]) == 2
    assert "bad.txt, line 2" in capsys.readouterr().err
