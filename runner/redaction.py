"""Secrets, and how they are redacted from what is reported."""

from __future__ import annotations

import base64
import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from urllib.parse import unquote

MASK = "***"
SECRETS_VARIABLE = "VICTORIA_SECRETS"
"""Names the variables of the operator's env file whose values the reporter redacts too."""
_MIN_SECRET_CHARS = 8
"""Shorter texts are not redacted: they occur by chance, and half of the output would be masked."""
_ESCAPED_BY_GO = {ord(char): f"\\u{ord(char):04x}" for char in "<>&"}
_MAX_OUTPUT_CHARS = 4000
# ECMA-48: control sequences, strings such as a window's title up to their end, and short escapes;
# each begins with ESC or with one character of its own.
_ESCAPE_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]"
)
_CONTROL_CHARACTER = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_UNSEEN = re.compile(rf"{_ESCAPE_SEQUENCE.pattern}|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_COLOUR = re.compile(r"\x1b\[[0-9;:]{0,40}m")
_UNFINISHED_ESCAPE = re.compile(
    r"(?:\x1b(?:\[[0-?]*)?[ -/]*|\x9b[0-?]*[ -/]*"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*\x1b?)\Z"
)
_MAX_ESCAPE_CHARS = 256
"""A longer escape sequence may be taken for text where it crosses the border of two chunks."""


def redact(text: str, forms: Sequence[str]) -> str:
    """Return the text with secrets masked; `forms` are those that `encoded_forms` returns."""
    for form in forms:
        text = text.replace(form, MASK)
    return text


def is_redactable(secret: str) -> bool:
    """Return whether a secret is long enough to be redacted."""
    return len(secret) >= _MIN_SECRET_CHARS


def encoded_forms(secrets: Iterable[str]) -> tuple[str, ...]:
    """Return every form of these secrets to redact, the longest first.

    These are the text itself, the text in JSON, and in JSON within JSON, which is how the agent
    (written in Go) stores a tool call.
    """
    forms: set[str] = set()
    for secret in filter(is_redactable, secrets):
        forms |= {secret, *_escaped(secret)}
        forms.update(twice for once in _escaped(secret) for twice in _escaped(once))
    return tuple(sorted(forms, key=lambda form: (-len(form), form)))


def _escaped(text: str) -> tuple[str, str, str]:
    plain = json.dumps(text, ensure_ascii=False)[1:-1]
    return json.dumps(text)[1:-1], plain, plain.translate(_ESCAPED_BY_GO)


class Secret:
    """A text that no log, repr or format shows; only `reveal` returns it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text itself."""
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
    """Return the text as a person reads it, secrets masked, truncated to its last 4,000 characters.

    Escape sequences go first: a secret may have one in it.
    """
    text = redact(plain_text(text), encoded_forms(secrets)).strip()
    return text if len(text) <= _MAX_OUTPUT_CHARS else "…" + text[-_MAX_OUTPUT_CHARS:]


def redact_stream(text: str, forms: Sequence[str], *, is_end: bool) -> tuple[str, int]:
    """Return the redacted text of a part of a stream, and how many of its characters are in it.

    The rest may be the beginning of a secret or of an escape sequence: it is to be passed again,
    with what follows. Of what a terminal obeys, only colours, tabs and the ends of lines are left:
    so no secret hides behind it.
    """
    shown = text if is_end else text[: _start_of_unfinished_escape(text)]
    plain: list[str] = []
    colours: list[tuple[int, str]] = []  # each with the length of the plain text before it
    plain_ends, ends, size, end = [0], [0], 0, 0  # of the plain text, and the same place in `text`
    for match in _UNSEEN.finditer(shown):
        plain.append(shown[end : match.start()])
        size, end = size + match.start() - end, match.end()
        plain_ends.append(size)
        ends.append(end)
        if _COLOUR.fullmatch(match[0]):
            colours.append((size, match[0]))
    plain.append(shown[end:])
    whole = "".join(plain)
    secrets = _find(whole, forms)
    stop = len(whole) if is_end else _start_of_unfinished_form(whole, forms, secrets)
    used = len(shown)
    if stop < len(whole):
        index = bisect_right(plain_ends, stop) - 1
        used = ends[index] + stop - plain_ends[index]
        colours = [colour for colour in colours if colour[0] <= stop]
    return _masked(whole[:stop], secrets, colours), used


def _find(text: str, forms: Sequence[str]) -> list[tuple[int, int]]:
    """Return where secrets begin and end in a text; of those that overlap, the first."""
    present = [form for form in forms if form in text]
    if not present:
        return []
    pattern = re.compile("|".join(map(re.escape, present)))
    return [match.span() for match in pattern.finditer(text)]


def _masked(text: str, secrets: list[tuple[int, int]], colours: list[tuple[int, str]]) -> str:
    """Return the text with its secrets masked, and its colours; those in a secret follow it."""
    output: list[str] = []
    position = 0
    cuts = [(start, stop, MASK) for start, stop in secrets if stop <= len(text)]
    insertions = [*cuts, *((at, at, code) for at, code in colours)]
    # By the place alone: colours at one place keep their order.
    for start, stop, inserted in sorted(insertions, key=itemgetter(0, 1)):
        output.append(text[position:start])
        output.append(inserted)
        position = max(position, stop)
    output.append(text[position:])
    return "".join(output)


def _start_of_unfinished_form(
    text: str, forms: Sequence[str], secrets: list[tuple[int, int]]
) -> int:
    """Return from where the end of a text may be the beginning of a secret; else its length."""
    start = len(text)
    for form in forms:
        tail = text[-(len(form) - 1) :]
        # The first character rules out almost every place.
        at = tail.find(form[0])
        while at >= 0 and len(text) - len(tail) + at < start:
            if form.startswith(tail[at:]):
                start = len(text) - len(tail) + at
            at = tail.find(form[0], at + 1)
    # What begins within a secret may be a longer one, which begins with it.
    return next((first for first, stop in secrets if first < start < stop), start)


def _start_of_unfinished_escape(text: str) -> int:
    """Return where an escape sequence begins that the text may cut off; else its length."""
    unfinished = _UNFINISHED_ESCAPE.search(text, max(0, len(text) - _MAX_ESCAPE_CHARS))
    return len(text) if unfinished is None else unfinished.start()


def plain_text(text: str) -> str:
    """Return what a terminal would show of a text: no escape sequence or control character.

    Of a line that was overwritten, as progress is, the last state is left.
    """
    lines = _ESCAPE_SEQUENCE.sub("", text).split("\n")
    return _CONTROL_CHARACTER.sub("", "\n".join(map(_last_state, lines)))


def _last_state(line: str) -> str:
    line = line.rstrip("\r").rpartition("\r")[2]
    if "\b" not in line:
        return line
    shown: list[str] = []
    for char in line:
        if char != "\b":
            shown.append(char)
        elif shown:
            shown.pop()
    return "".join(shown)


def secrets_in(variables: Mapping[str, str]) -> list[Secret]:
    """Return the values in a container's environment that the runner named as secrets."""
    names = variables.get(SECRETS_VARIABLE, "").split()
    return [Secret(variables[name]) for name in names if name in variables]


def known_secrets(*known: Secret) -> list[str]:
    """Return the texts to redact; a program may print a value without the blanks around it."""
    texts = {text for secret in known for text in (secret.reveal(), secret.reveal().strip())}
    return [text for text in texts if is_redactable(text)]


def proxy_secrets(*environments: Mapping[str, str]) -> list[Secret]:
    """Return the passwords of the proxies in these environments, in each form that they occur in.

    These are the password as it is in the URL, decoded, and in a Proxy-Authorization header. One
    that is too short to be redacted is redacted together with the user name and the host.
    """
    texts: set[str] = set()
    for name, value in (pair for environment in environments for pair in environment.items()):
        address = value.partition("://")[2] or value
        credentials = address.rpartition("@")[0]
        password = credentials.partition(":")[2]
        if name.lower().endswith("_proxy") and password:
            header = base64.b64encode(unquote(credentials).encode()).decode()
            texts |= {password, unquote(password), header}
            if not is_redactable(password):
                texts.add(address.rstrip("/"))
    return [Secret(text) for text in sorted(texts)]
