"""Captions -> token ids: a WordPiece trained on the training captions, any Hugging Face tokenizer, or open_clip's.

`tokenizers` does the splitting in Rust. torch is imported where tensors are made, because the shard writer trains
tokenizers without it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from datamodules.caption_units import CaptionUnits, splits_locally
from datamodules.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as RustTokenizer
    from torch import Tensor

    from datamodules.batch import InputSpec

# Ids 0 to 4, in this order, in every tokenizer trained here. A Hugging Face tokenizer keeps its own ids.
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

_CHARACTERS_PER_TOKEN = 64  # what lies beyond this times `length` cannot reach the model; keeps absurd captions cheap


class Tokenizer:
    """Encodes batches of captions as [CLS] … [SEP] with padding.

    Args:
        rust: the splitting itself.
        special_ids: ids of pad, cls and sep, and of unk and mask where there are such tokens.
    """

    def __init__(self, rust: RustTokenizer, special_ids: dict[str, int]) -> None:
        self._rust = rust
        self.special_ids = special_ids
        self.pad_id, self.cls_id, self.sep_id = special_ids["pad"], special_ids["cls"], special_ids["sep"]
        self.mask_id = special_ids.get("mask")
        self.end_id = self.sep_id
        self.vocab_size = rust.get_vocab_size(with_added_tokens=True)
        rust.no_truncation()
        rust.no_padding()
        self._units = CaptionUnits(rust) if splits_locally(rust) else None

    def encode_batch(self, captions: list[str], length: int) -> tuple[Tensor, Tensor]:
        """Encode captions.

        Returns:
            tokens_BT int64 (T = length, [CLS] and [SEP] included) and mask_BT bool (True = real token).
        """
        short = [caption[: length * _CHARACTERS_PER_TOKEN] for caption in captions]
        return self._framed(self.encode_words(short), length)

    def encode_phrases(self, phrases: list[list[list[int]]], length: int) -> tuple[Tensor, Tensor]:
        """Encode lists of phrases as [CLS] p1 [SEP] p2 [SEP] …; what is too long is cut before the last [SEP].

        Args:
            phrases: of each row, the tokens of each phrase as `encode_words` gives them; none = [CLS] [SEP].
            length: T.
        """
        joined = []
        for row in phrases:
            tokens = [token for phrase in row for token in (self.sep_id, *phrase)]
            joined.append(tokens[1:])
        return self._framed(joined, length)

    def _framed(self, rows: list[list[int]], length: int) -> tuple[Tensor, Tensor]:
        import numpy as np
        import torch

        tokens_BT = np.full((len(rows), length), self.pad_id, np.int64)
        lengths_B = np.empty(len(rows), np.int64)
        for row, tokens in enumerate(rows):
            framed = [self.cls_id, *tokens[: length - 2], self.sep_id]
            tokens_BT[row, : len(framed)] = framed
            lengths_B[row] = len(framed)
        mask_BT = np.arange(length) < lengths_B[:, None]
        return torch.from_numpy(tokens_BT), torch.from_numpy(mask_BT)

    def encode_words(self, captions: list[str]) -> list[list[int]]:
        """Token ids without special tokens, however many."""
        if self._units is not None:
            return [self._units.tokens(caption) for caption in captions]
        return [encoding.ids for encoding in self._rust.encode_batch_fast(captions, add_special_tokens=False)]

    def decode(self, tokens_T: list[int]) -> str:
        """Readable text of one row, special tokens left out."""
        return self._rust.decode(list(tokens_T), skip_special_tokens=True)


class OpenClipTokenizer:
    """The tokenizer open_clip gives an architecture; its rows as they are, as released weights know them.

    CLIP's own frames a caption by <start_of_text> and <end_of_text> and has no mask; it fills up with 0, which is a
    word too, so its captions are told from their padding by the closing token, the largest id.

    Args:
        architecture: an architecture open_clip lists.

    Raises:
        DataError: unknown architecture, or its tokenizer is not on this machine and could not be fetched.
    """

    def __init__(self, architecture: str) -> None:
        import open_clip

        if architecture not in open_clip.list_models():
            near = get_close_matches(architecture, open_clip.list_models(), 3, 0.4)
            raise DataError(
                f"Tokenizer 'open_clip:{architecture}': open_clip has no such architecture; near: "
                f"{', '.join(near) or 'none'}. `open_clip.list_models()` lists them."
            )
        try:
            self._open_clip: Any = open_clip.get_tokenizer(architecture)
        except Exception as error:  # network, cache, format: many kinds, one remedy
            raise DataError(
                f"Tokenizer 'open_clip:{architecture}' is not in the Hugging Face cache and could not be fetched "
                f"({_first_line(error)}). Put its files into a folder on this machine and give that folder's path "
                "(model.tokenizer), or use 'shards' for a model to be trained."
            ) from None
        inner = getattr(self._open_clip, "tokenizer", None)  # a Hugging Face tokenizer, where the architecture has one
        self._pad_id: int | None = None if inner is None else inner.pad_token_id
        self.mask_id: int | None = None if inner is None else inner.mask_token_id
        self.end_id: int | None = self._open_clip.eot_token_id if inner is None else inner.eos_token_id
        self.vocab_size: int = self._open_clip.vocab_size if inner is None else len(inner)

    def encode_batch(self, captions: list[str], length: int) -> tuple[Tensor, Tensor]:
        """As `Tokenizer.encode_batch`, with open_clip's own opening, closing and padding."""
        import torch

        short = [caption[: length * _CHARACTERS_PER_TOKEN] for caption in captions]
        tokens_BT = self._open_clip(short, context_length=length)
        if self._pad_id is None:
            return tokens_BT, torch.arange(length) <= tokens_BT.argmax(1, keepdim=True)
        lengths_B1 = (tokens_BT != self._pad_id).sum(1, keepdim=True)
        if self._pad_id == self.end_id:  # SigLIP's: the first of them closes the caption
            lengths_B1 = (lengths_B1 + 1).clamp(max=length)
        return tokens_BT, torch.arange(length) < lengths_B1

    def decode(self, tokens_T: list[int]) -> str:
        """Readable text of one row, special tokens left out."""
        if self._pad_id is not None:
            return str(self._open_clip.tokenizer.decode(list(tokens_T), skip_special_tokens=True))
        end = tokens_T.index(self.end_id) if self.end_id in tokens_T else len(tokens_T)
        words = [token for token in tokens_T[:end] if token != self._open_clip.sot_token_id]
        return str(self._open_clip.decode(words)).strip()


