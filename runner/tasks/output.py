"""What a task prints, read from the engine's log, redacted, and posted to the outbox in chunks.

The place in the log after a chunk is written in one transaction with the chunk, before it is sent.
So a repeat is the same to the byte, and the next runner reads on from there. While a chunk of the
task waits for its delivery no other is posted: what is not read yet stays in the engine's log.
"""

from __future__ import annotations

import codecs
import logging
import os
import re

import anyio
import anyio.to_thread

from runner.engine.base import KEY_VARIABLE, Container, OutputPart, OutputPosition, OutputReader
from runner.env_file import readable_values
from runner.errors import EngineError
from runner.log import fields
from runner.model import OUTPUT, OutputProgress, Report, Task, output_chunk
from runner.redaction import (
    Secret,
    encoded_forms,
    known_secrets,
    proxy_secrets,
    redact_stream,
    secrets_in,
)
from runner.tasks.context import RunnerContext, TaskContext

log = logging.getLogger(__name__)
MAX_CHUNK_BYTES = 512 << 10
"""Of the engine's log, so that the body fits into the 1 MB that nginx lets through."""
UNREADABLE = "\n[… the rest of the output cannot be read …]\n"
_UNDECODABLE = re.compile("[\ud800-\udfff]")


async def secrets_of(
    runner: RunnerContext, record: Task, container: Container | None = None
) -> list[str]:
    """Return the texts that are redacted from everything that is reported of a task."""
    settings, assignment = runner.settings, record.assignment
    keys = await runner.persist(lambda: runner.journal.keys_of_node_with(record.task_id))
    if assignment is not None and assignment.task_key is not None:
        keys.append(assignment.task_key)
    variables = {} if container is None else container.variables
    # The task, or the node, may have another key by now, and so may the env file.
    keys += [Secret(variables.get(KEY_VARIABLE, "")), *secrets_in(variables)]
    keys += proxy_secrets(os.environ, variables)
    keys += map(Secret, readable_values(settings.env_file))
    return known_secrets(settings.registration_token, *keys)


async def follow_output(task: TaskContext, container: Container) -> None:
    """Post what the container prints, chunk by chunk; ends by being cancelled."""
    runner = task.runner
    failures = runner.failure_log("read a container's output", {"task_id": task.task_id})
    reader = task.engine.output_reader(container.container_id)
    intervals_s = runner.output_intervals_s
    intervals_s[task.task_id] = runner.timings.output_interval_s
    try:
        while True:
            interval_s = intervals_s[task.task_id]
            await runner.clock.sleep(interval_s)
            if not runner.node.offers(OUTPUT):
                continue
            try:
                await _post_next(task, container, reader)
                failures.end()
            except EngineError as error:
                failures.note(error, interval_s)
    except Exception:
        # Its container is watched all the same; the rest of the output is read at its end.
        ids = fields(task_id=task.task_id)
        log.exception("a defect of the runner meets a task's output", extra=ids)
    finally:
        reader.close()
        intervals_s.pop(task.task_id, None)


async def _post_next(task: TaskContext, container: Container, reader: OutputReader) -> None:
    journal = task.runner.journal
    if await task.persist(lambda: journal.has_output_waiting(task.task_id)):
        await reader.look()
        return
    progress = await task.persist(lambda: journal.output(task.task_id))
    if progress.is_done:
        return
    part = await reader.read(OutputPosition(progress.anchor, progress.skip), MAX_CHUNK_BYTES)
    if part.pieces:
        forms = encoded_forms(await secrets_of(task.runner, task.record, container))
        chunk, after = await _redacted(part, progress, forms, is_end=False)
        if after != progress:
            await _post(task, chunk, after)


async def rest_of_output(
    task: TaskContext, container: Container | None, until: float
) -> tuple[Report, OutputProgress] | None:
    """Post what the container printed that is not posted yet; return the last chunk of it.

    Return None if the orchestrator does not want it. `until` is a moment on the event loop's clock:
    what cannot be read by then is replaced by a mark.
    """
    journal = task.runner.journal
    progress = await task.persist(lambda: journal.output(task.task_id))
    if task.runner.node.lacks(OUTPUT) or progress.is_done:
        return None
    text = UNREADABLE if container is None else ""
    if container is not None:
        reader = task.engine.output_reader(container.container_id)
        try:
            with anyio.fail_after(max(0.0, until - anyio.current_time())):
                progress, text = await _post_rest(task, container, reader, progress)
        except (EngineError, TimeoutError) as error:
            reason = str(error) or "it takes too long"
            ids = fields(task_id=task.task_id)
            log.warning("cannot read the rest of a task's output: %s", reason, extra=ids)
            text = UNREADABLE
        except Exception:
            # The outcome is known; what the container printed must not change that.
            ids = fields(task_id=task.task_id)
            log.exception("a defect of the runner meets a task's output", extra=ids)
            text = UNREADABLE
        finally:
            reader.close()
        if text == UNREADABLE:
            progress = await task.persist(lambda: journal.output(task.task_id))
    chunk = output_chunk(progress.length, text, is_done=True)
    length = progress.length + len(text.encode())
    return chunk, OutputProgress(progress.anchor, progress.skip, length, is_done=True)


async def _post_rest(
    task: TaskContext, container: Container, reader: OutputReader, progress: OutputProgress
) -> tuple[OutputProgress, str]:
    """Post all but the last chunk; return the progress before that, and its text."""
    forms = encoded_forms(await secrets_of(task.runner, task.record, container))
    while True:
        position = OutputPosition(progress.anchor, progress.skip)
        part = await reader.read(position, MAX_CHUNK_BYTES)
        if not part.pieces:
            return progress, ""
        chunk, after = await _redacted(part, progress, forms, is_end=not part.has_more)
        if not part.has_more:
            return progress, "" if chunk is None else str(chunk.body["text"])
        if after == progress:
            raise EngineError("no end of a secret is found in it")
        await _post(task, chunk, after)
        progress = after


async def _post(task: TaskContext, chunk: Report | None, after: OutputProgress) -> None:
    runner = task.runner
    now = runner.clock.wall_s()
    await task.persist(lambda: runner.journal.post_output(task.task_id, chunk, after, now))
    if chunk is not None:
        runner.outbox.notify()


async def _redacted(
    part: OutputPart, before: OutputProgress, forms: tuple[str, ...], *, is_end: bool
) -> tuple[Report | None, OutputProgress]:
    """Return a chunk of what was read, None without text; and the progress after it."""
    text, used_bytes = await anyio.to_thread.run_sync(
        lambda: _redact(b"".join(piece for _, piece in part.pieces), forms, is_end=is_end)
    )
    place = part.position_of(used_bytes)
    after = OutputProgress(*place, before.length + len(text.encode()))
    return output_chunk(before.length, text) if text else None, after


def _redact(data: bytes, forms: tuple[str, ...], *, is_end: bool) -> tuple[str, int]:
    """Return the redacted text of a part of a stream, and of how many of its bytes it is."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    # The beginning of a character waits for its end.
    decoded = decoder.decode(data, final=is_end)
    text, used = redact_stream(decoded, forms, is_end=is_end)
    used_bytes = len(decoded[:used].encode("utf-8", "surrogateescape"))
    return _UNDECODABLE.sub("\N{REPLACEMENT CHARACTER}", text), used_bytes
