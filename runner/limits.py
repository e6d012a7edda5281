"""What a task's container may use and is started with, checked once: not at every start."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from runner.errors import ConfigurationError

_MEMORY = re.compile(r"\d+(?:\.\d+)?(?:[bkmgtp]|[kmgtp]i?b)?", re.IGNORECASE)
_GPUS = re.compile(r"all|[\w:.-]+(?:,[\w:.-]+)*", re.ASCII)

_RUNNERS_OWN = frozenset(
    {
        *("--cidfile", "--conmon-pidfile", "--detach", "-d", "--name", "--pull"),
        *("--replace", "--restart", "--rm"),
    }
)
"""With --rm nobody could say how a container ended; with --restart it would run again."""


class Limits(NamedTuple):
    """What a task's container may use; None leaves it to the engine."""

    memory: str | None = None
    """As the engine's `--memory` takes it: a number with b, k, m or g."""
    cpus: str | None = None
    """As the engine's `--cpus` takes it: a number of cores, with a fraction if wanted."""
    gpus: str | None = None
    """`all`, or the devices' indices with commas between them."""


UNLIMITED = Limits()


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
