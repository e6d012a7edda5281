"""Whatever state a runner leaves behind, the next one brings the task to its true end, once."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from runner.errors import EngineError
from runner.model import Limits, TaskState
from runner.state_dir import cid_file, run_folder
from tests.harness.host import Host, container_of
from tests.harness.orchestrator import POLL
from tests.harness.until import until
from tests.loops.steps import begin_and_leave, leave_task, note_container, start_container

pytestmark = pytest.mark.anyio

ACCEPTED, STARTING, RUNNING = TaskState.ACCEPTED, TaskState.STARTING, TaskState.RUNNING
NONE, CREATED, VANISHED = "none", "created", "vanished"
STILL, GOOD, BAD, FULL = "[wait-for go]", "[print-line well]", "[fail 3]", "[eat-memory 9]"
"""Prompts of containers: one that runs, and three that have ended."""

COMPLETED, FAILED, OOM = "success", "failed: exit code 3", "out_of_memory: the kernel killed it"
GONE = "lost: container is gone (host restarted?)"
REMOVED, RESTARTED = "lost: its container was removed", "lost: the host restarted"

TABLE = [
    (ACCEPTED, "", NONE, COMPLETED, 1),
    (ACCEPTED, "", CREATED, COMPLETED, 1),
    (ACCEPTED, "", STILL, COMPLETED, 1),
    (ACCEPTED, "", GOOD, COMPLETED, 1),
    (ACCEPTED, "", BAD, FAILED, 1),
    (ACCEPTED, "", VANISHED, GONE, 1),
    (STARTING, "", NONE, COMPLETED, 1),
    (STARTING, "boot", NONE, COMPLETED, 1),
    (STARTING, "cid", NONE, REMOVED, 0),
    (STARTING, "cid, boot", NONE, REMOVED, 0),
    (STARTING, "", CREATED, COMPLETED, 1),
    (STARTING, "cid", CREATED, COMPLETED, 1),
    (STARTING, "boot", CREATED, RESTARTED, 0),
    (STARTING, "cid, boot", CREATED, RESTARTED, 0),
    (STARTING, "", STILL, COMPLETED, 1),
    (STARTING, "cid", STILL, COMPLETED, 1),
    (STARTING, "boot", STILL, RESTARTED, 1),
    (STARTING, "cid", GOOD, COMPLETED, 1),
    (STARTING, "boot", GOOD, COMPLETED, 1),
    (STARTING, "", BAD, FAILED, 1),
    (STARTING, "", FULL, OOM, 1),
    (STARTING, "", VANISHED, GONE, 1),
    (RUNNING, "", NONE, GONE, 0),
    (RUNNING, "boot", NONE, GONE, 0),
    (RUNNING, "cid", NONE, GONE, 0),
    (RUNNING, "", CREATED, GONE, 0),
    (RUNNING, "", STILL, COMPLETED, 1),
    (RUNNING, "boot", STILL, RESTARTED, 1),
    (RUNNING, "", GOOD, COMPLETED, 1),
    (RUNNING, "", BAD, FAILED, 1),
    (RUNNING, "boot", BAD, FAILED, 1),
    (RUNNING, "", FULL, OOM, 1),
    (RUNNING, "", VANISHED, GONE, 1),
    *((TaskState.ENDED, "", left, "failed: exit code 9", 0) for left in (NONE, CREATED)),
    *(
        (TaskState.ENDED, "", left, "failed: exit code 9", 1)
        for left in (STILL, GOOD, BAD, VANISHED)
    ),
]
"""A state, whether the id is written down and the host has restarted, the container, how the final
message begins (or `success`), and how often the task was started in all."""


async def leave_container(host: Host, container: str) -> None:
    """Have the container that the earlier runner started, as it is now."""
    if container == NONE:
        return
    name = container_of("t-1")
    if container == CREATED:
        with pytest.raises(EngineError):
            await start_container(host, name, run_args=("--entrypoint", "/none"))
        await note_container(host, "t-1")
        return
    prompt = STILL if container == VANISHED else container
    await start_container(host, name, prompt, limits=Limits(memory="8m"))
    await note_container(host, "t-1")
    if container == VANISHED:
        host.engine.vanish(name)
    elif container != STILL:
        await host.engine.wait(name)


@pytest.mark.parametrize(
    ("state", "circumstances", "container", "reported", "starts"),
    TABLE,
    ids=[f"{state.value} {what}: {container}" for state, what, container, _, _ in TABLE],
)
async def test_task_is_brought_to_its_true_end_and_was_started_once_at_most(  # noqa: PLR0913, PLR0917 - a table
    host: Host, state: TaskState, circumstances: str, container: str, reported: str, starts: int
) -> None:
    await leave_task(host, state, other_boot="boot" in circumstances)
    await leave_container(host, container)
    if "cid" in circumstances:
        container_id = "f" * 64 if container == NONE else await note_container(host, "t-1")
        cid_file(host.state_dir, "t-1").write_text(container_id)
    async with host.runner():
        if container == STILL and reported == COMPLETED:
            await host.wait_for_state("t-1", "running")
            await host.clock.settle()
            host.let_go()
        end = await host.wait_for_end()

    outcome = "success" if end["status"] == "success" else end["message"]
    assert outcome.startswith(reported)
    assert host.starts_of("t-1") == starts
    assert await host.engine.inspect(container_of("t-1")) is None
    assert not list(run_folder(host.state_dir).iterdir())


@pytest.mark.parametrize(
    "change",
    [
        lambda _: None,
        lambda host: host.clock.set_wall(3600),
        lambda host: host.clock.set_wall(-3600),
        lambda host: host.damage_journal(),
    ],
    ids=["same clock", "clock set forward", "clock set back", "journal lost"],
)
async def test_adopted_task_has_what_is_left_of_its_time_though_the_clock_was_set(
    host: Host, change: Callable[[Host], None]
) -> None:
    async with host.running_task("[hang]", {"timeout_seconds": 600}):
        await host.clock.advance(300)
    change(host)
    async with host.runner():
        await host.clock.advance(299)
        assert host.state_of("t-1") == "running"
        await host.clock.advance(2)
        assert (await host.wait_for_end())["message"].startswith("timed_out: ")
    assert host.starts_of("t-1") == 1


async def test_task_without_a_time_limit_is_stopped_by_no_runner(host: Host) -> None:
    async with host.running_task("[wait-for go]", {"timeout_seconds": 0}):
        await host.clock.advance(40)
    async with host.runner():
        await host.clock.advance(40)
    host.damage_journal()
    async with host.runner():
        await host.clock.advance(40)
        assert host.state_of("t-1") == "running"
        host.let_go()
        assert (await host.wait_for_end())["status"] == "success"
    assert host.starts_of("t-1") == 1


async def test_time_that_is_up_at_the_start_ends_the_task_at_once(host: Host) -> None:
    await begin_and_leave(host, "[hang]", timeout_seconds=100)
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


async def test_start_that_a_killed_runner_has_left_has_ten_minutes_and_only_starts_wait_for_it(
    host: Host,
) -> None:
    await leave_task(host, STARTING)
    command = ("-c", "input() #/podman", "--cidfile", str(cid_file(host.state_dir, "t-1")))
    left = subprocess.Popen([sys.executable, *command], stdin=subprocess.PIPE)  # noqa: ASYNC220 - returns at once
    try:
        async with host.runner(heartbeat_interval_s=300.0):
            await host.wait_for_beat("busy")
            await host.clock.advance(599)
            assert left.poll() is None
            assert host.engine.called["run"] == host.orchestrator.count(POLL) == 0
            left.communicate(b"\n")
            await start_container(host, container_of("t-1"))
            host.let_go()
            await host.clock.advance(61)
            assert (await host.wait_for_end())["status"] == "success"
        assert host.starts_of("t-1") == 1
    finally:
        left.kill()
        left.communicate()
