"""The picture of the entity graph: what is shown of it, that it can be read, and that it never costs a run."""

from __future__ import annotations

import base64
import io
import re
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from experiments import graph_picture, wandb_artifacts
from experiments.graph_layout import Size, place
from experiments.graph_picture import NODES_SHOWN, draw_graph, write_graph
from experiments.report import write_report
from experiments.runs import RunFolder


class Neighbours(NamedTuple):
    """As a graph has them."""

    index_NK: Tensor
    score_NK: Tensor


def brands(num: int, size: int, depth: int = 6) -> tuple[list[str], list[str], Neighbours]:
    """Names, tags and neighbours of `num` brands with `size` entities each, similar within a brand only."""
    brand_N = np.repeat(np.arange(num), size)
    draw = np.random.default_rng(0).uniform(0.6, 0.99, (num * size, num * size))
    score_NN = np.where(brand_N[:, None] == brand_N, (draw + draw.T) / 2, 0.2)
    np.fill_diagonal(score_NN, -1)
    index_NK = np.argsort(-score_NN, axis=1)[:, :depth]
    score_NK = np.take_along_axis(score_NN, index_NK, 1).astype(np.float32)
    index_NK[score_NK < 0.4] = -1
    score_NK[score_NK < 0.4] = 0
    names = [f"品牌{brand} no {row % size}" for row, brand in enumerate(brand_N.tolist())]
    tags = ["品牌" if row % size == 0 else "系列" for row in range(num * size)]
    return names, tags, Neighbours(torch.from_numpy(index_NK), torch.from_numpy(score_NK))


