"""Server-sent events, as they come in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """An event; one without a name and data is a comment, with which a server shows it is alive."""

    name: str = ""
    id: str = ""
    data: str = ""


def split_lines(chunks: Iterable[str]) -> Iterator[str]:
    """Yield the lines of a text that comes in chunks. Only newlines end them, not U+2028."""
    rest = ""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split("\n")
        for line in lines:
            yield line.removesuffix("\r")


def parse_events(lines: Iterable[str]) -> Iterator[Event]:
    """Yield the events of a stream, and an empty one for each comment (HTML, 9.2)."""
    fields: dict[str, str] = {}
    for line in lines:
        if not line:
            if fields:
                yield Event(fields.get("event", ""), fields.get("id", ""), fields.get("data", ""))
            fields = {}
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not name:
            yield Event()
        elif name == "data" and "data" in fields:
            fields["data"] += f"\n{value}"
        else:
            fields[name] = value
