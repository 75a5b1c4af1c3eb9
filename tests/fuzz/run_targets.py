"""Readers of what runs leave: checkpoints, rankings, scores, metrics, histories, and the `score` command."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.cli import main
from experiments.errors import UsageError
from experiments.history import read_history
from experiments.instance_files import read_instances
from experiments.run_lock import check_free
from experiments.runs import RunFolder, read_metrics
from experiments.stored_scores import read_arrays
from retrieval.errors import RetrievalError
from retrieval.official_lists import read_annotations, read_ranking
from tests.fuzz.data_targets import replaced
from tests.fuzz.target import Ready, Target

QUERIES = "q1#####a caption#####u#####u#####red#;#blue\nq2#####标题#####u#####u#####red\n"
GALLERY = "g1#####one#####u#####u#####red\ng2#####two#####u#####u#####blue\ng3#####three#####u#####u#####red\n"
RANKING = "q1,g1,g3,g2\nq2,g2,g1\n"


def _of_file(path: Path, files: list[bytes], read: Callable[[], Any]) -> Ready:
    return Ready(files, partial(replaced, path, read), path.name)


def _list(text: str, reader: Callable[[Path], Any], folder: Path) -> Ready:
    path = folder / "list.txt"
    return _of_file(path, [text.encode()], partial(reader, path))


def _score(damaged: str, folder: Path) -> Ready:
    """The command with one of its three files damaged: it answers with 0 and JSON, or with 2 and one line."""
    for name, text in (("queries", QUERIES), ("gallery", GALLERY), ("ranking", RANKING)):
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    words = [word for name in ("ranking", "queries", "gallery") for word in (f"--{name}", str(folder / f"{name}.txt"))]

    def read() -> None:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = main(["score", *words])
        if code == 0:
            assert 0 <= json.loads(out.getvalue())["mAP@10"] <= 1
            return
        assert code == 2
        assert err.getvalue().startswith("error: ")
        assert err.getvalue().count("\n") == 1
        raise UsageError(err.getvalue())

    path = folder / f"{damaged}.txt"
    return Ready([path.read_bytes()], partial(replaced, path, read), ".txt")


def _checkpoint(folder: Path) -> Ready:
    from experiments.checkpoint_files import check_readable, resume_point

    run = RunFolder(folder)
    content = {"state_dict": {"weight": torch.ones(3)}, "callbacks": {"RandomState": {"ranks": [{}]}}, "global_step": 7}
    buffer, legacy = io.BytesIO(), io.BytesIO()
    torch.save(content, buffer)
    torch.save(content, legacy, _use_new_zipfile_serialization=False)

    def read() -> None:
        check_readable(run.last, "train again")
        resume_point(run)

    ready = _of_file(run.last, [buffer.getvalue()], read)
    return ready._replace(others=[legacy.getvalue()])


def _official_checkpoint(suffix: str, folder: Path) -> Ready:
    from safetensors.torch import save

    from experiments.import_official import _state_dict

    state, buffer = {"bert.embeddings.word_embeddings.weight": torch.ones(2, 3)}, io.BytesIO()
    torch.save(state, buffer)
    path = folder / f"official{suffix}"
    return _of_file(path, [buffer.getvalue() if suffix == ".bin" else save(state)], lambda: _state_dict(path))


def _arrays(folder: Path) -> Ready:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, query_ids=np.array(["q1", "q2"]), **{"mAP@10": np.array([0.5, 1.0])})
    path = folder / "test.npz"
    return _of_file(path, [buffer.getvalue()], partial(read_arrays, path))


def _instances(file: str, folder: Path) -> Ready:
    buffer = io.BytesIO()
    arrays = {"ids": np.array(["q1.0", "q1.1"]), "owners": np.array(["q1", "q1"]), "scores": np.ones(2, np.float32)}
    np.savez_compressed(buffer, boxes=np.array([[0, 0, 1, 1], [0, 0, 0.5, 0.5]], np.float32), **arrays)
    contents = {"test-instances.npz": buffer.getvalue(), "test-instances.txt": b"q1.0,g1,g2\nq1.1,g3\n"}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    ready = _of_file(folder / file, [contents[file]], partial(read_instances, folder, "test"))
    return ready._replace(named="test-instances")


def _metrics(folder: Path) -> Ready:
    run = RunFolder(folder)
    text = json.dumps({"run_id": "x", "test": {"mAP@10": 0.5}, "val": {}})
    return _of_file(run.metrics, [text.encode()], partial(read_metrics, run))


def _history(folder: Path) -> Ready:
    rows = [{"step": step, "train/loss": 1.5} for step in range(3)]
    path = folder / "history.jsonl"

    def read() -> None:
        for row in read_history(path):
            assert all(isinstance(value, (int, float)) for value in (row["step"], *row.values()))

    return _of_file(path, ["".join(json.dumps(row) + "\n" for row in rows).encode()], read)


def _lock(folder: Path) -> Ready:
    run = RunFolder(folder)
    return _of_file(folder / "run.lock", [b"elsewhere 12 34.0\n", b"host 999999\n"], lambda: _free(run))


def _free(run: RunFolder) -> None:
    try:
        check_free(run)
    except UsageError as error:
        assert "in use by" in str(error)  # noqa: PT017  (a sound lock is an error, too)


TARGETS = [
    Target("annotations", partial(_list, QUERIES, read_annotations), (RetrievalError,)),
    Target("ranking", partial(_list, RANKING, read_ranking), (RetrievalError,)),
    *(Target(f"score-{name}", partial(_score, name), (UsageError,)) for name in ("ranking", "queries", "gallery")),
    Target("checkpoint", _checkpoint, (UsageError,)),
    *(Target(f"official{end}", partial(_official_checkpoint, end), (UsageError,)) for end in (".bin", ".safetensors")),
    Target("scores", _arrays, (UsageError,)),
    *(
        Target(f"instances-{end}", partial(_instances, f"test-instances.{end}"), (UsageError,))
        for end in ("npz", "txt")
    ),
    Target("metrics", _metrics, (UsageError,), is_json=True),
    Target("history", _history, ()),
    Target("lock", _lock, ()),
]
