"""The callback: when it builds, on which features, and that ranks and resumed runs agree."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_modules.callbacks.graph_refresh import GraphRefresh, node_features, refresh
from lightning_modules.distributed import rank
from lightning_modules.entity_graph.graph import EntityGraph
from lightning_modules.errors import ModelError
from tests.distributed.gloo import run_on_ranks

NODES = 60


class Data(lightning.LightningDataModule):
    """Numbers, and a table of entities of three tokens each."""

    def __init__(self, table_hash: str = "0123abcd") -> None:
        super().__init__()
        self.entity_table = SimpleNamespace(hash=table_hash)

    def entity_tokens(self) -> Tensor:
        return torch.randint(1, 30, (NODES, 3), generator=torch.Generator().manual_seed(5), dtype=torch.int32)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.arange(6), batch_size=2)

    val_dataloader = train_dataloader  # an evaluation ends an interval, as in every run


class Model(lightning.LightningModule):
    """Learns its embeddings from the graph, where there is one."""

    def __init__(self, graph: EntityGraph | None) -> None:
        super().__init__()
        self.words = nn.Embedding(30, 8)
        self.dropout = nn.Dropout(0.5)
        self.graph = graph
        self.built: list[tuple[int, bool]] = []

    def node_features(self, tokens_ML: Tensor) -> Tensor:
        return self.dropout(self.words(tokens_ML.long())).mean(1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = (self.words.weight - batch.float().mean() / 10).square().mean()
        if self.graph is None or not self.graph.is_built:
            return loss
        vectors_ND = self.words(self.graph.tokens_NL.long()).mean(1)
        index_NK, score_NK = self.graph.neighbours
        return loss + (score_NK * (vectors_ND[:, None] - vectors_ND[index_NK]).square().sum(-1)).mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Nothing."""

    def on_train_epoch_end(self) -> None:
        if self.graph is not None:
            self.built.append((self.graph.interval, self.graph.is_built))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Log(lightning.pytorch.loggers.logger.DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:  # type: ignore[override]
        self.rows += [(step, metrics)] if "graph/nodes" in metrics else []


def _small(method: str = "adagae") -> EntityGraph:
    return EntityGraph(method, rounds=2, steps=4, kept=5)


def _fit(
    folder: Path,
    intervals: int,
    model: Model | None = None,
    callback: GraphRefresh | None = None,
    data: Data | None = None,
    resume: Path | None = None,
) -> tuple[Model, Log]:
    torch.manual_seed(0)
    model, log = model or Model(_small()), Log()
    trainer = lightning.Trainer(
        max_steps=3 * intervals,
        accelerator="cpu",
        logger=[log],
        callbacks=[
            callback or GraphRefresh(),
            ModelCheckpoint(folder, "last", save_top_k=1, enable_version_counter=False, save_on_train_epoch_end=True),
        ],
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=data or Data(), ckpt_path=resume, weights_only=True)
    return model, log


def test_it_builds_before_each_interval_but_the_first_and_logs(tmp_path: Path) -> None:
    model, log = _fit(tmp_path, 3)
    assert model.built == [(-1, False), (1, True), (2, True)]
    assert [step for step, _ in log.rows] == [3, 6]
    row = log.rows[-1][1]
    assert row["graph/nodes"] == NODES
    assert row["graph/edges"] == model.graph.neighbours.num_edges > 0
    assert 0 <= row["graph/share_with_positive"] <= 1
    assert row["graph/seconds"] > 0


@pytest.mark.parametrize(
    ("first", "every", "expected"), [(0, 1, [0, 1, 2, 3]), (1, 2, [-1, 1, 1, 3]), (9, 1, [-1] * 4)]
)
def test_when_is_an_argument(first: int, every: int, expected: list[int], tmp_path: Path) -> None:
    model, _ = _fit(tmp_path, 4, callback=GraphRefresh(first, every))
    assert [interval for interval, _ in model.built] == expected


def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    whole, _ = _fit(tmp_path / "whole", 4)
    for intervals in (1, 2, 3):  # stopped before the first build, after it, and after a warm start
        _fit(tmp_path / "part", intervals)
        resumed, _ = _fit(tmp_path / "part", 4, resume=tmp_path / "part" / "last.ckpt")
        assert whole.state_dict().keys() == resumed.state_dict().keys()
        for name, value in whole.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], value), (intervals, name)


def test_a_checkpoint_of_another_table_is_refused(tmp_path: Path) -> None:
    _fit(tmp_path, 2)
    with pytest.raises(ModelError, match="entity table 0123abcd, not to ffff"):
        _fit(tmp_path, 3, data=Data("ffff"), resume=tmp_path / "last.ckpt")


def test_a_model_without_a_graph_is_left_alone_and_data_without_entities_are_named(tmp_path: Path) -> None:
    model, log = _fit(tmp_path, 2, model=Model(None))
    assert not log.rows
    assert not [name for name in model.state_dict() if name.startswith("graph")]
    data = Data()
    data.entity_table = None
    with pytest.raises(ModelError, match="the data has no entities: add them with"):
        _fit(tmp_path, 2, data=data)
    for arguments in ({"first_interval": -1}, {"every": 0}):
        with pytest.raises(ModelError, match=f"graph_refresh.{next(iter(arguments))}="):
            GraphRefresh(**arguments)


def test_features_are_those_of_evaluation() -> None:
    model = Model(_small()).train()
    model.graph.set_entities(Data().entity_tokens(), "abc")
    features_ND = node_features(model)
    torch.testing.assert_close(features_ND, model.words(Data().entity_tokens().long()).mean(1).detach())
    assert model.training
    assert not features_ND.requires_grad


def _on_ranks() -> dict[str, Tensor]:
    """Both methods at once: starting processes costs seconds."""
    state = {}
    for method in ("adagae", "cosine"):
        torch.manual_seed(0)
        model = Model(_small(method))
        model.graph.set_entities(Data().entity_tokens(), "abc")
        if rank():  # what another rank would compute must not matter
            nn.init.zeros_(model.words.weight)
        for interval in (1, 2):
            refresh(model, interval)
        state |= {f"{method}/{name}": tensor for name, tensor in model.graph.state_tensors().items()}
    if not rank():
        nn.init.constant_(model.words.weight, torch.nan)
    try:
        refresh(model, 3)
    except ModelError as problem:
        state["refused"] = torch.tensor(list(str(problem).encode()))
    return state


def test_two_ranks_hold_the_graph_of_one_process(tmp_path: Path) -> None:
    expected = _on_ranks()
    assert all((expected[f"{method}/score_NK"] > 0).any() for method in ("adagae", "cosine"))
    for found in run_on_ranks(2, tmp_path, _on_ranks):
        refused = bytes(found.pop("refused").tolist()).decode()
        assert "could not be built on rank 0" in refused
        assert "nan or inf" in refused
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-7)  # its own number of threads
