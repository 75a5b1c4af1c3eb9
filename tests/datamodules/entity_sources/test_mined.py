"""Mining: n-gram statistics against a slow transcription, and terms planted in captions."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from datamodules.entity_sources import Item, MinedSource, MiningRules
from datamodules.entity_sources.ngrams import cohesion, corpus, count_grams, spell
from datamodules.entity_sources.text import units
from datamodules.errors import DataError

MAX_LENGTH, MIN_CAPTIONS = 4, 2


@pytest.fixture(scope="module")
def captions() -> list[str]:
    rng = random.Random(3)
    words = ["口红", "面霜", "兰", "蔻", "puma", "red", "shoe", " ", "，"]
    return ["".join(rng.choice(words) + rng.choice(["", " "]) for _ in range(rng.randint(1, 9))) for _ in range(800)]


def _slow(captions: list[str]) -> dict[tuple[str, ...], tuple[int, int, float]]:
    """n-gram -> occurrences, captions, smaller boundary entropy; by dictionaries."""
    counts: Counter[tuple[str, ...]] = Counter()
    holders: dict[tuple[str, ...], set[int]] = defaultdict(set)
    before: dict[tuple[str, ...], Counter] = defaultdict(Counter)
    after: dict[tuple[str, ...], Counter] = defaultdict(Counter)
    for number, caption in enumerate(captions):
        for run in units(caption):
            for length in range(1, MAX_LENGTH + 1):
                for start in range(len(run) - length + 1):
                    gram = tuple(run[start : start + length])
                    counts[gram] += 1
                    holders[gram].add(number)
                    end = start + length
                    before[gram][run[start - 1] if start else ("end", counts[gram])] += 1
                    after[gram][run[end] if end < len(run) else ("end", counts[gram])] += 1

    def entropy(neighbours: Counter) -> float:
        total = sum(neighbours.values())
        return -sum(count / total * math.log(count / total) for count in neighbours.values())

    return {
        gram: (count, len(holders[gram]), min(entropy(before[gram]), entropy(after[gram])))
        for gram, count in counts.items()
        if len(holders[gram]) >= MIN_CAPTIONS
    }


def test_the_statistics_are_those_of_a_slow_transcription(captions: list[str]) -> None:
    text = corpus(units(caption) for caption in captions)
    levels = count_grams(text, MAX_LENGTH, MIN_CAPTIONS)
    found = {
        tuple(spell(levels, level.length, gram, text.vocabulary)): (
            int(level.counts_G[gram]), int(level.captions_G[gram]), float(level.entropy_G[gram]),
        )
        for level in levels
        for gram in range(len(level.counts_G))
    }  # fmt: skip
    expected = _slow(captions)
    assert found.keys() == expected.keys()
    assert len([gram for gram in found if len(gram) == MAX_LENGTH]) > 20
    for gram, (count, holders, entropy) in expected.items():
        assert found[gram][:2] == (count, holders), gram
        assert found[gram][2] == pytest.approx(entropy, abs=1e-9), gram


def test_cohesion_is_that_of_the_weakest_split(captions: list[str]) -> None:
    text = corpus(units(caption) for caption in captions)
    levels, slow = count_grams(text, MAX_LENGTH, MIN_CAPTIONS), _slow(captions)
    is_word_G = np.array([text.vocabulary[int(unit)].isascii() for unit in levels[0].first_G])
    standing = [np.arange(len(level.counts_G)) % 3 == 0 for level in levels]
    numbers = {
        tuple(spell(levels, level.length, gram, text.vocabulary)): bool(standing[level.length - 1][gram])
        for level in levels
        for gram in range(len(level.counts_G))
    }
    for level in levels:
        apart_G, within_G = cohesion(levels[: level.length], standing, is_word_G)
        for number in range(len(level.counts_G)):
            gram = tuple(spell(levels, level.length, number, text.vocabulary))
            apart, within = math.inf, math.inf
            for cut in range(1, len(gram)):
                head, tail = gram[:cut], gram[cut:]
                value = slow[gram][0] / math.sqrt(slow[head][0] * slow[tail][0])
                if (numbers[head] and numbers[tail]) or (head[-1].isascii() and tail[0].isascii()):
                    apart = min(apart, value)
                else:
                    within = min(within, value)
            assert (apart_G[number], within_G[number]) == pytest.approx((apart, within)), gram


def _planted(num: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    brands, kinds = ["露美雅", "欧丽恩", "芙丹", "united colors"], ["洗面奶", "眼影盘", "口红", "casual shoes"]
    filler = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往"
    captions = []
    for _ in range(num):
        parts = [
            rng.choice(brands),
            rng.choice(kinds),
            "".join(rng.sample(filler, 2)),
            rng.choice(["包邮", "正品", ""]),
        ]
        rng.shuffle(parts)
        captions.append(rng.choice(["", " "]).join(part for part in parts if part))
    return captions


def test_planted_brands_and_kinds_are_found_and_marketing_is_not() -> None:
    source = MinedSource()
    source.prepare(_planted(2000))
    planted = {"露美雅", "欧丽恩", "芙丹", "united colors", "洗面奶", "眼影盘", "口红", "casual shoes"}
    assert planted <= source.terms.keys()
    assert not {"包邮", "正品", "雅洗面", "面奶", "丽恩", "露美", "united", "colors"} & source.terms.keys()
    assert not any("包邮" in term or "正品" in term for term in source.terms)
    found = list(source.find([Item("1", "包邮露美雅眼影盘"), Item("2", "UNITED COLORS casual shoes 正品")]))
    assert [[entity.name for entity in entities] for entities in found] == [
        ["露美雅", "眼影盘"],
        ["united colors", "casual shoes"],
    ]


def test_brand_and_colour_are_two_terms_unless_they_keep_together() -> None:
    rng = random.Random(1)
    brands = [f"brand{letter}" for letter in "abcdefghijkl"]
    colours = ["red", "blue", "navy blue", "green", "grey", "pink", "black", "white", "tan"]
    kinds = ["shirt", "shoe", "cap", "tie", "watch", "belt"]
    captions = [f"{rng.choice(brands)} {rng.choice(colours)} {rng.choice(kinds)}" for _ in range(2000)]
    source = MinedSource()
    source.prepare(captions)
    assert {*brands, *colours, *kinds} <= source.terms.keys()
    assert not any(term.startswith("brand") and " " in term for term in source.terms)


def test_the_result_does_not_depend_on_the_order_or_the_run() -> None:
    captions = _planted(500)
    first, again, shuffled = MinedSource(), MinedSource(), MinedSource()
    first.prepare(captions)
    again.prepare(captions)
    shuffled.prepare(random.Random(5).sample(captions, len(captions)))
    assert list(first.terms.items()) == list(again.terms.items()) == list(shuffled.terms.items())


def test_rules_change_what_is_found() -> None:
    captions = _planted(500)
    fewer = MinedSource(MiningRules(max_terms=3))
    fewer.prepare(captions)
    assert len(fewer.terms) == 3
    rare = MinedSource(MiningRules(max_share=0.2))
    rare.prepare(captions)
    assert "口红" not in rare.terms, "in a quarter of the captions"
    stopped = MinedSource(MiningRules(stop_words="露美雅, casual"))
    stopped.prepare(captions)
    assert not any("露美雅" in term or "casual" in term for term in stopped.terms)
    assert "欧丽恩" in stopped.terms
    pairs = [f"{first} red cap {last}" for first in "abcd" for last in "wxyz"]
    for most, found in ((1, False), (2, True)):
        source = MinedSource(MiningRules(max_units=most, max_share=1, min_entropy=0))
        source.prepare(pairs)
        assert {"red", "cap"} <= source.terms.keys()
        assert ("red cap" in source.terms) is found


def test_captions_that_repeat_nothing_are_an_error_and_numbers_no_terms() -> None:
    for captions in ([], [""], ["天地", "玄黄"]):
        with pytest.raises(DataError, match=f"no entity in {len(captions)} training captions.*--mine KEY=VALUE"):
            MinedSource().prepare(captions)
    source = MinedSource(MiningRules(max_share=1, min_entropy=0))
    source.prepare([f"{first} cream 50ml 3 {last}" for first in "abcdefgh" for last in ("lux", "lox", "lix")] * 2)
    assert {"cream", "lux"} <= source.terms.keys()
    assert not any(term[0].isdigit() or term[-1].isdigit() for term in source.terms)


@pytest.mark.parametrize("rule", [{"max_units": 0}, {"max_share": 1.5}, {"min_cohesion": -1}, {"max_terms": 0}])
def test_a_rule_out_of_range_is_refused(rule: dict) -> None:
    with pytest.raises(DataError, match=f"mining: {next(iter(rule))}="):
        MinedSource(MiningRules(**rule))
