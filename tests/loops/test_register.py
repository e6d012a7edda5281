"""A host is one node for as long as it is the same, and a refusal ends it only when idle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from runner.redaction import Secret
from tests.harness.orchestrator import BEAT, POLL, REGISTER, SILENCE, STATUS, TOKEN
from tests.harness.server import http, json_response
from tests.harness.until import until

if TYPE_CHECKING:
    from tests.harness.host import Host
    from tests.harness.server import Answer

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


async def test_revoked_key_leads_to_a_new_registration_and_reports_still_go_out(
    host: Host,
) -> None:
    async with host.running_task():
        host.orchestrator.keys.clear()
        await host.clock.advance(17)
        await host.wait_for_calls(REGISTER, 2)
        host.let_go()

        assert (await host.wait_for_end())["status"] == "success"
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


@pytest.mark.parametrize("status", [401, 403])
async def test_refused_registration_ends_an_idle_runner_with_its_own_exit_code(
    host: Host, log: pytest.LogCaptureFixture, status: int
) -> None:
    host.orchestrator.always(REGISTER, json_response({"detail": "go away"}, status))
    async with host.runner(registration_token=Secret("wrong-token")) as run:
        assert await run.end() == 77

    assert (INVALID if status == 401 else "Registration failed - HTTP 403: go away") in log.text
    assert "wrong-token" not in log.text
    assert host.orchestrator.count(REGISTER) == 1


async def test_refused_registration_waits_for_the_work_in_hand_and_keeps_its_report(
    host: Host, log: pytest.LogCaptureFixture
) -> None:
    async with host.running_task("[wait-for go][fail 4]") as run:
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


DISABLED_503 = json_response({"detail": "registration is disabled"}, 503)
AS_A_WHOLE, BY_OPTIONS = "check --orchestrator-url", "check --name, --tag and --capability"


@pytest.mark.parametrize(
    ("failure", "sentence"),
    [
        (DISABLED_503, DISABLED),
        (json_response({"detail": "no"}, 404), f"cannot register: HTTP 404: no; {AS_A_WHOLE}"),
        (json_response({"detail": "no"}, 405), f"cannot register: HTTP 405: no; {AS_A_WHOLE}"),
        (json_response({"detail": "no"}, 400), f"cannot register: HTTP 400: no; {BY_OPTIONS}"),
        (json_response({"detail": "no"}, 422), f"cannot register: HTTP 422: no; {BY_OPTIONS}"),
        (
            json_response({"detail": "no"}, 409),
            "cannot register: HTTP 409: no; ask the orchestrator's administrator",
        ),
    ],
    ids=["disabled", "404", "405", "400", "422", "409"],
)
async def test_registration_that_goes_wrong_is_logged_with_advice_and_retried(
    host: Host, log: pytest.LogCaptureFixture, failure: Answer, sentence: str
) -> None:
    host.orchestrator.then(REGISTER, failure, failure)
    async with host.runner():
        await host.clock.advance(20)
        await host.wait_for_calls(POLL)

    logged = [record for record in log.records if sentence in record.getMessage()]
    assert len(logged) == 2
    if "; " in sentence:
        assert {record.levelname for record in logged} == {"ERROR"}
    assert host.orchestrator.count(REGISTER) == 3


@pytest.mark.parametrize("failure", [json_response({}, 404), DISABLED_503, SILENCE])
async def test_once_does_not_wait_for_a_registration_that_goes_wrong(
    host: Host, log: pytest.LogCaptureFixture, failure: Answer
) -> None:
    host.orchestrator.always(REGISTER, failure)
    async with host.runner(once=True) as run:
        assert await run.end() == 75

    assert host.orchestrator.count(REGISTER) == 1
    assert "cannot register: " in log.text or DISABLED in log.text


async def test_once_does_not_wait_for_an_orchestrator_that_is_away_at_its_request(
    host: Host, log: pytest.LogCaptureFixture
) -> None:
    host.orchestrator.always(POLL, SILENCE)
    async with host.runner(once=True) as run:
        assert await run.end() == 75

    assert "Error polling for tasks: " in log.text
