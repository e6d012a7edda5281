"""Orphans, containers that no journal knows, are adopted or, after five minutes, removed."""

from dataclasses import replace

import pytest

from runner.engine.base import LABEL_RUNNER, LABEL_TASK
from runner.errors import EngineError
from tests.harness.host import Host, container_of
from tests.harness.orchestrator import POLL, REGISTER, STATUS, orchestrating
from tests.harness.until import until
from tests.loops.steps import Log, begin_and_leave, register, start_container

pytestmark = pytest.mark.anyio

ORPHAN = "victoria-unknown"


async def make_orphan(host: Host, runner_id: str | None = None, name: str = ORPHAN) -> None:
    """Start a container with a runner's label, by default this one's, behind its back."""
    await register(host)
    runner_id = runner_id or (host.state_dir / "runner-id").read_text().strip()
    labels = {LABEL_RUNNER: runner_id, LABEL_TASK: name.removeprefix(container_of(""))}
    await start_container(host, name, "[hang]", labels=labels)


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


# A journal that was lost


async def test_ended_task_is_adopted_where_the_journal_is_damaged(host: Host) -> None:
    await begin_and_leave(host, "[wait-for go][print-line the last words][fail 7]")
    host.damage_journal()
    host.let_go()
    await host.engine.wait(container_of("t-1"))
    async with host.runner():
        end = await host.wait_for_end()
        await host.wait_for_calls(POLL)
    assert end["message"] == "failed: exit code 7 after 0 s\nthe last words"
    assert host.orchestrator.count(REGISTER) == 1
    assert host.starts_of("t-1") == 1


async def test_running_task_is_adopted_with_its_slot_without_a_journal(host: Host) -> None:
    await begin_and_leave(host)
    for path in host.state_dir.glob("journal.sqlite3*"):
        path.unlink()
    host.orchestrator.offer("t-2")
    async with host.runner():
        await host.clock.advance(60)
        assert host.orchestrator.queue, "the adopted task has the only slot"
        host.let_go()
        assert (await host.wait_for_end())["status"] == "success"
        await host.pass_time_until_closed("t-2")
    assert host.orchestrator.count(REGISTER) == 1
    assert host.starts_of("t-1") == 1


async def test_container_of_another_orchestrator_is_left_alone(host: Host, log: Log) -> None:
    await begin_and_leave(host)
    host.damage_journal()
    async with orchestrating(host.clock.uptime_s) as other:
        async with host.runner(orchestrator_url=other.url):
            await host.clock.advance(900)
        assert other.count(STATUS) == 0
    assert f"`--orchestrator-url {host.orchestrator.url} --once`" in log.text
    assert await host.engine.inspect(container_of("t-1")) is not None


async def test_container_that_never_ran_is_not_adopted(host: Host, log: Log) -> None:
    await begin_and_leave(host)
    host.damage_journal()
    spec = host.engine.specs[container_of("t-1")]
    await host.engine.remove(container_of("t-1"))
    with pytest.raises(EngineError):
        await host.engine.run(
            replace(spec, run_args=("--entrypoint", "/none"), cid_file=None, env_files=())
        )
    async with host.runner():
        await host.clock.advance(60)
    assert "containers of this runner that its journal does not know" in log.text
    assert host.state_of("t-1") is None
    assert await host.engine.inspect(container_of("t-1")) is not None
