"""The interface of a container engine, and the values that it takes and returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import NamedTuple, Protocol

from runner.engine.progress import PullProgress
from runner.model import UNLIMITED, Hardening, Limits, PullPolicy

SIGNALLED = frozenset({137, 143})
"""Exit codes of a program that KILL or TERM has ended."""
LABEL_TASK = "victoria-runner.task-id"
LABEL_NODE = "victoria-runner.node-id"
LABEL_RUNNER = "victoria-runner.runner-id"
LABEL_ORCHESTRATOR = "victoria-runner.orchestrator-url"
LABEL_TIMEOUT = "victoria-runner.timeout-s"
LABEL_BOOT = "victoria-runner.boot-id"
LABEL_IMAGE = "victoria-runner.image"
"""The image as the operator named it: podman completes a name, and a tag may move."""
LABEL_KEY = "victoria-runner.key"
"""Set to OWN_KEY on a container whose key is its task's and not the node's."""
OWN_KEY = "task"
LABEL_PROBE = "victoria-runner.probe"
KEY_VARIABLE = "NODE_API_KEY"


class Engine(Protocol):
    """A container engine; tests/contract/ holds the real ones and the fake to the same.

    A container is named by its id or its name. Only the id is sure to mean the same container.
    Every method but `wait` has a timeout and raises EngineSilent after it: then nothing is known.
    Any may raise EngineError with the engine's own text.
    """

    @property
    def kind(self) -> str:
        """Podman or docker."""

    @property
    def known_facts(self) -> EngineFacts | None:
        """What `facts` returned last; None before its first answer."""

    async def facts(self) -> EngineFacts:
        """Return what the engine says of itself."""

    async def inspect_image(self, image: str) -> ImageFacts:
        """Return what the engine says of an image on this host; raise ImageMissing."""

    async def fetch_image(
        self, image: str, policy: PullPolicy, progress: PullProgress | None = None
    ) -> None:
        """Pull the image where the policy says so; raise ImageMissing if it is not here then.

        With `newer`, raise ImageUnchecked if it is here and its registry cannot be asked.
        `progress` has how much is downloaded, as far as the engine shows it.
        """

    async def image_user(self, image: str) -> str:
        """Return the USER of an image that is here, empty for root; raise ImageMissing."""

    async def run(self, spec: ContainerSpec) -> str:
        """Start a container that outlives the runner, and return its id; raise NameInUse."""

    async def inspect(self, name: str) -> Container | None:
        """Return what is true of the container; None when the engine knows no such container."""

    async def wait(self, name: str) -> bool:
        """Wait for the container to exit. May return early or late: the caller must inspect it.

        Return True if it has certainly exited, though the engine may still be noting how.
        """

    async def stop(self, name: str) -> None:
        """Send TERM, and KILL after the grace; a container that is not there is not an error."""

    async def remove(self, name: str) -> None:
        """Remove the container, running or not; one that is not there is not an error."""

    async def remove_stopped(self, name: str) -> None:
        """Remove the container; raise EngineError if it runs, and leave it running."""

    async def images(self) -> dict[str, bool]:
        """Return the ids of the images on this host, and whether each has a tag."""

    async def remove_image(self, image_id: str) -> bool:
        """Remove an image that has no tag and no container; return whether it was removed."""

    async def labelled(self, label: str, value: str) -> list[str]:
        """Return the names of all containers, running or not, that carry the label."""

    async def last_output(self, name: str, lines: int) -> str:
        """Return the last lines of the container's standard output and error, as one text."""

    def output_reader(self, name: str) -> OutputReader:
        """Return what reads the container's output on from where a runner has come to."""

    async def copy_out(self, name: str, path: str, archive: Path, max_bytes: int) -> bool:
        """Write what is at a path in the container to a tar file, which must not exist.

        Return False if there is nothing. Links in the path lead nowhere outside of the container,
        and one at its end is not followed. Raise EngineError if it has more than `max_bytes`.
        """


GAP_MARK = "\n[… output is missing here: the engine had removed it from its log …]\n".encode()
AFTER_GAP = "!"
"""Begins the anchor of an entry of a log that follows a gap: its text begins with GAP_MARK."""


