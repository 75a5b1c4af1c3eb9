"""What a run says: short lines on the terminal, all of them with a time in the run folder's log.txt."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datamodules.redaction import printable, redacted
from experiments.machine import rank

_LOGGER = logging.getLogger("experiments")


def say(text: str) -> None:
    """Print on rank zero, and keep in log.txt while a run is open."""
    if rank() == 0:
        _LOGGER.info(text)


def note(text: str) -> None:
    """Keep in log.txt only."""
    if rank() == 0:
        _LOGGER.debug(text)


class _Redacting(logging.Formatter):
    """What is said may quote data, whose control signs a terminal obeys, and addresses with passwords."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(redacted(super().format(record)))


class _Terminal(logging.Handler):
    """Standard output as it is now (tests replace it), above a progress bar where one is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm = sys.modules.get("tqdm")
        if tqdm:
            tqdm.tqdm.write(self.format(record), file=sys.stdout)
        else:
            print(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def to_terminal() -> None:
    """Send `say` to standard output; done once by the command line."""
    if not any(isinstance(handler, _Terminal) for handler in _LOGGER.handlers):
        handler = _Terminal()
        handler.setFormatter(_Redacting())
        handler.setLevel(logging.INFO)
        _LOGGER.addHandler(handler)
        _LOGGER.setLevel(logging.DEBUG)
        _LOGGER.propagate = False


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """While open, everything said, warned and logged by Lightning and W&B is appended to `path`, on rank zero."""
    if rank() != 0:
        yield
        return
    import lightning.pytorch  # noqa: F401  (sets up its loggers, which are listened to below)

    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_Redacting("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    names = ("lightning.pytorch", "lightning.fabric", "py.warnings")
    sources = [_LOGGER, *(logging.getLogger(name) for name in names)]
    for source in sources[1:]:
        for noisy in source.handlers:  # tips and device lists are for the log; the terminal gets warnings
            noisy.setLevel(logging.WARNING)
    shown = warnings.showwarning
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")  # Lightning's own, each step
    warnings.filterwarnings(
        "ignore", message=r".*overridden `transfer_batch_to_device` in `LightningModule`.*"
    )  # meant
    logging.captureWarnings(True)
    for source in sources:
        source.addHandler(handler)
    try:
        yield
    except BaseException as problem:
        expected = isinstance(problem, (ValueError, KeyboardInterrupt, SystemExit))  # the last: SIGTERM, by Lightning
        _LOGGER.debug("stopped by %r", problem, exc_info=not expected)
        raise
    finally:
        for source in sources:
            source.removeHandler(handler)
        logging.captureWarnings(False)
        warnings.showwarning = shown
        handler.close()
