"""What is known to be secret, taken out of what is reported."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

BLANK = "***"

_SHORTEST_CHARS = 8
_ESCAPED_BY_GO = {ord(char): f"\\u{ord(char):04x}" for char in "<>&"}


def blanked(text: str, forms: Sequence[str]) -> str:
    """Give a text without the forms of secrets that `forms_of` gives."""
    for form in forms:
        text = text.replace(form, BLANK)
    return text


def is_worth_blanking(secret: str) -> bool:
    """Tell whether a text is long enough: without shorter ones half of a text would be gone."""
    return len(secret) >= _SHORTEST_CHARS


def forms_of(secrets: Iterable[str]) -> tuple[str, ...]:
    """Give every form in which these secrets are looked for, the longest first.

    Beside the text itself these are its forms in JSON, and in JSON within JSON: so a call of a
    tool is kept by the agent, which is written in Go.
    """
    forms: set[str] = set()
    for secret in filter(is_worth_blanking, secrets):
        forms |= {secret, *_escaped(secret)}
        forms.update(twice for once in _escaped(secret) for twice in _escaped(once))
    return tuple(sorted(forms, key=lambda form: (-len(form), form)))


def _escaped(text: str) -> tuple[str, str, str]:
    plain = json.dumps(text, ensure_ascii=False)[1:-1]
    return json.dumps(text)[1:-1], plain, plain.translate(_ESCAPED_BY_GO)


def variables_in(env_file: Path | None) -> Iterator[tuple[str, str]]:
    """Give the names and values in a container's env file; none when it cannot be read."""
    try:
        lines = env_file.read_text(encoding="utf-8").split("\n") if env_file else []
    except (OSError, UnicodeDecodeError):
        lines = []
    for line in lines:
        if not line.lstrip().startswith("#"):
            name, _, text = line.partition("=")
            yield name.strip(), text.strip()
