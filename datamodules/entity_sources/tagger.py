"""Entities by any Hugging Face token-classification model."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from datamodules.entity_sources.entity import Entity, Item, Span
from datamodules.entity_sources.text import normalise
from datamodules.errors import DataError

log = logging.getLogger(__name__)

_OUTSIDE = "O"
_BATCH = 64  # captions
_MOST_TOKENS = 512  # what most such models can read; a caption's rest is not looked at


class TaggerSource:
    """Runs a token-classification model on the captions and reads its labels.

    Labels may be `B-X`, `I-X`, `E-X`, `S-X` and `O` (BIO or BIOES) or bare `X` and `O`; X becomes the entity's tag. Of
    a word of several pieces the first one's label counts. Captions are given as they are, not normalised.

    Args:
        name: a Hugging Face name or a local folder. Code that comes with a model is not run.
        device: None = CUDA where there is one.
        batch_size: captions at a time.

    Raises:
        DataError: in `prepare`, if the model is missing, has no fast tokenizer or no label "O".
    """

    def __init__(self, name: str, device: str | None = None, batch_size: int = _BATCH) -> None:
        self.name, self.device, self.batch_size = name, device, batch_size
        self._model: Any = None
        self._tokenizer: Any = None
        self._labels: list[tuple[str, str]] = []  # (prefix, tag) of each class
        self._num_cut = 0

    def settings(self) -> dict[str, Any]:
        """The model's name; a folder whose content changed is not noticed."""
        return {"kind": "tagger", "name": self.name}

    def prepare(self, train_captions: Iterable[str]) -> None:
        """Load the model; captions are not looked at."""
        import torch

        self._tokenizer, self._model = self._loaded()
        if not getattr(self._tokenizer, "is_fast", False):
            raise DataError(f"tagger '{self.name}': its tokenizer has no fast version, which places of words need")
        names = self._model.config.id2label
        self._labels = [_split(str(names[number])) for number in range(self._model.config.num_labels)]
        if _split(_OUTSIDE) not in self._labels:
            raise DataError(
                f"tagger '{self.name}': none of its labels {sorted(set(names.values()))[:8]} is 'O' (outside); set "
                "id2label in its config.json to BIO labels"
            )
        self.device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._model.to(self.device).eval()

    def find(self, items: Iterable[Item]) -> Iterator[list[Entity]]:
        """As `EntitySource.find`."""
        items = iter(items)
        while batch := [item.caption for item in islice(items, self.batch_size)]:
            for caption, spans in zip(batch, self.spans(batch), strict=True):
                found = (Entity(normalise(caption[span.start : span.end]), span.tag) for span in spans)
                yield [entity for entity in found if entity.name]

    def spans(self, captions: list[str]) -> list[list[Span]]:
        """Entities with their places in the captions."""
        import torch

        assert self._model is not None, "prepare first"
        most = min(_MOST_TOKENS, getattr(self._model.config, "max_position_embeddings", _MOST_TOKENS))
        encoded = self._tokenizer(
            captions, padding=True, truncation=True, max_length=most, return_offsets_mapping=True, return_tensors="pt"
        )
        offsets_BT2 = encoded.pop("offset_mapping").tolist()
        with torch.inference_mode():
            logits_BTC = self._model(**{key: value.to(self.device) for key, value in encoded.items()}).logits
        classes_BT = logits_BTC.argmax(-1).tolist()
        found = []
        for row, (offsets, classes) in enumerate(zip(offsets_BT2, classes_BT, strict=True)):
            words: dict[int, tuple[int, int, int]] = {}  # word -> start, end, class of its first piece
            for (start, end), number, word in zip(offsets, classes, encoded.word_ids(row), strict=True):
                if word is not None:
                    first = words.setdefault(word, (start, end, number))
                    words[word] = (first[0], end, first[2])
            found.append(_merged((start, end, *self._labels[number]) for start, end, number in words.values()))
            self._num_cut += bool(encoded.encodings[row].overflowing)
        return found

    def problems(self) -> dict[str, int]:
        """Captions whose end the model could not read."""
        return {"captions_cut": self._num_cut} if self._num_cut else {}

    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoModelForTokenClassification, AutoTokenizer

        try:
            try:  # what is here already is taken without asking the network
                tokenizer = AutoTokenizer.from_pretrained(self.name, local_files_only=True, trust_remote_code=False)
                model = AutoModelForTokenClassification.from_pretrained(
                    self.name, local_files_only=True, trust_remote_code=False
                )
            except OSError:
                tokenizer = AutoTokenizer.from_pretrained(self.name, trust_remote_code=False)
                model = AutoModelForTokenClassification.from_pretrained(self.name, trust_remote_code=False)
        except Exception as error:  # network, cache, format: many kinds, one remedy
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise DataError(
                f"tagger '{self.name}' is neither a local folder nor in the Hugging Face cache, and could not be "
                f"fetched ({reason}). Give the path of a folder with a token-classification model and its tokenizer."
            ) from None
        return tokenizer, model


def _split(label: str) -> tuple[str, str]:
    prefix, dash, tag = label.partition("-")
    return (prefix, tag) if dash and prefix in ("B", "I", "E", "S") else ("", label)


def _merged(words: Iterable[tuple[int, int, str, str]]) -> list[Span]:
    """(start, end, prefix, tag) of words -> spans: B and S begin one, and so does another tag; E and S end one."""
    spans: list[Span] = []
    going = False
    for start, end, prefix, tag in words:
        if tag == _OUTSIDE and not prefix:
            going = False
            continue
        if going and prefix not in ("B", "S") and spans[-1].tag == tag:
            spans[-1] = spans[-1]._replace(end=end)
        else:
            spans.append(Span(start, end, tag))
        going = prefix not in ("E", "S")
    return spans
