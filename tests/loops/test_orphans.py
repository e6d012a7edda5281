"""Orphans, containers that no journal knows, are left alone for five minutes, then removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from runner.engine.base import LABEL_RUNNER, ContainerSpec
from tests.harness.host import IMAGE
from tests.harness.orchestrator import POLL
from tests.harness.until import until

if TYPE_CHECKING:
    from tests.harness.host import Host

pytestmark = pytest.mark.anyio


async def make_orphan(host: Host, runner_id: str, name: str = "victoria-unknown") -> None:
    """Start a container with a runner's label, behind that runner's back."""
    arguments = ("--accept-license", "--task", "[hang]")
    labels = {LABEL_RUNNER: runner_id}
    await host.engine.run(ContainerSpec(name, IMAGE, arguments, labels))


async def runner_id_of(host: Host) -> str:
    """Let a runner leave its id in the state folder."""
    async with host.runner():
        await host.wait_for_calls(POLL)
    return (host.state_dir / "runner-id").read_text().strip()


async def test_unknown_container_is_untouched_for_five_minutes_and_then_removed(
    host: Host, log: pytest.LogCaptureFixture
) -> None:
    await make_orphan(host, await runner_id_of(host))
    async with host.runner():
        await host.clock.advance(299)
        assert await host.engine.inspect("victoria-unknown") is not None
        await host.clock.advance(2)
        await until(lambda: "container removed" in log.text)

        assert await host.engine.inspect("victoria-unknown") is None
    assert not host.orchestrator.reports("unknown"), "nothing is reported on it"


async def test_container_of_another_runner_is_never_touched(host: Host) -> None:
    await make_orphan(host, "another-runner")
    async with host.runner():
        await host.clock.advance(600)

    assert await host.engine.inspect("victoria-unknown") is not None


async def test_container_of_a_task_in_hand_is_not_an_orphan(host: Host) -> None:
    async with host.running_task():
        pass
    async with host.runner():
        await host.clock.advance(600)
        host.let_go()

        assert (await host.wait_for_end("t-1"))["status"] == "success"


async def test_task_that_comes_within_the_five_minutes_keeps_its_container(host: Host) -> None:
    await make_orphan(host, await runner_id_of(host), "victoria-t-1")
    async with host.runner(max_tasks=2):
        await host.clock.advance(100)
        host.orchestrator.offer("t-1", "[hang]")
        await host.clock.advance(34)
        await host.wait_for_state("t-1", "running")
        await host.clock.advance(366)
        assert await host.engine.inspect("victoria-t-1") is not None

        assert host.state_of("t-1") == "running"


async def test_silent_engine_is_asked_for_orphans_later(host: Host) -> None:
    await make_orphan(host, await runner_id_of(host))
    host.engine.silent = True
    async with host.runner():
        await host.clock.advance(200)
        host.engine.silent = False
        await host.clock.advance(61)
        await host.clock.advance(300)
        await until(lambda: "victoria-unknown" not in host.engine.names)
