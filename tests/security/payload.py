"""A pickle that does something: a file appears where it was unpickled."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


class Payload:
    """Pickled, an order to create a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch '{self.mark}'",)
