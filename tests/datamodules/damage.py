"""Shards with damaged samples."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path


def damage_samples(folder: Path, out: Path, keys: dict[str, str]) -> Path:
    """A copy in which members of some samples are replaced after the build; sizes and hashes are not the issue here."""
    shutil.copytree(folder, out)
    for path in out.glob("*.tar"):
        with tarfile.open(path) as tar:
            members = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
        ids = {name.partition(".")[0]: json.loads(data)["id"] for name, data in members if name.endswith(".json")}
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for name, data in members:
                fault = keys.get(ids[name.partition(".")[0]])
                if fault == "picture" and name.endswith(".jpg"):
                    data = data[: len(data) // 2]
                elif fault == "no picture" and name.endswith(".jpg"):
                    continue
                elif fault == "caption" and name.endswith(".json"):
                    data = json.dumps({**json.loads(data), "caption": " "}).encode()
                elif fault == "record" and name.endswith(".json"):
                    data = b"\xff{"
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return out
