"""Uploads: bytes in `DATA_DIR/files` and `DATA_DIR/artifacts`, under random ids.

Files for tasks are parsed out of a multipart body. The name of a file in tasks is its id and its
plain original name: unique, and without a path. Nodes store it under the original name. Artifacts
are what tasks have made; their paths are in the database only. Several server processes may share
the folders.
"""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from io import FileIO
from pathlib import Path
from urllib.parse import unquote

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from orchestrator.errors import Invalid, OutOfSpace, TooLarge

_MAX_PARTS = 8
_BROKEN = "body is not valid multipart/form-data"


class FilePart:
    """Parses the chunks of a body and returns the bytes of the part named `file`."""

    def __init__(self, content_type: str) -> None:
        """Begin with the request's Content-Type; raises Invalid when it is not multipart."""
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise Invalid("body must be multipart/form-data with a part named file")
        self.original_name: str | None = None
        """The client's name of the file; None until the part has arrived."""
        self._in_file = False
        self._at_end = False
        self._parts = 0
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._content = bytearray()
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": self._add_to_header_name,
                    "on_header_value": self._add_to_header_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_part_data": self._add_content,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise Invalid(_BROKEN) from error

    def feed(self, chunk: bytes) -> bytes:
        """Return the file's bytes in the next chunk of the body. Raises Invalid."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise Invalid(_BROKEN) from error
        content = bytes(self._content)
        self._content.clear()
        return content

    def finish(self) -> str:
        """Return the file's original name once the body has ended. Raises Invalid."""
        if not self._at_end:
            raise Invalid(_BROKEN)
        if self.original_name is None:
            raise Invalid("body has no part named file")
        return self.original_name

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise Invalid(f"body has more than {_MAX_PARTS} parts")
        self._in_file = False
        self._disposition = b""

    def _add_to_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _add_to_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = b""
        self._header_value = b""

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        if options.get(b"name") != b"file":
            return
        if self.original_name is not None:
            raise Invalid("body has more than one part named file")
        self._in_file = True
        plain = options.get(b"filename", b"").decode("utf-8", "replace")
        self.original_name = _extended_name(self._disposition) or _decode_words(plain)

    def _add_content(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._content += data[start:end]

    def _end(self) -> None:
        self._at_end = True


FILES, ARTIFACTS = "files", "artifacts"
"""The folders of stored bytes."""
_PARTIAL = ".partial"
_WRITE_BYTES = 1024**2
_MAX_NAME_BYTES = 180
_MAX_PLAIN_BYTES = 255
"""Linux takes no longer name."""
_MAX_SUFFIX_BYTES = 20
_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"')
_EXTENDED = re.compile(
    r";\s*filename\*\s*=\s*(?P<charset>[\w-]+)'[\w-]*'(?P<text>[^\s;]*)", re.ASCII | re.IGNORECASE
)
_ENCODED_WORDS = re.compile(r"(?:\s*=\?[\w-]+\?[bq]\?[^?]*\?=)+", re.ASCII | re.IGNORECASE)
_NO_ROOM = "the server's disk has no room for the file"


def prepare_folder(data_dir: Path) -> None:
    """Create the folders for bytes and remove uploads that a crash has interrupted."""
    for name in (FILES, ARTIFACTS):
        folder = data_dir / name
        folder.mkdir(mode=0o700, exist_ok=True)
        for partial in folder.glob(f"*{_PARTIAL}"):
            _remove_if_abandoned(partial)


def stored_file(data_dir: Path, file_id: str, folder: str = FILES) -> Path:
    """Return the path of the bytes with this id."""
    return data_dir / folder / file_id


def remove_stored(data_dir: Path, ids: Iterable[str], folder: str = FILES) -> None:
    """Remove bytes, those that are gone already as well."""
    for one in ids:
        stored_file(data_dir, one, folder).unlink(missing_ok=True)


def stored_before(data_dir: Path, moment: datetime, folder: str = FILES) -> list[str]:
    """Return the ids of stored bytes that are older than that moment."""
    ids: list[str] = []
    for path in (data_dir / folder).iterdir():
        # Another call may have removed it meanwhile.
        with suppress(FileNotFoundError):
            is_old = path.stat().st_mtime < moment.timestamp()
            if is_old and not path.name.endswith(_PARTIAL):
                ids.append(path.name)
    return ids


def plain_name(original: str) -> str:
    """Return a client's name for a file without its folders and control characters (Cc).

    It has at most 255 bytes: of a longer one the end of the stem is cut.
    """
    last = re.split(r"[/\\]", original)[-1]
    name = "".join(char for char in last if unicodedata.category(char) not in {"Cc", "Cs"})
    return "file" if name in {"", ".", ".."} else _cut(name, _MAX_PLAIN_BYTES)


def stored_name(file_id: str, original: str) -> str:
    """Return the unique name of a file in tasks."""
    return _cut(f"{file_id[:12]}-{plain_name(original)}", _MAX_NAME_BYTES)


def _cut(name: str, limit_bytes: int) -> str:
    stem, dot, suffix = name.rpartition(".")
    if not stem or len(suffix.encode()) > _MAX_SUFFIX_BYTES:
        stem, dot, suffix = name, "", ""
    room = limit_bytes - len(f"{dot}{suffix}".encode())
    return stem.encode()[:room].decode("utf-8", "ignore") + dot + suffix


def _extended_name(disposition: bytes) -> str | None:
    """Return `filename*` (RFC 8187), which .NET and older urllib3 send; None if it is not there.

    RFC 7578 forbids it in forms, so python-multipart leaves it out.
    """
    found = _EXTENDED.search(_QUOTED.sub('""', disposition.decode("latin-1")))
    if found is None:
        return None
    try:
        return unquote(found["text"], found["charset"], "strict")
    except (LookupError, UnicodeDecodeError):
        return None


def _decode_words(name: str) -> str:
    """Return a name in which encoded words (RFC 2047), which .NET sends, are decoded."""
    if not _ENCODED_WORDS.fullmatch(name):
        return name
    try:
        return str(make_header(decode_header(name)))
    except (LookupError, UnicodeDecodeError, HeaderParseError):
        return name


def require_room(folder: Path, size: int, min_free_bytes: int) -> None:
    """Raise OutOfSpace if so many bytes would take the disk below its reserve."""
    if shutil.disk_usage(folder).free - size < min_free_bytes:
        raise OutOfSpace(_NO_ROOM)


class Upload:
    """A file that is being uploaded; nothing of it stays unless `keep` is called."""

    def __init__(
        self,
        data_dir: Path,
        file_id: str,
        *,
        limit_bytes: int,
        min_free_bytes: int,
        folder: str = FILES,
    ) -> None:
        self._final = stored_file(data_dir, file_id, folder)
        self._partial = self._final.with_name(file_id + _PARTIAL)
        self._limit_bytes = limit_bytes
        self._min_free_bytes = min_free_bytes
        self._sink: FileIO | None = None
        self._buffer = bytearray()
        self._digest = hashlib.sha256()
        self.size = 0

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        if self._sink is not None:
            self._sink.close()
        with suppress(FileNotFoundError):
            self._partial.unlink()

    @property
    def checksum(self) -> str:
        """The lower-case hex SHA-256 of what was written."""
        return self._digest.hexdigest()

    @property
    def is_due(self) -> bool:
        """Whether enough bytes have arrived for a write."""
        return len(self._buffer) >= _WRITE_BYTES

    def add(self, content: bytes) -> None:
        """Add some bytes. Raises TooLarge."""
        self.size += len(content)
        if self.size > self._limit_bytes:
            raise TooLarge(f"file is over the limit of {self._limit_bytes} bytes")
        self._buffer += content

    def write(self) -> None:
        """Write the bytes that have arrived. Raises OutOfSpace."""
        require_room(self._partial.parent, len(self._buffer), self._min_free_bytes)
        try:
            self._append()
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            raise OutOfSpace(_NO_ROOM) from error
        self._digest.update(self._buffer)
        self._buffer.clear()

    def keep(self) -> None:
        """Write the rest, sync it to the disk, and give the file its final name."""
        self.write()
        if self._sink is None:
            raise AssertionError("write() opens the sink")
        os.fsync(self._sink.fileno())
        self._partial.rename(self._final)

    def _append(self) -> None:
        if self._sink is None:
            self._sink = FileIO(self._partial, "x")
            # While the lock is held, no server that starts removes the file as abandoned. Without
            # locks (NFS without lockd) none removes anything.
            with _without_locks():
                fcntl.flock(self._sink, fcntl.LOCK_EX)
        rest = memoryview(self._buffer)
        while rest:
            rest = rest[self._sink.write(rest) :]
        rest.release()


def _remove_if_abandoned(partial: Path) -> None:
    with suppress(FileNotFoundError), _without_locks(), partial.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        partial.unlink()


@contextmanager
def _without_locks() -> Iterator[None]:
    """End the block where the file system has no locks."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}:
            raise
