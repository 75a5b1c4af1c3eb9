"""Damage as a hypothesis strategy: a real file with bytes flipped, cut or spliced, or with JSON values replaced."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

MOST_BYTES = 1 << 18  # of a damaged file: what is read in bounded time has to be of bounded size

# What readers have stumbled over: ends, signs, sizes, encodings, other formats' beginnings.
_TOKENS = (
    *(b"", b"\0", b"\xff" * 8, b"\n", b"\r\n", b"\t", b",", b"#####", b"#;#", b'"', b"\\", b"[" * 2000, b"{", b"}"),
    *(b"-1", b"0", b"1e999", b"NaN", b"9" * 25, b"9" * 5000, b"77777777777", b"null", b"true", b'"\\ud800"'),
    *(b"../../x", b"/etc/passwd", b"pipe:touch x", b"a/" * 300, b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\xef\xbb\xbf"),
    *(b"\x1f\x8b\x08\0", b"PK\x03\x04", b"PK\x05\x06", b"\x80\x04\x95", b"\x93NUMPY\x01\0", b"|O8", b"(2,3)<f4"),
)
_VALUES = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**70, -(2**70), 0.5, 1e308, "", "x" * 400, "x\ny", "\0", "../../x"),
    *(
        "/etc/passwd",
        "pipe:touch x",
        "<script>",
        "a" * 64,
        "nul\ud800",
        [],
        {},
        [[]],
        [None],
        [-1],
        {"a": 1},
        [[[1, 2]]],
    ),
)


@st.composite
def damaged(draw: st.DrawFn, files: Sequence[bytes]) -> bytes:
    """One of the files after one to four operations on its bytes."""
    data = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        length = draw(st.one_of(st.integers(0, 8), st.integers(0, len(data))))
        piece, operation = (
            data[start : start + length],
            draw(st.sampled_from(["flip", "set", "cut", "token", "repeat", "end", "splice"])),
        )
        if operation == "flip" and start < len(data):
            data[start] ^= 1 << draw(st.integers(0, 7))
        elif operation == "set" and start < len(data):
            data[start] = draw(st.integers(0, 255))
        elif operation == "cut":
            del data[start : start + length]
        elif operation == "token":
            data[start : start + draw(st.integers(0, 12))] = draw(st.sampled_from(_TOKENS))
        elif operation == "repeat":
            data[start:start] = piece * draw(st.integers(1, 3))
        elif operation == "end":
            del data[start:]
        else:
            other = draw(st.sampled_from(files))
            data[start:] = other[draw(st.integers(0, len(other))) :]
        del data[MOST_BYTES:]
    return bytes(data)


@st.composite
def other_values(draw: st.DrawFn, files: Sequence[bytes]) -> bytes:
    """One of some JSON files with one to three values, anywhere in it, replaced or left out."""
    content = json.loads(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(content))
        if not places:
            break
        holder, key = draw(st.sampled_from(places))
        if isinstance(holder, dict) and draw(st.integers(0, 4)) == 0:
            del holder[key]
        elif isinstance(holder, dict) and draw(st.integers(0, 4)) == 0:
            holder[draw(st.sampled_from(("../../x", "", "a b", "x'; touch y", "\0")))] = holder.pop(key)
        else:
            holder[key] = deepcopy(draw(st.sampled_from(_VALUES)))  # a later change is not to change the list
    return json.dumps(content).encode()


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every (list or object, index or key) below a value."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in list(pairs):
        yield content, key
        yield from _places(value)
