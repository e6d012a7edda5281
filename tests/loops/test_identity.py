"""A state folder has one identity, one orchestrator and one engine for its open tasks."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from runner.errors import ConfigurationError
from runner.redaction import Secret
from tests.harness.engine import FakeEngine
from tests.harness.host import IMAGE, Host, container_of
from tests.harness.orchestrator import (
    BEAT,
    LOGS,
    POLL,
    REGISTER,
    SILENCE,
    STATUS,
    TOKEN,
    ScriptedOrchestrator,
    orchestrating,
)
from tests.harness.server import http, json_response
from tests.harness.until import until
from tests.loops.steps import Log, begin_and_leave, note_container, register, start_container

pytestmark = pytest.mark.anyio

JOURNALS = Path(__file__).parents[1] / "unit" / "journals"
"""Dumps of journals that the version before wrote: one identity and orchestrator was no rule."""


def load_journal(host: Host, name: str) -> None:
    """Put an old version's journal into the state folder, with this orchestrator's address."""
    text = (JOURNALS / f"{name}.sql").read_text()
    text = text.replace("http://orchestrator.example", host.orchestrator.url)
    with closing(sqlite3.connect(host.state_dir / "journal.sqlite3")) as journal:
        journal.executescript(text)
    host.orchestrator.keys |= {"node-key-1", "node-key-2", "node-key-3"}


@asynccontextmanager
async def docker_instead(host: Host) -> AsyncIterator[FakeEngine]:
    """Have docker be the host's engine; podman is back afterwards."""
    podman = host.engine
    async with FakeEngine(IMAGE, host.clock.wall_s) as docker:
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
    assert not life.is_ready
    assert (journal.read_bytes(), len(host.orchestrator.calls)) == (before, calls)
    assert host.engine.called == engine_calls
    return str(caught.value)


async def drain(host: Host, **changed: Any) -> None:  # noqa: ANN401 - fields of Settings
    host.let_go()
    async with host.runner(once=True, **changed) as life:
        assert await life.end() == 0


def keys_of(orchestrator: ScriptedOrchestrator, *paths: str, task_id: str = "") -> set[str | None]:
    """Return the keys of the calls of some kinds, or of those that name the task."""
    calls = [call for path in paths for call in orchestrator.called(path)]
    name = f'"{task_id}"'.encode() if task_id else b""
    return {call.key for call in calls if name in call.request.body}


# One orchestrator, one engine; the whole sentences are in test_command_line.py


async def test_command_of_the_refusal_finishes_the_tasks_and_frees_the_folder(host: Host) -> None:
    await begin_and_leave(host)
    async with orchestrating(host.clock.uptime_s) as other:
        command = (await refusal_of(host, orchestrator_url=other.url)).split("`")[1]
        assert command == f"--orchestrator-url {host.orchestrator.url} --once"
        await drain(host)
        assert host.state_of("t-1") == "closed"
        async with host.runner(orchestrator_url=other.url):
            await until(lambda: other.count(POLL) > 0)
        assert other.count(REGISTER) == 1
        assert keys_of(other, POLL) == {"node-key-1"}
    assert host.starts_of("t-1") == 1


async def test_report_of_a_closed_task_is_delivered_by_a_drain(host: Host) -> None:
    await host.finish_task()
    host.orchestrator.always(STATUS, SILENCE)
    host.orchestrator.offer()
    async with host.runner():
        await until(lambda: host.rows("SELECT * FROM outbox WHERE attempts > 0") != [])
    assert host.state_of("t-1") == "closed"
    host.orchestrator.always(STATUS, None)
    await drain(host)
    assert host.rows("SELECT * FROM outbox") == []


async def test_journal_of_two_orchestrators_is_drained_at_both(host: Host, log: Log) -> None:
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
        assert keys_of(host.orchestrator, STATUS) == {"node-key-2"}
        async with docker_instead(host):
            await drain(host, orchestrator_url=other.url)
        assert keys_of(other, STATUS) == {"node-key-1"}
    async with host.runner():
        assert (await host.wait_for_end("t-new"))["status"] == "success"