class OutputPosition(NamedTuple):
    """A place in a container's output: so many bytes after an entry of the engine's log begins.

    What `anchor` means is the engine's: it is stored, and passed to a reader of the same engine.
    """

    anchor: str = ""
    """Empty: the beginning of the output."""
    skip: int = 0


@dataclass(frozen=True)
class OutputPart:
    """What follows a position in a container's output; empty if there is no more yet."""

    pieces: tuple[tuple[OutputPosition, bytes], ...] = ()
    """Standard output and error in the engine's order, each piece with the place where it begins;
    no piece is empty. What the engine has removed since is replaced by GAP_MARK."""
    has_more: bool = False
    """Whether more may follow at once."""

    def position_of(self, index: int) -> OutputPosition:
        """Return the place of a byte in all pieces, or of the end of the last."""
        for position, piece in self.pieces:
            if index <= len(piece):
                return OutputPosition(position.anchor, position.skip + index)
            index -= len(piece)
        raise IndexError("a part has no such byte")


class OutputReader(Protocol):
    """Reads the output of one container."""

    async def read(self, position: OutputPosition, max_bytes: int) -> OutputPart:
        """Return up to about `max_bytes` that follow the position.

        Raises:
            EngineError: the engine does not answer.
        """

    async def look(self) -> None:
        """Note whether the engine begins another log, so that the rest of the last is not lost.

        To be called while nothing is read for a longer time.
        """

    def close(self) -> None:
        """Close what is open."""


class Phase(str, Enum):
    """What is true of a container, once the engine's output was checked against the host."""

    CREATED = "created"
    """It never ran."""
    RUNNING = "running"
    """Its processes are there."""
    EXITED = "exited"
    """It ended, and the engine noted when."""
    VANISHED = "vanished"
    """Its processes are gone and nobody saw how it ended, whatever the engine says."""
    HALF_REMOVED = "half_removed"
    """A killed removal left it without storage: nothing of it runs, only its name is taken."""


@dataclass(frozen=True)
class Container:
    """A container as it is now; moments are seconds since the epoch."""

    container_id: str
    name: str
    phase: Phase
    exit_code: int = 0
    out_of_memory: bool = False
    started_at: float | None = None
    finished_at: float | None = None
    image_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Its environment; there are secrets in it."""


@dataclass(frozen=True)
class ContainerSpec:
    """How to start a container."""

    name: str
    image: str
    arguments: tuple[str, ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    env_files: tuple[Path, ...] = ()
    volumes: Mapping[Path, str] = field(default_factory=dict)
    read_only: Mapping[Path, str] = field(default_factory=dict)
    """More volumes, in which the container may not write."""
    covered: tuple[str, ...] = ()
    """Folders that are empty and read-only for the container, but for volumes below them."""
    timeout_s: float | None = None
    """After this the engine itself ends the container (podman only); None or infinite: never."""
    limits: Limits = UNLIMITED
    hardening: Hardening = Hardening.DEFAULT
    run_args: tuple[str, ...] = ()
    cid_file: Path | None = None
    """Where the engine writes the container's id before it starts it; must not exist."""


@dataclass(frozen=True)
class EngineFacts:
    """What the engine says of itself."""

    version: str
    is_rootless: bool
    cgroup_manager: str
    is_remote: bool = False
    """Whether its containers' process ids are another host's."""
    has_user_ids: bool = True
    """Whether a rootless engine has subordinate user ids to give to containers."""
    storage: Path | None = None
    """The folder in which it keeps images; None if that is not this host's."""
    architecture: str = ""
    """The processor architecture of its host, if it names one."""
    can_limit_processes: bool = True
    """False where systemd does not delegate the cgroup controller `pids` to a rootless podman,
    which then starts no container with such a limit."""


@dataclass(frozen=True)
class ImageFacts:
    """What the engine says of an image."""

    image_id: str
    architecture: str
    """The processor architecture that it is for."""


ROOTFUL = (
    "%s runs as root: a task that breaks out of its container is root on this host; use rootless "
    "podman, and keep other work off this host"
)


def container_name(task_id: str) -> str:
    """Return the name of a task's container: an engine has one container of a name."""
    return f"victoria-{task_id}"
