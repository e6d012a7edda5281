"""The files that a task leaves in its folder `artifacts`, listed and opened without trust in them.

An agent may leave anything there. No link is followed, and nothing is opened that is not a regular
file. Everything here blocks: call it in a worker thread.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from runner.errors import RunnerError
from runner.handles import (
    BLOCK_BYTES,
    FOLDER,
    NEW_FILE,
    free_disk,
    open_below,
    open_file,
    readable_size,
)
from runner.workspace.home import ARTIFACTS, TASKS

COPY_PREFIX = ".victoria-artifacts-"
"""Of the folder with copies of what belongs to another user."""
MAX_DEPTH = 64
MAX_PATH_BYTES = 1024
"""Each byte takes up to three in the URL, and servers take a few thousand."""
MAX_ENTRIES = 100_000
"""So many files and folders are looked at, or copied."""

Segments = tuple[str, ...]


class ArtifactError(RunnerError):
    """An artifact cannot be uploaded; the text is the reason."""


class ArtifactChanged(ArtifactError):
    """The artifact was changed while it was read."""


@dataclass(frozen=True)
class Limits:
    """The most artifacts of a task, the most bytes of each, and how much is looked at."""

    count: int
    size: int
    entries: int = MAX_ENTRIES


@dataclass(frozen=True, order=True)
class Artifact:
    """A regular file that may be uploaded."""

    segments: Segments
    folder: str = ARTIFACTS
    """The folder in the task's own that it is in."""

    @property
    def path(self) -> str:
        """Its path as people read it."""
        return "/".join(self.segments)


@dataclass
class Listing:
    """What is in a folder of artifacts."""

    artifacts: list[Artifact] = field(default_factory=list)
    omitted: list[tuple[str, str]] = field(default_factory=list)
    """Paths that are not uploaded, each with the reason."""
    forbidden: list[Segments] = field(default_factory=list)
    """Files and folders that this user may not read."""
    entries: int = 0

    def omit(self, segments: Segments, reason: str) -> None:
        """Note that a path is not uploaded."""
        self.omitted.append(("/".join(segments), reason))


def list_artifacts(home: Path, task_id: str, copies: str | None, limits: Limits) -> Listing:
    """Return the artifacts of a task within the limits, sorted; `copies` is a folder with more."""
    listing = Listing()
    for folder in filter(None, (ARTIFACTS, copies)):
        try:
            handle = open_below(home, (TASKS, task_id, folder), make=False)
        except FileNotFoundError:
            continue
        except PermissionError:
            listing.forbidden.append(())
            continue
        except OSError as error:
            listing.omit((folder,), _reason(error))
            continue
        try:
            _list_folder(handle, folder, (), listing, limits)
        except OSError as error:
            listing.omit((folder,), _reason(error))
        finally:
            os.close(handle)
    # Of a file that is there twice, the copy is left out.
    unique = {artifact.segments: artifact for artifact in reversed(listing.artifacts)}
    listing.artifacts = sorted(unique.values())
    for artifact in listing.artifacts[limits.count :]:
        listing.omit(artifact.segments, f"there are more than --max-artifacts {limits.count}")
    del listing.artifacts[limits.count :]
    return listing


def _list_folder(
    handle: int, folder: str, above: Segments, listing: Listing, limits: Limits
) -> None:
    with os.scandir(handle) as entries:
        most = limits.entries + 1 - listing.entries
        names = sorted(entry.name for entry in islice(entries, most))
    for name in names:
        if listing.entries > limits.entries:
            return
        listing.entries += 1
        if listing.entries > limits.entries:
            too_many = f"there are more than {limits.entries} files and folders"
            listing.omit(above or (folder,), too_many)
            return
        segments = (*above, name)
        try:
            status = os.stat(name, dir_fd=handle, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                _list_below(handle, folder, segments, listing, limits)
            elif reason := _unusable(segments, status, limits):
                listing.omit(segments, reason)
            elif _may_read(handle, name):
                listing.artifacts.append(Artifact(segments, folder))
            else:
                listing.forbidden.append(segments)
        except PermissionError:
            listing.forbidden.append(segments)
        except OSError as error:
            listing.omit(segments, _reason(error))


def _list_below(
    parent: int, folder: str, segments: Segments, listing: Listing, limits: Limits
) -> None:
    if len(segments) >= MAX_DEPTH:
        listing.omit(segments, f"it is more than {MAX_DEPTH} folders deep")
        return
    handle = os.open(segments[-1], FOLDER, dir_fd=parent)
    try:
        _list_folder(handle, folder, segments, listing, limits)
    finally:
        os.close(handle)


def _unusable(segments: Segments, status: os.stat_result, limits: Limits) -> str | None:
    """Return why a file is not uploaded whatever is in it; None if it may be."""
    if not stat.S_ISREG(status.st_mode):
        return "it is not a regular file"
    if reason := _unusable_path(segments):
        return reason
    return _too_large(limits.size) if status.st_size > limits.size else None


def _unusable_path(segments: Segments) -> str | None:
    path = "/".join(segments)
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    # Of a name with a line break, logs and listings would show something else than there is.
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in path):  # noqa: PLR2004 - ASCII's control characters
        return "its name has control characters"
    return f"its path is longer than {MAX_PATH_BYTES} bytes" if size > MAX_PATH_BYTES else None


