"""A state folder has one identity, one orchestrator and one engine for its open tasks."""

from __future__ import annotations

import sqlite3
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import anyio.to_thread
import pytest

from runner.engine.base import ContainerSpec
from runner.errors import ConfigurationError, EngineError
from runner.redaction import Secret
from runner.workspace.download import CONTAINER_HOME
from tests.harness.engine import ObstructedEngine
from tests.harness.host import IMAGE, container_of
from tests.harness.orchestrator import (
    BEAT,
    LOGS,
    POLL,
    REGISTER,
    SILENCE,
    STATUS,
    TOKEN,
    orchestrating,
)
from tests.harness.server import http, json_response
from tests.harness.until import until
from tests.orchestrator.serving import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.harness.host import Host
    from tests.harness.orchestrator import Call

pytestmark = pytest.mark.anyio

JOURNALS = Path(__file__).parents[1] / "unit" / "journals"
"""Dumps of journals that the version before wrote: one identity and orchestrator was no rule."""
ELSEWHERE = "http://127.0.0.1:9"


def load_journal(host: Host, name: str) -> None:
    """Put an old version's journal into the state folder, with this orchestrator's address."""
    text = (JOURNALS / f"{name}.sql").read_text()
    text = text.replace("http://orchestrator.example", host.orchestrator.url)
    with closing(sqlite3.connect(host.state_dir / "journal.sqlite3")) as journal:
        journal.executescript(text)
    host.orchestrator.keys |= {"node-key-1", "node-key-2", "node-key-3"}


async def leave_running(host: Host, task_id: str, prompt: str = "[wait-for go]") -> None:
    """Have the container that an earlier runner started."""
    arguments = ("--accept-license", "--task", prompt)
    volumes = {host.home: CONTAINER_HOME}
    await host.engine.run(ContainerSpec(container_of(task_id), IMAGE, arguments, volumes=volumes))


async def begin(host: Host, prompt: str = "[wait-for go]") -> None:
    """Have a runner start the task t-1 and go."""
    async with host.running_task(prompt):
        pass


@asynccontextmanager
async def docker_instead(host: Host) -> AsyncIterator[ObstructedEngine]:
    """Have docker be the host's engine; podman is back afterwards."""
    podman = host.engine
    async with ObstructedEngine(IMAGE, host.clock.wall_s) as docker:
        docker.kind = "docker"
        host.engine = docker
        yield docker
        host.engine = podman


async def refusal_of(host: Host, **changed: Any) -> str:  # noqa: ANN401 - fields of Settings
    """Return why a runner does not start; it must have touched nothing."""
    journal = host.state_dir / "journal.sqlite3"
    before, calls = journal.read_bytes(), len(host.orchestrator.calls)
    engine_calls = host.engine.called.copy()
    with pytest.raises(ConfigurationError) as caught:
        async with host.runner(**changed) as life:
            await life.end()
    assert caught.value.exit_code == 78
    assert not life.is_ready
    assert (journal.read_bytes(), len(host.orchestrator.calls)) == (before, calls)
    assert host.engine.called == engine_calls
    return str(caught.value)


def keys_of(calls: list[Call], task_id: str) -> set[str | None]:
    """Return the keys under which a task was spoken of."""
    return {
        call.key for call in calls if task_id in {call.body.get("task_id"), *named_in(call.body)}
    }


def named_in(beat: dict[str, Any]) -> list[Any]:
    """Return the tasks that a heartbeat names."""
    return [*beat.get("task_ids", []), beat.get("current_task_id")]


# One orchestrator


@pytest.mark.parametrize("state", ["running", "ended"])
async def test_other_orchestrator_is_refused_while_a_task_is_unfinished(
    host: Host, state: str
) -> None:
    if state == "ended":
        host.orchestrator.then(STATUS, json_response({"status": "running"}))
        host.orchestrator.always(STATUS, http(503))
    host.orchestrator.offer("t-1", "[wait-for go]" if state == "running" else "do it")
    async with host.runner():
        await host.wait_for_state("t-1", state)

    assert await refusal_of(host, orchestrator_url=ELSEWHERE) == (
        f"cannot use --orchestrator-url {ELSEWHERE}: {host.state_dir} has unfinished tasks (1) of "
        f"--orchestrator-url {host.orchestrator.url}; start the runner once with "
        f"`--orchestrator-url {host.orchestrator.url} --once`, which finishes and reports them, "
        "or choose another --state-dir"
    )


