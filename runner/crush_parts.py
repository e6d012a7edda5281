"""The parts of a Crush message as text; see internal/message/content.go of charmbracelet/crush."""

from __future__ import annotations

import json

_UNREMARKABLE_ENDS = frozenset({"", "stop", "end_turn", "tool_use"})


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