def _too_large(size: int) -> str:
    return f"it has more than --max-artifact-size {readable_size(size)}"


def _may_read(folder: int, name: str) -> bool:
    return os.access(name, os.R_OK, dir_fd=folder, effective_ids=True)


class OpenArtifact:
    """An open artifact with the checksum that it has now; use it as a context manager."""

    def __init__(self, home: Path, task_id: str, artifact: Artifact, max_bytes: int) -> None:
        """Open it and compute its checksum.

        Raises:
            ArtifactError: it cannot be read, is not a regular file, or is too large.
        """
        *above, name = artifact.segments
        try:
            folder = open_below(home, (TASKS, task_id, artifact.folder, *above), make=False)
            try:
                self._file = open(open_file(folder, name), "rb", buffering=0)  # noqa: PTH123, SIM115 - closed by close
            finally:
                os.close(folder)
            try:
                self.size, self.sha256 = self._measure(max_bytes)
            except BaseException:
                self._file.close()
                raise
        except OSError as error:
            raise ArtifactError(_reason(error)) from error

    def _measure(self, max_bytes: int) -> tuple[int, str]:
        # First, since a sparse file of any size takes no space.
        if os.fstat(self._file.fileno()).st_size > max_bytes:
            raise ArtifactError(_too_large(max_bytes))
        size, digest = 0, hashlib.sha256()
        while block := self._file.read(BLOCK_BYTES):
            size += len(block)
            if size > max_bytes:
                raise ArtifactError(_too_large(max_bytes))
            digest.update(block)
        return size, digest.hexdigest()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def blocks(self) -> Iterator[bytes]:
        """Yield what was measured; the last block comes only if the whole has its checksum.

        Raises:
            ArtifactError: it cannot be read; ArtifactChanged if it is no longer what was measured.
        """
        left, digest = self.size, hashlib.sha256()
        try:
            self._file.seek(0)
            while left:
                block = self._file.read(min(BLOCK_BYTES, left))
                digest.update(block)
                left -= len(block)
                if not block or (not left and digest.hexdigest() != self.sha256):
                    raise ArtifactChanged("it was changed while it was uploaded")
                yield block
        except OSError as error:
            raise ArtifactError(_reason(error)) from error


# Copies of what belongs to another user


def unpack(home: Path, task_id: str, copies: str, target: Segments, archive: Path) -> list[str]:
    """Write the regular files of a tar file from the engine below the folder of copies.

    The archive has one file or folder, which becomes `target`. Return the paths of what else is in
    it.

    Raises:
        ArtifactError: the archive cannot be read, or a file not be written.
    """
    skipped: list[str] = []
    try:
        with tarfile.open(archive, "r:") as tar:
            for number, member in enumerate(tar):
                below = tuple(member.name.strip("/").split("/"))[1:]
                segments = (*target, *below)
                if number >= MAX_ENTRIES:
                    raise ArtifactError(f"there are more than {MAX_ENTRIES} files and folders")
                if member.isdir():
                    continue
                is_odd = len(segments) > MAX_DEPTH or {"", ".", ".."} & set(segments)
                if not member.isreg() or is_odd:
                    skipped.append("/".join(segments))
                    continue
                _write_copy(home, (TASKS, task_id, copies, *segments), tar, member)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise ArtifactError(f"it cannot be copied: {_reason(error)}") from error
    return skipped


def _write_copy(home: Path, place: Segments, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    source = tar.extractfile(member)
    if source is None:
        raise AssertionError("it is a regular file")
    folder = open_below(home, place[:-1], make=True)
    try:
        handle = os.open(place[-1], NEW_FILE, 0o600, dir_fd=folder)
        with source, open(handle, "wb") as file:  # noqa: PTH123 - a handle
            while block := source.read(BLOCK_BYTES):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
    finally:
        os.close(folder)


def free_for_copies(home: Path, archives: Path, min_free_disk: int) -> int:
    """Return the bytes that may be copied: once as an archive, once as files."""
    free = min(free_disk(home), free_disk(archives))
    return max(0, (free - min_free_disk) // 2)


@contextmanager
def new_archive(path: Path) -> Iterator[Path]:
    """Yield the path, where there is no file; remove what is written there."""
    path.unlink(missing_ok=True)
    try:
        yield path
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return text[:1].lower() + text[1:]
