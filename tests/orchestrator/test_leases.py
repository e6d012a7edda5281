"""Nobody is silent while the server is away: leases end only by what it could have heard."""

import operator
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from datetime import datetime, timedelta, timezone
from pathlib import Path

import anyio
import pytest
from sqlalchemy import select, update

from orchestrator.app import create_app
from orchestrator.db.database import Database
from orchestrator.db.tables import Node, Task
from orchestrator.model import NodeStatus, TaskStatus
from orchestrator.scheduling.leases import RUNNER_BACKOFF_S, Presence, end_leases
from orchestrator.scheduling.lifecycle import begin
from orchestrator.services import services_of
from orchestrator.settings import DEFAULT_HEARTBEAT_TIMEOUT_S, Settings
from orchestrator.sweeper import sweep
from runner.timing import DEFAULT_TIMINGS
from tests.harness.until import until
from tests.orchestrator.serving import RegisteredNode, RunningOrchestrator

A_DAY = timedelta(days=1)
STARTED_AT = datetime(2026, 1, 1, tzinfo=timezone.utc)
LONG_AGO = STARTED_AT - A_DAY
HEARTBEAT_TIMEOUT = timedelta(seconds=DEFAULT_HEARTBEAT_TIMEOUT_S)
PATIENCE = HEARTBEAT_TIMEOUT + timedelta(seconds=RUNNER_BACKOFF_S)
RUNNING, UNLIMITED, UNSTARTED = "running", "unlimited", "unstarted"


class SteppedClock:
    """The clock of a server's processes, which goes on when the test says so."""

    def __init__(self, workers: int) -> None:
        self.now = STARTED_AT
        self._readings = [0] * workers

    def of(self, worker: int) -> Callable[[], datetime]:
        def read() -> datetime:
            self._readings[worker] += 1
            return self.now

        return read

    async def advance(self, step: timedelta) -> None:
        """Set the clock; return once each process has swept at the new time."""
        self.now += step
        # One may have begun before.
        readings = [count + 2 for count in self._readings]
        await until(lambda: all(map(operator.ge, self._readings, readings)))

    async def pass_time(self, duration: timedelta) -> None:
        """Let time pass, with sweeps all along."""
        ends_at = self.now + duration
        while self.now < ends_at:
            await self.advance(min(timedelta(seconds=9), ends_at - self.now))


@asynccontextmanager
async def sweeping(
    data_dir: Path, url: str | None, workers: int
) -> AsyncIterator[tuple[Database, SteppedClock]]:
    """Run the sweeps of so many processes of one server."""
    settings = short(data_dir, url)
    clock = SteppedClock(workers)
    async with AsyncExitStack() as stack:
        services = [services_of(create_app(settings)) for _ in range(workers)]
        for one in services:
            stack.callback(one.database.close)
        group = await stack.enter_async_context(anyio.create_task_group())
        for worker, one in enumerate(services):
            group.start_soon(sweep, one, clock.of(worker))
        await clock.advance(timedelta(0))
        yield services[0].database, clock
        group.cancel_scope.cancel()


def short(data_dir: Path, url: str | None) -> Settings:
    return Settings(data_dir, "the-admin-key", None, url, lost_after_s=10, sweep_every_s=0.01)


def add_tasks(database: Database) -> None:
    """Add a node with a repeated task, one without a time limit, and one that has not started."""
    node = Node(id="node", api_key_hash="hash", hostname="host", name="node", os_type="linux")
    node.capabilities, node.tags, node.held_task_ids = [], {}, []
    node.status, node.registered_at = NodeStatus.BUSY, STARTED_AT
    node.last_heartbeat = STARTED_AT
    node.offline_at = STARTED_AT + HEARTBEAT_TIMEOUT
    running = Task(id=RUNNING, status=TaskStatus.RUNNING, timeout_seconds=60, recurrence="@hourly")
    unlimited = Task(id=UNLIMITED, status=TaskStatus.RUNNING, timeout_seconds=0)
    unstarted = Task(id=UNSTARTED, status=TaskStatus.ASSIGNED, timeout_seconds=60)
    begin(running, STARTED_AT)
    begin(unlimited, STARTED_AT)
    with database.writing() as session:
        for task in (running, unlimited, unstarted):
            task.prompt, task.priority = "p", 0
            task.created_by, task.assigned_node_id = "admin", node.id
            task.created_at = task.assigned_at = task.offered_at = STARTED_AT
        session.add_all([node, running, unlimited, unstarted])


