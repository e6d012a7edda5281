"""Orphans, containers that no journal knows, are left alone for five minutes, then removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from runner.engine.base import LABEL_RUNNER, ContainerSpec
from tests.harness.host import IMAGE
from tests.harness.orchestrator import POLL
from tests.harness.until import until
from tests.loops.steps import begin_and_leave

if TYPE_CHECKING:
    from tests.harness.host import Host

pytestmark = pytest.mark.anyio

ORPHAN = "victoria-unknown"


async def make_orphan(host: Host, runner_id: str | None = None, name: str = ORPHAN) -> None:
    """Start a container with a runner's label, by default this one's, behind its back."""
    async with host.runner():
        await host.wait_for_calls(POLL)
    runner_id = runner_id or (host.state_dir / "runner-id").read_text().strip()
    arguments = ("--accept-license", "--task", "[hang]")
    await host.engine.run(ContainerSpec(name, IMAGE, arguments, {LABEL_RUNNER: runner_id}))


async def test_orphan_is_untouched_for_five_minutes_and_then_removed(host: Host) -> None:
    await make_orphan(host)
    async with host.runner():
        await host.clock.advance(299)
        assert ORPHAN in host.engine.names
        await host.clock.advance(2)
        await until(lambda: ORPHAN not in host.engine.names)

    assert not host.orchestrator.reports("unknown"), "nothing is reported on it"


async def test_container_of_another_runner_is_never_touched(host: Host) -> None:
    await make_orphan(host, "another-runner")
    async with host.runner():
        await host.clock.advance(600)

    assert ORPHAN in host.engine.names


async def test_container_of_a_task_in_hand_is_not_an_orphan(host: Host) -> None:
    await begin_and_leave(host)
    async with host.runner():
        await host.clock.advance(600)
        host.let_go()

        assert (await host.wait_for_end("t-1"))["status"] == "success"


async def test_task_that_comes_within_the_five_minutes_keeps_its_container(host: Host) -> None:
    await make_orphan(host, name="victoria-t-1")
    async with host.runner(max_tasks=2):
        await host.clock.advance(100)
        host.orchestrator.offer("t-1", "[hang]")
        await host.clock.advance(400)

        assert host.state_of("t-1") == "running"
        assert "victoria-t-1" in host.engine.names


async def test_silent_engine_is_asked_for_orphans_later(host: Host) -> None:
    await make_orphan(host)
    host.engine.silent = True
    async with host.runner():
        await host.clock.advance(200)
        host.engine.silent = False
        await host.clock.advance(361)
        await until(lambda: ORPHAN not in host.engine.names)
