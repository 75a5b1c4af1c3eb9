"""Matching against slow transcriptions; where words begin and end; lexicon files good and bad."""

from __future__ import annotations

import json
import logging
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.entity_sources import Item, Lexicon, LexiconSource
from datamodules.entity_sources.entity import Span
from datamodules.entity_sources.matcher import Matcher
from datamodules.entity_sources.text import cuts_word, join_units, normalise, units
from datamodules.errors import DataError

_TEXT = st.text(alphabet="ab 口红", max_size=12)
_TERMS = st.sets(st.text(alphabet="ab口红", min_size=1, max_size=3), min_size=1, max_size=8)


def _occurrences(text: str, terms: set[str]) -> list[tuple[int, int]]:
    places = [(start, end) for start in range(len(text)) for end in range(start + 1, len(text) + 1)]
    return [
        (start, end)
        for start, end in places
        if text[start:end] in terms and not cuts_word(text, start) and not cuts_word(text, end)
    ]


@settings(max_examples=200, deadline=None)
@given(text=_TEXT, terms=_TERMS)
def test_the_leftmost_longest_terms_are_found(text: str, terms: set[str]) -> None:
    expected, position = [], 0
    while position < len(text):
        here = [end for start, end in _occurrences(text, terms) if start == position]
        if here:
            expected.append((position, max(here)))
            position = max(here)
        else:
            position += 1
    found = Matcher(dict.fromkeys(terms, "t")).spans(text)
    assert found == [Span(start, end, "t") for start, end in expected]


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet="ab 口红", max_size=8), terms=_TERMS)
def test_covering_takes_most_characters_with_fewest_terms(text: str, terms: set[str]) -> None:
    every = _occurrences(text, terms)
    best = (0, 0)
    for number in range(1, 5):
        for chosen in combinations(every, number):
            if all(before[1] <= after[0] for before, after in pairwise(sorted(chosen))):
                best = max(best, (sum(end - start for start, end in chosen), -number))
    found = Matcher(dict.fromkeys(terms, ""), cover=True).spans(text)
    if -best[1] < 4:  # the brute force stops at four
        assert (sum(span.end - span.start for span in found), -len(found)) == best
    assert all(before.end <= after.start for before, after in pairwise(found))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("puma men", ["puma"]),
        ("pumas men", []),
        ("兰蔻puma口红", ["puma", "口红"]),
        ("puma2 men", []),
        ("(puma)", ["puma"]),
        ("puma-men", ["puma"]),
        ("口红puma", ["口红", "puma"]),
    ],
)
def test_words_with_spaces_are_matched_whole(text: str, expected: list[str]) -> None:
    assert [text[span.start : span.end] for span in Matcher({"puma": "b", "口红": "c"}).spans(text)] == expected


def test_a_longest_term_that_cuts_a_word_leaves_a_shorter_one() -> None:
    spans = Matcher({"new": "a", "new bal": "b"}).spans("new balance")
    assert spans == [Span(0, 3, "a")]


def test_captions_become_runs_of_units() -> None:
    assert normalise(" ＡＨＣ　Gold\tCream ") == "ahc gold cream"
    assert units("lumea露美雅 面霜, reid & taylor g-shock 0.5ml") == [
        ["lumea", "露", "美", "雅"],
        ["面", "霜"],
        ["reid", "&", "taylor", "g-shock", "0.5ml"],
    ]
    assert join_units(["reid", "&", "taylor"]) == "reid & taylor"
    assert join_units(["lumea", "露", "美"]) == "lumea露美"


# ---- lexicon files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["ＡＨＣ\tbrand\r\n口红\tproduct\r\n\r\nplain\r\n", '{"AHC": "brand", "口红": "product", "plain": null}',
     '[["AHC", "brand"], {"口红": "product"}, "plain"]'],
    ids=["lines", "object", "list"],
)  # fmt: skip
def test_a_lexicon_is_read_in_every_form(tmp_path: Path, text: str) -> None:
    path = tmp_path / "lexicon"
    path.write_bytes(text.encode())
    assert Lexicon(path).tags == {"ahc": "brand", "口红": "product", "plain": ""}
    source = LexiconSource(path)
    source.prepare([])
    found = list(source.find([Item("1", "ahc 口红 AHC"), Item("2", "nothing")]))
    assert [[tuple(entity) for entity in entities] for entities in found] == [
        [("ahc", "brand"), ("口红", "product"), ("ahc", "brand")],
        [],
    ]


def test_duplicates_merge_and_contradictions_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "lexicon.tsv"
    path.write_text("AHC\tbrand\nahc\tbrand\nAhc\tseries\n口红\tproduct\n", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        source = LexiconSource(path)
    assert source.lexicon.tags == {"ahc": "brand", "口红": "product"}
    assert source.problems() == {"contradictory_tags": 1, "duplicate_terms": 1}
    assert "'ahc' is 'brand' in line 1 and 'series' in line 3" in caplog.text


def test_a_json_key_that_stands_twice_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "lexicon.json"
    path.write_text('{"AHC": "brand", "AHC": "series"}')
    lexicon = Lexicon(path)
    assert (lexicon.tags, lexicon.num_contradictions) == ({"ahc": "brand"}, 1)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "holds no term"),
        (b"a\tb\tc\n", "line 1: 3 fields"),
        (b"\n\tbrand\n", "line 2: an empty term"),
        (b"{", "not readable as JSON"),
        (b'{"a": 3}', "term 'a': its tag is no text"),
        (b"[3]", "entry 1: neither term"),
        (b"\xff\xfe", "not UTF-8"),
        (None, "not readable"),
    ],
)
def test_a_malformed_lexicon_is_refused(tmp_path: Path, data: bytes | None, words: str) -> None:
    path = tmp_path / "lexicon"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DataError, match=words):
        Lexicon(path)


def test_the_settings_follow_the_content(tmp_path: Path) -> None:
    path = tmp_path / "lexicon"
    path.write_text("a\tb\n")
    before = LexiconSource(path).settings()
    path.write_text("a\tc\n")
    assert LexiconSource(path).settings() != before
    assert json.dumps(before)
