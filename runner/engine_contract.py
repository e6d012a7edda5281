"""What the runner asks of a container engine, whichever it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from runner.container import Container, ContainerSpec, EngineFacts
from runner.settings import PullPolicy


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
