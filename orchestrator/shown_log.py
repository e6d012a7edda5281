"""What the dashboard shows of a log: its end, since a browser cannot show messages without end."""

import json
from typing import Any

_MESSAGES_SHOWN = 500
_CHARACTERS_SHOWN = 100_000
_SHOWN_OF_A_TITLE = 500


def shown_log(session: str) -> dict[str, Any]:
    """Give a session's title and its last messages; `is_cut` tells that there is more of it.

    It was kept as it came: nothing in it need have the form that agents give it.
    """
    kept = json.loads(session)
    found = kept.get("messages")
    messages = [one for one in (found if isinstance(found, list) else []) if isinstance(one, dict)]
    title = _text(kept.get("title", ""))
    shown: list[dict[str, str]] = []
    room = _CHARACTERS_SHOWN
    is_cut = len(messages) > _MESSAGES_SHOWN or len(title) > _SHOWN_OF_A_TITLE
    for message in reversed(messages[-_MESSAGES_SHOWN:]):
        role, content = _text(message.get("role", "")), _text(message.get("content", ""))
        if len(role) + len(content) > room:
            is_cut = True
            role = role[:room]
            content = content[len(content) - (room - len(role)) :]
        shown.append({"role": role, "content": content})
        room -= len(role) + len(content)
        if not room:
            is_cut = True
            break
    return {"title": title[:_SHOWN_OF_A_TITLE], "messages": shown[::-1], "is_cut": is_cut}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
