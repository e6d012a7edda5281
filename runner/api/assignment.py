"""A task as the orchestrator assigns it, checked before it becomes a path or an argument."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from runner.errors import BadAssignment
from runner.model import TASK_ID, Assignment, TaskFile

DEFAULT_TIMEOUT_S = 3600
MAX_TIMEOUT_S = 366 * 24 * 3600
# Linux takes no longer single argument (MAX_ARG_STRLEN, execve(2)), the final NUL included.
MAX_PROMPT_BYTES = 131_071
MAX_FILES = 1000
MAX_FILE_NAME_BYTES = 255
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_URL = re.compile(r"[\x21-\x7e]{1,2000}")
_DEVICE_NAME = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)


def parse_assignment(raw: object, *, orchestrator_url: str) -> Assignment:
    """Check an assignment; `orchestrator_url` stands in when it names none.

    Raises:
        BadAssignment: it cannot be obeyed; the message says why, and `task_id` is set if the
            orchestrator can be told so.
    """
    if not isinstance(raw, Mapping):
        raise BadAssignment("cannot read the assignment: it is no JSON object")
    task_id = raw.get("task_id")
    if not isinstance(task_id, str) or not TASK_ID.fullmatch(task_id):
        raise BadAssignment(
            "cannot read the assignment: its task_id must be 1 to 128 letters, digits, dots, "
            "dashes or underscores"
        )
    try:
        return Assignment(
            task_id=task_id,
            prompt=_prompt(raw.get("prompt")),
            orchestrator_url=_url(raw.get("orchestrator_url"), orchestrator_url),
            timeout_s=_timeout_s(raw.get("timeout_seconds")),
            files=_files(raw.get("files"), raw.get("file_checksums")),
        )
    except BadAssignment as error:
        error.task_id = task_id
        raise


def _prompt(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadAssignment("cannot run the task: its prompt is missing or empty")
    if "\x00" in value:
        raise BadAssignment("cannot run the task: its prompt has a NUL character in it")
    size = len(_utf8(value, "prompt"))
    if size > MAX_PROMPT_BYTES:
        raise BadAssignment(
            f"cannot run the task: its prompt has {size} bytes and {MAX_PROMPT_BYTES} is the "
            "most that a command line takes; send the text as a file"
        )
    return value


def _url(value: object, default: str) -> str:
    if value is None:
        return default
    if not isinstance(value, str) or not _URL.fullmatch(value):
        raise BadAssignment("cannot run the task: its orchestrator_url is no URL")
    try:
        parts = urlsplit(value)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise BadAssignment("cannot run the task: its orchestrator_url is no http or https URL")
    return value


def _timeout_s(value: object) -> float:
    if value is None:
        return DEFAULT_TIMEOUT_S
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadAssignment("cannot run the task: its timeout_seconds is no number")
    if not 0 < value <= MAX_TIMEOUT_S:
        raise BadAssignment(
            f"cannot run the task: its timeout_seconds must lie between 0 and {MAX_TIMEOUT_S}"
        )
    return value


def _files(names: object, checksums: object) -> tuple[TaskFile, ...]:
    if names is None:
        names = []
    if not isinstance(names, list) or len(names) > MAX_FILES:
        raise BadAssignment(f"cannot run the task: its files are no list of up to {MAX_FILES}")
    checked = [_file_name(name) for name in names]
    met: set[str] = set()
    for name in checked:
        key = unicodedata.normalize("NFC", name).casefold()
        if key in met:
            raise BadAssignment(f"cannot run the task: two of its files meet in the name {name!r}")
        met.add(key)
    # An empty list is how an orchestrator without checksums may say so.
    if checksums is None or checksums == []:
        return tuple(TaskFile(name, None) for name in checked)
    if not isinstance(checksums, list) or len(checksums) != len(checked):
        raise BadAssignment("cannot run the task: its file_checksums do not match its files")
    return tuple(
        TaskFile(name, _sha256(checksum, name))
        for name, checksum in zip(checked, checksums, strict=True)
    )


def _file_name(value: Any) -> str:  # noqa: ANN401 - straight from JSON
    if not isinstance(value, str):
        raise BadAssignment("cannot run the task: a file's name is no text")
    if value in {"", ".", ".."} or "/" in value or "\\" in value:
        raise BadAssignment(f"cannot run the task: the file name {value[:80]!r} is no plain name")
    if any(unicodedata.category(character).startswith("C") for character in value):
        raise BadAssignment(
            f"cannot run the task: the file name {value[:80]!r} has control characters in it"
        )
    if _DEVICE_NAME.fullmatch(value):
        raise BadAssignment(f"cannot run the task: the file name {value!r} is a device's")
    if len(_utf8(value, "file name")) > MAX_FILE_NAME_BYTES:
        raise BadAssignment(
            f"cannot run the task: the file name {value[:40]!r}… is longer than "
            f"{MAX_FILE_NAME_BYTES} bytes"
        )
    return value


def _sha256(value: object, name: str) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise BadAssignment(f"cannot run the task: the checksum of {name!r} is no SHA-256")
    return value.lower()


def _utf8(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise BadAssignment(f"cannot run the task: its {what} is no valid Unicode") from None
