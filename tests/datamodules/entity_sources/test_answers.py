"""Stored answers of the authors' tagger: read, and every malformed one named and counted."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from datamodules.entity_sources import AnswersSource, Item, tag_filter
from datamodules.entity_sources.tags import IDENTICAL_PRODUCT, MULTI_PRODUCT
from datamodules.errors import DataError


def _answer(*words: tuple[str, str], status: str = "OK") -> str:
    return json.dumps({"status": status, "result": [{"word": word, "tag": tag} for word, tag in words]})


def _source(path: Path, answers: dict[str, Any]) -> AnswersSource:
    path.write_text(json.dumps(answers), encoding="utf-8")
    source = AnswersSource([path])
    source.prepare([])
    return source


def test_answers_are_looked_up_by_id(tmp_path: Path) -> None:
    source = _source(tmp_path / "a.json", {"7": _answer(("ＡＨＣ", "品牌"), ("眼霜", "品类")), "8": _answer()})
    found = list(source.find([Item("8", "x"), Item("7", "y"), Item("9", "z")]))
    assert [[tuple(entity) for entity in entities] for entities in found] == [
        [],
        [("ahc", "品牌"), ("眼霜", "品类")],
        [],
    ]
    assert source.problems() == {"no_usable_answer": 1}


@pytest.mark.parametrize(
    ("answer", "kind", "left"),
    [
        ({"status": "OK", "result": []}, "no_json_string", 0),
        (None, "no_json_string", 0),
        ("{", "no_json_string", 0),
        ("[]", "status_not_ok", 0),
        (_answer(("a", "b"), status="ERROR"), "status_not_ok", 0),
        ('{"status": "OK"}', "no_result", 0),
        ('{"status": "OK", "result": [{"word": "a", "tag": "b"}, {"word": 3, "tag": "b"}]}', "bad_word", 1),
        ('{"status": "OK", "result": ["a"]}', "bad_word", 0),
    ],
)
def test_a_malformed_answer_is_named_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, answer: Any, kind: str, left: int
) -> None:
    with caplog.at_level(logging.WARNING):
        source = _source(tmp_path / "a.json", {"17": answer, "18": _answer(("兰蔻", "品牌"))})
    assert source.problems() == {kind: 1}
    assert f"a.json, item '17' ({kind})" in caplog.text
    found = list(source.find([Item("17", ""), Item("18", "")]))
    assert [len(entities) for entities in found] == [left, 1]


def test_all_are_counted_and_three_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        source = _source(tmp_path / "a.json", {str(number): None for number in range(10)})
    assert source.problems() == {"no_json_string": 10}
    assert caplog.text.count("a.json, item") == 3


def test_several_files_and_an_id_answered_twice(tmp_path: Path) -> None:
    first = json.dumps(_answer(("a", "t")))
    (tmp_path / "1.json").write_text(f'{{"1": {first}, "1": {first}}}')
    (tmp_path / "2.json").write_text(json.dumps({"2": _answer(("b", "t")), "1": _answer(("c", "t"))}))
    source = AnswersSource([tmp_path])
    source.prepare([])
    found = list(source.find([Item("1", ""), Item("2", "")]))
    assert [[entity.name for entity in entities] for entities in found] == [["a"], ["b"]]
    assert source.problems() == {"answered_twice": 2}


def test_answers_of_another_data_set_are_refused(tmp_path: Path) -> None:
    source = _source(tmp_path / "a.json", {"7": _answer(("a", "b"))})
    with pytest.raises(DataError, match=r"none of 2 items has one.*another data set"):
        list(source.find([Item("1", ""), Item("2", "")]))


@pytest.mark.parametrize(("text", "words"), [("{", "not readable as JSON"), ("[]", "not an object"), (None, "no such")])
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "a.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=words):
        AnswersSource([path]).prepare([])


def test_the_authors_lists_of_dropped_tags() -> None:
    multi, identical = tag_filter(), tag_filter(drop=["identical-product"])
    assert [tag for tag in ("品牌", "品类", "系列", "修饰", "功能功效", "", "mined") if not multi(tag)] == []
    assert [tag for tag in ("品牌", "品类", "系列", "修饰", "功能功效") if not identical(tag)] == ["品类", "修饰"]
    assert not any(multi(tag) for tag in MULTI_PRODUCT)
    assert (len(MULTI_PRODUCT), len(IDENTICAL_PRODUCT)) == (10, 21)
    assert tag_filter(keep=["品牌", "型号"])("型号"), "named explicitly"
    assert not tag_filter(keep=["品牌"])("系列")
    assert not tag_filter(drop=["none", "系列"])("系列")
    assert tag_filter(drop=["none"])("型号")
