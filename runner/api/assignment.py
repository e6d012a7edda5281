"""Parse an assignment: everything is checked before it becomes a path or an argument."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from urllib.parse import urlsplit

from runner.errors import BadAssignment
from runner.model import MAX_TIMEOUT_S, Assignment, TaskFile, is_task_id
from runner.redaction import Secret

DEFAULT_TIMEOUT_S = 3600
MAX_PROMPT_BYTES = 131_071
"""Linux takes no longer single argument (MAX_ARG_STRLEN, execve(2)), less the final NUL."""
_WITH_OPTION_BYTES = len("--task=")
"""Of a prompt that begins with a dash: it is one argument with its option."""
MAX_FILES = 1000
MAX_FILE_NAME_BYTES = 255
_MAX_EXTENSION_BYTES = 20
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_URL = re.compile(r"[\x21-\x7e]{1,2000}")
_KEY = re.compile(r"[\x21-\x7e]{1,1000}")


def parse_assignment(raw: object, *, orchestrator_url: str) -> Assignment:
    """Parse an assignment; `orchestrator_url` is the default for the field of that name.

    Raises:
        BadAssignment: it is invalid; `task_id` is set if it has a valid one, to report that.
    """
    if not isinstance(raw, Mapping):
        raise BadAssignment("cannot read the assignment: it is not a JSON object")
    task_id = raw.get("task_id")
    if not isinstance(task_id, str) or not is_task_id(task_id):
        raise BadAssignment(
            "cannot read the assignment: its task_id must be 1 to 128 letters, digits, dots, "
            "dashes or underscores"
        )
    try:
        return Assignment(
            task_id=task_id,
            prompt=_parse_prompt(raw.get("prompt")),
            orchestrator_url=_parse_url(raw.get("orchestrator_url"), orchestrator_url),
            timeout_s=_parse_timeout_s(raw.get("timeout_seconds")),
            files=_parse_files(
                raw.get("files"), raw.get("file_checksums"), raw.get("original_names")
            ),
            task_key=_parse_key(raw.get("task_api_key")),
        )
    except BadAssignment as error:
        error.task_id = task_id
        raise


def _parse_prompt(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadAssignment("cannot run the task: its prompt is missing or empty")
    if "\x00" in value:
        raise BadAssignment("cannot run the task: its prompt has a NUL character in it")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise BadAssignment("cannot run the task: its prompt is not valid Unicode") from None
    most = MAX_PROMPT_BYTES - (_WITH_OPTION_BYTES if value.startswith("-") else 0)
    if size > most:
        raise BadAssignment(
            f"cannot run the task: its prompt has {size} bytes and {most} is the "
            "most that a command line takes; send the text as a file"
        )
    return value


def _parse_url(value: object, default: str) -> str:
    if value is None:
        return default
    if not isinstance(value, str) or not _URL.fullmatch(value):
        raise BadAssignment("cannot run the task: its orchestrator_url is not a URL")
    try:
        parts = urlsplit(value)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise BadAssignment("cannot run the task: its orchestrator_url is not an http or https URL")
    return value


def _parse_key(value: object) -> Secret | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _KEY.fullmatch(value):
        raise BadAssignment(
            "cannot run the task: its task_api_key must be 1 to 1000 printable ASCII characters "
            "without blanks"
        )
    return Secret(value)


def _parse_timeout_s(value: object) -> float:
    if value is None:
        return DEFAULT_TIMEOUT_S
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadAssignment("cannot run the task: its timeout_seconds is not a number")
    if not 0 <= value <= MAX_TIMEOUT_S:
        raise BadAssignment(
            f"cannot run the task: its timeout_seconds must lie between 0 and {MAX_TIMEOUT_S}"
        )
    return value or math.inf


def _parse_files(names: object, checksums: object, originals: object) -> tuple[TaskFile, ...]:
    if names is None:
        names = []
    if not isinstance(names, list) or len(names) > MAX_FILES:
        raise BadAssignment(
            f"cannot run the task: its files are not a list of at most {MAX_FILES} names"
        )
    checked: dict[str, None] = {}
    for name in map(_parse_file_name, names):
        if name in checked:
            raise BadAssignment(f"cannot run the task: two of its files have the name {name!r}")
        checked[name] = None
    sums = _parse_list(checksums, "file_checksums", len(checked))
    uploaded = _parse_list(originals, "original_names", len(checked))
    local_names = [
        name if original is None else _parse_file_name(original)
        for name, original in zip(checked, uploaded, strict=True)
    ]
    return tuple(
        TaskFile(name, _parse_sha256(checksum, name), None if local == name else local)
        for name, checksum, local in zip(checked, sums, _number(local_names), strict=True)
    )


def _parse_list(values: object, field: str, count: int) -> list[object]:
    """Return one value for each file; an orchestrator without them may send null or nothing."""
    if values is None or values in ([], ""):
        return [None] * count
    if not isinstance(values, list) or len(values) != count:
        raise BadAssignment(f"cannot run the task: its {field} do not match its files")
    return values


def _number(names: list[str]) -> list[str]:
    """Return the names, with a number in the second and later ones of the same name."""
    taken = set(names)
    seen: set[str] = set()
    numbered = []
    for name in names:
        unique, number = name, 1
        while unique in seen or (unique != name and unique in taken):
            number += 1
            unique = _with_number(name, number)
        seen.add(unique)
        numbered.append(unique)
    return numbered


def _with_number(name: str, number: int) -> str:
    """Return `a-2.csv` for `a.csv` and 2, no longer than a file name may be."""
    stem, dot, extension = name.rpartition(".")
    if not stem or len(extension.encode()) > _MAX_EXTENSION_BYTES:
        stem, dot, extension = name, "", ""
    tail = f"-{number}{dot}{extension}"
    room = MAX_FILE_NAME_BYTES - len(tail.encode())
    return stem.encode()[:room].decode(errors="ignore") + tail


def _parse_file_name(value: object) -> str:
    """Return a name that Linux can give to a file, without control characters (category Cc)."""
    if not isinstance(value, str):
        raise BadAssignment("cannot run the task: the name of a file is not text")
    if value in {"", ".", ".."} or "/" in value:
        raise BadAssignment(
            f"cannot run the task: the file name {value[:80]!r} is not a plain name"
        )
    if any(unicodedata.category(character) == "Cc" for character in value):
        raise BadAssignment(
            f"cannot run the task: the file name {value[:80]!r} has control characters in it"
        )
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise BadAssignment(
            f"cannot run the task: the file name {value[:80]!r} is not valid Unicode"
        ) from None
    if size > MAX_FILE_NAME_BYTES:
        raise BadAssignment(
            f"cannot run the task: the file name {value[:40]!r}… is longer than "
            f"{MAX_FILE_NAME_BYTES} bytes"
        )
    return value


def _parse_sha256(value: object, name: str) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise BadAssignment(f"cannot run the task: the checksum of {name!r} is not a SHA-256")
    return value.lower()
