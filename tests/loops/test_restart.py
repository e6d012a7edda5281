"""Whatever state a runner leaves behind, the next one brings the task to its true end, once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from runner.engine.base import ContainerSpec
from runner.errors import EngineError
from runner.model import Limits, TaskState
from runner.state_dir import run_folder
from runner.workspace.download import CONTAINER_HOME
from tests.harness.host import IMAGE, container_of
from tests.harness.until import until
from tests.loops.steps import leave_task

if TYPE_CHECKING:
    from tests.harness.host import Host

pytestmark = pytest.mark.anyio

ACCEPTED, STARTING, RUNNING = TaskState.ACCEPTED, TaskState.STARTING, TaskState.RUNNING
HOUR_S = 3600.0
NONE, CREATED, VANISHED = "none", "created", "vanished"
STILL, GOOD, BAD, FULL = "[wait-for go]", "[print-line well]", "[fail 3]", "[eat-memory 9]"
"""Prompts of containers: one that runs, and three that have ended."""

COMPLETED, FAILED, OOM = "success", "failed: exit code 3", "out_of_memory: the kernel killed it"
GONE = "lost: container is gone (host restarted?)"


@dataclass(frozen=True)
class Row:
    """What there is at a start, and what must come of it."""

    state: TaskState
    container: str
    end: str
    """How the final message begins, or `success`."""
    starts: int
    """How often the task was started in all."""
    other_boot: bool = False
    cid_file: bool = False

    def __str__(self) -> str:
        """Name the row."""
        boot = " after a restart of the host" if self.other_boot else ""
        cid = ", its id written down" if self.cid_file else ""
        return f"{self.state.value}, container {self.container}{cid}{boot}"


TABLE = [
    Row(ACCEPTED, NONE, COMPLETED, 1),
    Row(ACCEPTED, CREATED, COMPLETED, 1),
    Row(ACCEPTED, STILL, COMPLETED, 1),
    Row(ACCEPTED, GOOD, COMPLETED, 1),
    Row(ACCEPTED, BAD, FAILED, 1),
    Row(ACCEPTED, VANISHED, GONE, 1),
    Row(STARTING, NONE, COMPLETED, 1),
    Row(STARTING, NONE, COMPLETED, 1, other_boot=True),
    Row(STARTING, NONE, "lost: its container was removed", 0, cid_file=True),
    Row(STARTING, NONE, "lost: its container was removed", 0, cid_file=True, other_boot=True),
    Row(STARTING, CREATED, COMPLETED, 1),
    Row(STARTING, CREATED, COMPLETED, 1, cid_file=True),
    Row(STARTING, CREATED, "lost: the host restarted", 0, other_boot=True),
    Row(STARTING, CREATED, "lost: the host restarted", 0, cid_file=True, other_boot=True),
    Row(STARTING, STILL, COMPLETED, 1),
    Row(STARTING, STILL, COMPLETED, 1, cid_file=True),
    Row(STARTING, STILL, "lost: the host restarted", 1, other_boot=True),
    Row(STARTING, GOOD, COMPLETED, 1, cid_file=True),
    Row(STARTING, GOOD, COMPLETED, 1, other_boot=True),
    Row(STARTING, BAD, FAILED, 1),
    Row(STARTING, FULL, OOM, 1),
    Row(STARTING, VANISHED, GONE, 1),
    Row(STARTING, VANISHED, GONE, 1, other_boot=True),
    Row(RUNNING, NONE, GONE, 0),
    Row(RUNNING, NONE, GONE, 0, other_boot=True),
    Row(RUNNING, NONE, GONE, 0, cid_file=True),
    Row(RUNNING, CREATED, GONE, 0),
    Row(RUNNING, CREATED, GONE, 0, other_boot=True),
    Row(RUNNING, STILL, COMPLETED, 1),
    Row(RUNNING, STILL, COMPLETED, 1, cid_file=True),
    Row(RUNNING, STILL, "lost: the host restarted", 1, other_boot=True),
    Row(RUNNING, GOOD, COMPLETED, 1),
    Row(RUNNING, BAD, FAILED, 1),
    Row(RUNNING, BAD, FAILED, 1, other_boot=True),
    Row(RUNNING, FULL, OOM, 1),
    Row(RUNNING, VANISHED, GONE, 1),
    Row(RUNNING, VANISHED, GONE, 1, other_boot=True),
]

ENDED = [NONE, CREATED, STILL, GOOD, BAD, VANISHED]


async def leave_container(host: Host, container: str) -> None:
    """Have the container that the earlier runner started, as it is now."""
    if container == NONE:
        return
    name = container_of("t-1")
    prompt = {CREATED: STILL, VANISHED: STILL}.get(container, container)
    spec = ContainerSpec(
        name=name,
        image=IMAGE,
        arguments=("--accept-license", "--task", prompt),
        volumes={host.home: CONTAINER_HOME},
        limits=Limits(memory="8m"),
        run_args=("--entrypoint", "/none") if container == CREATED else (),
    )
    if container == CREATED:
        with pytest.raises(EngineError):
            await host.engine.run(spec)
        return
    await host.engine.run(spec)
    if container == VANISHED:
        host.engine.vanish(name)
    elif container != STILL:
        await host.engine.wait(name)


@pytest.mark.parametrize("row", TABLE, ids=str)
async def test_task_is_brought_to_its_true_end_and_was_started_once_at_most(
    host: Host, row: Row
) -> None:
    await leave_task(host, row.state, other_boot=row.other_boot)
    await leave_container(host, row.container)
    if row.cid_file:
        run_folder(host.state_dir).mkdir()
        (run_folder(host.state_dir) / "t-1.cid").write_text("c0ffee")
    async with host.runner():
        if row.container == STILL and not row.other_boot:
            await host.wait_for_state("t-1", "running")
            await host.clock.settle()
            host.let_go()
        end = await host.wait_for_end()

    outcome = "success" if end["status"] == "success" else end["message"]
    assert outcome.startswith(row.end)
    assert host.starts_of("t-1") == row.starts
    assert await host.engine.inspect(container_of("t-1")) is None
    assert not list(run_folder(host.state_dir).iterdir())


@pytest.mark.parametrize("container", ENDED)
async def test_ended_task_is_reported_and_its_container_removed_whatever_it_is(
    host: Host, container: str
) -> None:
    await leave_task(host, TaskState.ENDED)
    await leave_container(host, container)
    starts = host.starts_of("t-1")
    async with host.runner():
        end = await host.wait_for_end()

    assert end["message"] == "failed: exit code 9"
    assert host.starts_of("t-1") == starts
    assert await host.engine.inspect(container_of("t-1")) is None


@pytest.mark.parametrize(
    ("by_s", "is_journal_lost"),
    [(0, False), (HOUR_S, False), (-HOUR_S, False), (0, True)],
    ids=["same clock", "clock set forth", "clock set back", "journal lost"],
)
async def test_adopted_task_has_what_is_left_of_its_time_though_the_clock_was_set(
    host: Host,
    by_s: float,
    is_journal_lost: bool,  # noqa: FBT001 - pytest passes it
) -> None:
    async with host.running_task("[hang]", {"timeout_seconds": 600}):
        await host.clock.settle()
        await host.clock.advance(300)
    host.clock.set_wall(by_s)
    if is_journal_lost:
        host.damage_journal()
    async with host.runner():
        await host.clock.advance(299)
        assert host.state_of("t-1") == "running"
        await host.clock.advance(2)

        assert (await host.wait_for_end())["message"].startswith("timed_out: ")
    assert host.starts_of("t-1") == 1


async def test_time_that_is_up_at_the_start_ends_the_task_at_once(host: Host) -> None:
    async with host.running_task("[hang]", {"timeout_seconds": 100}):
        pass
    await host.clock.advance(500)
    async with host.runner():
        assert (await host.wait_for_end())["message"].startswith("timed_out: ")


async def test_task_taken_over_occupies_its_slot_before_work_is_asked_for(host: Host) -> None:
    await leave_task(host, RUNNING)
    await leave_container(host, STILL)
    host.orchestrator.offer("t-2")
    async with host.runner():
        await until(lambda: "busy" in host.orchestrator.beats())
        await host.clock.advance(50)
        assert host.orchestrator.queue
        host.let_go()
        await host.wait_for_end("t-2")
