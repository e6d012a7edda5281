"""A container has its task's key and never the node's; the node's survives losses and rotation."""

import json
from typing import Any

import pytest

from runner.engine.base import LABEL_KEY
from runner.model import TaskState
from tests.harness.host import Host, container_of
from tests.harness.orchestrator import BEAT, FINAL, LOGS, POLL, REGISTER, SILENCE, STATUS
from tests.harness.until import until
from tests.loops.steps import Log, begin_and_leave, finish_another, leave_task, register

pytestmark = pytest.mark.anyio

NODE_KEY, NEW_KEY, TASK_KEY = "node-key-1", "node-key-1-new", "task-key-t-1"
REQUIRED = (
    "rejected: cannot run the task: the orchestrator sent no task_api_key, which "
    "--require-task-key asks for; use an orchestrator with the extension task-key, or leave the "
    "option out"
)
WITHOUT_KEY = "the orchestrator sends no key for each task"


@pytest.fixture
def host(host: Host) -> Host:
    host.orchestrator.extensions = ["task-key"]
    return host


def key_in(host: Host, task_id: str = "t-1") -> str | None:
    """Return the key that a task's container has been given."""
    return host.engine.variables[container_of(task_id)].get("NODE_API_KEY")


def keys_of(host: Host, *paths: str, since: int = 0) -> set[str | None]:
    calls = host.orchestrator.calls[since:]
    return {call.key for call in calls if call.request.target in paths}


def keys_in_file(host: Host) -> list[str]:
    entries = json.loads((host.state_dir / "identity.json").read_text())["identities"]
    return [entry["api_key"] for entry in entries.values()]


def lose(host: Host, *names: str) -> None:
    for name in names:
        for path in host.state_dir.glob(f"{name}*"):
            path.unlink()


# What a container is given


async def test_container_has_the_key_of_its_task_alone_and_no_report_shows_it(
    host: Host, log: Log
) -> None:
    end = await host.finish_task("[env NODE_API_KEY][print-line vt_x][fail 1]")
    assert end["message"].splitlines()[1:] == ["NODE_API_KEY=***", "vt_x"]
    assert key_in(host) == TASK_KEY
    assert NODE_KEY not in str(host.engine.specs) + str(host.engine.variables)
    assert host.engine.specs[container_of("t-1")].labels[LABEL_KEY] == "task"
    assert keys_of(host, POLL, BEAT, STATUS, LOGS) == {NODE_KEY}
    assert TASK_KEY not in log.text
    assert WITHOUT_KEY not in log.text


async def test_container_has_the_node_s_key_where_tasks_have_none_and_one_warning_says_so(
    host: Host, log: Log
) -> None:
    host.orchestrator.extensions = []
    host.orchestrator.offer("t-1")
    host.orchestrator.offer("t-2")
    async with host.runner(max_tasks=2):
        for task_id in ("t-1", "t-2"):
            await host.wait_for_end(task_id)
            assert key_in(host, task_id) == NODE_KEY
            assert LABEL_KEY not in host.engine.specs[container_of(task_id)].labels
    assert log.text.count(WITHOUT_KEY) == 1


async def test_task_without_a_key_is_rejected_where_one_is_required(host: Host) -> None:
    host.orchestrator.queue.append({"task_id": "t-1", "prompt": "do it"})
    async with host.runner(require_task_key=True):
        assert (await host.wait_for_end())["message"] == REQUIRED
        await finish_another(host)
    assert host.starts_of("t-1") == 0
    assert key_in(host, "t-2") == "task-key-t-2"


async def test_task_that_was_accepted_before_a_key_was_required_is_rejected_once_claimed(
    host: Host,
) -> None:
    await leave_task(host, TaskState.ACCEPTED)
    async with host.runner(require_task_key=True):
        assert (await host.wait_for_end())["message"] == REQUIRED
    assert [report["status"] for report in host.orchestrator.taken] == ["running", "error"]
    assert host.starts_of("t-1") == 0


