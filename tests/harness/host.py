"""A host for the runner: its folders, engine and clock stay while runners come and go."""

import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import anyio
from anyio.abc import TaskGroup

from runner.api.client import OrchestratorClient
from runner.daemon import run
from runner.journal.journal import Journal
from runner.model import PullPolicy
from runner.node import Node, Problems, Slots
from runner.redaction import Secret
from runner.settings import Settings
from runner.systemd import Notifier, Watchdog
from runner.tasks.context import RunnerContext
from runner.tasks.image import ImageFetcher
from runner.timing import DEFAULT_TIMINGS, ChangeSignal, Timings
from tests.harness.clock import VirtualClock
from tests.harness.engine import FakeEngine
from tests.harness.loop import running_loop
from tests.harness.orchestrator import BEAT, FINAL, TOKEN, ScriptedOrchestrator
from tests.harness.until import DEADLINE_S, until

IMAGE = "localhost/victoria-fake:1"

Setting: TypeAlias = Any  # the value of a field of Settings


class HeardNotifier(Notifier):
    """Keeps the messages to systemd, and when the watchdog was fed."""

    def __init__(self, clock: VirtualClock, watchdog_s: float | None = None) -> None:
        super().__init__({} if watchdog_s is None else {"WATCHDOG_USEC": f"{watchdog_s * 1e6:.0f}"})
        self.messages: list[str] = []
        self.fed_at_s: list[float] = []
        self._clock = clock

    def notify(self, message: str) -> None:
        self.messages.append(message)
        if message == "WATCHDOG=1":
            self.fed_at_s.append(self._clock.uptime_s())


@dataclass
class Run:
    """One runner's life."""

    notifier: HeardNotifier
    exit_code: int | None = None
    error: Exception | None = None  # what it crashed with
    over: anyio.Event = field(default_factory=anyio.Event)

    async def end(self) -> int:
        """Wait until it ends by itself; return its exit code."""
        with anyio.fail_after(DEADLINE_S):
            await self.over.wait()
        if self.error is not None:
            raise self.error
        assert self.exit_code is not None
        return self.exit_code

    @property
    def is_ready(self) -> bool:
        return "READY=1" in self.notifier.messages


