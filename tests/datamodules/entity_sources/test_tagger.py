"""A token-classification model: a tiny random one from a folder, against labels read off its logits one by one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from datamodules.entity_sources import Item, TaggerSource
from datamodules.entity_sources.tagger import _merged, _split
from datamodules.errors import DataError
from datamodules.tokenizer import train_wordpiece

CAPTIONS = ["兰蔻 Lancome 口红", "puma running shoe", "口红", "unknown ☃ words 面霜 " * 3]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tagger")
    rust = Tokenizer.from_str(train_wordpiece(lambda: CAPTIONS, 60))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=rust, **names).save_pretrained(folder)
    torch.manual_seed(1)
    labels = {0: "O", 1: "B-brand", 2: "I-brand", 3: "B-kind", 4: "I-kind"}
    config = BertConfig(
        vocab_size=rust.get_vocab_size(), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=12, num_labels=5, id2label=labels,
        label2id={name: number for number, name in labels.items()}, initializer_range=1.0,
    )  # fmt: skip
    BertForTokenClassification(config).save_pretrained(folder)
    return folder


def test_spans_follow_the_labels_of_the_words(model: Path) -> None:
    source = TaggerSource(str(model), device="cpu", batch_size=3)
    source.prepare([])
    found = list(source.find([Item(str(number), caption) for number, caption in enumerate(CAPTIONS)]))
    assert sum(map(len, found)) > 2, "a random model finds something"
    for caption, entities, spans in zip(CAPTIONS, found, source.spans(CAPTIONS), strict=True):
        encoded = source._tokenizer(caption, return_tensors="pt", return_offsets_mapping=True, truncation=True,
                                    max_length=12)  # fmt: skip
        offsets = encoded.pop("offset_mapping")[0].tolist()
        classes = source._model(**encoded).logits[0].argmax(-1).tolist()
        words: dict[int, list[int]] = {}
        for place, word in enumerate(encoded.word_ids(0)):
            if word is not None:
                words.setdefault(word, []).append(place)
        labels = []
        for places in words.values():
            label = source._model.config.id2label[classes[places[0]]]
            labels.append((offsets[places[0]][0], offsets[places[-1]][1], *_split(label)))
        assert spans == _merged(labels)
        assert [entity.tag for entity in entities] == [span.tag for span in spans]
        assert [entity.name for entity in entities] == [caption[span.start : span.end].lower() for span in spans]
    long = sum(len(source._tokenizer(caption)["input_ids"]) > 12 for caption in CAPTIONS)
    assert long > 0
    assert source.problems() == {"captions_cut": 2 * long}, "seen by find and by spans"


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("B-x I-x O I-x", [(0, 2, "x"), (3, 4, "x")]),
        ("B-x B-x I-y", [(0, 1, "x"), (1, 2, "x"), (2, 3, "y")]),
        ("S-x S-x B-x E-x I-x", [(0, 1, "x"), (1, 2, "x"), (2, 4, "x"), (4, 5, "x")]),
        ("x x O y", [(0, 2, "x"), (3, 4, "y")]),
        ("O O", []),
    ],
)
def test_every_way_of_labelling_is_merged(labels: str, expected: list) -> None:
    words = [(place, place + 1, *_split(label)) for place, label in enumerate(labels.split())]
    assert [tuple(span) for span in _merged(words)] == expected


def test_a_missing_model_and_one_without_outside_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither a local folder.*Give the path"):
        TaggerSource(str(tmp_path / "nowhere")).prepare([])
    for file in model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = {str(number): f"LABEL_{number}" for number in range(5)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"none of its labels .*LABEL_0.* is 'O'"):
        TaggerSource(str(tmp_path)).prepare([])