def texts(svg: bytes) -> list[str]:
    """What is written in a drawing."""
    root = ElementTree.fromstring(svg.decode())
    return ["".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")]


def test_the_most_confident_entities_are_shown_with_their_neighbours_and_similarities() -> None:
    names, tags, neighbours = brands(12, 5)
    written = texts(draw_graph(names, neighbours, tags=tags, kind="svg"))
    shown = [text for text in written if text.startswith("品牌") and " " in text]
    assert 30 <= len(shown) == len(set(shown)) <= NODES_SHOWN
    by_brand = [sum(text.startswith(f"品牌{brand} ") for text in shown) for brand in range(12)]
    assert set(by_brand) <= {0, 5}  # each brand with all its neighbours, or not at all
    left_out = {brand for brand in range(12) if not by_brand[brand]}
    sums = neighbours.score_NK.sum(1).view(12, 5).amax(1)
    assert max(sums[brand] for brand in left_out) < min(sums[brand] for brand in range(12) if by_brand[brand])
    numbers = [float(text) for text in written if re.fullmatch(r"0\.\d\d", text)]
    assert len(numbers) > len(shown)
    assert set(numbers) <= {round(score, 2) for score in neighbours.score_NK.flatten().tolist()}
    assert {"品牌", "系列"} <= set(written)  # the legend
    assert f"{len(shown)} of 60 entities" in " ".join(written)


def test_chosen_entities_are_all_shown_and_in_front() -> None:
    names, _, neighbours = brands(50, 3)
    written = texts(draw_graph(names, neighbours, chosen=[0, 30], kind="svg"))
    assert {text for text in written if text.startswith("品牌")} == {
        *(f"品牌0 no {n}" for n in range(3)),
        *(f"品牌10 no {n}" for n in range(3)),
    }
    many = list(range(0, 150, 3))
    shown = [text for text in texts(draw_graph(names, neighbours, chosen=many, kind="svg")) if text.startswith("品牌")]
    assert sorted(shown) == sorted(names[row] for row in many)  # more than there is room for: only these


def test_a_line_is_as_wide_as_its_similarity() -> None:
    neighbours = Neighbours(torch.tensor([[1, 2], [0, -1], [0, -1]]), torch.tensor([[0.95, 0.6], [0.95, 0], [0.6, 0]]))
    svg = draw_graph(["a", "b", "c"], neighbours, kind="svg").decode()
    widths = [float(width) for width in re.findall(r"stroke: #9a9a9a; stroke-width: ([\d.]+)", svg)]
    assert widths == pytest.approx([0.4 + 2.0 * 0.9, 0.4 + 2.0 * 0.2], abs=1e-3)


def test_a_pair_that_one_side_lists_and_weak_or_missing_ones() -> None:
    """Row 1 does not list row 0; 0.3 is no line; -1 is nobody, whatever its score."""
    neighbours = Neighbours(torch.tensor([[1, 2], [-1, -1], [0, -1]]), torch.tensor([[0.9, 0.3], [0.9, 0.9], [0.3, 0]]))
    assert graph_picture._edges(*(part.numpy() for part in neighbours), [0, 1, 2]) == [(0, 1, pytest.approx(0.9))]


def test_equal_graphs_give_equal_pictures() -> None:
    names, tags, neighbours = brands(8, 5)
    for kind in ("png", "svg"):
        assert draw_graph(names, neighbours, tags=tags, kind=kind) == draw_graph(
            names, neighbours, tags=tags, kind=kind
        )


def test_the_png_is_a_picture_of_a_size_one_can_look_at() -> None:
    names, tags, neighbours = brands(12, 5)
    picture = Image.open(io.BytesIO(draw_graph(names, neighbours, tags=tags)))
    assert picture.format == "PNG"
    assert 700 < picture.width < 4000
    assert 400 < picture.height < 3000
    colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    assert {(0xCF, 0xE2, 0xF3), (0xFD, 0xE2, 0xC8)} <= colours  # both tags


@given(
    lengths=st.lists(st.integers(1, 18), min_size=1, max_size=NODES_SHOWN),
    seed=st.integers(0, 1000),
    share=st.sampled_from([0.0, 0.03, 0.15, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_no_box_lies_on_another_whatever_the_graph(lengths: list[int], seed: int, share: float) -> None:
    rows = [7 * row for row in range(len(lengths))]
    draw = np.random.default_rng(seed).random((len(rows), len(rows)))
    pairs = [(rows[a], rows[b]) for a in range(len(rows)) for b in range(a) if draw[a, b] < share]
    sizes = {row: Size(0.125 * length + 0.14, 0.26) for row, length in zip(rows, lengths, strict=True)}
    groups, centres, page = place(rows, pairs, sizes)
    assert sorted(row for group in groups for row in group) == sorted(centres) == rows
    for row, (x, y) in centres.items():
        width, height = sizes[row]
        assert width / 2 <= x <= page.width - width / 2 + 1e-9
        assert height / 2 <= y <= page.height - height / 2 + 1e-9
        for other, (x2, y2) in centres.items():
            apart = abs(x - x2) >= (width + sizes[other].width) / 2 or abs(y - y2) >= (height + sizes[other].height) / 2
            assert other == row or apart


def test_similarities_are_written_clear_of_names_and_of_each_other() -> None:
    draw = np.random.default_rng(1)
    rows = list(range(20))
    edges = [graph_picture.Edge(a, b, 0.7) for a in rows for b in range(a) if draw.random() < 0.3]
    sizes = {row: Size(1.0, 0.26) for row in rows}
    _, centres, _ = place(rows, [edge[:2] for edge in edges], sizes)
    found = graph_picture._numbers(edges, centres, sizes)
    assert len(found) > len(edges) / 3
    spots = [(x, y, 0.2, 0.1) for (x, y), _ in found] + [(*centres[row], *sizes[row]) for row in rows]
    for number, (x, y, width, height) in enumerate(spots[: len(found)]):
        for other, (x2, y2, width2, height2) in enumerate(spots):
            clear = abs(x - x2) >= (width + width2) / 2 or abs(y - y2) >= (height + height2) / 2
            assert other == number or clear


def test_names_of_strangers_are_text_and_short() -> None:
    names = ['<script>alert("x")</script>', "$\\frac{1}{$", "two\nlines\t\x00 and far too many words", ""]
    neighbours = Neighbours(torch.tensor([[1], [2], [3], [0]]), torch.full((4, 1), 0.9))
    svg = draw_graph(names, neighbours, tags=["$x", "<b>", "c", "d"], kind="svg")
    assert b"<script" not in svg
    written = texts(svg)
    assert "$\\frac{1}{$" in written
    assert "two lines and far…" in written
    assert {"$x", "<b>"} <= set(written)


def test_a_graph_without_confident_neighbours_says_so_by_being_empty() -> None:
    neighbours = Neighbours(torch.full((5, 3), -1), torch.zeros(5, 3))
    assert "0 of 5 entities" in " ".join(texts(draw_graph(list("abcde"), neighbours, kind="svg")))
    alone = texts(draw_graph(list("abcde"), neighbours, chosen=[2], kind="svg"))
    assert "c" in alone


def test_rows_and_names_that_do_not_fit_are_named() -> None:
    neighbours = Neighbours(torch.full((5, 3), -1), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="entity 5 is outside the graph of 5 entities"):
        draw_graph(list("abcde"), neighbours, chosen=[0, 5])
    with pytest.raises(ValueError, match="3 names for a graph of 5 entities"):
        draw_graph(list("abc"), neighbours)


def test_letters_that_no_font_has_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import font_manager

    own = [entry for entry in font_manager.fontManager.ttflist if "mpl-data" in entry.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    graph_picture.fonts_for.cache_clear()
    monkeypatch.setattr(graph_picture, "_told", set())
    said: list[str] = []
    monkeypatch.setattr(graph_picture, "say", said.append)
    names, _, neighbours = brands(3, 4)
    draw_graph(names, neighbours, kind="svg")
    assert said == []  # the reader's fonts are not known here
    for _ in range(2):
        draw_graph(names, neighbours)
    (line,) = said
    assert "品" in line
    assert "fonts-noto-cjk" in line
    graph_picture.fonts_for.cache_clear()


def test_a_font_that_has_the_letters_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A letter of mathematics stands for a Chinese one: one of matplotlib's other fonts has it."""
    from matplotlib import font_manager

    graph_picture.fonts_for.cache_clear()
    letter = "\U0001d4d0"  # 𝓐
    if graph_picture._lacks(font_manager.findfont("DejaVu Sans"), letter):
        families, missing = graph_picture.fonts_for(f"abc{letter}")
        assert missing == ""
        assert families[0] == "DejaVu Sans"
        assert len(families) == 2
    assert graph_picture.fonts_for("abcé") == (["DejaVu Sans"], "")
    assert graph_picture.fonts_for("a\ue123\U000f1234")[1] != ""  # private use


# --- in a run ---


def model_and_data(**changes: Any) -> tuple[Any, Any]:
    names, tags, neighbours = brands(12, 5)
    graph = SimpleNamespace(**{"is_built": True, "neighbours": neighbours, **changes})
    # The table goes on behind the graph's nodes with entities that no training caption has.
    table = SimpleNamespace(names=[*names, "later"], tags=[*tags, "品牌"])
    return SimpleNamespace(graph=graph), SimpleNamespace(entity_table=table)


def test_a_run_with_a_graph_gets_its_picture(tmp_path: Path) -> None:
    assert write_graph(tmp_path / "graph", *model_and_data())
    assert (tmp_path / "graph.png").read_bytes().startswith(b"\x89PNG")
    assert any(text.startswith("品牌") and "no" in text for text in texts((tmp_path / "graph.svg").read_bytes()))


def test_a_run_without_a_built_graph_gets_none(tmp_path: Path) -> None:
    model, data = model_and_data(is_built=False)
    assert not write_graph(tmp_path / "graph", model, data)
    assert not write_graph(tmp_path / "graph", SimpleNamespace(), data)
    assert not write_graph(tmp_path / "graph", model_and_data()[0], SimpleNamespace())
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_fails_costs_the_picture_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(graph_picture, "say", said.append)
    monkeypatch.setitem(sys.modules, "networkx", None)
    assert not write_graph(tmp_path / "graph", *model_and_data())
    assert said[0].startswith("no picture of the entity graph: ")
    assert list(tmp_path.iterdir()) == []


def test_the_report_shows_it_and_w_and_b_is_given_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / run.name
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("wandb", "checkpoints"))
    assert "entity graph" not in write_report(copy, str(tmp_path / "before.html")).read_text()
    logged: list[dict[str, Any]] = []
    experiment = SimpleNamespace(log=logged.append)
    monkeypatch.setattr(wandb_artifacts, "experiments_of", lambda loggers: [experiment])
    wandb_artifacts.show_graph([], RunFolder(copy))
    assert logged == []
    write_graph(RunFolder(copy).graph, *model_and_data())
    page = write_report(copy, str(tmp_path / "page.html")).read_text()
    (picture,) = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert base64.b64decode(picture) == RunFolder(copy).graph.with_suffix(".svg").read_bytes()
    wandb_artifacts.show_graph([], RunFolder(copy))
    assert type(logged[0]["test/graph"]).__name__ == "Image"
