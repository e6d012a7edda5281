"""Secrets, and their removal from what is reported."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

MASK = "***"
_SHORTEST_CHARS = 8
_ESCAPED_BY_GO = {ord(char): f"\\u{ord(char):04x}" for char in "<>&"}
_MAX_OUTPUT_CHARS = 4000


def redact(text: str, forms: Sequence[str]) -> str:
    """Give a text without the forms of secrets that `encoded_forms` gives."""
    for form in forms:
        text = text.replace(form, MASK)
    return text


def is_redactable(secret: str) -> bool:
    """Tell whether a text is long enough: without shorter ones half of a text would be gone."""
    return len(secret) >= _SHORTEST_CHARS


def encoded_forms(secrets: Iterable[str]) -> tuple[str, ...]:
    """Give every form in which these secrets are looked for, the longest first.

    Beside the text itself these are its forms in JSON, and in JSON within JSON: so a call of a
    tool is kept by the agent, which is written in Go.
    """
    forms: set[str] = set()
    for secret in filter(is_redactable, secrets):
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


class Secret:
    """A text that shows itself to nobody unless `reveal` is called."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Give the text itself."""
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "Secret(***)" if self._text else "Secret()"

    __str__ = __repr__


def redact_output(text: str, secrets: list[str]) -> str:
    """Blank every known secret, and keep the end of what is then too long."""
    text = redact(text, encoded_forms(secrets)).replace("\x00", "").strip()
    return text if len(text) <= _MAX_OUTPUT_CHARS else "…" + text[-_MAX_OUTPUT_CHARS:]


def known_secrets(*known: Secret, env_file: Path | None) -> list[str]:
    """Give the texts that nothing may carry: ours, and the values in the container's env file.

    Values shorter than eight characters are left alone: they would blank half of the output.
    """
    texts = {secret.reveal() for secret in known}
    for _, text in variables_in(env_file):
        texts |= {text, text.strip("\"'")}
    return [text for text in texts if is_redactable(text)]
