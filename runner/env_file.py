"""The operator's env file: variables for containers, in the syntax that python-dotenv reads.

Engines read `NAME=VALUE` lines and nothing else, so they are given the plain values in a file of
that form. No message repeats a line: its text may be a secret.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dotenv.parser import Binding, parse_stream
from dotenv.variables import Variable, parse_variables

from runner.errors import ConfigurationError

_NAME = re.compile(r"""[^\s=#'"`$\\{}]+""")
_NEWLINE = re.compile(r"\r\n|\n|\r")
_MAX_LINE_BYTES = (64 << 10) - 2
"""The engines stop reading at a longer line, podman without an error (Go's bufio.Scanner)."""
_NOT_A_PAIR = (
    "is not NAME=VALUE; put quotes around a whole value, and # before a comment, or remove the line"
)
_SEVERAL_LINES = (
    "has a value over several lines, which no engine passes on; write it in one line, or put it "
    "into a file in the Victoria home"
)
_TOO_LONG = "has a value of more than 64 kB, which no engine passes on; put it into a file instead"


@dataclass(frozen=True)
class EnvFile:
    """What an env file sets."""

    variables: dict[str, str] = field(default_factory=dict, repr=False)
    warnings: tuple[str, ...] = ()
    """A sentence on each `${NAME}` that is not set above it, and so stays as it is."""


def read_env_file(path: Path | None) -> EnvFile:
    """Read an env file; None is an empty one.

    `${NAME}` stands for a variable that is set above it in the same file, never for one of this
    host. Any other `$` is left as it is.

    Raises:
        ConfigurationError: it cannot be read, or a line cannot be used.
    """
    variables: dict[str, str] = {}
    warnings: list[str] = []
    for line, binding in _bindings(_text(path)):
        name, value = binding.key, binding.value
        if binding.error or (name is not None and (value is None or not _NAME.fullmatch(name))):
            raise _unusable(path, line, _NOT_A_PAIR)
        if name is None or value is None:
            continue  # a comment
        if _NEWLINE.search(value):
            raise _unusable(path, line, _SEVERAL_LINES)
        value, unset = _expand(value, variables)
        if len(f"{name}={value}".encode()) > _MAX_LINE_BYTES:
            raise _unusable(path, line, _TOO_LONG)
        variables[name] = value
        warnings += [
            f"line {line}: ${{{one}}} is not set above this line and is passed on unchanged; set "
            "it in this file, or write its value"
            for one in unset
        ]
    return EnvFile(variables, tuple(warnings))


def check_env_file(path: Path) -> Path:
    """Return the absolute path of an env file that can be used.

    Raises:
        ConfigurationError: as `read_env_file`.
    """
    read_env_file(path)
    return path.resolve()


def readable_values(path: Path | None) -> list[str]:
    """Return the values in an env file, to redact them; also if a line of it cannot be used."""
    try:
        text = _text(path)
    except ConfigurationError:
        return []
    variables: dict[str, str] = {}
    for _, binding in _bindings(text):
        if binding.key is not None and binding.value is not None:
            variables[binding.key], _ = _expand(binding.value, variables)
    return list(variables.values())


def engine_format(variables: dict[str, str]) -> str:
    """Return variables as podman and docker read them: everything after the first = is the value.

    No value may have a line break.
    """
    return "".join(f"{name}={value}\n" for name, value in variables.items())


def _text(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        if path.is_fifo():
            raise ConfigurationError(
                f"cannot read --env-file {path}: it is a pipe, and each task reads it; give a file"
            )
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigurationError(
            f"cannot read --env-file {path}: {reason}; put the file there, readable by this user"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"cannot read --env-file {path}: it is not UTF-8 text; save it as UTF-8"
        ) from error
    if "\x00" in text:
        raise ConfigurationError(
            f"cannot use --env-file {path}: it has a NUL character in it; save it as UTF-8 text"
        )
    return text


def _bindings(text: str) -> Iterator[tuple[int, Binding]]:
    """Yield what is parsed, each with the number of the line that it begins in."""
    for binding in parse_stream(io.StringIO(text, newline="")):
        original = binding.original
        blank = original.string[: len(original.string) - len(original.string.lstrip())]
        yield original.line + len(_NEWLINE.findall(blank)), binding


def _expand(value: str, variables: dict[str, str]) -> tuple[str, list[str]]:
    """Return the value with every `${NAME}` replaced, and the names that are not set."""
    texts, unset = [], []
    for atom in parse_variables(value):
        if not isinstance(atom, Variable) or atom.name in variables or atom.default is not None:
            texts.append(atom.resolve(variables))
            continue
        texts.append(f"${{{atom.name}}}")
        unset += [atom.name] if atom.name else []
    return "".join(texts), unset


def _unusable(path: Path | None, line: int, reason: str) -> ConfigurationError:
    return ConfigurationError(f"cannot use --env-file {path}: line {line} {reason}")
