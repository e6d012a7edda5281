"""A filter that checks the names and the types of the role's variables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

PREFIX = "victoria_runner_"
# Every text that Ansible's filter bool knows.
BOOLEANS = {"y", "yes", "on", "1", "true", "t", "n", "no", "off", "0", "false", "f"}


class FilterModule:
    """The filters, as Ansible finds them."""

    def filters(self) -> dict[str, Callable[..., list[str]]]:
        """Return the filters by name."""
        return {"victoria_runner_mistakes": mistakes}


def mistakes(
    given: Mapping[str, Any], specs: Mapping[str, Mapping[str, Any]], roles: Iterable[str] = ()
) -> list[str]:
    """Return a sentence for each variable that the role does not have or cannot read.

    given are all variables that begin with the role's name. Those that begin with the name of
    another role of the play belong to that role.
    """
    others = tuple(f"{role}_" for role in roles if role.startswith(PREFIX))
    reasons = {
        name: _mistyped(name, value, specs[name]) if name in specs else _unknown(name, specs)
        for name, value in sorted(given.items())
        if not name.startswith(others)
    }
    return [f"cannot use {name}: {reason}" for name, reason in reasons.items() if reason]


def _unknown(name: str, known: Iterable[str]) -> str:
    (nearest,) = get_close_matches(name, known, n=1, cutoff=0)
    return f"the role has no such variable; the nearest is {nearest}"


def _mistyped(name: str, value: object, spec: Mapping[str, Any]) -> str:
    """Return why the role cannot read a value, without the value, which may be a secret."""
    if value is None:
        # Only what has no default may be left empty.
        has_default = spec.get("default") is not None
        return "it is null; leave it out to have its default" if has_default else ""
    kind = spec.get("type", "str")
    can_read, reason = READERS.get(kind, (lambda _: True, ""))
    example = EXAMPLES.get(kind, "")
    on_command_line = f", on the command line -e '{{\"{name}\": {example}}}'" if example else ""
    return "" if can_read(value) else f"{reason}{on_command_line}"


def _is_whole(value: object) -> bool:
    return _is_number(value) and float(str(value)).is_integer()


def _is_number(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True


def _is_list(value: object) -> bool:
    """Return whether it is a list, or one value, of which the role makes a list."""
    if not isinstance(value, str):
        return not isinstance(value, Mapping)
    # An argument for the engine begins with a dash, and may have commas.
    return value.startswith("-") or not (value.startswith("[") or "," in value)


EXAMPLES = {"list": '["…", "…"]', "dict": '{"…": "…"}'}
# By type: whether the role can read a value as one, and what is wrong if not.
READERS: dict[str, tuple[Callable[[object], bool], str]] = {
    "str": (lambda value: not isinstance(value, list | Mapping), "it is not text; write text"),
    "bool": (
        lambda value: str(value).lower() in BOOLEANS,
        "it is not a boolean; write true or false",
    ),
    "int": (_is_whole, "it is not a whole number; write one"),
    "float": (_is_number, "it is not a number; write one"),
    "list": (_is_list, "it is not a list, nor one value; write a list"),
    "dict": (lambda value: isinstance(value, Mapping), "it is not a mapping; write a mapping"),
}
