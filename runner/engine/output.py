"""A container's output, as engines keep it: its end, and all of it from a position on.

podman keeps it in a file of the format k8s-file. A line of that is `MOMENT STREAM TAG TEXT`; the
tag P marks a part of a line, and F its end. When the file is full, another one takes its place.
Other logs are read by the engine's own `logs --timestamps`.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO

import anyio.to_thread

from runner.engine.base import AFTER_GAP, GAP_MARK, OutputPart, OutputPosition
from runner.errors import EngineError

_MAX_BYTES = 1 << 20
_PART = b"P"
_MAX_MOMENT_BYTES = 64
_MOST_LOG_BYTES = 32 << 20
"""More than an engine keeps, each line with its moment."""
_MOMENT = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}(?:Z|[+-]\d\d:\d\d) ")
_DOCKER_PART_BYTES = 16 << 10


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


class LogFileReader:
    """Reads podman's log file, over the files that take its place.

    The one that is replaced stays open until it has been read, so nothing is lost as long as
    `read` or `look` is called once for each file. An anchor is `ID:OFFSET`, where the id is the
    moment of the file's first line.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: list[IO[bytes]] = []
        """The one that is read and, if that was replaced, the one in its place."""
        self._has_missed_file = False

    async def read(self, position: OutputPosition, max_bytes: int) -> OutputPart:
        """Return up to about `max_bytes` that follow the position."""
        try:
            return await anyio.to_thread.run_sync(self._read, position, max_bytes)
        except OSError as error:
            raise EngineError(f"cannot read {self._path}: {error.strerror}") from error

    async def look(self) -> None:
        """Note whether another file has taken the place of the one that is read."""
        with suppress(OSError):
            await anyio.to_thread.run_sync(self._look)

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()
        self._files.clear()

    def _look(self) -> None:
        file = self._path.open("rb")
        if self._files and os.path.sameopenfile(file.fileno(), self._files[-1].fileno()):
            file.close()
            return
        self._files.append(file)
        if len(self._files) > 2:  # noqa: PLR2004 - the one that is read, and the next
            self._files.pop(1).close()
            self._has_missed_file = True

    def _read(self, position: OutputPosition, max_bytes: int) -> OutputPart:
        self._look()
        is_after_gap = position.anchor.startswith(AFTER_GAP)
        file_id, _, offset = position.anchor.removeprefix(AFTER_GAP).rpartition(":")
        if file_id and len(self._files) > 1 and _id_of(self._files[1]) == file_id:
            self._files.pop(0).close()
            self._has_missed_file = False
        if file_id and file_id != _id_of(self._files[0]):
            is_after_gap, offset, position = True, "0", OutputPosition()
        pieces = _pieces(
            self._files[0], int(offset or 0), position.skip, max_bytes, is_after_gap=is_after_gap
        )
        size = sum(len(text) for _, text in pieces)
        if len(self._files) > 1 and size < max_bytes:
            missed = self._has_missed_file
            pieces += _pieces(self._files[1], 0, 0, max_bytes - size, is_after_gap=missed)
        size = sum(len(text) for _, text in pieces)
        return OutputPart(tuple(pieces), has_more=size >= max_bytes)


def _id_of(file: IO[bytes]) -> str:
    """Return the moment of a log's first line; empty if it has none."""
    file.seek(0)
    moment, blank, _ = file.read(_MAX_MOMENT_BYTES).partition(b" ")
    return moment.decode("ascii", "replace") if blank else ""