AnyTokenizer: TypeAlias = "Tokenizer | OpenClipTokenizer"


def load_tokenizer(name: str, folder: Path | str) -> AnyTokenizer:
    """Open the tokenizer an `InputSpec` names.

    Args:
        name: "shards" for the one stored in `folder`, "open_clip:<architecture>" for the one of an open_clip model,
            else a Hugging Face name or a local folder.
        folder: the shard folder.

    Raises:
        DataError: missing, unreadable, or without the tokens that frame and fill up a caption.
    """
    if name.startswith("open_clip:"):
        return OpenClipTokenizer(name.removeprefix("open_clip:"))
    return _from_shards(Path(folder)) if name == "shards" else _from_hugging_face(name)


def check_vocabulary(tokenizer: AnyTokenizer, spec: InputSpec) -> None:
    """The tokenizer numbers words as the model does; told before a worker is started.

    Raises:
        DataError: with the settings that fit.
    """
    for key, wanted, is_ in (
        ("vocab_size", spec.vocab_size, tokenizer.vocab_size),
        ("mask_token_id", spec.mask_token_id, tokenizer.mask_id),
        ("end_token_id", spec.end_token_id, tokenizer.end_id),
    ):
        if wanted is None or wanted == is_:
            continue
        if is_ is None:
            raise DataError(
                f"Tokenizer '{spec.tokenizer}' has no token for the model's {key} {wanted}. Use a BERT-style "
                "tokenizer (model.tokenizer), or 'shards'."
            )
        raise DataError(
            f"Tokenizer '{spec.tokenizer}' has {key} {is_}, the model {wanted}: it was built for another "
            f"tokenizer. Name that one (model.tokenizer), or set model.{key}={is_} for a model to be trained."
        )


