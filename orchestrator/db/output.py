"""The output of tasks: stored in parts, the beginning and the end of what came in.

A part has whole characters and is never changed. Of a long output the parts between head and tail
are deleted as more comes in, so that nothing large is ever written again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, func, insert, select
from sqlalchemy.orm import Session

from orchestrator.db.tables import OutputPart, Task, TaskOutput
from orchestrator.errors import WrongOffset

HEAD_BYTES = TAIL_BYTES = 5 * 1024**2
PART_BYTES = 32 * 1024
PARTS_AT_ONCE = 8
"""A reader that takes its time has so many in memory, each four times as large with emoji."""

_CONTINUATION = 0b10
"""How each byte of a character in UTF-8 begins but the first."""
_LONGEST_CHARACTER = 4
_TAIL_STARTS = HEAD_BYTES - _LONGEST_CHARACTER + 1
"""Whatever starts here or later is of the tail: a character might not fit into the head."""


@dataclass(frozen=True)
class Piece:
    """A piece of an output as it is shown; one that is omitted has a mark as its text."""

    start: int
    end: int
    text: str
    is_omitted: bool = False


def append(
    session: Session, task_number: int, offset: int, data: bytes, *, is_done: bool
) -> TaskOutput:
    """Add whole characters to an output, in the transaction that has locked the task's row.

    What is there already is accepted and changes nothing. Raises WrongOffset.
    """
    output = _require_row(session, task_number)
    end = offset + len(data)
    if end <= output.length:
        output.is_done |= is_done and end == output.length
        return output
    if output.is_done:
        raise WrongOffset("cannot add to the output: it was declared complete", output.length)
    if offset != output.length:
        raise WrongOffset(
            f"cannot add to the output at offset {offset}: {output.length} bytes are held",
            output.length,
        )
    parts = [
        {"task_number": task_number, "start": start, "data": part}
        for start, part in _parts(offset, data)
    ]
    session.execute(insert(OutputPart), parts)
    output.length, output.is_done = end, is_done
    if end > HEAD_BYTES + TAIL_BYTES:
        session.execute(
            delete(OutputPart).where(
                OutputPart.task_number == task_number,
                OutputPart.start >= _TAIL_STARTS,
                OutputPart.start < end - TAIL_BYTES,
            )
        )
    return output


def note_watcher(session: Session, task_number: int, until: datetime) -> None:
    """Note, for every process, that somebody watches an output until then."""
    locked = select(Task.number).where(Task.number == task_number).with_for_update()
    # It may have been deleted meanwhile.
    if session.scalars(locked).one_or_none() is not None:
        _require_row(session, task_number).watched_until = until


def discard(session: Session, task_number: int) -> None:
    """Delete the output of a task that will run at another node."""
    for table in (OutputPart, TaskOutput):
        session.execute(delete(table).where(table.task_number == task_number))


def read(session: Session, task_number: int, offset: int, end: int) -> list[Piece]:
    """Return some of what is stored between two offsets; nothing if there is no more.

    If `offset` is within a character, the first piece starts at the next one.
    """
    rows = session.execute(
        select(OutputPart.start, OutputPart.data)
        .where(
            OutputPart.task_number == task_number,
            # By the index, to the part that has the offset.
            OutputPart.start > offset - PART_BYTES,
            OutputPart.start + func.length(OutputPart.data) > offset,
            OutputPart.start < end,
        )
        .order_by(OutputPart.start)
        .limit(PARTS_AT_ONCE)
    )
    pieces = []
    for start, data in rows:
        if start > offset:
            pieces.append(Piece(offset, start, _mark(start - offset), is_omitted=True))
        first = max(offset - start, 0)
        while first < len(data) and _is_within_character(data[first]):
            first += 1
        offset = start + len(data)
        pieces.append(Piece(start + first, offset, data[first:].decode()))
    return pieces


def _require_row(session: Session, task_number: int) -> TaskOutput:
    output = session.get(TaskOutput, task_number)
    if output is None:
        output = TaskOutput(task_number=task_number, length=0, is_done=False)
        session.add(output)
    return output


def _parts(start: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    done = 0
    while done < len(data):
        place = start + done
        size = min(PART_BYTES, HEAD_BYTES - place) if place < _TAIL_STARTS else PART_BYTES
        end = min(done + size, len(data))
        while end < len(data) and _is_within_character(data[end]):
            end -= 1
        yield place, data[done:end]
        done = end


def _is_within_character(byte: int) -> bool:
    return byte >> 6 == _CONTINUATION


def _mark(omitted: int) -> str:
    return f"\n[{omitted} bytes of output are not stored]\n"


def text_of(pieces: Sequence[Piece]) -> bytes:
    """Return pieces as they are shown, in UTF-8."""
    return "".join(piece.text for piece in pieces).encode()
