"""import-official: a checkpoint in the authors' names becomes a run folder that loads to the same model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from datamodules.write_shards import build
from experiments.cli import main
from lightning_modules import CAPTURE, EGECMP
from lightning_modules.example_batch import example_batch
from lightning_modules.official_weights import capture_arguments, translate
from tests.datamodules.tiny_catalogue import TinyCatalogue, tiny_regions
from tests.parity.official import FOLDER

CONFIG = {
    **{"num_attention_heads": 2, "v_num_attention_heads": 2, "bi_num_attention_heads": 2, "intermediate_size": 64},
    **{"v_intermediate_size": 10, "bi_hidden_size": 8},
}
CROSS_CONFIG = {"num_attention_heads": 2}
SHAPES = FOLDER / "capture_state_dict.json"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random weights in the released names, small widths."""
    if not SHAPES.is_file():
        pytest.skip(f"{SHAPES} is missing; it lists the released names and shapes")
    folder = tmp_path_factory.mktemp("official")
    state = _random_state(SHAPES)
    paths = {name: folder / name for name in ("state.safetensors", "state.bin", "config.json", "cross.json")}
    save_file(state, paths["state.safetensors"])
    torch.save(state, paths["state.bin"])
    paths["config.json"].write_text(json.dumps(CONFIG))
    paths["cross.json"].write_text(json.dumps(CROSS_CONFIG))
    return paths


def _random_state(shapes: Path) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    small = {768: 16, 512: 80, 3072: 64, 1024: 10, 2304: 48, 2048: 8, 21128: 120, 1536: 32}
    return {
        name: torch.randn([small.get(size, size) for size in shape], generator=generator) * 0.1
        for name, shape in ((name, _shape(entry)) for name, entry in json.loads(shapes.read_text()).items())
    }


def _shape(entry: object) -> list[int]:
    return list(entry["shape"] if isinstance(entry, dict) else entry)  # type: ignore[call-overload]


def _words(files: dict[str, Path], out: Path, checkpoint: str = "state.safetensors") -> list[str]:
    words = ["import-official", "--checkpoint", str(files[checkpoint]), "--config", str(files["config.json"])]
    return [*words, "--cross-config", str(files["cross.json"]), "--model", "capture", "--out", str(out)]


@pytest.mark.parametrize("checkpoint", ["state.safetensors", "state.bin"])
def test_the_run_folder_holds_the_same_model(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], checkpoint: str
) -> None:
    out = tmp_path / "run"
    assert main(_words(files, out, checkpoint)) == 0
    said = capsys.readouterr()
    assert "q_dense1" in said.out + said.err
    assert json.loads((out / "metrics.json").read_text())["steps"] == 0
    config = yaml.safe_load((out / "config.yaml").read_text())
    stored = torch.load(out / "checkpoints" / "best.ckpt", weights_only=True)
    model = CAPTURE(**config["model"]["init_args"]).eval()
    model.load_state_dict(stored["state_dict"])
    state = torch.load(files["state.bin"], weights_only=True)
    expected = CAPTURE.from_official(state, CONFIG, CROSS_CONFIG)
    assert config["model"]["init_args"].items() >= capture_arguments(translate(state)[0], CONFIG, CROSS_CONFIG).items()
    batch = example_batch(model.input_spec(), batch_size=3)
    for name, vectors in expected.encode(batch).items():
        assert torch.equal(model.encode(batch)[name], vectors), name