@dataclass
class Host:
    """What a runner finds when it starts."""

    folder: Path
    clock: VirtualClock
    engine: FakeEngine
    orchestrator: ScriptedOrchestrator
    group: TaskGroup

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def state_dir(self) -> Path:
        return self.folder / "state"

    def settings(self, **changed: Setting) -> Settings:
        usual = Settings(
            orchestrator_url=self.orchestrator.url,
            name="host-1",
            victoria_home=self.home,
            state_dir=self.state_dir,
            registration_token=Secret(TOKEN),
            container_image=IMAGE,
            pull=PullPolicy.NEVER,
            min_free_disk=0,
        )
        return replace(usual, **changed)

    @asynccontextmanager
    async def parts(self, journal: Journal, **changed: Setting) -> AsyncIterator[RunnerContext]:
        """Yield what one loop alone needs, with a journal of the test's own."""
        settings = self.settings(**changed)
        watchdog, changes = Watchdog(self.clock), ChangeSignal()
        problems = Problems(changes)
        url, clock = self.orchestrator.url, self.clock
        async with OrchestratorClient(url, clock=clock) as orchestrator:
            yield RunnerContext(
                settings=settings,
                clock=self.clock,
                engine=self.engine,
                image=ImageFetcher(
                    self.engine, IMAGE, settings.pull, problems, self.clock, DEFAULT_TIMINGS
                ),
                orchestrator=orchestrator,
                journal=journal,
                node=Node(settings, orchestrator, journal, self.clock, watchdog, problems),
                slots=Slots(settings.max_tasks, changes),
                problems=problems,
                changes=changes,
                outbox=ChangeSignal(),
                watchdog=watchdog,
                timings=DEFAULT_TIMINGS,
                runner_id="runner-1",
            )

    @asynccontextmanager
    async def runner(
        self,
        *,
        watchdog_s: float | None = None,
        timings: Timings = DEFAULT_TIMINGS,
        **changed: Setting,
    ) -> AsyncIterator[Run]:
        """Run a runner until it ends or the block does; then it is gone at once."""
        life = Run(HeardNotifier(self.clock, watchdog_s))
        scope = anyio.CancelScope()
        self.group.start_soon(self._live, life, scope, self.settings(**changed), timings)
        try:
            yield life
        finally:
            scope.cancel()
            with anyio.fail_after(DEADLINE_S, shield=True):
                await life.over.wait()
        if life.error is not None:
            raise life.error

    @asynccontextmanager
    async def running_task(
        self,
        prompt: str = "[wait-for go]",
        assigned: Mapping[str, object] | None = None,
        **changed: Setting,
    ) -> AsyncIterator[Run]:
        """Run a runner whose task t-1 is running; `assigned` are more fields of its assignment."""
        self.orchestrator.offer("t-1", prompt, **assigned or {})
        async with self.runner(**changed) as life:
            await self.wait_for_state("t-1", "running")
            yield life

    async def finish_task(
        self,
        prompt: str = "do it",
        assigned: Mapping[str, object] | None = None,
        **changed: Setting,
    ) -> dict[str, Any]:
        self.orchestrator.offer("t-1", prompt, **assigned or {})
        async with self.runner(**changed):
            return await self.wait_for_end("t-1")

    async def _live(
        self, life: Run, scope: anyio.CancelScope, settings: Settings, timings: Timings
    ) -> None:
        notifier, clock = life.notifier, self.clock
        try:
            with scope:
                life.exit_code = await run(settings, self.engine, notifier, clock, timings)
        except Exception as error:  # noqa: BLE001 - it is raised where the test waits for the end
            life.error = error
            self.clock.fail(error)
        finally:
            life.over.set()

    def rows(self, query: str) -> list[dict[str, Any]]:
        """Read the journal as it stands."""
        try:
            journal = sqlite3.connect(f"file:{self.state_dir}/journal.sqlite3?mode=ro", uri=True)
            with closing(journal):
                journal.row_factory = sqlite3.Row
                return [dict(row) for row in journal.execute(query)]
        except sqlite3.DatabaseError:
            return []  # it is being made

    def change(self, statement: str) -> None:
        with closing(sqlite3.connect(self.state_dir / "journal.sqlite3")) as journal, journal:
            journal.execute(statement)

    def damage_journal(self) -> None:
        (self.state_dir / "journal.sqlite3").write_bytes(b"not a journal any more" * 300)

    def state_of(self, task_id: str) -> str | None:
        rows = self.rows("SELECT task_id, state FROM tasks")
        return {row["task_id"]: row["state"] for row in rows}.get(task_id)

    def starts_of(self, task_id: str) -> int:
        return self.engine.starts[container_of(task_id)]

    def let_go(self, name: str = "go") -> None:
        (self.home / name).touch()

    async def wait_for_state(self, task_id: str, state: str) -> None:
        await until(lambda: self.state_of(task_id) == state)

    async def pass_time_until(self, condition: Callable[[], bool], step_s: float = 10.0) -> None:
        with anyio.fail_after(DEADLINE_S):
            while not condition():
                await self.clock.advance(step_s)
                await anyio.sleep(0.01)

    async def pass_time_until_closed(self, task_id: str, step_s: float = 10.0) -> None:
        await self.pass_time_until(lambda: self.state_of(task_id) == "closed", step_s)

    async def wait_for_end(self, task_id: str = "t-1") -> dict[str, Any]:
        """Wait until a task is closed; return the one final report that was accepted."""
        await self.wait_for_state(task_id, "closed")
        taken = self.orchestrator.taken
        (final,) = (one for one in taken if one["task_id"] == task_id and one["status"] in FINAL)
        return final

    async def wait_for_calls(self, path: str, count: int = 1) -> None:
        await until(lambda: self.orchestrator.count(path) >= count)

    async def wait_for_beat(self, status: str) -> None:
        seen = self.orchestrator.count(BEAT)
        await until(lambda: status in self.orchestrator.beats()[seen:])


@asynccontextmanager
async def hosting(
    folder: Path, clock: VirtualClock, orchestrator: ScriptedOrchestrator
) -> AsyncIterator[Host]:
    """Yield a host without a runner, in a folder that is made if need be."""
    async with FakeEngine(IMAGE, clock.wall_s) as engine, anyio.create_task_group() as group:
        host = Host(folder, clock, engine, orchestrator, group)
        running_loop().works_while(lambda: engine.is_at_work)
        host.home.mkdir(parents=True)
        host.state_dir.mkdir()
        yield host


def container_of(task_id: str) -> str:
    return f"victoria-{task_id}"
