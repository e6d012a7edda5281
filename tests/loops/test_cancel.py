"""A task can be called off at every step, and ends in what is true of it then."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.harness.host import container_of
from tests.harness.orchestrator import POLL, SILENCE, STATUS
from tests.harness.server import stalled
from tests.harness.until import until

if TYPE_CHECKING:
    from tests.harness.host import Host

pytestmark = pytest.mark.anyio

BEFORE = "cancelled: before it started"


async def cancel(host: Host) -> None:
    """Have the next heartbeat learn that the task is called off."""
    host.orchestrator.cancelled.append("t-1")
    await host.clock.advance(17)


async def check_gone(host: Host) -> None:
    assert await host.engine.inspect(container_of("t-1")) is None
    assert not list((host.state_dir / "run").iterdir())


async def test_cancelled_while_its_files_come(host: Host) -> None:
    host.orchestrator.files["a.csv"] = stalled(b"half", {"Content-Length": "9"})
    host.orchestrator.offer("t-1", files=["a.csv"])
    async with host.runner():
        await host.wait_for_calls("/files/a.csv")
        await cancel(host)
        end = await host.wait_for_end("t-1")

    assert end["message"] == BEFORE
    assert host.starts_of("t-1") == 0
    assert not list((host.home / "tasks" / "t-1" / "files").iterdir()), "no half of a file stays"


async def test_cancelled_while_its_image_is_fetched(host: Host) -> None:
    host.orchestrator.holds = True
    async with host.runner():
        await host.wait_for_calls(POLL)
        host.engine.shut("fetch_image")
        host.orchestrator.offer()
        await until(lambda: host.engine.waiting["fetch_image"] == 1)
        await cancel(host)
        end = await host.wait_for_end("t-1")

    assert end["message"] == BEFORE
    assert host.starts_of("t-1") == 0


async def test_cancelled_while_it_waits_for_the_claim(host: Host) -> None:
    host.orchestrator.then(STATUS, SILENCE, SILENCE, SILENCE, SILENCE, SILENCE, SILENCE, SILENCE)
    host.orchestrator.offer()
    async with host.runner():
        await host.wait_for_calls(STATUS)
        await cancel(host)
        await host.clock.advance(200)
        end = await host.wait_for_end("t-1")

    assert end["message"] == BEFORE
    assert host.starts_of("t-1") == 0


async def test_cancelled_while_its_container_is_asked_for(host: Host) -> None:
    host.engine.shut("run")
    host.orchestrator.offer()
    async with host.runner():
        await until(lambda: host.engine.waiting["run"] == 1)
        await cancel(host)
        end = await host.wait_for_end("t-1")
        await check_gone(host)

    assert end["message"] == BEFORE
    assert host.starts_of("t-1") == 0


async def test_cancelled_when_its_container_runs_and_the_engine_has_not_said_so_yet(
    host: Host,
) -> None:
    host.engine.shut("after run")
    host.orchestrator.offer("t-1", "[hang]")
    async with host.runner():
        await until(lambda: host.engine.waiting["after run"] == 1)
        await cancel(host)
        end = await host.wait_for_end("t-1")
        await check_gone(host)

    assert end["message"].startswith("cancelled: stopped after ")


async def test_cancelled_while_it_runs(host: Host) -> None:
    host.orchestrator.offer("t-1", "[print-line its last words][hang]")
    async with host.runner():
        await host.wait_for_state("t-1", "running")
        await cancel(host)
        end = await host.wait_for_end("t-1")
        await check_gone(host)

    assert end["status"] == "error"
    assert end["message"].startswith("cancelled: stopped after ")
    assert "its last words" in end["message"]


async def test_cancelled_while_it_runs_and_ignores_term(host: Host) -> None:
    host.orchestrator.offer("t-1", "[ignore-term][hang]")
    async with host.runner():
        await host.wait_for_state("t-1", "running")
        await cancel(host)
        end = await host.wait_for_end("t-1")

    assert end["message"].startswith("cancelled: ")


async def test_cancelled_in_the_moment_of_its_end_has_its_own_end(host: Host) -> None:
    host.orchestrator.offer("t-1", "[wait-for go]")
    async with host.runner():
        await host.wait_for_state("t-1", "running")
        await host.clock.settle()
        host.engine.shut("stop")
        await cancel(host)
        await until(lambda: host.engine.waiting["stop"] == 1)
        host.clock.set_wall(-17)  # the container ends before it was told to stop
        host.let_go()
        await host.engine.wait(container_of("t-1"))
        host.clock.set_wall(17)
        host.engine.open("stop")

        assert (await host.wait_for_end("t-1"))["status"] == "success"


async def test_cancelled_after_its_end_changes_nothing(host: Host) -> None:
    host.engine.shut("last_output")
    host.orchestrator.offer()
    async with host.runner():
        await until(lambda: host.engine.waiting["last_output"] == 1)
        await cancel(host)
        host.engine.open("last_output")

        assert (await host.wait_for_end("t-1"))["status"] == "success"


async def test_cancellation_outlives_a_restart(host: Host) -> None:
    host.orchestrator.offer("t-1", "[hang]")
    async with host.runner():
        await host.wait_for_state("t-1", "running")
        await host.clock.settle()
        host.engine.shut("stop")
        await cancel(host)
        await until(lambda: host.engine.waiting["stop"] == 1)
    host.orchestrator.cancelled.clear()
    host.engine.open("stop")
    async with host.runner():
        assert (await host.wait_for_end("t-1"))["message"].startswith("cancelled: ")