async def test_command_of_the_refusal_finishes_the_tasks_and_the_other_orchestrator_is_used_then(
    host: Host,
) -> None:
    await begin(host)
    async with orchestrating(host.clock.uptime_s) as other:
        command = (await refusal_of(host, orchestrator_url=other.url)).split("`")[1]
        assert command == f"--orchestrator-url {host.orchestrator.url} --once"
        host.let_go()
        async with host.runner(once=True) as draining:
            assert await draining.end() == 0
        assert host.state_of("t-1") == "closed"
        async with host.runner(orchestrator_url=other.url):
            await until(lambda: other.count(POLL) > 0)
        assert other.count(REGISTER) == 1
        assert {call.key for call in other.called(POLL)} == {"node-key-1"}
    assert host.starts_of("t-1") == 1


async def test_report_of_a_closed_task_keeps_the_orchestrator(host: Host) -> None:
    host.orchestrator.offer()
    async with host.runner():
        await host.wait_for_end()
        host.orchestrator.always(STATUS, SILENCE)
        host.orchestrator.offer()
        await host.clock.advance(34)
        await until(lambda: host.rows("SELECT * FROM outbox WHERE attempts > 0") != [])
    assert host.state_of("t-1") == "closed"
    assert "unfinished tasks (1)" in await refusal_of(host, orchestrator_url=ELSEWHERE)

    host.orchestrator.always(STATUS, None)
    async with host.runner(once=True) as draining:
        assert await draining.end() == 0
    assert host.rows("SELECT * FROM outbox") == []


async def test_journal_with_tasks_of_two_orchestrators_is_drained_at_one_after_the_other(
    host: Host, log: pytest.LogCaptureFixture
) -> None:
    load_journal(host, "elsewhere")
    host.orchestrator.offer("t-new")
    async with orchestrating(host.clock.uptime_s) as other:
        other.keys.add("node-key-1")
        host.change(
            f"UPDATE identities SET orchestrator_url = '{other.url}'"  # noqa: S608 - our own text
            " WHERE orchestrator_url = 'http://other.example'"
        )
        # Those of this one first; then the runner ends and names the other.
        with pytest.raises(ConfigurationError, match=rf"`--orchestrator-url {other.url} ") as next_:
            async with host.runner() as first:
                await first.end()
        assert "--container-runtime docker --once`" in str(next_.value)
        assert "no new task is taken" in log.text
        assert [host.state_of(name) for name in ("t-own", "t-other")] == ["closed", "ended"]
        assert host.orchestrator.queue
        assert {call.key for call in host.orchestrator.called(STATUS)} == {"node-key-2"}
        async with (
            docker_instead(host),
            host.runner(orchestrator_url=other.url, once=True) as second,
        ):
            assert await second.end() == 0
        assert {call.key for call in other.called(STATUS)} == {"node-key-1"}
    async with host.runner():
        assert (await host.wait_for_end("t-new"))["status"] == "success"


# One engine


async def test_other_engine_is_refused_while_a_task_is_open_and_used_when_none_is(
    host: Host,
) -> None:
    await begin(host)
    async with docker_instead(host) as docker:
        assert await refusal_of(host) == (
            f"cannot use --container-runtime docker: {host.state_dir} has unfinished tasks (1) of "
            "--container-runtime podman; start the runner once with `--container-runtime podman "
            "--once`, which finishes and reports them, or choose another --state-dir"
        )
        assert not docker.called
    host.let_go()
    async with host.runner(once=True) as draining:
        assert await draining.end() == 0
    async with docker_instead(host) as docker:
        host.orchestrator.offer("t-2")
        async with host.runner():
            assert (await host.wait_for_end("t-2"))["status"] == "success"
        assert docker.starts == {container_of("t-2"): 1}
    assert host.engine.starts == {container_of("t-1"): 1}
    assert host.orchestrator.count(REGISTER) == 1


# One identity, through changes of what the node is

CHANGES = pytest.mark.parametrize(
    "changed", [{"name": "host-2"}, {"tags": {"a": "b"}}, {"capabilities": ("gpu",)}]
)


