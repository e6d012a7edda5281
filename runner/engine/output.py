"""The end of a container's output, as podman keeps it in a file of the format k8s-file.

A line of the file is `MOMENT STREAM TAG TEXT`. The tag P marks a part of a line, and F its end.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

_MAX_BYTES = 1 << 20
_PART = b"P"


def read_log_end(path: Path) -> str:
    """Read the last MiB of a log; a last line without a newline is there.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _MAX_BYTES))
        lines = file.read().split(b"\n")
    return _join(lines if size <= _MAX_BYTES else lines[1:])


def _join(lines: list[bytes]) -> str:
    """Join the parts of lines; two streams may have written at the same time."""
    output: list[bytes] = []
    unfinished: defaultdict[bytes, bytearray] = defaultdict(bytearray)
    for line in lines:
        _, stream, tag, text = (*line.split(b" ", 3), b"", b"", b"")[:4]
        unfinished[stream] += text
        if tag and tag != _PART:
            output.append(bytes(unfinished.pop(stream)) + b"\n")
    return b"".join([*output, *unfinished.values()]).decode("utf-8", "replace")


def last_lines(text: str, count: int) -> str:
    """Return the last lines of a text; only a newline ends one."""
    ends_with_newline = text.endswith("\n")
    lines = text.removesuffix("\n").split("\n")[-count:]
    return "\n".join(lines) + ("\n" if ends_with_newline else "")
