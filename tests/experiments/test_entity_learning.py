"""What training does to entities: of the synthetic shop it is known which name one brand, series or category."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from scipy.stats import mannwhitneyu

from datamodules import Product1M
from datamodules.catalogues import open_catalogue
from datamodules.catalogues.synthetic_shop import BRANDS, COLOUR_CATEGORIES, PLAIN_CATEGORIES, SERIES
from datamodules.entities import add_entities
from datamodules.entity_sources import LexiconSource
from datamodules.write_shards import build
from lightning_modules import EGECMP
from lightning_modules.callbacks.graph_refresh import GraphRefresh

GROUPS: dict[str, str] = {
    **{name.lower(): b.latin for b in BRANDS for name in (b.latin, b.chinese, b.latin + b.chinese)},
    **{word.lower(): series for series, words in SERIES.items() for word in words},
    **{word: c.name for c in PLAIN_CATEGORIES + COLOUR_CATEGORIES for word in c.words},
}
STEPS = 80


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop whose entities are the words of its own tables."""
    home = tmp_path_factory.mktemp("shop")
    lexicon = home / "words.tsv"
    lexicon.write_text("".join(f"{word}\n" for word in GROUPS))
    sizes = {"num_train_singles": 500, "num_train_multis": 100, "num_gallery": 192, "num_val": 9, "num_test": 9}
    catalogue = open_catalogue("synthetic", None, num_labels=96, image_size_px=32, **sizes)
    build(catalogue, home / "shards", shard_size=700, progress=False)
    add_entities(home / "shards", LexiconSource(lexicon), progress=False)
    return home / "shards"


def closeness_before_and_after(shop: Path, objectives: list[str], tmp_path: Path) -> tuple[float, float]:
    """`closeness` of a fresh model and after STEPS steps."""
    lightning.seed_everything(0, verbose=False)
    sizes = {"width": 32, "output_width": 16, "text_ffn": 32, "image_ffn": 32, "cross_width": 16, "text_heads": 4}
    heads = {"image_heads": 4, "cross_heads": 4, "co_heads": 4, "text_layers": 0, "image_layers": 0}
    spec = Product1M(str(shop))
    tokens = {"vocab_size": spec.manifest["tokenizer"]["vocab_size"], "mask_token_id": 4}
    model = EGECMP(
        [*objectives], "shards", **tokens, **sizes, **heads, cross_layers=1, co_layers=1, dropout=0.0, init_std=0.2,
        visual_input="grid", image_size_px=32, backbone="resnet_tiny", graph_rounds=2, lr=5e-3,
    )  # fmt: skip
    data = Product1M(str(shop), batch_size=16, num_workers=0, steps_per_epoch=STEPS // 4)
    data.input_spec = model.input_spec()
    trainer = lightning.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
        callbacks=[GraphRefresh(first_interval=0)],
        default_root_dir=tmp_path,
    )
    names, tokens_NL = data.entity_table.names[: data.entity_table.num_nodes], data.entity_tokens()
    before = closeness(model, names, tokens_NL)
    trainer.fit(model, datamodule=data)
    return before, closeness(model, names, tokens_NL)


def closeness(model: EGECMP, names: list[str], tokens_NL: torch.Tensor) -> float:
    """How often two names of one thing are closer than two names of different things; 0.5 = no better than chance."""
    with torch.no_grad():
        features_ND = model.eval().node_features(tokens_NL)
    unit_ND = F.normalize(features_ND - features_ND.mean(0), dim=1)
    cosine_NN = (unit_ND @ unit_ND.T).numpy()
    pairs = list(combinations(range(len(names)), 2))
    same = np.array([GROUPS[names[i]] == GROUPS[names[j]] for i, j in pairs])
    found = np.array([cosine_NN[i, j] for i, j in pairs])
    assert same.sum() > 20
    return float(mannwhitneyu(found[same], found[~same]).statistic / (same.sum() * (~same).sum()))


@pytest.mark.slow
@pytest.mark.parametrize("objectives", [["node", "subgraph"], ["mlm", "clr", "node", "subgraph"]], ids=",".join)
def test_names_of_one_thing_grow_closer_than_others(shop: Path, objectives: list[str], tmp_path: Path) -> None:
    """A fresh model knows some already: names share characters."""
    before, after = closeness_before_and_after(shop, objectives, tmp_path)
    assert after > before + 0.01
    assert after > 0.8