async def test_task_whose_key_comes_with_a_second_offer_has_what_is_required(host: Host) -> None:
    await leave_task(host, TaskState.ACCEPTED)
    host.orchestrator.always(STATUS, SILENCE)  # the claim waits
    host.orchestrator.offer("t-1")
    async with host.runner(require_task_key=True, max_tasks=2):
        await until(lambda: TASK_KEY in str(host.rows("SELECT assignment FROM tasks")))
        host.orchestrator.always(STATUS, None)
        await host.pass_time_until_closed("t-1")
        assert (await host.wait_for_end())["status"] == "success"
    assert key_in(host) == TASK_KEY


# Between its acceptance and its start


async def accept_only(host: Host, *, is_offered_again: bool) -> None:
    """Run a runner until it has accepted t-1 and is fetching its image."""
    async with host.runner(max_tasks=2):
        await host.wait_for_calls(POLL)
        await host.clock.settle()
        host.engine.shut("fetch_image")
        host.orchestrator.offer("t-1", "[wait-for go]")
        await host.clock.advance(34)
        await until(lambda: host.engine.waiting["fetch_image"] == 1)
        if is_offered_again:
            host.orchestrator.offer("t-1", "[wait-for go]", task_api_key="newer-key")
            await host.clock.advance(34)
            assert not host.orchestrator.queue
    host.engine.open("fetch_image")
    assert host.state_of("t-1") == "accepted"


@pytest.mark.parametrize("is_offered_again", [False, True])
async def test_task_that_the_next_runner_starts_has_the_newest_key(
    host: Host, *, is_offered_again: bool
) -> None:
    await accept_only(host, is_offered_again=is_offered_again)
    async with host.runner():
        await host.wait_for_state("t-1", "running")
        host.let_go()
        await host.wait_for_end()
    assert key_in(host) == ("newer-key" if is_offered_again else TASK_KEY)
    assert host.starts_of("t-1") == 1
    assert host.rows("SELECT assignment FROM tasks") == [{"assignment": None}], "nor is it kept"


async def test_task_that_is_offered_again_before_its_start_has_the_newer_key(host: Host) -> None:
    async with host.runner(max_tasks=2):
        await host.wait_for_calls(POLL)
        await host.clock.settle()
        host.engine.shut("fetch_image")
        host.orchestrator.offer("t-1", "[wait-for go]")
        await host.clock.advance(34)
        await until(lambda: host.engine.waiting["fetch_image"] == 1)
        host.orchestrator.offer("t-1", "[wait-for go]", task_api_key="newer-key")
        await host.clock.advance(34)
        host.engine.open("fetch_image")
        await host.wait_for_state("t-1", "running")
        host.orchestrator.offer("t-1", "[wait-for go]", task_api_key="newest-key")
        await host.clock.advance(34)
        host.let_go()
        await host.wait_for_end()
    assert key_in(host) == "newer-key", "and once it runs it keeps it"
    assert host.starts_of("t-1") == 1


# A journal that was lost


@pytest.mark.parametrize("extensions", [["task-key"], []], ids=["task's key", "node's key"])
async def test_adopted_task_is_reported_by_the_node_of_the_identity_file(
    host: Host, extensions: list[str]
) -> None:
    host.orchestrator.extensions = extensions
    await begin_and_leave(host, "[wait-for go][env NODE_API_KEY][fail 7]")
    host.damage_journal()
    seen = len(host.orchestrator.calls)
    async with host.runner():
        await host.wait_for_calls(POLL, host.orchestrator.count(POLL))
        await host.clock.advance(34)
        host.let_go()
        assert "=***" in (await host.wait_for_end())["message"]
    assert keys_of(host, BEAT, STATUS, since=seen) == {NODE_KEY}
    assert host.orchestrator.count(REGISTER) == 1
    assert host.starts_of("t-1") == 1