@CHANGES
async def test_node_stays_the_same_where_its_description_can_be_changed(
    host: Host, changed: dict[str, Any]
) -> None:
    host.orchestrator.extensions = ["reregister"]
    await begin(host)
    async with host.runner(max_tasks=2, **changed):
        await host.wait_for_calls(REGISTER, 2)
        host.orchestrator.offer("t-2")
        await host.clock.advance(34)
        assert (await host.wait_for_end("t-2"))["status"] == "success"
        host.let_go()
        await host.wait_for_end()

    again = host.orchestrator.called(REGISTER)[1]
    assert again.key == "node-key-1"
    assert again.request.headers["x-registration-token"]
    spoken = [call for call in host.orchestrator.calls if call.request.target != REGISTER]
    assert {call.key for call in spoken} == {"node-key-1"}
    (row,) = host.rows("SELECT * FROM identities")
    assert row["node_id"] == "node-1"
    assert host.starts_of("t-1") == 1
    async with host.runner(max_tasks=2, **changed):
        await host.wait_for_calls(POLL, host.orchestrator.count(POLL) + 1)
    assert host.orchestrator.count(REGISTER) == 2, "the new description is kept"


async def test_new_description_is_sent_again_when_the_answer_was_lost(host: Host) -> None:
    host.orchestrator.extensions = ["reregister"]
    await begin(host)
    host.orchestrator.then(REGISTER, SILENCE, http(502))
    seen = host.orchestrator.count(POLL)
    async with host.runner(name="host-2"):
        await host.wait_for_calls(REGISTER, 2)
        await host.pass_time_until(lambda: host.orchestrator.count(REGISTER) == 4)
        assert host.orchestrator.count(POLL) == seen, "no new task under the old description"
        host.let_go()
        assert (await host.wait_for_end())["status"] == "success"

    assert {call.key for call in host.orchestrator.called(REGISTER)[1:]} == {"node-key-1"}
    assert [row["node_id"] for row in host.rows("SELECT * FROM identities")] == ["node-1"]


@CHANGES
async def test_node_without_that_extension_registers_again_when_its_last_report_is_delivered(
    host: Host, changed: dict[str, Any]
) -> None:
    await begin(host)
    seen = host.orchestrator.count(POLL)
    host.orchestrator.offer("t-2")
    host.orchestrator.cancelled_for["node-key-1"] = ["t-0"]
    async with host.runner(max_tasks=2, **changed):
        await host.clock.advance(100)
        assert (host.orchestrator.count(POLL), host.orchestrator.count(REGISTER)) == (seen, 1)
        assert host.orchestrator.beats()[-1] == "busy"
        host.orchestrator.always(STATUS, http(503))
        host.let_go()
        await host.wait_for_state("t-1", "ended")
        await host.clock.advance(100)
        assert host.orchestrator.count(REGISTER) == 1, "the report is not delivered"
        host.orchestrator.always(STATUS, None)
        await host.pass_time_until_closed("t-1")
        await host.wait_for_end("t-2")

    ends = [call for call in host.orchestrator.called(STATUS) if call.body["status"] == "success"]
    assert {(call.body["task_id"], call.key) for call in ends} >= {("t-2", "node-key-2")}
    assert keys_of(host.orchestrator.called(STATUS), "t-1") == {"node-key-1"}
    assert host.orchestrator.count(REGISTER) == 2


async def test_extension_that_is_named_later_is_used_at_once(host: Host) -> None:
    await begin(host)
    async with host.runner(name="host-2"):
        await host.clock.advance(60)
        assert host.orchestrator.count(REGISTER) == 1
        host.orchestrator.extensions = ["reregister"]
        await host.clock.advance(17)
        await host.wait_for_calls(REGISTER, 2)

    assert host.orchestrator.called(REGISTER)[1].key == "node-key-1"


async def test_once_takes_no_task_under_an_old_description_and_finishes_what_is_open(
    host: Host,
) -> None:
    await begin(host)
    host.orchestrator.offer("t-2")
    host.let_go()
    async with host.runner(name="host-2", once=True) as life:
        assert await life.end() == 0

    assert host.state_of("t-1") == "closed"
    assert host.orchestrator.queue


async def test_token_that_is_wrong_for_a_new_description_ends_the_runner_after_its_task(
    host: Host,
) -> None:
    host.orchestrator.extensions = ["reregister"]
    await begin(host)
    async with host.runner(name="host-2", registration_token=Secret("wrong")) as life:
        await host.wait_for_calls(REGISTER, 2)
        seen = host.orchestrator.count(BEAT)
        await host.clock.advance(40)
        assert host.orchestrator.count(BEAT) > seen, "its key holds"
        host.let_go()
        await host.pass_time_until(life.over.is_set, 1)
        assert await life.end() == 77

    assert host.state_of("t-1") == "closed"