def _pieces(
    file: IO[bytes], offset: int, skip: int, max_bytes: int, *, is_after_gap: bool
) -> list[tuple[OutputPosition, bytes]]:
    """Return the texts of the lines of a log from an offset on, as long as they are complete."""
    file_id = _id_of(file)
    file.seek(offset)
    pieces: list[tuple[OutputPosition, bytes]] = []
    size = 0
    for line in file:
        if size >= max_bytes or not line.endswith(b"\n"):
            break  # it is being written
        _, _, tag, text = (*line[:-1].split(b" ", 3), b"", b"", b"")[:4]
        if tag and tag != _PART:
            text += b"\n"
        anchor = f"{file_id}:{offset}"
        if is_after_gap:
            anchor, text = AFTER_GAP + anchor, GAP_MARK + text
        if len(text) > skip:
            pieces.append((OutputPosition(anchor, skip), text[skip:]))
            size += len(text) - skip
        offset += len(line)
        skip, is_after_gap = 0, False
    return pieces


class LogCommandReader:
    """Reads what `logs --timestamps` prints; an anchor is `MOMENT#NUMBER`, of those with it."""

    def __init__(self, fetch: Callable[[str, int], Awaitable[tuple[bytes, bool]]]) -> None:
        """Read by `fetch`, which returns up to so many bytes of the log, and whether that cut it.

        It is passed the moment to begin at; empty is the beginning of the log.
        """
        self._fetch = fetch

    async def read(self, position: OutputPosition, max_bytes: int) -> OutputPart:
        """Return up to about `max_bytes` that follow the position."""
        moment = position.anchor.removeprefix(AFTER_GAP).rpartition("#")[0]
        fetch_bytes = 2 * max_bytes
        while True:
            printed, is_cut = await self._fetch(moment, fetch_bytes)
            is_whole = not is_cut or fetch_bytes >= _MOST_LOG_BYTES
            part = await anyio.to_thread.run_sync(
                partial(_part_of, printed, position, max_bytes, is_whole=is_whole)
            )
            if part.pieces or is_whole:
                return replace(part, has_more=part.has_more or is_cut)
            fetch_bytes = _MOST_LOG_BYTES

    async def look(self) -> None:
        """Do nothing: there is nothing to hold open."""

    def close(self) -> None:
        """Do nothing, as above."""


def _part_of(
    printed: bytes, position: OutputPosition, max_bytes: int, *, is_whole: bool
) -> OutputPart:
    """Return what follows a position in what `logs --timestamps` has printed."""
    entries, skip = _numbered(printed), position.skip
    is_after_gap = position.anchor.startswith(AFTER_GAP)
    wanted = position.anchor.removeprefix(AFTER_GAP)
    first = next((index for index, (key, _) in enumerate(entries) if key == wanted), None)
    if wanted and first is None and not is_whole:
        return OutputPart()
    if wanted and first is None:
        is_after_gap, skip = True, 0
    pieces: list[tuple[OutputPosition, bytes]] = []
    size = 0
    for key, entry in entries[first or 0 :]:
        key, text = (AFTER_GAP + key, GAP_MARK + entry) if is_after_gap else (key, entry)  # noqa: PLW2901 - the anchor of it
        if len(text) > skip:
            pieces.append((OutputPosition(key, skip), text[skip:]))
            size += len(text) - skip
        skip, is_after_gap = 0, False
        if size >= max_bytes:
            break
    return OutputPart(tuple(pieces), has_more=size >= max_bytes)


def _numbered(printed: bytes) -> list[tuple[str, bytes]]:
    """Return the entries with their anchors: several may have one moment."""
    numbered: list[tuple[str, bytes]] = []
    counts: defaultdict[str, int] = defaultdict(int)
    for moment, text in _entries(printed):
        numbered.append((f"{moment}#{counts[moment]}", text))
        counts[moment] += 1
    return numbered


def _entries(printed: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the moment and the text of each entry.

    docker stores long lines in parts of 16 KiB, and prints the moment before each of them.
    """
    for line in re.findall(rb"[^\n]*\n|[^\n]+", printed):
        begin = _MOMENT.match(line)
        while begin is not None:
            end = _MOMENT.search(line, begin.end() + _DOCKER_PART_BYTES)
            text = line[begin.end() : len(line) if end is None else end.start()]
            yield begin[0].decode("ascii").strip(), text
            begin = end