async def test_other_engine_is_refused_until_no_task_is_open(host: Host) -> None:
    await begin_and_leave(host)
    async with docker_instead(host):
        assert "`--container-runtime podman --once`" in await refusal_of(host)
    await drain(host)
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
async def test_node_stays_the_same_if_it_changes(host: Host, changed: dict[str, Any]) -> None:
    host.orchestrator.extensions = ["reregister"]
    await begin_and_leave(host)
    host.orchestrator.offer("t-2")
    host.orchestrator.then(REGISTER, SILENCE, http(502))  # these responses are lost
    async with host.runner(max_tasks=2, **changed):
        await host.pass_time_until(lambda: host.orchestrator.count(REGISTER) == 3)
        assert host.orchestrator.queue, "no new task under the old description"
        await host.pass_time_until_closed("t-2")
        host.let_go()
        await host.wait_for_end()
    assert [call.key for call in host.orchestrator.called(REGISTER)] == [None, *["node-key-1"] * 3]
    assert keys_of(host.orchestrator, POLL, BEAT, STATUS) == {"node-key-1"}
    assert [row["node_id"] for row in host.rows("SELECT * FROM identities")] == ["node-1"]
    assert host.starts_of("t-1") == 1
    async with host.runner(max_tasks=2, **changed):
        await host.wait_for_calls(POLL, host.orchestrator.count(POLL) + 1)
    assert host.orchestrator.count(REGISTER) == 4, "the new description is kept"


@CHANGES
async def test_node_without_that_extension_registers_again_when_its_last_report_is_delivered(
    host: Host, changed: dict[str, Any]
) -> None:
    await begin_and_leave(host)
    seen = host.orchestrator.count(POLL)
    host.orchestrator.offer("t-2")
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
    assert keys_of(host.orchestrator, STATUS, task_id="t-1") == {"node-key-1"}
    assert keys_of(host.orchestrator, STATUS, task_id="t-2") == {"node-key-2"}
    assert host.orchestrator.count(REGISTER) == 2


async def test_extension_that_is_listed_later_is_used_at_once(host: Host) -> None:
    await begin_and_leave(host)
    async with host.runner(name="host-2"):
        await host.clock.advance(60)
        assert host.orchestrator.count(REGISTER) == 1
        host.orchestrator.extensions = ["reregister"]
        await host.clock.advance(17)
        await host.wait_for_calls(REGISTER, 2)
    assert host.orchestrator.called(REGISTER)[1].key == "node-key-1"


async def test_once_takes_no_task_under_an_old_description(host: Host) -> None:
    await begin_and_leave(host)
    polls = host.orchestrator.count(POLL)
    host.orchestrator.offer("t-2")
    await drain(host, name="host-2")
    assert host.state_of("t-1") == "closed"
    # If its end was delivered in time, the node was registered anew, and may have taken t-2.
    keys = {call.key for call in host.orchestrator.called(POLL)[polls:]}
    assert keys <= {"node-key-2"}


async def test_wrong_token_for_a_new_description_ends_the_runner_when_idle(host: Host) -> None:
    host.orchestrator.extensions = ["reregister"]
    await begin_and_leave(host)
    async with host.runner(name="host-2", registration_token=Secret("wrong")) as life:
        await host.wait_for_calls(REGISTER, 2)
        seen = host.orchestrator.count(BEAT)
        await host.clock.advance(40)
        assert host.orchestrator.count(BEAT) > seen, "its key holds"
        host.let_go()
        await host.pass_time_until(life.over.is_set, 1)
        assert await life.end() == 77
    assert host.state_of("t-1") == "closed"


async def test_node_that_is_gone_when_its_description_changes_becomes_another(host: Host) -> None:
    host.orchestrator.extensions = ["reregister"]
    await register(host)
    host.orchestrator.keys.clear()
    host.orchestrator.always(BEAT, http(503))
    async with host.runner(name="host-2"):
        await host.wait_for_calls(POLL, 2)
    assert [call.key for call in host.orchestrator.called(REGISTER)] == [None, "node-key-1", None]
    assert host.orchestrator.called(POLL)[-1].key == "node-key-2"