async def test_node_that_is_gone_when_its_description_changes_is_registered_as_another(
    host: Host,
) -> None:
    host.orchestrator.extensions = ["reregister"]
    async with host.runner():
        await host.wait_for_calls(POLL)
    host.orchestrator.keys.clear()
    host.orchestrator.always(BEAT, http(503))
    async with host.runner(name="host-2"):
        await host.wait_for_calls(POLL, 2)

    assert [call.key for call in host.orchestrator.called(REGISTER)] == [None, "node-key-1", None]
    assert host.orchestrator.called(POLL)[-1].key == "node-key-2"


@pytest.mark.parametrize("extension", ["none", "reregister", "reregister with a wrong token"])
async def test_host_name_alone_makes_no_new_node_and_keeps_none_from_its_work(
    host: Host, extension: str
) -> None:
    async with host.runner():
        await host.wait_for_calls(POLL)
    host.change("UPDATE identities SET node = json_set(node, '$.hostname', 'before')")
    host.orchestrator.extensions = [] if extension == "none" else ["reregister"]
    host.orchestrator.offer()
    token = "wrong" if "wrong" in extension else TOKEN
    async with host.runner(registration_token=Secret(token)):
        await host.wait_for_end()
        await host.clock.advance(120)

    again = host.orchestrator.called(REGISTER)[1:]
    assert [call.key for call in again] == ([] if extension == "none" else ["node-key-1"])
    assert {call.key for call in host.orchestrator.called(POLL)} == {"node-key-1"}


async def test_orchestrator_that_makes_a_new_node_after_all_is_given_the_old_ones_reports(
    host: Host,
) -> None:
    host.orchestrator.extensions = ["reregister"]
    await begin(host)
    host.orchestrator.keys.add("node-key-9")
    host.orchestrator.then(REGISTER, json_response({"id": "node-9", "api_key": "node-key-9"}))
    seen = host.orchestrator.count(POLL)
    async with host.runner(name="host-2"):
        await host.wait_for_calls(REGISTER, 2)
        await host.clock.advance(60)
        assert host.orchestrator.count(POLL) == seen
        host.let_go()
        await host.wait_for_end()
        await host.wait_for_calls(POLL, seen + 1)

    assert keys_of(host.orchestrator.called(STATUS), "t-1") == {"node-key-1"}
    assert host.orchestrator.called(POLL)[-1].key == "node-key-9"


async def test_reference_orchestrator_keeps_the_node_and_its_task_through_a_new_name(
    host: Host,
) -> None:
    with serve(host.folder / "orchestrator") as reference:
        call = anyio.to_thread.run_sync
        task = await call(lambda: reference.create_task("[wait-for go]"))
        async with host.runner(orchestrator_url=reference.url):
            await host.wait_for_state(task["id"], "running")
        (before,) = await call(reference.nodes)
        async with host.runner(orchestrator_url=reference.url, name="host-2", tags={"a": "b"}):
            await host.pass_time_until(
                lambda: any(
                    "host-2" in row["node"] for row in host.rows("SELECT * FROM identities")
                ),
            )
            host.let_go()
            ended = await call(lambda: reference.wait_for_task(task["id"], "success"))
            (after,) = await call(reference.nodes)
            await host.wait_for_state(task["id"], "closed")
            await call(reference.stop)

    assert (before["name"], after["name"], after["tags"]) == ("host-1", "host-2", {"a": "b"})
    assert before["id"] == after["id"] == ended["assigned_node_id"]
    assert host.starts_of(task["id"]) == 1


# Journals of the version before


async def test_tasks_of_an_old_journal_are_adopted_in_every_state(host: Host) -> None:
    load_journal(host, "ordinary")
    await leave_running(host, "t-running")
    async with host.runner(max_tasks=4):
        await host.wait_for_calls(BEAT)
        host.let_go()
        ends = {
            name: await host.wait_for_end(name)
            for name in ("t-accepted", "t-starting", "t-running", "t-ended")
        }
        await host.wait_for_calls(POLL)

    assert ends["t-ended"]["message"] == "failed: exit code 9"
    assert {name for name, end in ends.items() if end["status"] == "success"} == {
        "t-accepted",
        "t-starting",
        "t-running",
    }
    assert {name: host.starts_of(name) for name in ends} == {
        "t-accepted": 1,
        "t-starting": 1,
        "t-running": 1,
        "t-ended": 0,
    }
    assert host.state_of("t-closed") == "closed"
    assert host.orchestrator.count(REGISTER) == 0
    assert {call.key for call in host.orchestrator.calls} == {"node-key-1"}


