"""Messages of a Crush session as `POST /logs` takes them; this runs in the child process.

The parts of a message: internal/message/content.go of charmbracelet/crush.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence

from runner.redaction import redact

NAMES = ("id", "role", "model", "provider")
TIMES = ("created_at", "finished_at")
PARTS = (
    "CASE WHEN length(CAST(parts AS BLOB)) > 10000000 THEN length(CAST(parts AS BLOB))"
    " ELSE CAST(parts AS BLOB) END"
)
"""The parts of a message as bytes; of one that no log has room for, their number."""
_MAX_NAME_CHARS = 200
_ZSTD = b"\x28\xb5\x2f\xfd"
_UNREMARKABLE_ENDS = frozenset({"", "stop", "end_turn", "tool_use"})


def select(names: Sequence[str], columns: Collection[str]) -> str:
    """Return the list for a SELECT; a column that an older Crush did not have is NULL."""
    return ", ".join(name if name in columns else "NULL" for name in names)


def read_message(
    parts: object, values: Sequence[object], forms: Sequence[str]
) -> dict[str, object]:
    """Return a message, from the values of `PARTS`, and of `NAMES` and `TIMES`."""
    *names, created_at, finished_at = values
    id_, role, model, provider = (read_name(name, forms, _MAX_NAME_CHARS) for name in names)
    return {
        "id": id_ or "",
        "role": role or "",
        "content": redact(read_content(parts), forms),
        "model": model,
        "provider": provider,
        "created_at": read_whole(created_at) or 0,
        "finished_at": read_whole(finished_at),
    }


def read_content(parts: object) -> str:
    """Render a value of `PARTS` as text; what is not a list of parts is shown as it is."""
    if isinstance(parts, int):
        return f"[… {parts} bytes …]"
    raw = parts if isinstance(parts, bytes) else b""
    if raw.startswith(_ZSTD):
        return f"[… {len(raw)} compressed bytes …]"
    text = raw.decode("utf-8", "replace")
    try:
        parsed = json.loads(text) if text else []
    except (ValueError, RecursionError, MemoryError):
        parsed = None
    if isinstance(parsed, list):
        text = "\n\n".join(filter(None, map(_show_part, parsed)))
    return to_valid_unicode(text)


def to_valid_unicode(text: str) -> str:
    """Replace what cannot be sent: halves of characters, and NUL, which few stores take."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def read_name(value: object, forms: Sequence[str], max_chars: int) -> str | None:
    """Read a name from a column, in characters that can be sent, and without secrets."""
    return None if value is None else redact(to_valid_unicode(str(value)), forms)[:max_chars]


def read_whole(value: object) -> int | None:
    """Read a whole number from a column, which may hold anything."""
    number = read_finite(value)
    return None if number is None else int(number)


def read_finite(value: object) -> float | None:
    """Read a number that JSON has too; SQLite keeps infinity, and text in columns of numbers."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _show_part(part: object) -> str:
    try:
        return _render(part)
    except RecursionError:
        return "[a part too deeply nested to be shown]"


def _render(part: object) -> str:  # noqa: C901, PLR0911 - one case for each type that Crush has
    """Return nothing for an ordinary end, and the JSON of a part that is not known."""
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
            # Of one that is the image itself, only its kind.
            return f"[image: {url.partition(',')[0] if url.startswith('data:') else url}]"
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