@pytest.mark.parametrize(
    ("extensions", "token", "keys"),
    [([], TOKEN, [None]), (["reregister"], "wrong", [None, "node-key-1"])],
    ids=["no extension", "reregister with a wrong token"],
)
async def test_host_name_alone_makes_no_new_node_and_stops_no_work(
    host: Host, extensions: list[str], token: str, keys: list[str | None]
) -> None:
    await register(host)
    host.change("UPDATE identities SET node = json_set(node, '$.hostname', 'before')")
    host.orchestrator.extensions = extensions
    host.orchestrator.offer()
    async with host.runner(registration_token=Secret(token)):
        await host.wait_for_end()
        await host.clock.advance(120)
    assert [call.key for call in host.orchestrator.called(REGISTER)] == keys
    assert keys_of(host.orchestrator, POLL) == {"node-key-1"}


async def test_host_name_that_could_not_be_sent_leaves_no_outage_behind(
    host: Host, log: Log
) -> None:
    await register(host)
    host.change("UPDATE identities SET node = json_set(node, '$.hostname', 'before')")
    host.orchestrator.extensions = ["reregister"]
    host.orchestrator.then(REGISTER, http(503))
    async with host.runner():
        # If the first poll is sent before the first heartbeat is answered, the next one tells.
        await host.pass_time_until(lambda: host.orchestrator.count(REGISTER) == 2)
        await host.clock.advance(120)
    assert host.orchestrator.count(REGISTER) == 2
    assert "the orchestrator responds again" in log.messages


async def test_node_that_is_new_in_spite_of_its_key_leaves_old_reports_alone(host: Host) -> None:
    host.orchestrator.extensions = ["reregister"]
    await begin_and_leave(host)
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
    assert keys_of(host.orchestrator, STATUS, task_id="t-1") == {"node-key-1"}
    assert host.orchestrator.called(POLL)[-1].key == "node-key-9"


# Journals of the version before


async def test_tasks_of_an_old_journal_are_adopted_in_every_state(host: Host) -> None:
    load_journal(host, "ordinary")
    await start_container(host, container_of("t-running"))
    await note_container(host, "t-running")
    async with host.runner(max_tasks=4):
        await host.wait_for_calls(BEAT)
        host.let_go()
        for name in ("t-accepted", "t-starting", "t-running"):
            assert (await host.wait_for_end(name))["status"] == "success"
            assert host.starts_of(name) == 1
        assert (await host.wait_for_end("t-ended"))["message"] == "failed: exit code 9"
        await host.wait_for_calls(POLL)
    assert host.starts_of("t-ended") == 0
    assert host.state_of("t-closed") == "closed"
    assert host.orchestrator.count(REGISTER) == 0
    assert keys_of(host.orchestrator, POLL, BEAT, STATUS) == {"node-key-1"}


async def test_tasks_of_several_identities_are_reported_by_each_first(host: Host) -> None:
    load_journal(host, "several")
    await start_container(host, container_of("t-first-running"))
    await note_container(host, "t-first-running")
    await start_container(host, container_of("t-second-running"))
    await note_container(host, "t-second-running")
    host.orchestrator.offer("t-new")
    async with host.runner(max_tasks=4):
        await host.clock.advance(60)
        assert host.orchestrator.count(POLL) == 0
        host.orchestrator.cancelled_for["node-key-1"] = ["t-first-running"]
        await host.clock.advance(17)
        assert (await host.wait_for_end("t-first-running"))["message"].startswith("cancelled: ")
        host.let_go()
        for name in ("t-second-running", "t-new"):
            assert (await host.wait_for_end(name))["status"] == "success"
    assert keys_of(host.orchestrator, BEAT, task_id="t-first-running") == {"node-key-1"}
    assert keys_of(host.orchestrator, BEAT, task_id="t-second-running") == {"node-key-2"}
    owners = {"t-first-running": 1, "t-first-ended": 1, "t-second-running": 2, "t-third-ended": 3}
    for name, number in {**owners, "t-new": 3}.items():
        assert keys_of(host.orchestrator, STATUS, LOGS, task_id=name) == {f"node-key-{number}"}
    assert keys_of(host.orchestrator, POLL) == {"node-key-3"}
    assert host.orchestrator.count(REGISTER) == 0
    assert {host.starts_of(name) for name in ("t-first-running", "t-second-running")} == {1}


@pytest.mark.parametrize("left", [bytes(37), b"\xff\xfe", b"half of an i"])
async def test_runner_id_that_a_power_cut_has_damaged_is_replaced(host: Host, left: bytes) -> None:
    (host.state_dir / "runner-id").write_bytes(left)
    await drain(host)
    assert UUID((host.state_dir / "runner-id").read_text().strip())
