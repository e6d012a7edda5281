"""The log of a session, cut to what `POST /logs` takes, and its delivery.

A session that is too long loses its oldest messages first; when the first that does not fit is
a long one, it loses its head instead. It is read from the newest message backwards, and no further
than needed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import anyio.to_thread

from runner.crush.messages import (
    NAMES,
    PARTS,
    TIMES,
    read_finite,
    read_message,
    read_name,
    read_whole,
    select,
)
from runner.errors import Refused, Unavailable
from runner.model import Identity

if TYPE_CHECKING:
    import sqlite3

    from runner.api.client import OrchestratorClient  # httpx is of no use to the child

_TRUNCATED_BYTES = 1_000_000
"""What nginx lets through unless it is configured otherwise."""
_TOO_LONG = 413
_WRAPPER_BYTES = 1_000  # of the body around it, and of the message that says what was cut
_MARK_BYTES = 60
_OLDER_WERE_CUT = re.compile(r"\[… (\d{1,9}) older messages cut …\]")
_WIRE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
_MAX_TITLE_CHARS = 300
_NUMBERS = ("prompt_tokens", "completion_tokens", "cost", "created_at", "updated_at")


def read_log(
    connection: sqlite3.Connection,
    columns: Mapping[str, set[str]],
    session_id: str,
    limit_bytes: int,
    forms: Sequence[str],
) -> dict[str, object] | None:
    """Return a session that takes at most `limit_bytes` when posted; None if there is none.

    `columns` is what `check_schema` returns, `forms` what `encoded_forms` returns for the secrets.
    """
    row = connection.execute(
        f"SELECT title, {select(_NUMBERS, columns['sessions'])} FROM sessions WHERE id = ?",  # noqa: S608 - constants
        (session_id,),
    ).fetchone()
    if row is None:
        return None
    title, *values = row
    session: dict[str, object] = {
        "id": session_id,
        "title": read_name(title, forms, _MAX_TITLE_CHARS) or "",
        **{name: read_whole(value) or 0 for name, value in zip(_NUMBERS, values, strict=True)},
        "cost": read_finite(values[_NUMBERS.index("cost")]) or 0.0,
    }
    room = limit_bytes - _WRAPPER_BYTES - wire_size(session)
    (count,) = connection.execute(
        "SELECT count(*) FROM messages WHERE session_id = ?", (session_id,)
    ).fetchone()
    # The index on session_id has this order; by time, every message would be read to be sorted.
    rows = connection.execute(
        f"SELECT {PARTS}, {select(NAMES + TIMES, columns['messages'])} FROM messages"  # noqa: S608 - constants
        " WHERE session_id = ? ORDER BY rowid DESC",
        (session_id,),
    )
    newest_first = (read_message(parts, values, forms) for parts, *values in rows)
    return {**session, "messages": _fit(newest_first, count, room)}


def truncate(session: Mapping[str, object], limit_bytes: int) -> dict[str, object] | None:
    """Return a session, as `read_log` returned it, cut further; None when it is short enough."""
    messages = session["messages"]
    if wire_size(session) + _WRAPPER_BYTES <= limit_bytes or not isinstance(messages, list):
        return None
    older = 0
    if messages and (mark := _OLDER_WERE_CUT.fullmatch(str(messages[0]["content"]))):
        older, messages = int(mark[1]), messages[1:]
    room = limit_bytes - _WRAPPER_BYTES - wire_size({**session, "messages": []})
    return {**session, "messages": _fit(messages[::-1], older + len(messages), room)}


def digest_of(session: Mapping[str, object]) -> str:
    """Return a hash of the session, which changes when the agent continues it."""
    digest = hashlib.sha256()
    for piece in _WIRE.iterencode(session):
        digest.update(piece.encode())
    return digest.hexdigest()


def wire_size(body: object) -> int:
    """Return the bytes that a body takes at most when it is sent: nulls are left out then."""
    return len(_WIRE.encode(body).encode())


async def hand_in_log(
    orchestrator: OrchestratorClient, identity: Identity, body: Mapping[str, object]
) -> Mapping[str, object]:
    """Send what `log_body` returns, cut once if it is too long; return the session that was taken.

    Raises:
        Refused: it is refused for another reason, or although it was cut.
        Unavailable: the orchestrator did not respond.
    """
    session = body["session"]
    if not isinstance(session, Mapping):
        raise TypeError("the journal has a log without a session")
    try:
        await orchestrator.send_log(identity, body)
    except (Refused, Unavailable) as error:
        # A proxy's limit as well, which it shows by a web page.
        if error.status != _TOO_LONG:
            raise
        truncated = await anyio.to_thread.run_sync(truncate, session, _TRUNCATED_BYTES)
        if truncated is None:
            raise
        await orchestrator.send_log(identity, {**body, "session": truncated})
        return truncated
    return session


def _fit(
    newest_first: Iterable[dict[str, object]], count: int, room: int
) -> list[dict[str, object]]:
    """Return as many of `count` messages as fit into `room` bytes, in the order of their times."""
    least_worth_cutting = room // 10
    fitting: list[dict[str, object]] = []
    for message in newest_first:
        text = str(message["content"])
        room -= wire_size({**message, "content": ""}) + 1
        size = wire_size(text) - 2
        if size > room:
            if room >= (least_worth_cutting if fitting else _MARK_BYTES):
                start = _start_within(text, room - _MARK_BYTES)
                mark = f"[... {start} characters cut ...]\n"
                fitting.append({**message, "content": mark + text[start:]})
            break
        room -= size
        fitting.append(message)
    fitting.reverse()
    fitting.sort(key=lambda message: int(str(message["created_at"])))
    if older := count - len(fitting):
        at = fitting[0]["created_at"] if fitting else 0
        mark = f"[… {older} older messages cut …]"
        cut = {"id": "cut", "role": "system", "content": mark, "model": None, "provider": None}
        fitting.insert(0, {**cut, "created_at": at, "finished_at": None})
    return fitting


def _start_within(text: str, room: int) -> int:
    """Return the index from which the text fits into `room` bytes of a JSON string."""
    length = min(len(text), max(room, 0))
    while length and (size := wire_size(text[-length:]) - 2) > room:
        length = length * room // size
    return len(text) - length
