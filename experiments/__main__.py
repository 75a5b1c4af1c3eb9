"""`python -m experiments …`"""

from __future__ import annotations

import os
import select
import sys

from experiments.cli import main

CLOSED_PIPE = 141  # as a shell says of a program that SIGPIPE ended


def _main() -> int:
    """The command; where what reads its output has gone (`… | head`), it ends without a word."""
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not _reader_has_gone():
            raise  # it was a pipe between processes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is flushed at the end
        return CLOSED_PIPE


def _reader_has_gone() -> bool:
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


if __name__ == "__main__":
    sys.exit(_main())
