"""What the runner asks of a container engine, whichever it is, and what a container is to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol

from runner.model import Limits, PullPolicy

SIGNALLED = frozenset({137, 143})
"""Exit codes of a program that KILL or TERM has ended."""
LABEL_TASK = "victoria-runner.task-id"
LABEL_NODE = "victoria-runner.node-id"
LABEL_RUNNER = "victoria-runner.runner-id"
LABEL_ORCHESTRATOR = "victoria-runner.orchestrator-url"
LABEL_TIMEOUT = "victoria-runner.timeout-s"
LABEL_BOOT = "victoria-runner.boot-id"
KEY_VARIABLE = "NODE_API_KEY"
SECRETS_VARIABLE = "VICTORIA_SECRETS"
"""Names the variables of the operator's env file whose values the reporter blanks as we do."""


def ignored() -> None:
    """Do nothing, where a moment is of no interest."""


class Engine(Protocol):
    """What the runner asks of a container engine; tests/contract/ holds each to the same.

    Every method but `wait` answers within a deadline of its own, or raises EngineSilent: then
    nothing is known. Any may raise EngineError with the engine's own words.
    """

    @property
    def kind(self) -> str:
        """Give podman or docker."""

    async def facts(self) -> EngineFacts:
        """Ask the engine about itself."""

    async def fetch_image(self, image: str, policy: PullPolicy) -> None:
        """Fetch the image where the policy says so; ImageMissing if it is not on the host then."""

    async def run(self, spec: ContainerSpec) -> str:
        """Start a container that outlives us and give its id; NameInUse if there is one."""

    async def inspect(self, name: str) -> Container | None:
        """Say what is true of the container; None when the engine knows no such one."""

    async def wait(self, name: str, on_exit: Callable[[], None] = ignored) -> None:
        """Return some time after the container has ended. Neither promptness nor truth is sure.

        `on_exit` is sure: it is called when the container's own process is gone, though the engine
        may still be noting how. Where that cannot be told it is not called.
        """

    async def stop(self, name: str) -> None:
        """Send TERM, after ten seconds KILL. Nothing happens to one that is not there."""

    async def remove(self, name: str) -> None:
        """Remove the container, running or not. Nothing happens to one that is not there."""

    async def remove_stopped(self, name: str) -> None:
        """Remove the container unless it runs: EngineError then, and it goes on running."""

    async def labelled(self, label: str, value: str) -> list[str]:
        """Give the names of all containers, running or not, that carry the label."""

    async def last_output(self, name: str, lines: int) -> str:
        """Give the last lines that the container wrote, standard output and error together."""


class Phase(str, Enum):
    """What is true of a container, once the engine's word has been held against the facts."""

    CREATED = "created"
    """It never ran."""
    RUNNING = "running"
    """Its processes are there."""
    EXITED = "exited"
    """It ended, and the engine wrote down when."""
    VANISHED = "vanished"
    """Its processes are gone and nobody saw how it ended, whatever the engine says."""


@dataclass(frozen=True)
class Container:
    """A container as it stands; moments are seconds since the epoch."""

    container_id: str
    name: str
    phase: Phase
    exit_code: int
    out_of_memory: bool
    started_at: float | None
    finished_at: float | None
    labels: Mapping[str, str]
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What it was started with. There are secrets among them."""


@dataclass(frozen=True)
class ContainerSpec:
    """What a container is to be started with."""

    name: str
    image: str
    arguments: tuple[str, ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    env_files: tuple[Path, ...] = ()
    volumes: Mapping[Path, str] = field(default_factory=dict)
    timeout_s: float | None = None
    """After so long the engine itself ends the container, if it knows how to (podman)."""
    limits: Limits = Limits()  # noqa: RUF009 - a named tuple: it cannot be changed
    run_args: tuple[str, ...] = ()
    cid_file: Path | None = None
    """Where the engine writes the container's id before it starts it; must not exist."""
    watcher_file: Path | None = None
    """Where podman writes the id of the process that watches the container; gone after `run`."""


@dataclass(frozen=True)
class EngineFacts:
    """What the engine says of itself."""

    version: str
    is_rootless: bool
    cgroup_manager: str
    is_remote: bool = False
    """Its containers' process ids are not this host's."""
    has_user_ids: bool = True
    """False when a rootless engine has no user ids to give to containers."""


def container_name(task_id: str) -> str:
    """Give the one name that a task's container can have on an engine."""
    return f"victoria-{task_id}"
