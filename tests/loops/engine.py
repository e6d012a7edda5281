"""The engine in memory, with doors that a test can shut and steps that it can break."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from typing import TYPE_CHECKING

import anyio

from tests.fakes.engine import FakeEngine

if TYPE_CHECKING:
    from collections.abc import Callable

    from runner.engine.base import Container, ContainerSpec, EngineFacts
    from runner.model import PullPolicy


class ObstructedEngine(FakeEngine):
    """Counts its calls; each can be held up before or after it has done its work, or fail."""

    def __init__(self, image: str, now: Callable[[], float]) -> None:
        """Have one image; `now` is the host's wall clock."""
        super().__init__(image, stop_grace_s=0.1, now=now)
        self.called: Counter[str] = Counter()
        self.waiting: Counter[str] = Counter()
        """How many callers stand before each shut door."""
        self.specs: dict[str, ContainerSpec] = {}
        """What each container was last started with."""
        self.variables: dict[str, dict[str, str]] = {}
        """What each container was last told."""
        self.false_ends = 0
        """How many of the next waits return though the container runs."""
        self._doors: dict[str, anyio.Event] = {}
        self._failures: defaultdict[str, deque[Exception]] = defaultdict(deque)
        self._broken: dict[str, Exception] = {}

    @property
    def names(self) -> list[str]:
        """The containers that there are."""
        return list(self._containers)

    # What tests do to it

    def shut(self, call: str) -> None:
        """Hold up calls: "run" before it does anything, "after run" before it answers."""
        self._doors.setdefault(call, anyio.Event())

    def open(self, call: str) -> None:
        """Let them go on."""
        self._doors.pop(call).set()

    def fail(self, call: str, *errors: Exception) -> None:
        """Have the next calls fail."""
        self._failures[call].extend(errors)

    def break_(self, call: str, error: Exception) -> None:
        """Have every call fail."""
        self._broken[call] = error

    def mend(self) -> None:
        """Have no call fail any more."""
        self._broken.clear()
        self._failures.clear()

    async def _enter(self, call: str) -> None:
        self.called[call] += 1
        await self._pass(call)
        if self._failures[call]:
            raise self._failures[call].popleft()
        if call in self._broken:
            error = self._broken[call]
            raise type(error)(*error.args)

    async def _pass(self, door: str) -> None:
        if door not in self._doors:
            return
        self.waiting[door] += 1
        try:
            await self._doors[door].wait()
        finally:
            self.waiting[door] -= 1

    # What the runner asks of it

    async def facts(self) -> EngineFacts:
        """Ask the engine about itself."""
        await self._enter("facts")
        return await super().facts()

    async def fetch_image(self, image: str, policy: PullPolicy) -> None:
        """Fetch the image."""
        await self._enter("fetch_image")
        await super().fetch_image(image, policy)

    async def run(self, spec: ContainerSpec) -> str:
        """Start a container."""
        await self._enter("run")
        container_id = await super().run(spec)
        self.specs[spec.name] = spec
        self.variables[spec.name] = dict(self._containers[spec.name].variables)
        await self._pass("after run")
        return container_id

    async def inspect(self, name: str) -> Container | None:
        """Say how it stands."""
        await self._enter("inspect")
        return await super().inspect(name)

    async def wait(self, name: str) -> bool:
        """Wait for its end."""
        await self._enter("wait")
        if self.false_ends:
            self.false_ends -= 1
            return False
        return await super().wait(name)

    async def stop(self, name: str) -> None:
        """Stop it."""
        await self._enter("stop")
        await super().stop(name)

    async def remove(self, name: str) -> None:
        """Remove it."""
        await self._enter("remove")
        await super().remove(name)

    async def remove_stopped(self, name: str) -> None:
        """Remove it unless it runs."""
        await self._enter("remove_stopped")
        await super().remove_stopped(name)

    async def labelled(self, label: str, value: str) -> list[str]:
        """List containers."""
        await self._enter("labelled")
        return await super().labelled(label, value)

    async def last_output(self, name: str, lines: int) -> str:
        """Give its last lines."""
        await self._enter("last_output")
        return await super().last_output(name, lines)
