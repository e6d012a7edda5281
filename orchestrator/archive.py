"""ZIP archives that are written while they are sent, however large: one piece of a file at a time.

With ZIP64 where sizes need it, and names in UTF-8. What the names come from is not trusted: none
leaves the folder in which the archive is unpacked, on Windows neither.
"""

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

PIECE_BYTES = 256 * 1024
"""Of a file, read at once."""
_EARLIEST = (1980, 1, 1, 0, 0, 0)
"""The format has no earlier time."""
_PERMISSIONS = 0o644

_DRIVE = re.compile(r"^([A-Za-z]):")
_DOTS = re.compile(r"(^|/)[. ]+(?=/|$)")
"""Windows drops dots and blanks at the end of a name, so `.. ` is its `..`."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A file of an archive."""

    name: str
    size: int
    modified_at: datetime
    file: Path


class _Sink:
    """Holds what was written since the last `take`."""

    def __init__(self) -> None:
        self._held = bytearray()

    def write(self, data: bytes) -> int:
        self._held += data
        return len(data)

    def flush(self) -> None:
        """Do nothing: ZipFile asks for it."""

    def close(self) -> None:
        """Do nothing: ZipFile asks for it."""

    def take(self) -> bytes:
        taken = bytes(self._held)
        self._held.clear()
        return taken


def zip_pieces(entries: Iterable[Entry]) -> Iterator[bytes]:
    """Build an archive of these files; yield it in pieces of bounded size.

    If a file is gone, the archive ends there and lacks its directory, so no program takes it for a
    whole one.
    """
    sink = _Sink()
    # The lowest level: it costs a fifth of the highest, and finds most of what repeats.
    archive = ZipFile(sink, "w", ZIP_DEFLATED, compresslevel=1)
    for entry in entries:
        try:
            source = entry.file.open("rb")
        except FileNotFoundError:
            log.warning("an archive was cut short: the bytes of an artifact are gone")
            return
        info = ZipInfo(entry.name, max(entry.modified_at.timetuple()[:6], _EARLIEST))
        info.compress_type = ZIP_DEFLATED
        info.external_attr = _PERMISSIONS << 16
        # By the size it is decided whether the entry needs ZIP64.
        info.file_size = entry.size
        with source, archive.open(info, "w") as target:
            while piece := source.read(PIECE_BYTES):
                target.write(piece)
                yield sink.take()
    archive.close()
    yield sink.take()


def safe_names(paths: Sequence[str]) -> list[str]:
    """Return a different name in an archive for each path: the path itself, if it is harmless."""
    names: list[str] = []
    taken: set[str] = set(paths)
    for path in paths:
        name = plain = _safe(path)
        number = 2
        while name != path and name in taken:
            name = f"{plain} ({number})"
            number += 1
        taken.add(name)
        names.append(name)
    return names


def _safe(path: str) -> str:
    # A backslash is a part of a name here, and on Windows it separates folders.
    path = _DRIVE.sub(r"\1_", path.replace("\\", "_"))
    return _DOTS.sub(lambda match: match[0].replace(".", "_").replace(" ", "_"), path)