def test_a_checkpoint_of_ege_cmp(files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, out = _random_state(SHAPES.with_name("ege_state_dict.json")), tmp_path / "run"
    save_file(state, tmp_path / "ege.safetensors")
    words = _words(files | {"ege.safetensors": tmp_path / "ege.safetensors"}, out, "ege.safetensors")
    assert main(words) == 2
    assert "belongs to no part of this model; is it a checkpoint of --model capture?" in capsys.readouterr().err
    words[words.index("capture")] = "ege_cmp"
    assert main(words) == 0
    said = capsys.readouterr()
    for ignored in ("q_dense1", "cross_encoder.pooler", "cls.imagePredictions.decoder"):
        assert ignored in said.out + said.err
    stored = torch.load(out / "checkpoints" / "best.ckpt", weights_only=True)
    model = EGECMP(**stored["hyper_parameters"]).eval()
    model.load_state_dict(stored["state_dict"])
    batch = example_batch(model.input_spec(), batch_size=3)
    expected = EGECMP.from_official(state, CONFIG, CROSS_CONFIG).encode(batch)
    assert all(torch.equal(vectors, expected[name]) for name, vectors in model.encode(batch).items())


def test_it_is_evaluated_on_named_data_only(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(_words(files, out)) == 0
    assert main(["eval", "--run", str(out)]) == 2
    assert "name it with DATA=" in capsys.readouterr().err


def test_it_embeds_region_shards_like_any_run(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = {"train": 24, "val": 5, "test": 7, "gallery": 6}
    shop, tokenizer = tmp_path / "shop", tmp_path / "tokenizer"
    shop_options = {"vocab_size": 60, "progress": False, "pictures": False, "regions": tiny_regions}
    build(TinyCatalogue(counts, size_px=8), shop, **shop_options)
    tokenizer.mkdir()
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}  # BERT's ids
    words = [special.get(number, f"word{number}") for number in range(120)]
    (tokenizer / "vocab.txt").write_text("\n".join(words) + "\n")
    (tokenizer / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    out = tmp_path / "official"
    assert main(_words(files, out)) == 0
    evaluate = ["eval", "--run", str(out), "--data", str(shop)]
    assert main([*evaluate, f"--model.tokenizer={tokenizer}"]) == 0
    (record,) = (json.loads(path.read_text()) for path in tmp_path.glob("capture-shop-*/metrics.json"))
    assert record["steps"] == 0
    assert record["feature"] == "product_both"
    assert 0 <= record["test"]["mAP@10"] <= 1
    capsys.readouterr()
    assert main([*evaluate, "--model.tokenizer=shards"]) == 2  # another vocabulary
    assert "size mismatch for network.text_embedding.word.weight" in capsys.readouterr().err


def test_bad_input_is_one_line(files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.bin"
    broken.write_bytes(b"not a checkpoint")
    (tmp_path / "hello.bin").write_bytes(b"hello")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").write_text("")
    good = _words(files, tmp_path / "out")
    cases = [
        (good[:2] + [str(tmp_path / "none.bin")] + good[3:], "none.bin: no such file"),
        (good[:2] + [str(broken)] + good[3:], "broken.bin: not a checkpoint"),
        (good[:2] + [str(tmp_path / "hello.bin")] + good[3:], "hello.bin: not a checkpoint"),
        (good[:2] + [str(tmp_path)] + good[3:], "is a folder"),
        (good[:4] + [str(broken)] + good[5:], "broken.bin: not readable as JSON"),
        (good[:-3] + ["clip", *good[-2:]], "--model 'clip' is unknown"),
        (good[:-1] + [str(taken)], "taken: exists already"),
    ]
    for words, message in cases:
        assert main(words) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bert.embeddings.word_embeddings.weight": None}, "key 'bert.embeddings.word_embeddings.weight' is missing"),
        ({"cls.t_fc.weight": None, "cls.t_fc.bias": None}, "missing key 'cls.t_fc.weight' and 1 more"),
        ({"bert.encoder.layer.1.output.dense.bias": None}, "missing key 'bert.encoder.layer.1.output.dense.bias'"),
        ({"bert.encoder.layer.1.attention.self.key.bias": None}, "query, key or value of"),
        ({"visual.transformer.proj": (4, 4)}, "key 'visual.transformer.proj' belongs to no part of this model"),
        ({"cls.predictions.bias": (119,)}, "size mismatch for mlm.bias"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named_and_leaves_nothing(
    files: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, tuple[int, ...] | None],
    message: str,
) -> None:
    state = torch.load(files["state.bin"], weights_only=True)
    for key, shape in changed.items():
        assert (key in state) == (shape is None or key == "cls.predictions.bias"), key
        state.pop(key, None)
        if shape is not None:
            state[key] = torch.zeros(shape)
    broken = tmp_path / "broken.safetensors"
    save_file(state, broken)
    words = _words(files, tmp_path / "out")
    words[2] = str(broken)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert str(broken) in error
    assert message in error
    assert not (tmp_path / "out").exists()