def statuses(database: Database) -> dict[str, TaskStatus]:
    """Return the status of each task; a successor's id is replaced."""
    with database.reading() as session:
        rows = session.execute(select(Task.id, Task.status)).all()
    return {task_id if task_id in AS_BEFORE else "successor": status for task_id, status in rows}


AS_BEFORE = {
    RUNNING: TaskStatus.RUNNING,
    UNLIMITED: TaskStatus.RUNNING,
    UNSTARTED: TaskStatus.ASSIGNED,
}
GIVEN_UP = {
    RUNNING: TaskStatus.ERROR,
    UNLIMITED: TaskStatus.RUNNING,
    UNSTARTED: TaskStatus.PENDING,
    "successor": TaskStatus.PENDING,
}


@pytest.mark.anyio
async def test_server_that_was_suspended_or_whose_clock_was_set_first_hears_its_nodes(
    tmp_path: Path, postgresql_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with sweeping(tmp_path, postgresql_url, workers=2) as (database, clock):
        add_tasks(database)
        for step in (A_DAY, -A_DAY / 2, A_DAY):
            caplog.clear()
            await clock.advance(step)
            assert caplog.messages == ["server was away, or its clock set"] * 2
            assert statuses(database) == AS_BEFORE
        await clock.pass_time(HEARTBEAT_TIMEOUT)
        assert statuses(database) == AS_BEFORE | {UNSTARTED: TaskStatus.PENDING}
        await clock.pass_time(PATIENCE - HEARTBEAT_TIMEOUT - timedelta(seconds=1))
        assert statuses(database)[RUNNING] is TaskStatus.RUNNING
        await clock.pass_time(timedelta(seconds=1))
        assert statuses(database) == GIVEN_UP


def test_process_that_was_there_all_the_time_ends_what_another_must_not(
    tmp_path: Path, database_url: str | None
) -> None:
    settings = short(tmp_path, database_url)
    suspended, present = Presence(settings, STARTED_AT), Presence(settings, STARTED_AT)
    with closing(Database(tmp_path, database_url)) as database:
        add_tasks(database)
        for seconds in range(0, 300, 5):
            now = STARTED_AT + timedelta(seconds=seconds)
            assert not present.note_sweep(now)
        assert suspended.note_sweep(now)
        for presence, expected in ((suspended, AS_BEFORE), (present, GIVEN_UP)):
            with database.writing() as session:
                end_leases(session, settings, presence, now)
            assert statuses(database) == expected


@pytest.mark.settings(sweep_every_s=0.1, heartbeat_timeout_s=DEFAULT_HEARTBEAT_TIMEOUT_S)
def test_success_that_waited_in_an_outbox_while_the_server_was_down_is_taken(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id = orchestrator.assign(
        node, "running", recurrence="@hourly", scheduled_for=LONG_AGO.isoformat()
    )
    unstarted = orchestrator.assign(node)
    orchestrator.stop()
    with orchestrator.database() as database, database.writing() as session:
        session.execute(update(Node).values(last_heartbeat=LONG_AGO, offline_at=LONG_AGO))
        for name in ("assigned_at", "offered_at", "started_at", "overdue_at"):
            column = getattr(Task, name)
            session.execute(update(Task).where(column.is_not(None)).values({name: LONG_AGO}))
    orchestrator.start()
    # The node calls before its outbox is delivered, and has the task no longer.
    node.beat("busy", task_ids=[unstarted])
    # A sweep has passed once another task is lost.
    other = orchestrator.assign(orchestrator.register("other"), "running")
    orchestrator.change(update(Task).where(Task.id == other).values(overdue_at=LONG_AGO))
    orchestrator.wait_for_task(other, "error")
    assert {task["id"] for task in orchestrator.tasks()} == {task_id, unstarted, other}
    assert node.report(unstarted, "running")["status"] == "running"
    assert node.report(task_id, "success")["status"] == "success"
    repeated = [task["status"] for task in orchestrator.tasks() if "recurrence" in task]
    assert repeated == ["pending", "success"]


def test_patience_covers_the_longest_pause_of_a_runner() -> None:
    timings = DEFAULT_TIMINGS
    assert timings.retry_ceiling_s + timings.call_timeout_s <= RUNNER_BACKOFF_S