async def test_container_of_the_version_before_has_the_identity_itself(host: Host) -> None:
    host.orchestrator.extensions = []
    await begin_and_leave(host)
    lose(host, "journal", "identity")
    async with host.runner():
        host.let_go()
        assert (await host.wait_for_end())["status"] == "success"
    assert host.orchestrator.count(REGISTER) == 1
    assert keys_in_file(host) == [NODE_KEY]


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_task_is_reported_with_its_own_key_where_the_identity_is_lost_as_well(
    host: Host, *, is_restarted: bool
) -> None:
    # That is all that it can do: the output is sent by the node, and is refused as another's.
    host.orchestrator.extensions = ["task-key", "output"]
    await begin_and_leave(host, "[print-line one][wait-for go]")
    lose(host, "journal", "identity")
    host.orchestrator.offer("t-2")
    seen = len(host.orchestrator.calls)
    async with host.runner():
        await host.clock.advance(60)
        if not is_restarted:
            host.let_go()
            await host.wait_for_end()
    if is_restarted:
        async with host.runner():
            await host.clock.advance(60)
            host.let_go()
            await host.wait_for_end()
            await host.pass_time_until_closed("t-2")
    assert host.orchestrator.count(REGISTER) == 2
    assert keys_of(host, POLL, BEAT, since=seen) <= {"node-key-2"}
    (end,) = (call for call in host.orchestrator.called(STATUS) if is_end_of("t-1", call.body))
    assert end.key == TASK_KEY
    assert host.starts_of("t-1") == 1


def is_end_of(task_id: str, report: dict[str, Any]) -> bool:
    return report["task_id"] == task_id and report["status"] in FINAL


async def test_end_whose_task_key_holds_no_more_is_offered_by_the_new_node(host: Host) -> None:
    await begin_and_leave(host)
    lose(host, "journal", "identity")
    host.orchestrator.task_keys.clear()
    async with host.runner():
        host.let_go()
        await host.pass_time_until_closed("t-1")
    ends = [call for call in host.orchestrator.called(STATUS) if is_end_of("t-1", call.body)]
    assert [call.key for call in ends] == [TASK_KEY, "node-key-2"]


async def test_identity_file_is_written_from_the_journal_of_the_version_before(host: Host) -> None:
    await register(host)
    lose(host, "identity")
    async with host.runner():
        await host.wait_for_calls(POLL, 2)
    assert keys_in_file(host) == [NODE_KEY]


async def test_damaged_identity_file_keeps_no_node_from_its_work(host: Host, log: Log) -> None:
    await register(host)
    lose(host, "identity")
    (host.state_dir / "identity.json").mkdir()
    assert (await host.finish_task())["status"] == "success"
    assert "cannot write " in log.text
    assert host.orchestrator.count(REGISTER) == 1
    host.damage_journal()
    async with host.runner():
        await host.wait_for_calls(REGISTER, 2)


async def test_identity_that_was_refused_is_not_taken_from_the_file(host: Host, log: Log) -> None:
    await register(host)
    host.change("UPDATE identities SET refused = 1")
    seen = len(host.orchestrator.calls)
    async with host.runner():
        await host.wait_for_calls(REGISTER, 2)
        await host.clock.advance(20)
    assert NODE_KEY not in keys_of(host, POLL, BEAT, since=seen)
    assert "taken from the identity file" not in log.text


# Rotation


def rotate(host: Host, *, is_known: bool = True) -> None:
    """Have heartbeats under the node's key be answered with a new one."""
    host.orchestrator.new_keys[NODE_KEY] = NEW_KEY
    if is_known:
        host.orchestrator.keys.add(NEW_KEY)


def has_used_new_key(host: Host) -> bool:
    return NEW_KEY in keys_of(host, BEAT)


