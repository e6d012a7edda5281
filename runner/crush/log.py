"""The log of a session, cut to what `POST /logs` takes.

A session that is too long loses its oldest messages first; when the first that does not fit is
a long one, it loses its head instead. It is read from the newest message backwards and no further
than needed, so memory is bounded by the limit and not by the database.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import anyio.to_thread

from runner.api.client import OrchestratorClient
from runner.crush.database import check_tables, chosen
from runner.crush.messages import (
    MESSAGE_COLUMNS,
    Content,
    finite_in,
    name_in,
    read_content,
    read_message,
    whole_in,
)
from runner.errors import Refused
from runner.model import Identity

if TYPE_CHECKING:
    import sqlite3


LOG_LIMIT_BYTES = 10_000_000
_WRAPPER_BYTES = 1_000  # of the body around it, and of the message that says what was cut
_SMALLEST_MESSAGE_BYTES = 90
_MARK_BYTES = 60
_BLOCK_CHARS = 1 << 16
_OLDER_WERE_CUT = re.compile(r"\[… (\d{1,9}) older messages cut …\]")
_WIRE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
_LONGEST_TITLE_CHARS = 300
_SESSION_COLUMNS = {
    # More than is kept of it: a secret that is cut in two would not be known.
    "title": "substr(title, 1, 10000)",
    "prompt_tokens": "prompt_tokens",
    "completion_tokens": "completion_tokens",
    "cost": "cost",
    "created_at": "created_at",
    "updated_at": "updated_at",
}
_SMALLER_BYTES = (5_000_000, 1_000_000)
"""Half of what a log may have; and what nginx lets through unless it is told otherwise."""
_TOO_LONG = 413


def read_log(
    connection: sqlite3.Connection, session_id: str, limit_bytes: int, forms: Sequence[str] = ()
) -> dict[str, object] | None:
    """Give a session that takes at most `limit_bytes` when posted; None if there is none.

    `forms` are those of secrets, as `encoded_forms` gives them.
    """
    known = check_tables(connection)
    row = connection.execute(
        f"SELECT {chosen(_SESSION_COLUMNS, known['sessions'])} FROM sessions WHERE id = ?",  # noqa: S608 - constants
        (session_id,),
    ).fetchone()
    if row is None:
        return None
    fields = dict(zip(_SESSION_COLUMNS, row, strict=True))
    session: dict[str, object] = {
        "id": session_id,
        "title": (name_in(fields["title"], forms) or "")[:_LONGEST_TITLE_CHARS],
        "prompt_tokens": whole_in(fields["prompt_tokens"]) or 0,
        "completion_tokens": whole_in(fields["completion_tokens"]) or 0,
        "cost": finite_in(fields["cost"]) or 0.0,
        "created_at": whole_in(fields["created_at"]) or 0,
        "updated_at": whole_in(fields["updated_at"]) or 0,
        "messages": [],
    }
    columns = chosen(MESSAGE_COLUMNS, known["messages"])
    room = limit_bytes - _WRAPPER_BYTES - wire_size(session)
    session["messages"] = _newest(connection, session_id, columns, room, forms)
    return session


def truncate(session: Mapping[str, object], limit_bytes: int) -> dict[str, object] | None:
    """Give a session, as `read_log` gave it, cut further; None when it is short enough."""
    size = sum(len(piece.encode()) for piece in _WIRE.iterencode(session))
    messages = session["messages"]
    if size + _WRAPPER_BYTES <= limit_bytes or not isinstance(messages, list):
        return None
    older = 0
    if messages and (mark := _OLDER_WERE_CUT.fullmatch(str(messages[0]["content"]))):
        older, messages = int(mark[1]), messages[1:]
    room = limit_bytes - _WRAPPER_BYTES - wire_size({**session, "messages": []})
    found = (
        ({**message, "content": ""}, Content(message["content"])) for message in messages[::-1]
    )
    kept = _fitting(found, room)
    older += len(messages) - len(kept)
    return {**session, "messages": [_older_were_cut(older, kept), *kept] if older else kept}


def digest_of(session: Mapping[str, object]) -> str:
    """Tell this session, as it stands, from what it becomes when the agent goes on."""
    digest = hashlib.sha256()
    for piece in _WIRE.iterencode(session):
        digest.update(piece.encode())
    return digest.hexdigest()


def wire_size(body: object) -> int:
    """Give the bytes that httpx (since 0.28) sends for a body."""
    return len(_WIRE.encode(body).encode())


def _newest(
    connection: sqlite3.Connection,
    session_id: str,
    columns: str,
    room: int,
    forms: Sequence[str],
) -> list[dict[str, object]]:
    """Give the newest messages that fit into `room` bytes on the wire, the oldest first."""
    (count,) = connection.execute(
        "SELECT count(*) FROM messages WHERE session_id = ?", (session_id,)
    ).fetchone()
    longest_content = max(room, 0)
    found = (
        (
            read_message(connection, row, columns, forms),
            read_content(connection, row, longest_content, forms),
        )
        for row in _rows(connection, session_id, longest_content)
    )
    kept = _fitting(found, room, longest_secret=len(forms[0]) if forms else 0)
    older = count - len(kept)
    return [_older_were_cut(older, kept), *kept] if older else kept


def _fitting(
    found: Iterator[tuple[dict[str, object], Content]], room: int, longest_secret: int = 0
) -> list[dict[str, object]]:
    """Give as many of the messages, which come newest first, as fit; the oldest first."""
    worth_cutting = room // 10
    kept: list[dict[str, object]] = []
    for message, content in found:
        left = room - wire_size(message) - 1
        start, room = _start_within(content.text, left)
        is_whole = not start and not content.unread_bytes
        if not is_whole:
            if left < (worth_cutting if kept else _MARK_BYTES):
                break
            start, _ = _start_within(content.text, left - _MARK_BYTES)
            if content.unread_bytes:
                # What was read may begin in the middle of a secret.
                start = max(start, min(longest_secret, len(content.text)))
        mark = "" if is_whole else _head_was_cut(content, start)
        text = content.text[start:]
        del content  # which may be long: two of the three suffice at a time
        message["content"] = mark + text
        kept.append(message)
        if not is_whole:
            break
    kept.reverse()
    kept.sort(key=_moment)
    return kept


def _rows(connection: sqlite3.Connection, session_id: str, room: int) -> Iterator[int]:
    """Give the messages from the one written last, no more of them than can fit.

    The index on session_id has that order; by time, every message would be read to be sorted.
    """
    for (row,) in connection.execute(
        "SELECT rowid FROM messages WHERE session_id = ? ORDER BY rowid DESC LIMIT ?",
        (session_id, room // _SMALLEST_MESSAGE_BYTES),
    ):
        yield row


def _moment(message: Mapping[str, object]) -> int:
    at = message["created_at"]
    return at if isinstance(at, int) else 0


# The marks of what was cut


def _older_were_cut(count: int, kept: list[dict[str, object]]) -> dict[str, object]:
    return {
        "id": "cut",
        "role": "system",
        "content": f"[… {count} older messages cut …]",
        "model": None,
        "provider": None,
        "created_at": kept[0]["created_at"] if kept else 0,
        "finished_at": None,
    }


def _head_was_cut(content: Content, start: int) -> str:
    # In ASCII: a single character beyond it would double the memory of the whole text.
    if content.unread_bytes:
        count = content.unread_bytes + len(content.text[:start].encode())
        return f"[... {count} bytes cut ...]\n"
    return f"[... {start} characters cut ...]\n"


def _start_within(text: str, room: int) -> tuple[int, int]:
    """Say from where on a text fits into a JSON string of `room` bytes, and what it leaves of them.

    The text is measured block by block: encoded whole, it would take its memory twice over.
    """
    start, step = len(text), _BLOCK_CHARS
    while start and step:
        block = text[max(0, start - step) : start]
        size = wire_size(block) - 2
        if size <= room:
            start, room = start - len(block), room - size
        else:
            step //= 2
    return start, room


async def hand_in_log(
    orchestrator: OrchestratorClient, identity: Identity, body: Mapping[str, object]
) -> Mapping[str, object]:
    """Hand in what `log_body` gives, shorter where that must be; give the session that was taken.

    Raises:
        Refused: it is refused for another reason, or however short it is.
        Unavailable: as everywhere.
    """
    smaller = iter(_SMALLER_BYTES)
    while True:
        session = body["session"]
        if not isinstance(session, Mapping):
            raise TypeError("the journal has a log without a session")
        try:
            await orchestrator.send_log(identity, body)
        except Refused as error:
            cut = None
            while error.status == _TOO_LONG and cut is None:
                limit_bytes = next(smaller, None)
                if limit_bytes is None:
                    raise
                cut = await anyio.to_thread.run_sync(partial(truncate, session, limit_bytes))
            if cut is None:
                raise
            body = {**body, "session": cut}
        else:
            return session
