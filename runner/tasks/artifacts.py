"""A task's artifacts: the files below `artifacts` in its folder, uploaded before its final status.

The outbox has one entry for all of them, and that has the path of the last one that is done: a new
runner goes on from there. An upload that is repeated changes nothing at the orchestrator. What is
not uploaded stays on this host, and a sentence in the task's message says so.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from functools import partial
from secrets import token_hex
from typing import Any

import anyio
import anyio.to_thread

from runner.api.http import SLOWEST_UPLOAD_BYTES_PER_S, Upload
from runner.engine.base import Container
from runner.errors import EngineError, Refused, Unavailable
from runner.log import fields, printable
from runner.model import ARTIFACTS as EXTENSION
from runner.model import Identity, OutboxEntry, Report
from runner.redaction import encoded_forms, redact
from runner.state_dir import run_folder
from runner.tasks.context import RunnerContext, TaskContext
from runner.tasks.output import secrets_of
from runner.workspace.artifacts import (
    COPY_PREFIX,
    Artifact,
    ArtifactChanged,
    ArtifactError,
    Limits,
    Listing,
    OpenArtifact,
    free_for_copies,
    list_artifacts,
    new_archive,
    unpack,
)
from runner.workspace.download import folder_in_container
from runner.workspace.home import ARTIFACTS, task_folder

log = logging.getLogger(__name__)
_ABOUT_ONE = frozenset({400, 409, 413, 414, 415, 422})
"""Status codes by which one artifact is refused, and not the others."""
_TOO_LARGE = 413
_READS = 3
"""So often a file is read that is changed meanwhile."""
_MOST_COPIES = 3
_SHOWN = 5
_SHOWN_CHARS = 200


@dataclass
class _Omitted:
    """What is not uploaded: the first few, and how many there are."""

    shown: list[tuple[str, str]] = field(default_factory=list)
    count: int = 0

    def add(self, path: str, reason: str) -> None:
        self.count += 1
        if len(self.shown) < _SHOWN:
            self.shown.append((path, reason))


@dataclass
class _Progress:
    """The body of the entry in the outbox."""

    copies: str | None
    """The folder with copies of what belongs to another user."""
    after: tuple[str, ...]
    """The path of the last artifact that is done."""
    omitted: _Omitted

    def to_body(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> _Progress:
        omitted = body["omitted"]
        shown = [(path, reason) for path, reason in omitted["shown"]]
        return cls(body["copies"], tuple(body["after"]), _Omitted(shown, omitted["count"]))


def _report(task_id: str, progress: _Progress) -> Report:
    return Report(EXTENSION, {"task_id": task_id, **progress.to_body()})


async def find_artifacts(task: TaskContext, container: Container | None) -> list[Report]:
    """Return the outbox entry of a task's artifacts; none if it left nothing.

    What belongs to another user, as with docker as root, is copied by the engine, for which the
    container must still be there.
    """
    runner = task.runner
    listing = await _list(runner, task.task_id, None)
    if not (listing.artifacts or listing.omitted or listing.forbidden):
        return []
    forbidden, copies, omitted = listing.forbidden, None, _Omitted()
    if forbidden and container is not None and not runner.node.lacks(EXTENSION):
        copies = f"{COPY_PREFIX}{token_hex(8)}"
        listed = {path for path, _ in listing.omitted}
        # Each copy is a call of the engine; the whole folder is one.
        for segments in forbidden if len(forbidden) <= _MOST_COPIES else [()]:
            for path, reason in await _copy(task, container, copies, segments):
                if path not in listed:
                    omitted.add(path, reason)
    else:
        for segments in forbidden:
            omitted.add("/".join(segments), "this user may not read it")
    return [_report(task.task_id, _Progress(copies, (), omitted))]


def unread_artifacts(task_id: str) -> Report:
    """Return the entry of artifacts that `find_artifacts` could not find in time."""
    omitted = _Omitted()
    omitted.add(ARTIFACTS, "not all of it could be read in time")
    return _report(task_id, _Progress(None, (), omitted))


async def _copy(
    task: TaskContext, container: Container, copies: str, segments: tuple[str, ...]
) -> list[tuple[str, str]]:
    """Copy a file or folder that this user may not read; return what is not copied, and why."""
    settings, name = task.runner.settings, "/".join(segments)
    inside = "/".join((folder_in_container(task.task_id), ARTIFACTS, *segments))
    home, state = settings.victoria_home, run_folder(settings.state_dir)
    try:
        free = await anyio.to_thread.run_sync(free_for_copies, home, state, settings.min_free_disk)
        most = min(free, settings.max_artifacts * settings.max_artifact_size)
        with new_archive(state / f"{task.task_id}.artifacts") as archive:
            if not await task.engine.copy_out(container.container_id, inside, archive, most):
                return [(name, "it is gone")]
            write = partial(unpack, home, task.task_id, copies, segments, archive)
            skipped = await anyio.to_thread.run_sync(write)
    except (EngineError, ArtifactError, OSError) as error:
        return [(name, str(error))]
    return [(path, "it is not a regular file") for path in skipped]


async def _list(runner: RunnerContext, task_id: str, copies: str | None) -> Listing:
    home = runner.settings.victoria_home
    return await anyio.to_thread.run_sync(list_artifacts, home, task_id, copies, _limits(runner))


def _limits(runner: RunnerContext) -> Limits:
    return Limits(runner.settings.max_artifacts, runner.settings.max_artifact_size)


class ArtifactUpload:
    """One attempt to upload what is left of a task's artifacts."""

    def __init__(
        self,
        runner: RunnerContext,
        entry: OutboxEntry,
        body: Mapping[str, object],
        expect_within: Callable[[float], None],
    ) -> None:
        """Prepare it; `expect_within` gets the longest seconds of each step."""
        self._runner = runner
        self._entry = entry
        self._expect_within = expect_within
        self._progress = _Progress.from_body(body)
        self._listed: list[tuple[str, str]] = []
        self.has_progressed = False

    async def run(self, identity: Identity) -> None:
        """Upload all that is left, and close the entry.

        Raises:
            Unauthorised: the key is not taken.
            Refused: none of them is taken.
            Unavailable: retry later.
            JournalError: the progress cannot be written.
        """
        runner, task_id = self._runner, self._entry.task_id
        if runner.node.lacks(EXTENSION):
            await self._end_without_extension()
            return
        listing = await _list(runner, task_id, self._progress.copies)
        self._listed = listing.omitted
        left = [
            artifact for artifact in listing.artifacts if artifact.segments > self._progress.after
        ]
        for artifact in left:
            if reason := await self._upload(identity, artifact):
                self._progress.omitted.add(artifact.path, reason)
            await self._note_progress(artifact)
        ids = fields(task_id=task_id, artifacts=len(listing.artifacts))
        log.info("artifacts uploaded", extra=ids)
        await self.end()

    async def end(self, parked: str | None = None) -> None:
        """Close the entry, or park it with the reason; the message says what is not uploaded.

        Raises:
            JournalError: that cannot be written.
        """
        omitted = self._progress.omitted
        for path, reason in self._listed:
            omitted.add(path, reason)
        forms = await self._secret_forms()
        sentences = []
        if parked is not None:
            what = "the other artifacts" if self._progress.after else "the artifacts"
            sentences.append(f"{what} are not uploaded and stay in {self._folder()}: {parked}")
        if omitted.count:
            what = "1 artifact is" if omitted.count == 1 else f"{omitted.count} artifacts are"
            shown = [f"{_quoted(path, forms)}: {reason}" for path, reason in omitted.shown]
            if omitted.count > len(shown):
                shown.append(f"and {omitted.count - len(shown)} more")
            why = "; ".join(shown)
            sentences.append(f"{what} not uploaded; see {self._folder()} on the host: {why}")
        await self._close(redact(". ".join(sentences), forms) or None, parked)

    async def _end_without_extension(self) -> None:
        await self._close(
            "the artifacts are not uploaded, since the orchestrator does not take any; "
            f"they are in {self._folder()} on the host",
            None,
        )

    async def _close(self, sentence: str | None, parked: str | None) -> None:
        if sentence is not None:
            sentence = printable(sentence)
            log.warning("%s", sentence, extra=fields(task_id=self._entry.task_id))
        await self._runner.journal.end_upload(self._entry.row, sentence, parked=parked)

    async def _secret_forms(self) -> tuple[str, ...]:
        """Return what must not be in a sentence, though an agent may name a file so."""
        record = await self._runner.journal.task(self._entry.task_id)
        if record is None:
            raise AssertionError("its entry goes with it")
        return encoded_forms(await secrets_of(self._runner, record))

    def _folder(self) -> str:
        return str(
            task_folder(self._runner.settings.victoria_home, self._entry.task_id) / ARTIFACTS
        )

    async def _upload(self, identity: Identity, artifact: Artifact) -> str | None:
        """Upload an artifact; return why it is not, if that cannot change."""
        for _ in range(_READS - 1):
            try:
                return await self._attempt(identity, artifact)
            except ArtifactChanged:
                continue
        try:
            return await self._attempt(identity, artifact)
        except ArtifactChanged as error:
            return str(error)

    async def _attempt(self, identity: Identity, artifact: Artifact) -> str | None:
        settings, task_id = self._runner.settings, self._entry.task_id
        self._expect_within(settings.max_artifact_size / SLOWEST_UPLOAD_BYTES_PER_S)
        opening = partial(
            OpenArtifact,
            settings.victoria_home,
            task_id,
            artifact,
            settings.max_artifact_size,
        )
        try:
            file = await anyio.to_thread.run_sync(opening)
        except ArtifactError as error:
            return str(error)
        try:
            self._expect_within(file.size / SLOWEST_UPLOAD_BYTES_PER_S)
            async with aclosing(_blocks(file)) as blocks:
                upload = Upload(file.size, blocks)
                await self._runner.orchestrator.send_artifact(
                    identity, task_id, artifact.segments, upload, file.sha256
                )
        except ArtifactChanged:
            raise
        except ArtifactError as error:
            return str(error)
        except Refused as error:
            if error.status not in _ABOUT_ONE or (
                error.detail is None and error.status != _TOO_LARGE
            ):
                raise
            return f"the orchestrator refuses it: {error}"
        except Unavailable as error:
            if error.status != _TOO_LARGE:
                raise
            # A proxy before the orchestrator has a limit of its own.
            return f"it is refused: {error}"
        finally:
            file.close()
        return None

    async def _note_progress(self, artifact: Artifact) -> None:
        self._progress.after = artifact.segments
        self.has_progressed = True
        body = _report(self._entry.task_id, self._progress).body
        await self._runner.journal.note_progress(self._entry.row, body)


async def _blocks(file: OpenArtifact) -> AsyncGenerator[bytes, None]:
    blocks = file.blocks()
    while block := await anyio.to_thread.run_sync(next, blocks, b""):
        yield block


def _quoted(path: str, forms: Sequence[str]) -> str:
    path = redact(path, forms)  # before it is cut: of a secret at its end the beginning would stay
    shown = path if len(path) <= _SHOWN_CHARS else f"{path[:_SHOWN_CHARS]}…"
    return repr(shown.encode(errors="replace").decode())