def train_wordpiece(captions: Callable[[], Iterable[str]], vocab_size: int) -> str:
    """Train a WordPiece vocabulary; equal captions give equal text.

    The library numbers the inner pieces (`##a`) in the order of a hash map with a random seed and breaks ties between
    merges by those numbers, so two trainings differ. Numbering the inner pieces beforehand makes it deterministic.

    Args:
        captions: returns a fresh pass over the training captions (read twice).
        vocab_size: entries aimed at; single characters are always kept, so a large alphabet can exceed it.

    Returns:
        The content of a `tokenizer.json`.
    """
    from tokenizers import Tokenizer as RustTokenizer
    from tokenizers import models, trainers

    draft = RustTokenizer(models.WordPiece(unk_token="[UNK]"))
    draft.normalizer, draft.pre_tokenizer = _bert_splitting()
    inner = sorted({f"##{character}" for word in _words(draft, captions()) for character in word[1:]})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        limit_alphabet=2**31 - 1,  # the default of 1000 would drop Chinese characters
        special_tokens=[*SPECIAL_TOKENS, *inner],
        show_progress=False,
    )
    draft.train_from_iterator(captions(), trainer=trainer)
    return _finished(draft.get_vocab(with_added_tokens=True)).to_str(pretty=False)


def _words(rust: RustTokenizer, captions: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for caption in captions:
        found.update(word for word, _ in rust.pre_tokenizer.pre_tokenize_str(rust.normalizer.normalize_str(caption)))
    return found


def _finished(vocab: dict[str, int]) -> RustTokenizer:
    """A tokenizer in which only the five special tokens are special."""
    from tokenizers import AddedToken, decoders, models, processors
    from tokenizers import Tokenizer as RustTokenizer

    rust = RustTokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    rust.normalizer, rust.pre_tokenizer = _bert_splitting()
    # Normalised is off, so that "[MASK]" is found before lower-casing, as in BERT.
    rust.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    rust.decoder = decoders.WordPiece()
    rust.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])]
    )
    return rust


def _bert_splitting() -> tuple[Any, Any]:
    """BERT's rules: each Chinese character is a word of its own, the rest lower-cased and split at punctuation."""
    from tokenizers import normalizers, pre_tokenizers

    normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=True, lowercase=True
    )
    return normalizer, pre_tokenizers.BertPreTokenizer()


def _from_shards(folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer as RustTokenizer

    from datamodules.manifest import TOKENIZER_FILE, how_to_build

    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise DataError(f"The model wants the tokenizer of the shards, but {path} is missing. {how_to_build(folder)}")
    try:
        text = path.read_text(encoding="utf-8")
        json.loads(text)
        rust = RustTokenizer.from_str(text)
    except BaseException as error:  # the Rust side raises bare Exception, and where it panics something beside it
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise DataError(f"{path} is not a tokenizer ({_first_line(error)}). {how_to_build(folder)}") from None
    ids = {token[1:-1].lower(): rust.token_to_id(token) for token in SPECIAL_TOKENS}
    _check_unknown(rust, str(path))
    return Tokenizer(rust, _complete(ids, str(path)))


def _from_hugging_face(name: str) -> Tokenizer:
    try:
        from transformers import AutoTokenizer

        try:  # what is here already is taken without asking the network
            loaded = AutoTokenizer.from_pretrained(name, local_files_only=True, trust_remote_code=False)
        except OSError:
            loaded = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        rust = loaded.backend_tokenizer
    except Exception as error:  # network, cache, format: many kinds, one remedy
        raise DataError(
            f"Tokenizer '{name}' is neither a local folder nor in the Hugging Face cache, and could not be fetched "
            f"({_first_line(error)}). Put a folder with its tokenizer.json (or vocab.txt) and tokenizer_config.json on "
            f"this machine and give its path instead of the name, or use the shards' own (model.tokenizer=shards)."
        ) from None
    ids = {kind: getattr(loaded, f"{kind}_token_id", None) for kind in ("pad", "unk", "cls", "sep", "mask")}
    _check_unknown(rust, f"'{name}'")
    return Tokenizer(rust, _complete(ids, f"'{name}'"))


def _check_unknown(rust: RustTokenizer, where: str) -> None:
    """A WordPiece vocabulary without its token for unknown words fails at the first of them, in the middle of a run."""
    model: Any = rust.model
    if type(model).__name__ == "WordPiece" and model.token_to_id(model.unk_token) is None:
        raise DataError(
            f"Tokenizer {where} has no token {model.unk_token!r} in its vocabulary, which stands for unknown words. "
            "Use a BERT-style tokenizer, or 'shards', built again."
        )


def _complete(ids: dict[str, int | None], where: str) -> dict[str, int]:
    missing = [kind for kind in ("pad", "cls", "sep") if ids[kind] is None]
    if missing:
        raise DataError(
            f"Tokenizer {where} has no {', '.join(missing)} token; captions are framed by cls and sep and filled up "
            "with pad. Use a BERT-style tokenizer, or 'shards'."
        )
    return {kind: number for kind, number in ids.items() if number is not None}


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
