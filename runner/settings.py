"""What the operator asked for, checked once and frozen."""

from __future__ import annotations

import math
import os
import re
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from runner.errors import ConfigurationError
from runner.model import UNLIMITED, Limits, PullPolicy
from runner.redaction import Secret

DEFAULT_IMAGE = "ghcr.io/elcanotek/victoria-terminal:latest"
DEFAULT_VICTORIA_HOME = "~/Victoria"
DEFAULT_POLL_INTERVAL_S = 30.0
DEFAULT_HEARTBEAT_INTERVAL_S = 15.0
DEFAULT_MIN_FREE_DISK = 1 << 30
_ENV_NAME = re.compile(r"[^\s=#\ufeff][^\s=]*")
_SIZE = re.compile(r"(\d+)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_PRINTABLE_ENOUGH = re.compile(r"[^\x00-\x1f\x7f]*")
_HEADER_SAFE = re.compile(r"[\x21-\x7e]+")
_MEMORY = re.compile(r"\d+(?:\.\d+)?(?:[bkmgtp]|[kmgtp]i?b)?", re.IGNORECASE)
_GPUS = re.compile(r"all|[\w:.-]+(?:,[\w:.-]+)*", re.ASCII)
_RUNNERS_OWN = frozenset(
    {
        *("--cidfile", "--conmon-pidfile", "--detach", "-d", "--name", "--pull"),
        *("--replace", "--restart", "--rm"),
    }
)
"""With --rm nobody could say how a container ended; with --restart it would run again."""


@dataclass(frozen=True)
class Settings:
    """Everything that a run of the runner depends on; see the command line for the meanings.

    Intervals are in seconds, sizes in bytes.
    """

    orchestrator_url: str
    name: str
    victoria_home: Path
    state_dir: Path
    registration_token: Secret = field(default_factory=lambda: Secret(""))
    poll_interval_s: float = DEFAULT_POLL_INTERVAL_S
    heartbeat_interval_s: float = DEFAULT_HEARTBEAT_INTERVAL_S
    container_image: str = DEFAULT_IMAGE
    env_file: Path | None = None
    container_runtime: str = "auto"
    max_tasks: int = 1
    tags: Mapping[str, str] = field(default_factory=dict)
    capabilities: tuple[str, ...] = ()
    pull: PullPolicy = PullPolicy.NEWER
    limits: Limits = UNLIMITED
    run_args: tuple[str, ...] = ()
    ca_file: Path | None = None
    min_free_disk: int = DEFAULT_MIN_FREE_DISK
    allow_images: tuple[str, ...] = ()
    once: bool = False


def check_name(name: str) -> str:
    """Give the node's name, or say why it cannot be one.

    Raises:
        ConfigurationError: it is empty, longer than 255 characters or has control characters.
    """
    if not name.strip() or len(name) > 255 or not _PRINTABLE_ENOUGH.fullmatch(name):  # noqa: PLR2004 - the length is said in the sentence
        raise ConfigurationError(
            f"cannot use --name {name[:60]!r}: give 1 to 255 characters without line breaks"
        )
    return name


def check_tags(pairs: tuple[str, ...]) -> dict[str, str]:
    """Give the tags as a mapping.

    Raises:
        ConfigurationError: one is not KEY=VALUE, or a key is given twice.
    """
    tags: dict[str, str] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip() or not _PRINTABLE_ENOUGH.fullmatch(pair):
            raise ConfigurationError(f"cannot use --tag {pair!r}: give it as KEY=VALUE")
        if key in tags:
            raise ConfigurationError(f"cannot use --tag {pair!r}: the key {key!r} is given twice")
        tags[key] = text
    return tags


def check_token(text: str, source: str) -> Secret:
    """Give the registration token without the white space around it.

    Raises:
        ConfigurationError: it is empty or has characters that no HTTP header can carry. The
            sentence names the source, never the token.
    """
    token = text.strip()
    if not token:
        raise ConfigurationError(f"cannot use the registration token from {source}: it is empty")
    if not _HEADER_SAFE.fullmatch(token):
        raise ConfigurationError(
            f"cannot use the registration token from {source}: it has blanks, line breaks or "
            "non-ASCII characters inside"
        )
    return Secret(token)


def read_token_file(path: Path) -> Secret:
    """Read the registration token from a file.

    Raises:
        ConfigurationError: the file cannot be read, or does not hold one token.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"cannot read --registration-token-file {path}: {_reason(error)}"
        ) from error
    return check_token(text, str(path))


def check_env_file(path: Path) -> Path:
    """Give the path of a file that both engines read alike: NAME=VALUE lines, # for comments.

    Raises:
        ConfigurationError: it cannot be read, or a line of it is something else. The sentence has
            the line's number and not its text, which may be a secret.
    """
    try:
        text = path.read_bytes().decode()  # read_text would take a bare \r for a line's end
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read --env-file {path}: {_reason(error)}") from error
    if "\x00" in text:
        raise ConfigurationError(f"cannot use --env-file {path}: it has a NUL character in it")
    for number, line in enumerate(text.split("\n"), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        name, equals, _ = stripped.partition("=")
        if not equals or not _ENV_NAME.fullmatch(name) or "\r" in stripped:
            raise ConfigurationError(
                f"cannot use --env-file {path}: line {number} is not NAME=VALUE"
            )
    return path.resolve()


def check_readable(path: Path, option: str) -> Path:
    """Give the absolute path of a file that can be opened.

    Raises:
        ConfigurationError: it cannot be opened for reading.
    """
    try:
        with path.open("rb"):
            return path.resolve()
    except OSError as error:
        raise ConfigurationError(f"cannot read {option} {path}: {_reason(error)}") from error


def check_image(image: str, allowed: tuple[str, ...]) -> str:
    """Give the image's name when local policy allows it.

    Raises:
        ConfigurationError: it is no image name, or no --allow-image pattern matches it.
    """
    if not image or image.startswith("-") or not _HEADER_SAFE.fullmatch(image):
        raise ConfigurationError(f"cannot use --container-image {image!r}: it is no image name")
    if allowed and not any(fnmatchcase(image, pattern) for pattern in allowed):
        raise ConfigurationError(
            f"cannot use --container-image {image}: no --allow-image pattern matches it"
        )
    return image


def parse_size(text: str) -> int:
    """Read a number of bytes such as 500M or 2GiB; the units are powers of 1024.

    Raises:
        ValueError: it is no such number.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no size: give a number with K, M, G or T, such as 2G")
    power = " kmgt".index(match[2].lower() or " ")
    return int(match[1]) << (10 * power)


def make_folder(path: Path, option: str) -> Path:
    """Make a folder that only we may enter, if it is not there, and see that we can write in it.

    Raises:
        ConfigurationError: it cannot be made or written in.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"cannot make {option} {path}: {_reason(error)}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"cannot write in {option} {path}: it belongs to another user; "
            "choose another folder or run as its owner"
        )
    return path.resolve()


def check_mountable(path: Path, option: str) -> Path:
    """Give the absolute path of a folder that the engines can be told to mount.

    Raises:
        ConfigurationError: it leads nowhere, or has a colon in it, where the engines divide a
            volume's words.
    """
    try:
        path = path.resolve()
        # Of a link to itself Python 3.13 says nothing before this, older ones say RuntimeError.
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            path.stat()
    except (OSError, RuntimeError) as error:
        raise ConfigurationError(f"cannot use {option} {path}: {_reason(error)}") from error
    if ":" in str(path):
        raise ConfigurationError(
            f"cannot use {option} {path}: no engine mounts a path with a colon; choose another"
        )
    return path


def default_name() -> str:
    """Give the host's name, which is the node's name unless another is given."""
    return socket.gethostname()


def default_state_dir() -> Path:
    """Give systemd's state folder for the unit, else the user's own by the XDG rules.

    Raises:
        ConfigurationError: it is said to be in the home of somebody who has none.
    """
    from_systemd = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    if from_systemd:
        return Path(from_systemd)
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return in_home(Path(base), "the XDG state folder") / "victoria-runner"


def in_home(path: Path, option: str) -> Path:
    """Give a path with the user's home in the place of a ~ at its beginning.

    Raises:
        ConfigurationError: there is no such user, or the user has no home.
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ConfigurationError(
            f"cannot use {option} {path}: there is no such user, or no home; give the whole path"
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)


def check_limits(memory: str | None, cpus: str | None, gpus: str | None) -> Limits:
    """Give the limits, or say which of them no engine takes.

    Raises:
        ConfigurationError: one is no limit.
    """
    if memory is not None and not (_MEMORY.fullmatch(memory) and memory.lower().strip("0.bkmgtpi")):
        raise ConfigurationError(
            f"cannot use --memory {memory!r}: give a number with k, m or g, such as 8g"
        )
    if cpus is not None and not _is_positive(cpus):
        raise ConfigurationError(
            f"cannot use --cpus {cpus!r}: give a number of cores, such as 2 or 0.5"
        )
    if gpus is not None and not _GPUS.fullmatch(gpus):
        raise ConfigurationError(
            f"cannot use --gpus {gpus!r}: give all, or indices with commas, such as 0,1"
        )
    return Limits(memory, cpus, gpus)


def check_run_args(arguments: Sequence[str]) -> tuple[str, ...]:
    """Give them, or say which would take out of the runner's hands what it answers for.

    Raises:
        ConfigurationError: one of them is such.
    """
    for argument in arguments:
        if argument.partition("=")[0] in _RUNNERS_OWN:
            raise ConfigurationError(
                f"cannot use --run-arg {argument}: the runner itself names, starts and removes the "
                "containers; leave it out"
            )
    return tuple(arguments)


def _is_positive(text: str) -> bool:
    try:
        number = float(text)
    except ValueError:
        return False
    return math.isfinite(number) and number > 0
