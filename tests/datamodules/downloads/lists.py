"""The four official lists with urls of a local shop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

FIELD = "#####"


def write_lists(raw: Path, shop: str, train: Mapping[str, tuple[str, str]]) -> Path:
    """Training items with their two urls, and one good item in each list for evaluation."""
    raw.mkdir(exist_ok=True)
    lines = [FIELD.join((item, f"标题 {item}", *urls)) for item, urls in train.items()]
    (raw / "product1m_train_ossurl_v2.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for split in ("dev", "test", "gallery"):
        line = FIELD.join((f"{split}-item", f"标题 {split}", f"{shop}/good/{split}", "", "标签"))
        (raw / f"product1m_{split}_ossurl_v2.txt").write_text(line + "\n", encoding="utf-8")
    return raw
