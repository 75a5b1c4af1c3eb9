"""The entity graph of a model: its nodes, their neighbours, and what is needed to learn it again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from typing_extensions import Self

from lightning_modules.entity_graph.adagae import AdaGAESettings, Encoder, learn_graph
from lightning_modules.entity_graph.neighbours import Neighbours
from lightning_modules.entity_graph.similarity import feature_cosine, row_cosine
from lightning_modules.errors import ModelError

METHODS = ("adagae", "cosine")
NEVER = -1  # interval of a graph that was not built yet
ZERO_LENGTH = 1e-12


class EntityGraph(nn.Module):
    """Nodes are the entities of the training captions; S_ij says how alike two are (EGE-CMP §3.3).

    "adagae": S = cosine of the rows of AdaGAE's weight matrix. "cosine": of the node features.
    Everything it holds is in its `state_dict`, so a checkpoint brings its graph along. It has neither parameters (no
    optimiser moves it) nor buffers (DDP would send them before every step).

    Args:
        method: "adagae" or "cosine".
        rounds, steps: Of AdaGAE: rounds of learning the encoder and computing the graph anew, and steps in each.
        kept: Neighbours listed per node, the most similar ones; a pair that is not listed counts as S = 0.
        num_neighbours, growth: Neighbours in AdaGAE's first round, and how many more each round.
        lr, lam: AdaGAE's learning rate and weight of the Laplacian term.
        exact_below: Nodes from which on an AdaGAE step works on a sample.
        centred: "cosine" only: take the mean of all nodes off first. Differs: the ablation of the paper does not, but
            embedding-layer vectors share a long component, so that all pairs would be alike.
        seed: Of all draws; equal seeds and features give equal graphs.
    """

    def __init__(
        self,
        method: str = "adagae",
        rounds: int = 10,
        steps: int = 50,
        kept: int = 32,
        num_neighbours: int = 3,
        growth: int = 5,
        lr: float = 5e-4,
        lam: float = 0.2,
        exact_below: int = 5_001,
        centred: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if method not in METHODS:
            raise ModelError(f"graph method {method!r} is unknown; known: {', '.join(METHODS)}")
        least = {"rounds": 1, "steps": 1, "kept": 1, "num_neighbours": 1, "growth": 0, "exact_below": 1, "seed": 0}
        for name, minimum in least.items():
            if locals()[name] < minimum:
                raise ModelError(f"graph {name}={locals()[name]}: should be at least {minimum}")
        self.method, self.kept, self.centred, self.seed = method, kept, centred, seed
        self.settings = AdaGAESettings(rounds, steps, num_neighbours, growth, lr, lam, exact_below=exact_below)
        self._state = _fresh_state(kept)
        self._interval = NEVER  # beside the state's: asked for at each step, which must not wait for a device

    # ---- nodes -----------------------------------------------------------------------------------------------------

    @property
    def tokens_NL(self) -> Tensor:  # noqa: N802
        """Tokens of each node, int32, padded with 0."""
        return self._state["tokens_NL"]

    @property
    def num_nodes(self) -> int:
        """Rows of the entity table that are nodes: its first ones."""
        return len(self._state["tokens_NL"])

    @property
    def table_hash(self) -> str:
        """Of the entity table whose rows the nodes are; empty before there is one."""
        return bytes(self._state["table_hash"].tolist()).decode()

    def set_entities(self, tokens_NL: Tensor, table_hash: str) -> None:
        """Give the graph its nodes. With the table it already has, the graph stays as it is.

        Raises:
            ModelError: it holds another table, or an empty hash was given.
        """
        if not table_hash:
            raise ModelError("an entity table needs a hash, by which a checkpoint knows its own table")
        if self.table_hash:
            self._check_table(table_hash)
            return
        state = _fresh_state(self.kept) | {
            "tokens_NL": tokens_NL.to(torch.int32, copy=True),
            "table_hash": torch.tensor(list(table_hash.encode()), dtype=torch.uint8),
            **_as_state(Neighbours.empty(len(tokens_NL), self.kept)),
        }
        self._hold(state)

    def forget(self) -> None:
        """Go back to a graph without nodes, as for training on another data set."""
        self._hold(_fresh_state(self.kept))

    # ---- edges -----------------------------------------------------------------------------------------------------

    @property
    def neighbours(self) -> Neighbours:
        """The most similar nodes of each; of the last build, nobody's before the first."""
        return Neighbours(self._state["index_NK"], self._state["score_NK"])

    @property
    def is_built(self) -> bool:
        """Whether there was a first build; until then no objective reads the graph."""
        return self.interval != NEVER

    @property
    def interval(self) -> int:
        """The interval before which it was built last."""
        return self._interval

    @torch.no_grad()
    def rebuild(self, features_ND: Tensor, interval: int) -> None:
        """Compute the neighbours anew, in this process alone. AdaGAE starts from its last encoder.

        Args:
            features_ND: one vector per node. A zero vector has no neighbours.
            interval: the one before which this happens; the draws depend on it.

        Raises:
            ModelError: a vector holds nan or inf, or there is not one for each node.
        """
        if features_ND.ndim != 2 or len(features_ND) != self.num_nodes:
            raise ModelError(f"the entity graph has {self.num_nodes} nodes; got features {tuple(features_ND.shape)}")
        features_ND = features_ND.detach().cpu()
        features_ND = features_ND if features_ND.dtype == torch.float64 else features_ND.float()
        bad = torch.nonzero(~torch.isfinite(features_ND.sum(1)))
        if len(bad):
            raise ModelError(
                f"the feature of entity {int(bad[0])} holds nan or inf ({len(bad)} of {self.num_nodes} do): look for a "
                "diverged training"
            )
        seed = (self.seed * 1_000_003 + interval) % 2**31
        if self.method == "cosine":
            neighbours, encoder = feature_cosine(features_ND, self.kept, self.centred, seed), None
        else:
            neighbours, encoder = self._adagae(features_ND, seed)
        state = {**self._state, **_as_state(neighbours), "interval": torch.tensor(interval)}
        if encoder is not None:
            state |= {"hidden_DH": encoder.hidden_DH, "output_HZ": encoder.output_HZ}
        self._hold(state)

    def _adagae(self, features_ND: Tensor, seed: int) -> tuple[Neighbours, Encoder | None]:
        neighbours = Neighbours.empty(self.num_nodes, self.kept)
        real_M = (features_ND.norm(dim=1) > ZERO_LENGTH).nonzero().squeeze(1)
        if len(real_M) < 2:
            return neighbours, None
        last = Encoder(self._state["hidden_DH"].cpu(), self._state["output_HZ"].cpu())
        fits = len(last.hidden_DH) == features_ND.shape[1]
        learned = learn_graph(F.normalize(features_ND[real_M]), self.settings, seed, last if fits else None)
        found = row_cosine(learned.weights_NN, self.kept)
        neighbours.index_NK[real_M] = torch.where(found.index_NK < 0, found.index_NK, real_M[found.index_NK])
        neighbours.score_NK[real_M] = found.score_NK
        return neighbours, Encoder(*(weight.float() for weight in learned.encoder))

    # ---- state -----------------------------------------------------------------------------------------------------

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything it holds, by name: what is saved, and what ranks exchange."""
        return dict(self._state)

    def take_over(self, state: dict[str, Tensor]) -> Self:
        """Become equal to the graph whose `state_tensors` these are.

        Raises:
            ModelError: they belong to another entity table.
        """
        found = bytes(state["table_hash"].tolist()).decode()
        if self.table_hash and found:
            self._check_table(found)
        if not found and self.table_hash:
            return self  # a checkpoint from before there were nodes
        self._hold({name: state[name].detach().clone() for name in self._state})
        return self

    def _hold(self, state: dict[str, Tensor]) -> None:
        self._interval = int(state["interval"])
        self._state = {name: tensor.to(self._device) for name, tensor in state.items()}

    @property
    def _device(self) -> torch.device:
        return self._state["tokens_NL"].device

    def _check_table(self, other: str) -> None:
        if other != self.table_hash:
            raise ModelError(
                f"the entity graph belongs to entity table {self.table_hash[:12]}, not to {other[:12]}: train on the "
                "data it was trained on, or call `graph.forget()` to start a new graph"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        moved = {name: fn(tensor) for name, tensor in self._state.items()}
        # Half precision is for the network's weights; similarities keep theirs.
        self._state = {name: tensor.to(self._state[name].dtype) for name, tensor in moved.items()}
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination |= {prefix + name: tensor for name, tensor in self._state.items()}

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        found = [prefix + name for name in self._state if prefix + name in state_dict]
        missing = [prefix + name for name in self._state if prefix + name not in state_dict]
        unknown = [key for key in state_dict if key.startswith(prefix) and key[len(prefix) :] not in self._state]
        if strict:
            missing_keys += missing if found else []  # weights of a model without a graph leave it as it is
            unexpected_keys += unknown
        if not missing:
            self.take_over({name: state_dict[prefix + name] for name in self._state})


def _as_state(neighbours: Neighbours) -> dict[str, Tensor]:
    return {"index_NK": neighbours.index_NK, "score_NK": neighbours.score_NK}


def _fresh_state(kept: int) -> dict[str, Tensor]:
    return {
        "tokens_NL": torch.zeros(0, 0, dtype=torch.int32),
        "table_hash": torch.zeros(0, dtype=torch.uint8),
        **_as_state(Neighbours.empty(0, kept)),
        "interval": torch.tensor(NEVER),
        "hidden_DH": torch.zeros(0, 0),  # AdaGAE's last encoder
        "output_HZ": torch.zeros(0, 0),
    }
