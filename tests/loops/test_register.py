"""A host is one node for as long as it is the same, and a refusal ends it only when idle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from runner.redaction import Secret
from tests.harness.orchestrator import BEAT, POLL, REGISTER, STATUS, TOKEN
from tests.harness.server import http, json_response
from tests.harness.until import until

if TYPE_CHECKING:
    from tests.harness.host import Host

pytestmark = pytest.mark.anyio

INVALID = "Registration failed - invalid registration token"
DISABLED = "Registration failed - orchestrator has registration disabled"


async def test_node_registers_with_what_it_is(host: Host) -> None:
    async with host.runner(tags={"site": "berlin"}, capabilities=("gpu",)):
        await host.wait_for_calls(POLL)

    (call,) = host.orchestrator.called(REGISTER)
    assert call.request.headers["x-registration-token"] == TOKEN
    assert call.key is None
    assert call.body["name"] == "host-1"
    assert call.body["tags"] == {"site": "berlin"}
    assert call.body["capabilities"] == ["gpu"]
    assert call.body["hostname"]
    assert call.body["os_type"]


async def test_identity_is_used_again_after_a_restart(host: Host) -> None:
    for count in (1, 2, 3):
        async with host.runner():
            await host.wait_for_calls(POLL, count)
            await host.wait_for_calls(BEAT, count)

    assert host.orchestrator.count(REGISTER) == 1
    assert {call.body["node_id"] for call in host.orchestrator.called(BEAT)} == {"node-1"}


@pytest.mark.parametrize(
    "changed", [{"name": "other"}, {"tags": {"a": "b"}}, {"capabilities": ("gpu",)}]
)
async def test_node_that_has_changed_registers_anew(host: Host, changed: dict[str, Any]) -> None:
    async with host.runner():
        await host.wait_for_calls(POLL)
    async with host.runner(**changed):
        await host.wait_for_calls(POLL, 2)

    assert host.orchestrator.count(REGISTER) == 2
    assert [call.key for call in host.orchestrator.called(POLL)] == ["node-key-1", "node-key-2"]


async def test_revoked_key_leads_to_a_new_registration_and_reports_still_go_out(
    host: Host,
) -> None:
    host.orchestrator.offer("t-1", "[wait-for go]")
    async with host.runner():
        await host.wait_for_state("t-1", "running")
        host.orchestrator.keys.clear()
        await host.clock.advance(17)
        await host.wait_for_calls(REGISTER, 2)
        host.let_go()

        assert (await host.wait_for_end("t-1"))["status"] == "success"
    assert host.orchestrator.called(STATUS)[-1].key == "node-key-2"
    assert host.starts_of("t-1") == 1


async def test_report_of_an_earlier_identity_goes_out_after_a_restart(host: Host) -> None:
    host.orchestrator.offer("t-1", "[fail 3]")
    async with host.runner():
        await host.wait_for_calls(STATUS)
        host.orchestrator.always(STATUS, http(503))
        await host.wait_for_state("t-1", "ended")
    host.orchestrator.keys.clear()
    host.orchestrator.always(STATUS, None)
    async with host.runner():
        await host.clock.advance(61)
        end = await host.wait_for_end("t-1")

    assert "exit code 3" in end["message"]
    assert host.orchestrator.called(STATUS)[-1].key == "node-key-2"


async def test_wrong_token_ends_an_idle_runner_with_its_own_exit_code(
    host: Host, log: pytest.LogCaptureFixture
) -> None:
    async with host.runner(registration_token=Secret("wrong-token")) as run:
        assert await run.end() == 77

    assert INVALID in log.text
    assert "wrong-token" not in log.text
    assert host.orchestrator.count(REGISTER) == 1


async def test_refused_registration_waits_for_the_work_in_hand_and_keeps_its_report(
    host: Host, log: pytest.LogCaptureFixture
) -> None:
    host.orchestrator.offer("t-1", "[wait-for go][fail 4]")
    async with host.runner() as run:
        await host.wait_for_state("t-1", "running")
        host.orchestrator.keys.clear()
        host.orchestrator.always(REGISTER, json_response({"detail": "wrong token"}, 401))
        await host.clock.advance(17)
        await until(lambda: INVALID in log.text)
        await host.clock.advance(120)
        assert not run.over.is_set(), "a task is running"
        host.let_go()
        assert await run.end() == 77
    assert host.state_of("t-1") == "ended"
    assert [report["status"] for report in host.orchestrator.taken] == ["running"]

    host.orchestrator.always(REGISTER, None)
    async with host.runner():
        end = await host.wait_for_end("t-1")
    assert "exit code 4" in end["message"]
    assert host.starts_of("t-1") == 1


async def test_task_that_had_not_begun_when_the_registration_was_refused_begins_later(
    host: Host,
) -> None:
    host.orchestrator.holds = True
    async with host.runner() as run:
        await host.wait_for_calls(POLL)
        host.engine.shut("fetch_image")
        host.orchestrator.offer()
        await until(lambda: host.engine.waiting["fetch_image"] == 1)
        host.orchestrator.keys.clear()
        host.orchestrator.always(REGISTER, json_response({}, 401))
        host.engine.open("fetch_image")
        assert await run.end() == 77
    assert host.state_of("t-1") == "accepted"

    host.orchestrator.always(REGISTER, None)
    async with host.runner():
        assert (await host.wait_for_end("t-1"))["status"] == "success"
    assert host.starts_of("t-1") == 1


async def test_disabled_registration_is_said_and_tried_again(
    host: Host, log: pytest.LogCaptureFixture
) -> None:
    host.orchestrator.then(
        REGISTER, *[json_response({"detail": "registration is disabled"}, 503)] * 2
    )
    async with host.runner():
        await host.clock.advance(20)
        await host.wait_for_calls(POLL)

    assert log.text.count(DISABLED) == 2
    assert host.orchestrator.count(REGISTER) == 3


async def test_orchestrator_that_is_away_at_the_start_is_waited_for(
    host: Host, log: pytest.LogCaptureFixture
) -> None:
    host.orchestrator.then(REGISTER, http(502), http(200, b"<html>"), json_response({}, 429))
    async with host.runner():
        await host.clock.advance(30)
        await host.wait_for_calls(POLL)

    assert DISABLED not in log.text
    assert log.text.count("cannot register: ") == 3


@pytest.mark.parametrize("status", [401, 403])
async def test_registration_that_is_not_allowed_ends_the_runner(host: Host, status: int) -> None:
    host.orchestrator.always(REGISTER, json_response({"detail": "go away"}, status))
    async with host.runner() as run:
        assert await run.end() == 77

    assert host.orchestrator.count(REGISTER) == 1


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (404, "check --orchestrator-url"),
        (405, "check --orchestrator-url"),
        (400, "check --name, --tag and --capability"),
        (422, "check --name, --tag and --capability"),
        (409, "ask the orchestrator's administrator"),
    ],
)
async def test_registration_that_goes_wrong_says_what_to_do_and_is_tried_again(
    host: Host, log: pytest.LogCaptureFixture, status: int, advice: str
) -> None:
    host.orchestrator.then(REGISTER, *[json_response({"detail": "no"}, status)] * 2)
    async with host.runner():
        await host.clock.advance(20)
        await host.wait_for_calls(POLL)

    said = [record for record in log.records if "cannot register: " in record.getMessage()]
    assert {record.levelname for record in said} == {"ERROR"}
    assert {record.getMessage() for record in said} == {
        f"cannot register: HTTP {status}: no; {advice}"
    }
    assert host.orchestrator.count(REGISTER) == 3


@pytest.mark.parametrize("status", [404, 503])
async def test_once_does_not_wait_for_a_registration_that_goes_wrong(
    host: Host, log: pytest.LogCaptureFixture, status: int
) -> None:
    host.orchestrator.always(REGISTER, json_response({"detail": "no"}, status))
    async with host.runner(once=True) as run:
        assert await run.end() == 75

    assert host.orchestrator.count(REGISTER) == 1
    assert "cannot register: HTTP 404: no" in log.text or DISABLED in log.text


async def test_once_does_not_wait_for_an_orchestrator_that_is_away(host: Host) -> None:
    host.orchestrator.is_down = True
    async with host.runner(once=True) as run:
        assert await run.end() == 75


async def test_identity_that_is_refused_as_soon_as_it_is_given_makes_no_flood(host: Host) -> None:
    for path in (POLL, BEAT, STATUS):
        host.orchestrator.always(path, json_response({"detail": "unknown key"}, 401))
    async with host.runner():
        await host.wait_for_calls(REGISTER, 2)
        await host.clock.advance(1800)

    assert host.orchestrator.count(REGISTER) <= 2 + 1800 / 30
    assert len(host.orchestrator.calls) <= 400