async def test_new_key_is_used_for_all_that_runs_and_waits_and_after_a_restart(host: Host) -> None:
    host.orchestrator.offer("t-2", "[hang]")
    async with host.running_task(max_tasks=3):
        await host.wait_for_state("t-2", "running")
    rotate(host)
    async with host.runner(max_tasks=3):
        host.orchestrator.always(STATUS, SILENCE)
        host.let_go()
        await host.wait_for_state("t-1", "ended")
        await host.pass_time_until(lambda: has_used_new_key(host))
        host.orchestrator.keys.remove(NODE_KEY)
        host.orchestrator.always(STATUS, None)
        seen = len(host.orchestrator.calls)
        await host.pass_time_until_closed("t-1")
    assert keys_in_file(host) == [NEW_KEY]
    async with host.runner(max_tasks=3):
        await host.wait_for_calls(POLL, host.orchestrator.count(POLL) + 1)
        host.orchestrator.cancelled.append("t-2")
        await host.clock.advance(17)
        assert (await host.wait_for_end("t-2"))["message"].startswith("cancelled: ")
    assert keys_of(host, POLL, BEAT, STATUS, since=seen) == {NEW_KEY}
    assert host.orchestrator.count(REGISTER) == 1
    assert len(host.orchestrator.ends("t-2")) == 1


async def test_key_that_cannot_be_written_is_not_used(host: Host, log: Log) -> None:
    await register(host)
    in_the_way = host.state_dir / "identity.json.part"
    (in_the_way / "x").mkdir(parents=True)
    rotate(host)
    async with host.runner():
        await host.clock.advance(100)
        assert "the node's key is not replaced: cannot write " in log.text
        assert not has_used_new_key(host)
        assert keys_in_file(host) == [NODE_KEY]
        (in_the_way / "x").rmdir()
        in_the_way.rmdir()
        await host.pass_time_until(lambda: has_used_new_key(host))


@pytest.mark.parametrize("is_in_journal", [False, True])
async def test_crash_between_writing_a_key_and_using_it_changes_nothing(
    host: Host, *, is_in_journal: bool
) -> None:
    await register(host)
    file = host.state_dir / "identity.json"
    file.write_text(file.read_text().replace(NODE_KEY, NEW_KEY))
    rotate(host)
    if is_in_journal:
        host.change(
            "INSERT INTO identities (node_id, api_key, orchestrator_url, node, registered_at)"  # noqa: S608 - our own text
            f" SELECT node_id, '{NEW_KEY}', orchestrator_url, node, 2 FROM identities"
        )
    async with host.runner():
        await host.pass_time_until(lambda: has_used_new_key(host))
    assert keys_in_file(host) == [NEW_KEY]
    assert host.orchestrator.count(REGISTER) == 1


async def test_new_key_that_is_refused_loses_no_node_and_is_tried_again(
    host: Host, log: Log
) -> None:
    async with host.running_task():
        rotate(host, is_known=False)
        await host.clock.advance(50)
        assert keys_in_file(host) == [NODE_KEY], "what a lost journal would be replaced by"
        seen = len(host.orchestrator.calls)
        await host.clock.advance(600)
        tried = [call for call in host.orchestrator.calls[seen:] if call.key == NEW_KEY]
        assert 1 <= len(tried) <= 20
        host.orchestrator.keys.add(NEW_KEY)
        await host.pass_time_until(
            lambda: host.orchestrator.called(BEAT)[-1].key == NEW_KEY,
        )
        host.let_go()
        assert (await host.wait_for_end())["status"] == "success"
    assert "using the one before it" in log.text
    assert host.orchestrator.count(REGISTER) == 1


async def test_node_whose_keys_are_all_refused_registers_again(host: Host) -> None:
    rotate(host)
    async with host.runner():
        await host.pass_time_until(lambda: has_used_new_key(host))
        host.orchestrator.keys.clear()
        host.orchestrator.new_keys.clear()
        await host.pass_time_until(lambda: host.orchestrator.count(REGISTER) == 2)
    assert keys_in_file(host) == ["node-key-2"]
