"""Entities in a shard folder: the table, rows by split, batches, damage, and folders without."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules import DataError, InputSpec, Product1M
from datamodules.caption_entities import NODE_LENGTH
from datamodules.entities import MOST_ENTITIES, add_entities, open_rows, read_table
from datamodules.entity_sources import Entity, Item, LexiconSource, MinedSource, MiningRules, TagFilter, tag_filter
from datamodules.manifest import file_sha256, read_manifest
from datamodules.verify import verify
from datamodules.write_shards import build
from tests.datamodules.tiny_catalogue import TinyCatalogue

COUNTS = {"train": 24, "val": 5, "test": 7, "gallery": 6}
SPEC = InputSpec(visual_input="none", text_length=10, num_entities=4, entity_length=14)


class Words:
    """Every word of a caption; a digit's tag is "number"."""

    def settings(self) -> dict[str, Any]:
        return {"kind": "words"}

    def prepare(self, train_captions: Iterable[str]) -> None:
        self.num_prepared = len(list(train_captions))

    def find(self, items: Iterable[Item]) -> Iterator[list[Entity]]:
        for item in items:
            words = item.caption.split() + ["口红"]
            yield [Entity(word, "number" if word.isdigit() else f"tag{len(word) % 2}") for word in words]

    def problems(self) -> dict[str, int]:
        return {"odd": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build(TinyCatalogue(COUNTS, size_px=8), tmp_path / "shop", shard_size=6, vocab_size=60, progress=False)
    return tmp_path / "shop"


def _add(folder: Path, source: Any = None, tags: TagFilter | None = None) -> dict[str, Any]:
    return add_entities(folder, source or Words(), tags or tag_filter(drop=["number"]), progress=False)


def _data(folder: Path, spec: InputSpec = SPEC, **options: Any) -> Product1M:
    data = Product1M(str(folder), **{"batch_size": 4, "eval_batch_size": 4, "num_workers": 0, **options})
    data.use_input_spec(spec)
    return data


def test_the_table_counts_training_captions_and_puts_the_nodes_first(folder: Path) -> None:
    tars = {path.name: file_sha256(path) for path in folder.glob("*.tar")}
    before = read_manifest(folder)
    source = Words()
    entry = _add(folder, source)
    after = read_manifest(folder)
    assert {**after, "entities": None} == before, "data_hash and all else as before"
    assert {path.name: file_sha256(path) for path in folder.glob("*.tar")} == tars
    assert source.num_prepared == 24
    captions = [caption for _, caption in _data(folder)._contents.captions_by_row("train")]
    expected = Counter(word for caption in captions for word in {*caption.split()} if not word.isdigit())
    table = read_table(folder, after)
    assert table.hash == entry["hash"] == after["entities"]["hash"]  # type: ignore[index]
    assert dict(zip(table.names, table.counts, strict=True)) == expected
    assert table.counts == sorted(table.counts, reverse=True)
    assert table.num_nodes == len(table.names), "no other words in the queries"
    assert (table.names[0], table.tags[0]) == ("lipstick", "tag0")
    assert entry["counts"]["captions_without"] == {"train": 0, "val": 0, "test": 0, "gallery": 0}
    assert (entry["counts"]["dropped_by_tag"], entry["counts"]["problems"]) == (42, {"odd": 2})
    rows_NE = open_rows(folder, "test", after)
    assert (rows_NE.dtype, rows_NE.shape) == (np.int32, (7, MOST_ENTITIES))
    assert [[table.names[row] for row in rows if row >= 0] for rows in rows_NE.tolist()] == [
        list(dict.fromkeys(word for word in [*caption.split(), "口红"] if not word.isdigit()))
        for caption in _data(folder).captions("test")
    ], "in the order of the caption, each once"


def test_names_of_the_queries_alone_come_behind_the_nodes_and_fifteen_are_kept(folder: Path) -> None:
    class Numbered(Words):
        def find(self, items: Iterable[Item]) -> Iterator[list[Entity]]:
            for item in items:
                own = [Entity(f"{item.id}-{number}", "") for number in range(20)] if item.id == "val.3" else []
                yield [Entity("common", ""), *own]

    entry = _add(folder, Numbered())
    table = read_table(folder, read_manifest(folder))
    assert table.names[: table.num_nodes] == ["common"]
    assert table.names[1:15] == sorted(f"val.3-{number}" for number in range(20))[:14]
    assert table.counts[1:] == [0] * 20
    assert entry["counts"]["captions_cut"] == 1
    assert verify(folder) == []


def test_the_same_settings_are_left_alone_and_others_replace(folder: Path) -> None:
    first = _add(folder, MinedSource(MiningRules(max_share=1, min_entropy=0)), TagFilter())
    written = (folder / "entities" / "table.json").stat().st_mtime_ns
    assert _add(folder, MinedSource(MiningRules(max_share=1, min_entropy=0)), TagFilter()) == first
    assert (folder / "entities" / "table.json").stat().st_mtime_ns == written
    other = _add(folder, MinedSource(MiningRules(max_share=1, min_entropy=0)), tag_filter(drop=["none"]))
    assert other["hash"] == first["hash"], "the same bytes: deterministic"
    (folder / "entities" / "val.npy").unlink()
    assert _add(folder, MinedSource(MiningRules(max_share=1, min_entropy=0)), tag_filter(drop=["none"])) == other
    assert verify(folder) == []
    assert _add(folder)["hash"] != first["hash"]
    assert not list(folder.glob(".*"))


def test_a_rebuilt_folder_loses_the_entities_of_its_old_captions(folder: Path) -> None:
    _add(folder)
    build(TinyCatalogue(COUNTS, size_px=8), folder, shard_size=6, vocab_size=60, progress=False)
    assert read_manifest(folder)["entities"] is not None, "up to date, nothing was built"
    build(TinyCatalogue({**COUNTS, "train": 20}, size_px=8), folder, shard_size=6, vocab_size=60, progress=False)
    assert read_manifest(folder)["entities"] is None
    assert verify(folder) == []


def test_no_entity_at_all_is_an_error_that_names_the_tags(folder: Path) -> None:
    with pytest.raises(DataError, match=r"not one entity in 24 training captions.*'tag0', 'tag1'.*--drop-tags"):
        _add(folder, tags=tag_filter(keep=["brand"]))
    assert read_manifest(folder)["entities"] is None
    assert verify(folder) == []


# ---- batches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_batch_holds_its_captions_entities(folder: Path, num_workers: int) -> None:
    _add(folder)
    data = _data(folder, num_workers=num_workers)
    data.setup("fit")
    names, tokenizer = data.entity_table.names, data.tokenizer
    for loader, split in ((data.val_dataloader()[0], "val"), (data.val_dataloader()[1], "gallery")):
        for batch in loader:
            assert (batch.entities_BE.dtype, batch.entities_BE.shape[1]) == (torch.int64, 4)
            for place, row in enumerate(batch.index_B.tolist()):
                words = [*data.captions(split)[row].split(), "口红"]
                words = list(dict.fromkeys(word for word in words if not word.isdigit()))[:4]
                assert [names[entity] for entity in batch.entities_BE[place].tolist() if entity >= 0] == words
                expected = [tokenizer.cls_id]
                for word in words:
                    expected += [*tokenizer.encode_batch([word], 64)[0][0].tolist()[1:]]
                    expected = expected[: expected.index(tokenizer.pad_id)]
                if len(expected) > 14:
                    expected = [*expected[:13], tokenizer.sep_id]
                mask = batch.entity_token_mask_BT[place]
                assert batch.entity_tokens_BT[place][mask].tolist() == expected
                assert mask.sum() == len(expected)
    train = next(iter(data.train_dataloader()))
    assert (train.entities_BE >= 0).any(1).all()
    data.teardown("fit")


def test_a_caption_without_entities_has_an_empty_list_and_two_tokens(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "lexicon").write_text("series1\tx\n")
    entry = _add(folder, LexiconSource(tmp_path / "lexicon"))
    assert entry["counts"]["captions_without"]["val"] == 3
    data = _data(folder, SPEC._replace(num_entities=20))
    data.setup("validate")
    batch = next(iter(data.val_dataloader()[0]))
    assert batch.entities_BE.shape == (4, 20)
    assert batch.entities_BE[0].tolist() == [-1] * 20
    assert batch.entity_tokens_BT[0][batch.entity_token_mask_BT[0]].tolist() == [2, 3]
    assert batch.entities_BE[1].tolist() == [0] + [-1] * 19


def test_a_model_that_reads_none_gets_none(folder: Path) -> None:
    data = _data(folder, SPEC._replace(num_entities=0))
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.entities_BE is batch.entity_tokens_BT is batch.entity_token_mask_BT is None


def test_the_nodes_tokens(folder: Path) -> None:
    _add(folder)
    data = _data(folder)
    tokens_NL = data.entity_tokens()
    assert (tokens_NL.dtype, len(tokens_NL)) == (torch.int32, data.entity_table.num_nodes)
    assert tokens_NL.shape[1] == int((tokens_NL != 0).sum(1).max()) <= NODE_LENGTH
    for name, tokens in zip(data.entity_table.names, tokens_NL.tolist(), strict=True):
        framed = data.tokenizer.encode_batch([name], 64)[0][0].tolist()
        framed = framed[1 : framed.index(data.tokenizer.pad_id)]
        assert tokens[: len(framed)] == framed
        assert not any(tokens[len(framed) :])


# ---- folders without, and damage ---------------------------------------------------------------------------------


def test_a_folder_without_entities_is_told_with_the_command_that_adds_them(folder: Path) -> None:
    with pytest.raises(DataError, match=f"holds none. Add them with `python -m experiments data entities {folder}`"):
        _data(folder).setup("fit")
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["entities"]  # as folders were before
    (folder / "manifest.json").write_text(json.dumps(manifest))
    _data(folder, SPEC._replace(num_entities=0)).setup("fit")
    with pytest.raises(DataError, match="data entities"):
        _data(folder).entity_tokens()


def test_a_tokenizer_without_a_separator_is_refused(folder: Path) -> None:
    _add(folder)
    with pytest.raises(DataError, match="no token that parts entities"):
        _data(folder, SPEC._replace(tokenizer="open_clip:ViT-B-32")).setup("fit")


def test_a_table_or_rows_of_another_data_set_are_refused(folder: Path, tmp_path: Path) -> None:
    _add(folder)
    build(TinyCatalogue({**COUNTS, "val": 4}, size_px=8, labels=3), tmp_path / "other", vocab_size=60, progress=False)
    _add(tmp_path / "other")
    for name, words in (("val.npy", r"val.npy holds int32 \[4, 15\]"), ("table.json", "of another data set")):
        (folder / "entities" / name).write_bytes((tmp_path / "other" / "entities" / name).read_bytes())
        with pytest.raises(DataError, match=words):
            _data(folder).setup("fit")
        assert any(f"{name}: sha256 differs" in problem for problem in verify(folder))


def test_verify_names_what_is_wrong(folder: Path) -> None:
    _add(folder)
    assert verify(folder) == []
    rows_NE = np.load(folder / "entities" / "train.npy")
    rows_NE[3, 0], rows_NE[5, 1] = 99, -1
    np.save(folder / "entities" / "train.npy", rows_NE)
    problems = "\n".join(verify(folder))
    assert "train.npy: sha256 differs" in problems
    assert "train.npy, row 3: [99" in problems
    (folder / "entities" / "gallery.npy").unlink()
    assert any("gallery.npy: missing" in problem for problem in verify(folder))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "entities": None}))
    assert any("entities: not in the manifest" in problem for problem in verify(folder))


@pytest.mark.parametrize("entities", [3, {}, {"hash": "0", "source": {}, "tags": {}, "files": {"a": 1}, "counts": {}}])
def test_a_malformed_entry_of_the_manifest_is_refused(folder: Path, entities: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "entities": entities}))
    with pytest.raises(DataError, match="entities should be null or an object"):
        read_manifest(folder)
