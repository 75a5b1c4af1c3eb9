"""Gives a model's entity graph its nodes, and learns it anew once per interval."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import Any

import lightning
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lightning_modules.distributed import rank, world_size
from lightning_modules.entity_graph.graph import EntityGraph
from lightning_modules.errors import ModelError

NODES_AT_A_TIME = 4096
PATIENCE = timedelta(hours=6)  # of ranks that wait for rank 0; the usual limit of half an hour is too close


class GraphRefresh(Callback):
    """Rebuilds `model.graph`, an `EntityGraph`, before an interval; of a model without one it takes no notice.

    Node features are `model.node_features(tokens_ML)` of the weights as they are then, without dropout. Rank 0
    computes, and the others take over its result, so that all are equal. The graph stands in the checkpoint: a run
    that goes on reads the same one and starts AdaGAE from the same encoder. The run's seed is the graph's.

    Args:
        first_interval: Before which it is built first; 1 = after the first interval, 0 = before training.
        every: Intervals from one build to the next.
    """

    def __init__(self, first_interval: int = 1, every: int = 1) -> None:
        for name, value, least in (("first_interval", first_interval, 0), ("every", every, 1)):
            if value < least:
                raise ModelError(f"graph_refresh.{name}={value}: should be at least {least}")
        self.first_interval, self.every = first_interval, every
        self._group: Any = None

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        graph = graph_of(pl_module)
        if graph is None:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        table = getattr(data, "entity_table", None)
        if table is None:
            raise ModelError(
                f"{type(pl_module).__name__} has an entity graph, but the data has no entities: add them with "
                "`python -m experiments data entities`, or leave the graph's objectives out"
            )
        graph.seed = int(os.environ.get("PL_GLOBAL_SEED", graph.seed))
        graph.set_entities(data.entity_tokens(), table.hash)
        if world_size() > 1:
            self._group = dist.new_group(backend="gloo", timeout=PATIENCE)

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        graph, interval = graph_of(pl_module), trainer.current_epoch
        if graph is None or graph.interval >= interval or interval < self.first_interval:
            return
        if (interval - self.first_interval) % self.every == 0:
            began = time.perf_counter()
            refresh(pl_module, interval, self._group)
            self._log(trainer, graph, time.perf_counter() - began)

    def _log(self, trainer: lightning.Trainer, graph: EntityGraph, seconds: float) -> None:
        neighbours = graph.neighbours
        shown = {
            "graph/nodes": graph.num_nodes,
            "graph/edges": neighbours.num_edges,
            "graph/share_with_positive": neighbours.share_with_positive,
            "graph/positives_per_node": neighbours.positives_per_node,
            "graph/seconds": seconds,
        }
        for logger in trainer.loggers:
            logger.log_metrics(shown, step=trainer.global_step)


def graph_of(model: Any) -> EntityGraph | None:
    """The model's entity graph; None where it has none."""
    return getattr(model, "graph", None)


def refresh(model: Any, interval: int, group: Any = None) -> None:
    """Rebuild a model's graph on rank 0 and make all ranks' equal; every rank calls it.

    Raises:
        ModelError: on every rank, whatever went wrong on rank 0.
    """
    graph: EntityGraph = model.graph
    failure: list[str | None] = [None]
    if rank() == 0:
        try:
            graph.rebuild(node_features(model), interval)
        except Exception as problem:
            if world_size() == 1:
                raise
            failure = [f"{type(problem).__name__}: {problem}"]
    if world_size() == 1:
        return
    dist.broadcast_object_list(failure, group=group)  # first, or the others would wait for a graph that never comes
    if failure[0] is not None:
        raise ModelError(f"the entity graph could not be built on rank 0: {failure[0]}")
    graph.take_over(_from_rank_zero(graph.state_tensors(), group))


@torch.no_grad()
def node_features(model: Any) -> Tensor:
    """features_ND of all nodes, on the CPU, in full precision and eval mode."""
    training, device = model.training, model.device
    tokens_NL: Tensor = model.graph.tokens_NL
    if not len(tokens_NL):
        return torch.zeros(0, 0)
    model.eval()
    try:
        with torch.autocast(device.type, enabled=False):
            parts = [
                model.node_features(tokens_ML.to(device)).float().cpu()
                for tokens_ML in tokens_NL.split(NODES_AT_A_TIME)
            ]
    finally:
        model.train(training)
    return torch.cat(parts)


def _from_rank_zero(state: dict[str, Tensor], group: Any) -> dict[str, Tensor]:
    """Rank 0's tensors, whose shapes the others do not know, over the CPU: once per interval, a few MB."""
    shapes: list[Any] = [{name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}]
    dist.broadcast_object_list(shapes, group=group)
    received = {}
    for name, (shape, dtype) in shapes[0].items():
        tensor = state[name].cpu().contiguous() if rank() == 0 else torch.empty(shape, dtype=dtype)
        if tensor.numel():
            dist.broadcast(tensor, 0, group=group)
        received[name] = tensor
    return received
