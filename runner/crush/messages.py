"""Messages of a Crush session as `POST /logs` takes them; a content may be cut at its head.

The parts of a message: internal/message/content.go of charmbracelet/crush.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from runner.crush.database import end_of_parts, one_row
from runner.redaction import MASK, redact

if TYPE_CHECKING:
    import sqlite3


# The names are short, and are shown whole; no agent needs more.
MESSAGE_COLUMNS = {
    "id": "substr(id, 1, 200)",
    "role": "substr(role, 1, 200)",
    "model": "substr(model, 1, 200)",
    "provider": "substr(provider, 1, 200)",
    "created_at": "created_at",
    "finished_at": "finished_at",
}
_MOST_MARKS = 400_000
_ZSTD = b"\x28\xb5\x2f\xfd"
_UNREMARKABLE_ENDS = frozenset({"", "stop", "end_turn", "tool_use"})


class Content(NamedTuple):
    """A message's text. When its parts are too long, it is their end, and they are not parsed."""

    text: str
    unread_bytes: int = 0


def read_message(
    connection: sqlite3.Connection, row: int, columns: str, forms: Sequence[str] = ()
) -> dict[str, object]:
    """Give a message without its content."""
    found = one_row(connection, f"SELECT {columns} FROM messages WHERE rowid = ?", row)  # noqa: S608 - constants
    fields = dict(zip(MESSAGE_COLUMNS, found, strict=True))
    return {
        "id": name_in(fields["id"], forms) or "",
        "role": name_in(fields["role"], forms) or "",
        "content": "",
        "model": name_in(fields["model"], forms),
        "provider": name_in(fields["provider"], forms),
        "created_at": whole_in(fields["created_at"]) or 0,
        "finished_at": whole_in(fields["finished_at"]),
    }


def read_content(
    connection: sqlite3.Connection, row: int, most_bytes: int, forms: Sequence[str] = ()
) -> Content:
    """Render the parts of a message, without the forms of secrets that `encoded_forms` gives.

    What is no list of parts is shown as it is.
    """
    text, unread = _content(connection, row, most_bytes)
    for form in forms:  # here: whoever called another function would hold one more copy
        text = text.replace(form, MASK)
    return Content(text, unread)


def _content(connection: sqlite3.Connection, row: int, most_bytes: int) -> Content:
    raw, size = end_of_parts(connection, row, most_bytes)
    unread = size - len(raw)
    if raw.startswith(_ZSTD) and not unread:
        return Content(f"[… {size} compressed bytes …]")
    # What holds nothing but brackets would take twenty times its size when parsed.
    is_too_nested = sum(raw.count(mark) for mark in (b"[", b"{", b",")) > _MOST_MARKS
    text = raw.decode("utf-8", "replace")
    del raw
    if unread or is_too_nested:
        return Content(to_valid_unicode(text), unread)
    try:
        parts = json.loads(text) if text else []
    except (ValueError, RecursionError):
        return Content(to_valid_unicode(text))
    if not isinstance(parts, list):
        return Content(to_valid_unicode(text))
    del text
    return Content(to_valid_unicode("\n\n".join(filter(None, map(shown_part, parts)))))


def to_valid_unicode(text: str) -> str:
    """Replace what cannot be sent: halves of characters, and NUL, which few stores take."""
    if "\x00" in text:
        text = text.replace("\x00", "\ufffd")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return text.encode("utf-8", "replace").decode()
    return text


def name_in(found: object, forms: Sequence[str] = ()) -> str | None:
    """Read a name from a column, in characters that can be sent, and without secrets."""
    return None if found is None else redact(to_valid_unicode(str(found)), forms)


def whole_in(found: object) -> int | None:
    """Read a whole number from a column, which may hold anything."""
    number = finite_in(found)
    return None if number is None else int(number)


def finite_in(found: object) -> float | None:
    """Give a number that JSON has too; SQLite keeps infinity, and text in columns of numbers."""
    return found if isinstance(found, int | float) and math.isfinite(found) else None


def shown_part(part: object) -> str:
    """Give the text of a part; nothing for one that says nothing."""
    try:
        return _rendered(part)
    except RecursionError:
        return "[a part too deeply nested to be shown]"


def _rendered(part: object) -> str:  # noqa: C901, PLR0911 - one case for each type that Crush has
    """Give nothing for an ordinary end, and the JSON of a part that is not known."""
    match part:
        case {"type": "text", "data": {"text": str(text)}}:
            return text
        case {"type": "reasoning", "data": {"thinking": str(text)}}:
            return f"[reasoning]\n{text}" if text else ""
        case {"type": "tool_call", "data": {"name": str(name), "input": str(text)}}:
            return f"[tool call: {name}]\n{text}"
        case {"type": "tool_result", "data": {"content": str(text), **rest}}:
            kind = "tool error" if rest.get("is_error") else "tool result"
            return f"[{kind}: {rest.get('name', '')}]\n{text}"
        case {"type": "shell_command", "data": {"command": str(text), **rest}}:
            return f"$ {text}\n{rest.get('output', '')}\n[exit code {rest.get('exit_code')}]"
        case {"type": "image_url", "data": {"url": str(url)}}:
            return f"[image: {_shown(url)}]"
        case {"type": "binary", "data": {"MIMEType": str(kind), **rest}}:
            return f"[file: {rest.get('Path', '')}, {kind}]"
        case {"type": "finish", "data": {"reason": str(reason), **rest}}:
            if reason in _UNREMARKABLE_ENDS and not rest.get("message"):
                return ""
            return (
                f"[finished: {reason}] {rest.get('message', '')} {rest.get('details', '')}".strip()
            )
        case {"type": "_meta"}:
            return ""
    return json.dumps(part, ensure_ascii=False)


def _shown(url: str) -> str:
    """Give the URL of an image, and of one that is the image itself only its kind."""
    return url.partition(",")[0] if url.startswith("data:") else url