async def test_tasks_of_several_identities_are_reported_by_each_before_new_ones_are_taken(
    host: Host,
) -> None:
    load_journal(host, "several")
    for name in ("t-first-running", "t-second-running"):
        await leave_running(host, name)
    host.orchestrator.offer("t-new")
    async with host.runner(max_tasks=4):
        await host.clock.advance(60)
        assert host.orchestrator.count(POLL) == 0
        host.let_go()
        for name in ("t-first-running", "t-second-running", "t-new"):
            assert (await host.wait_for_end(name))["status"] == "success"

    calls = host.orchestrator.calls
    assert keys_of(host.orchestrator.called(BEAT), "t-first-running") == {"node-key-1"}
    assert keys_of(host.orchestrator.called(BEAT), "t-second-running") == {"node-key-2"}
    reports = [call for call in calls if call.request.target in {STATUS, LOGS}]
    owners = {"t-first-running": 1, "t-first-ended": 1, "t-second-running": 2, "t-third-ended": 3}
    for name, number in {**owners, "t-new": 3}.items():
        assert keys_of(reports, name) == {f"node-key-{number}"}
    assert {call.key for call in host.orchestrator.called(POLL)} == {"node-key-3"}
    assert host.orchestrator.count(REGISTER) == 0
    assert {host.starts_of(name) for name in ("t-first-running", "t-second-running")} == {1}


async def test_task_of_an_older_identity_can_be_cancelled(host: Host) -> None:
    load_journal(host, "several")
    await leave_running(host, "t-first-running")
    host.orchestrator.cancelled_for["node-key-1"] = ["t-first-running"]
    async with host.runner():
        end = await host.wait_for_end("t-first-running")

    assert end["message"].startswith("cancelled: ")


async def test_older_identity_that_is_refused_leaves_its_tasks_to_the_newest(host: Host) -> None:
    load_journal(host, "several")
    await leave_running(host, "t-first-running")
    host.orchestrator.keys.discard("node-key-1")
    async with host.runner():
        await until(
            lambda: "node-key-3" in keys_of(host.orchestrator.called(BEAT), "t-first-running")
        )
        host.let_go()
        await host.wait_for_end("t-first-running")

    assert host.orchestrator.count(REGISTER) == 0
    last = [c for c in host.orchestrator.called(STATUS) if c.body["task_id"] == "t-first-running"]
    assert last[-1].key == "node-key-3"


# A journal that was lost


@pytest.mark.parametrize("journal", ["damaged", "removed"])
async def test_task_and_identity_are_adopted_from_the_container_where_the_journal_has_none(
    host: Host, journal: str
) -> None:
    await begin(host, "[wait-for go][print-line the last words][fail 7]")
    if journal == "damaged":
        host.damage_journal()
        host.let_go()  # and it ends while no runner lives
        await host.engine.wait(container_of("t-1"))
    else:
        for path in host.state_dir.glob("journal.sqlite3*"):
            path.unlink()
    host.orchestrator.offer("t-2")
    async with host.runner():
        if journal == "removed":
            await host.clock.advance(60)
            assert host.orchestrator.queue, "the adopted task has the only slot"
            host.let_go()
        end = await host.wait_for_end()
        await host.pass_time_until_closed("t-2")

    assert end["message"].startswith("failed: exit code 7")
    assert end["message"].endswith("the last words")
    assert host.orchestrator.count(REGISTER) == 1
    assert host.starts_of("t-1") == 1


@pytest.mark.parametrize("reason", ["another orchestrator's", "it never ran"])
async def test_container_that_cannot_be_adopted_is_left_alone(
    host: Host, log: pytest.LogCaptureFixture, reason: str
) -> None:
    await begin(host)
    host.damage_journal()
    if reason == "it never ran":
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
    else:
        async with orchestrating(host.clock.uptime_s) as other:
            async with host.runner(orchestrator_url=other.url):
                await host.clock.advance(900)
            assert other.count(STATUS) == 0
        assert f"`--orchestrator-url {host.orchestrator.url} --once`" in log.text
    assert await host.engine.inspect(container_of("t-1")) is not None


@pytest.mark.parametrize("left", [b"", bytes(37), b"\xff\xfe", b"half of an i"])
async def test_runner_id_that_a_power_cut_has_damaged_is_replaced(host: Host, left: bytes) -> None:
    (host.state_dir / "runner-id").write_bytes(left)
    async with host.runner(once=True) as life:
        assert await life.end() == 0

    assert UUID((host.state_dir / "runner-id").read_text().strip())
