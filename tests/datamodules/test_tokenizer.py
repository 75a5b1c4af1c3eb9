"""The tokenizer: deterministic training, Chinese characters apart, and errors that say where to put what."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer

from datamodules.errors import DataError
from datamodules.tokenizer import SPECIAL_TOKENS, load_tokenizer, train_wordpiece

CAPTIONS = [f"韩国AHC黄金套盒 moisturiser serie {i % 7} 补水{'抗皱' if i % 2 else '紧致'} 24K-精华" for i in range(60)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "tokenizer.json").write_text(train_wordpiece(lambda: CAPTIONS, 300), encoding="utf-8")
    return folder


def test_two_trainings_in_two_processes_give_the_same_bytes(folder: Path) -> None:
    # The library's own trainer fails this: it numbers pieces in the order of a randomly seeded hash map.
    code = (
        "import sys, hashlib; from datamodules.tokenizer import train_wordpiece\n"
        "captions = sys.stdin.read().split('\\n')\n"
        "print(hashlib.sha256(train_wordpiece(lambda: captions, 300).encode()).hexdigest())\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input="\n".join(CAPTIONS),
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        encoding="utf-8",
    )
    assert done.stdout.strip() == hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()


def test_batches_have_the_shape_and_the_special_tokens(folder: Path) -> None:
    tokenizer = load_tokenizer("shards", folder)
    assert tokenizer.special_ids == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    tokens_BT, mask_BT = tokenizer.encode_batch(["韩国黄金", "", "黄" * 100], 12)
    assert tokens_BT.shape == mask_BT.shape == (3, 12)
    assert (tokens_BT.dtype, mask_BT.dtype) == (torch.int64, torch.bool)
    assert mask_BT.sum(1).tolist() == [6, 2, 12]  # each Chinese character is a word
    assert tokens_BT[0, :6][[0, 5]].tolist() == [2, 3]
    assert tokens_BT[2, -1] == 3, "truncation keeps [SEP]"
    assert (tokens_BT[~mask_BT] == 0).all()
    assert int(tokens_BT.max()) < tokenizer.vocab_size
    assert tokenizer.encode_batch(["韩国黄金"], 8)[0].shape == (1, 8), "the length may change"


def test_case_and_accents_do_not_matter_and_unknown_characters_are_unknown(folder: Path) -> None:
    tokenizer = load_tokenizer("shards", folder)
    one, other, unknown = tokenizer.encode_batch(["Moisturiser", "MOISTURISÉR", "龘"], 8)[0]
    assert one.tolist() == other.tolist()
    assert unknown[:3].tolist() == [2, 1, 3]
    assert tokenizer.encode_batch(["[MASK]"], 8)[0][0, 1] == 4


def test_all_characters_of_a_large_alphabet_are_kept() -> None:
    import json

    characters = [chr(0x4E00 + i) for i in range(1500)]
    vocab = json.loads(train_wordpiece(lambda: [" ".join(characters)], 100))["model"]["vocab"]
    assert set(characters) <= set(vocab)
    assert [vocab[token] for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]


def test_a_caption_of_any_length_and_content_is_encoded(folder: Path) -> None:
    tokenizer = load_tokenizer("shards", folder)
    tokens_BT, _ = tokenizer.encode_batch(["x" * 1_000_000, "\x00\u200b\U0001f600", "补 " * 10_000], 36)
    assert tokens_BT.shape == (3, 36)


_TEXT = st.text(
    st.sampled_from("黄金补水 ab\u0301é-.,24K\t\u200b\x1c\x00\u3000\U0001f600\U00020001韩Σσ[MASK]\u0130\uac00")
    | st.characters(),
    max_size=30,
)


@given(captions=st.lists(_TEXT, min_size=1, max_size=3))
def test_remembered_units_give_the_ids_of_the_whole_pipeline(folder: Path, captions: list[str]) -> None:
    captions = [caption.encode("utf-8", "ignore").decode("utf-8") for caption in captions]
    rust = RustTokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer = load_tokenizer("shards", folder)
    assert tokenizer._units is not None, "the fast way is the one under test"
    assert tokenizer.encode_words(captions) == [
        one.ids for one in rust.encode_batch(captions, add_special_tokens=False)
    ]
    assert tokenizer.encode_words(captions + captions)[len(captions) :] == tokenizer.encode_words(captions)


def test_errors_name_the_remedy(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokenizer\.json is missing.*make data"):
        load_tokenizer("shards", tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="is not a tokenizer"):
        load_tokenizer("shards", tmp_path)
    text = (folder / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text.replace('"[UNK]":', '"[UNQ]":'))
    with pytest.raises(DataError, match=r"tokenizer\.json has no token '\[UNK\]' in its vocabulary"):
        load_tokenizer("shards", tmp_path)


def test_an_unreachable_hugging_face_name_says_where_to_put_a_folder(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"'nobody/nothing'.*give its path instead of the name"):
        load_tokenizer("nobody/nothing", folder)


def test_a_local_hugging_face_folder_keeps_its_own_ids(tmp_path: Path, folder: Path) -> None:
    words = ["hello", "[PAD]", "[MASK]", "[CLS]", "[SEP]", "[UNK]", "补", "##lo"]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    tokenizer = load_tokenizer(str(tmp_path), folder)
    assert (tokenizer.pad_id, tokenizer.mask_id, tokenizer.vocab_size) == (1, 2, 8)
    assert tokenizer.encode_batch(["Hello 补"], 6)[0].tolist() == [[3, 0, 6, 4, 1, 1]]


def test_a_tokenizer_without_mask_frames_captions_all_the_same(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "hello"]), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "mask_token": null}')
    tokenizer = load_tokenizer(str(tmp_path), folder)
    assert tokenizer.mask_id is None
    assert tokenizer.encode_batch(["hello"], 5)[0].tolist() == [[1, 4, 2, 0, 0]]


def test_clips_tokenizer_gives_open_clips_rows_and_the_mask_ends_with_the_closing_token(folder: Path) -> None:
    import open_clip

    tokenizer = load_tokenizer("open_clip:ViT-B-32", folder)
    captions = ["wow!!!", "A red lipstick, 3.5 g", "mascara " * 50, "韩国"]
    tokens_BT, mask_BT = tokenizer.encode_batch(captions, 20)
    assert torch.equal(tokens_BT, open_clip.get_tokenizer("ViT-B-32")(captions, context_length=20))
    assert (tokenizer.vocab_size, tokenizer.end_id, tokenizer.mask_id) == (49408, 49407, None)
    last = mask_BT.sum(1) - 1
    assert (tokens_BT[range(4), last] == tokenizer.end_id).all()
    assert mask_BT.sum(1)[2] == 20
    assert (mask_BT.int().diff(dim=1) <= 0).all()
    assert tokenizer.decode(tokens_BT[1].tolist()) == "a red lipstick , 3 . 5 g"
    with pytest.raises(DataError, match=r"no such architecture; near: .*ViT-B-32"):
        load_tokenizer("open_clip:ViT-B32", folder)


def test_an_unreachable_tokenizer_of_open_clip_says_where_to_put_a_folder(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    import open_clip

    def fails(name: str) -> object:
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip, "get_tokenizer", fails)
    with pytest.raises(DataError, match=r"no route to host.*give that folder's path"):
        load_tokenizer("open_clip:ViT-B-16-SigLIP", folder)


@pytest.mark.parametrize(("pad_id", "real"), [(0, [3, 2, 5]), (9, [3, 2, 5])])
def test_padding_of_open_clips_hugging_face_tokenizers_is_masked(
    pad_id: int, real: list[int], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """Also where the closing token, 9, fills up as well."""
    import open_clip

    class Inner:
        pad_token_id, eos_token_id, mask_token_id = pad_id, 9, None

        def __len__(self) -> int:
            return 20

    class Wrapper:
        tokenizer = Inner()

        def __call__(self, captions: list[str], context_length: int) -> torch.Tensor:
            rows = [[4] * min(len(text), context_length - 1) + [9] for text in captions]
            return torch.tensor([row + [pad_id] * (context_length - len(row)) for row in rows])

    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: Wrapper())
    tokenizer = load_tokenizer("open_clip:ViT-B-16-SigLIP", folder)
    assert (tokenizer.vocab_size, tokenizer.end_id, tokenizer.mask_id) == (20, 9, None)
    assert tokenizer.encode_batch(["ab", "a", "abcdefg"], 5)[1].sum(1).tolist() == real
