"""What the operator asked for, checked once and frozen.

A value that cannot be used raises ConfigurationError; from the two functions that raise ValueError
it is an error of usage. A message names the option and what to do, and has no secret in it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from runner.errors import ConfigurationError
from runner.model import UNLIMITED, Hardening, HomeMode, Limits, PromptAs, PullPolicy
from runner.redaction import Secret

DEFAULT_IMAGE = "ghcr.io/elcanotek/victoria-terminal:latest"
DEFAULT_VICTORIA_HOME = "~/Victoria"
DEFAULT_POLL_INTERVAL_S: float = 30
DEFAULT_HEARTBEAT_INTERVAL_S: float = 15
DEFAULT_MIN_FREE_DISK = 1 << 30
DEFAULT_MAX_ARTIFACTS = 1000
DEFAULT_MAX_ARTIFACT_SIZE = 1 << 30
NO_TOKEN = Secret("")
MAX_NAME_CHARS = 255
"""Of a name, a capability, a tag's key and its value: as the reference orchestrator takes them."""
MAX_TAGS = 100
"""And as many capabilities."""
_SIZE = re.compile(r"(\d+)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_NO_CONTROL_CHARACTERS = re.compile(r"[^\x00-\x1f\x7f]*")
_HEADER_SAFE = re.compile(r"[\x21-\x7e]+")
_MEMORY = re.compile(r"\d+(?:\.\d+)?(?:[bkmgtp]|[kmgtp]i?b)?", re.IGNORECASE)
_GPUS = re.compile(r"all|[\w:.-]+(?:,[\w:.-]+)*", re.ASCII)
_VARIABLE_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_OWN_VARIABLES = ("VICTORIA_RUNNER_", "NOTIFY_SOCKET", "WATCHDOG_", "LC_ALL")
_RESERVED_RUN_ARGS = frozenset(
    {
        *("--cidfile", "--conmon-pidfile", "--detach", "-d", "--name", "--pull"),
        *("--replace", "--restart", "--rm"),
    }
)
"""With --rm the exit code of a container is lost; with --restart it would run a second time."""


@dataclass(frozen=True)
class Settings:
    """Everything that a run of the runner depends on; `runner --help` explains each option.

    Intervals are in seconds, sizes in bytes.
    """

    orchestrator_url: str
    name: str
    victoria_home: Path
    state_dir: Path
    registration_token: Secret = NO_TOKEN
    poll_interval_s: float = DEFAULT_POLL_INTERVAL_S
    heartbeat_interval_s: float | None = None
    """None: as the orchestrator asks (extension `pace`), or `DEFAULT_HEARTBEAT_INTERVAL_S`."""
    container_image: str = DEFAULT_IMAGE
    env_file: Path | None = None
    container_runtime: str = "auto"
    max_tasks: int = 1
    tags: Mapping[str, str] = field(default_factory=dict)
    capabilities: tuple[str, ...] = ()
    pull: PullPolicy = PullPolicy.NEWER
    limits: Limits = UNLIMITED
    run_args: tuple[str, ...] = ()
    engine_env: tuple[str, ...] = ()
    ca_file: Path | None = None
    min_free_disk: int = DEFAULT_MIN_FREE_DISK
    max_artifacts: int = DEFAULT_MAX_ARTIFACTS
    max_artifact_size: int = DEFAULT_MAX_ARTIFACT_SIZE
    home: HomeMode = HomeMode.SHARED
    allow_images: tuple[str, ...] = ()
    require_task_key: bool = False
    hardening: Hardening = Hardening.DEFAULT
    prompt_as: PromptAs = PromptAs.ARGUMENT
    trust_assignment_url: bool = False
    once: bool = False


# Texts


def check_name(name: str) -> str:
    """Return the node's name: 1 to 255 characters without control characters."""
    is_usable = name.strip() and _NO_CONTROL_CHARACTERS.fullmatch(name)
    if not is_usable or len(name) > MAX_NAME_CHARS:
        advice = f"give 1 to {MAX_NAME_CHARS} characters without line breaks"
        raise _unusable("--name", name[:60], advice)
    return _check_utf8("--name", name)


def parse_tags(pairs: Iterable[str]) -> dict[str, str]:
    """Return the tags of KEY=VALUE pairs as a mapping; no key may be given twice."""
    tags: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip() or not _NO_CONTROL_CHARACTERS.fullmatch(pair):
            raise _unusable("--tag", pair, "give it as KEY=VALUE")
        if key in tags:
            raise _unusable("--tag", pair, f"the key {key!r} is given twice")
        if max(len(key), len(value)) > MAX_NAME_CHARS:
            advice = f"give a key and a value of at most {MAX_NAME_CHARS} characters"
            raise _unusable("--tag", pair[:60], advice)
        _check_utf8("--tag", pair)
        tags[key] = value
    _check_count("--tag", len(tags))
    return tags


def check_capabilities(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the capabilities, which are as short and as few as tags."""
    for name in names:
        if len(name) > MAX_NAME_CHARS or not _NO_CONTROL_CHARACTERS.fullmatch(name):
            advice = f"give at most {MAX_NAME_CHARS} characters without line breaks"
            raise _unusable("--capability", name[:60], advice)
        _check_utf8("--capability", name)
    _check_count("--capability", len(names))
    return names


def parse_token(text: str, source: str) -> Secret:
    """Return the registration token without surrounding white space, fit for an HTTP header."""
    token = text.strip()
    if not token:
        raise ConfigurationError(f"cannot use the registration token from {source}: it is empty")
    if not _HEADER_SAFE.fullmatch(token):
        raise ConfigurationError(
            f"cannot use the registration token from {source}: it has blanks, line breaks or "
            "non-ASCII characters inside"
        )
    return Secret(token)


def check_image(image: str) -> str:
    """Return the name of an image, which the engine must not take for a flag."""
    if image.startswith("-") or not _HEADER_SAFE.fullmatch(image):
        advice = "it is not an image name; give it as REGISTRY/NAME:TAG"
        raise _unusable("--container-image", image, advice)
    return image


def check_image_policy(image: str, allowed: tuple[str, ...]) -> None:
    """Raise ConfigurationError if there are --allow-image patterns and none matches."""
    if allowed and not any(fnmatchcase(image, pattern) for pattern in allowed):
        raise ConfigurationError(
            f"cannot use --container-image {image}: no --allow-image pattern matches it"
        )


def check_memory(memory: str) -> str:
    """Return a memory limit that both engines take."""
    if not _MEMORY.fullmatch(memory) or not memory.lower().strip("0.bkmgtpi"):
        raise _unusable("--memory", memory, "give a number with k, m or g, such as 8g")
    return memory


def check_cpus(cpus: str) -> str:
    """Return a CPU limit that both engines take."""
    try:
        parse_positive(cpus)
    except ValueError as error:
        advice = "give a number of cores, such as 2 or 0.5"
        raise _unusable("--cpus", cpus, advice) from error
    return cpus


def check_gpus(gpus: str) -> str:
    """Return a choice of GPUs that both engines take."""
    if not _GPUS.fullmatch(gpus):
        raise _unusable("--gpus", gpus, "give all, or indices with commas, such as 0,1")
    return gpus


def check_run_arg(argument: str) -> str:
    """Return the argument; reject flags that the runner itself sets, such as --rm or --name."""
    if argument.partition("=")[0] in _RESERVED_RUN_ARGS:
        raise ConfigurationError(
            f"cannot use --run-arg {argument}: the runner itself names, starts and removes the "
            "containers; leave it out"
        )
    return argument


def check_engine_env(name: str) -> str:
    """Return the name of a variable that the engine may inherit; the runner's own are refused.

    They have secrets in them, and conmon would keep them.
    """
    if not _VARIABLE_NAME.fullmatch(name):
        advice = "give the name alone; the value is that of the runner's own environment"
        # The rest may be a secret.
        raise _unusable("--engine-env", name.partition("=")[0][:60], advice)
    if name.startswith(_OWN_VARIABLES):
        raise _unusable("--engine-env", name, "it is the runner's own; leave it out")
    return name


def parse_size(text: str) -> int:
    """Return the bytes of a size such as 500M or 2GiB (units of 1024), or raise ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size: give a number with K, M, G or T, such as 2G")
    power = " kmgt".index(match[2].lower() or " ")
    return int(match[1]) << (10 * power)


def parse_positive(text: str) -> float:
    """Return a number above 0 and below infinity, or raise ValueError."""
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None
    if not 0 < number < math.inf:
        raise ValueError(f"{text!r} is out of range: it must be more than 0")
    return number


def _check_utf8(option: str, text: str) -> str:
    # Python reads bytes of an argument that are not UTF-8 as characters that nothing can send.
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise _unusable(option, text[:60], "it is not UTF-8 text")
    return text


def _check_count(option: str, count: int) -> None:
    if count > MAX_TAGS:
        raise ConfigurationError(f"cannot use {option} {count} times: give at most {MAX_TAGS}")


def _unusable(option: str, text: str, advice: str) -> ConfigurationError:
    return ConfigurationError(f"cannot use {option} {text!r}: {advice}")


# Files and folders


def read_token_file(path: Path) -> Secret:
    """Return the registration token that a file holds."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"cannot read --registration-token-file {path}: {_reason(error)}"
        ) from error
    return parse_token(text, str(path))


def check_ca_file(path: Path) -> Path:
    """Return the absolute path of a file that can be read."""
    try:
        with path.open("rb"):
            return path.resolve()
    except OSError as error:
        raise ConfigurationError(f"cannot read --ca-file {path}: {_reason(error)}") from error


def expand_home(path: Path, option: str) -> Path:
    """Return the path with a leading ~ replaced by the user's home."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ConfigurationError(
            f"cannot use {option} {path}: there is no such user, or no home; give the whole path"
        ) from error


def make_folder(path: Path, option: str) -> Path:
    """Create a folder with mode 0700 unless it exists; return its absolute path if writable."""
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
    """Return the absolute path of a folder that an engine can mount, whether it exists or not."""
    try:
        path = path.resolve()
        # Before 3.13 a link to itself raises RuntimeError above, later only an OSError here.
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            path.stat()
    except (OSError, RuntimeError) as error:
        raise ConfigurationError(f"cannot use {option} {path}: {_reason(error)}") from error
    if ":" in str(path):
        raise ConfigurationError(
            f"cannot use {option} {path}: no engine mounts a path with a colon; choose another"
        )
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError(
            f"cannot use {option} {str(path)!r}: it is not UTF-8; choose another"
        ) from error
    return path


def default_state_dir() -> Path:
    """Return the state folder that systemd made for the unit, else the user's own (XDG)."""
    from_systemd = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    if from_systemd:
        return Path(from_systemd)
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return expand_home(Path(base), "the XDG state folder") / "victoria-runner"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
