"""Text from outside, made safe for a terminal: names and prompts, and the output of tasks."""

from __future__ import annotations

import re

_DIRECTION = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_UNSAFE = re.compile(rf"[\x00-\x08\x0b-\x1f\x7f-\x9f{_DIRECTION}]")
_STRING_BODY = r"[^\x07\x1b\x9c\n]*"
# ECMA-48: control sequences, strings such as a window's title up to their end, and short escapes;
# each begins with ESC or with one character of its own.
_TOKEN = re.compile(
    r"(?P<colour>\x1b\[(?P<parameters>[0-9;:]*)m)"
    r"|(?P<newline>\r\n?)"
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    rf"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f]){_STRING_BODY}(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]"
    rf"|[\x00-\x08\x0b-\x1f\x7f-\x9f{_DIRECTION}]"
)
_UNFINISHED = re.compile(
    r"(?:\r|(?:\x1b\[|\x9b)[0-?]*[ -/]*|\x1b[ -/]*"
    rf"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f]){_STRING_BODY}\x1b?)\Z"
)
_MAX_UNFINISHED = 4096
"""A longer beginning of a sequence is not one."""
_WEIGHTS = (0, 1, 2, 3, 4, 7, 21, 22, 23, 24, 27, 39, 49)
_COLOURS = {*_WEIGHTS, *range(30, 38), *range(40, 48), *range(90, 98), *range(100, 108)}
"""Not among them: blinking (5, 6), hidden (8) and other fonts."""
RESET = "\x1b[0m"


def printable(text: str) -> str:
    """Return a text that cannot control a terminal; its lines and tabs stay."""
    return _UNSAFE.sub("\ufffd", text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """Return a text as one line that cannot control a terminal."""
    return printable(" ".join(text.split()))


class OutputFilter:
    """The output of a task as it may be shown, chunk by chunk: text and SGR colours only."""

    def __init__(self, *, has_colours: bool) -> None:
        """Pass colours on, or remove them too."""
        self._has_colours = has_colours
        self._unfinished = ""
        self._is_coloured = False

    def feed(self, text: str) -> str:
        """Return what may be shown of the next chunk; a sequence may go on in the one after it."""
        text = self._unfinished + text
        # Not in all of it: a hostile text would take the square of its length.
        unfinished = _UNFINISHED.search(text, max(0, len(text) - _MAX_UNFINISHED))
        self._unfinished = ""
        if unfinished:
            self._unfinished = unfinished[0]
            text = text[: unfinished.start()]
        return _TOKEN.sub(self._replace, text)

    def end(self) -> str:
        """Return what is left, and what ends the colours."""
        rest = "\n" if self._unfinished.startswith("\r") else ""
        self._unfinished = ""
        return rest + (RESET if self._is_coloured else "")

    def _replace(self, token: re.Match[str]) -> str:
        if token["newline"]:
            return "\n"
        if not token["colour"] or not self._has_colours or not _is_colour(token["parameters"]):
            return ""
        self._is_coloured = token["parameters"] not in {"", "0"}
        return token[0]


def _is_colour(parameters: str) -> bool:
    """Return whether an SGR sequence changes colours, weight or underlining, and nothing else."""
    numbers = [int(number[:4] or 0) for number in parameters.split(";") if ":" not in number]
    if any(":" in part and not part.startswith(("38:", "48:")) for part in parameters.split(";")):
        return False
    while numbers:
        first = numbers.pop(0)
        if first in {38, 48}:
            kind = numbers.pop(0) if numbers else 0
            if kind not in {2, 5}:
                return False
            del numbers[: 3 if kind == 2 else 1]  # noqa: PLR2004 - 2: red, green, blue
        elif first not in _COLOURS:
            return False
    return True
