"""A host is one node for as long as it is the same, and a refusal ends it only when idle."""

import pytest

from runner.redaction import Secret
from tests.harness.host import Host
from tests.harness.orchestrator import POLL, REGISTER, SILENCE, TOKEN
from tests.harness.server import Answer, json_response
from tests.harness.until import until
from tests.loops.steps import Log

pytestmark = pytest.mark.anyio

HOUR_S = 3600.0
INVALID = "Registration failed - invalid registration token"
DISABLED = "Registration failed - orchestrator has registration disabled"
DISABLED_503 = json_response({"detail": "registration is disabled"}, 503)


def refusal(status: int) -> Answer:
    return json_response({"detail": "no"}, status)


async def test_node_registers_with_what_it_is(host: Host) -> None:
    async with host.runner(tags={"site": "berlin"}, capabilities=("gpu",)):
        await host.wait_for_calls(POLL)
    (call,) = host.orchestrator.called(REGISTER)
    assert call.request.headers["x-registration-token"] == TOKEN
    assert call.key is None
    sent = {"name": "host-1", "tags": {"site": "berlin"}, "capabilities": ["gpu"]}
    assert call.body.items() >= sent.items()
    assert call.body["hostname"]
    assert call.body["os_type"]


@pytest.mark.parametrize(
    ("status", "sentence"), [(401, INVALID), (403, "Registration failed - HTTP 403: no")]
)
async def test_refused_registration_ends_an_idle_runner_with_its_own_exit_code(
    host: Host, log: Log, status: int, sentence: str
) -> None:
    host.orchestrator.always(REGISTER, refusal(status))
    host.engine.shut("fetch_image")  # which could take an hour
    async with host.runner(registration_token=Secret("wrong-token")) as life:
        assert await life.end() == 77
    last = log.records[-1]
    assert (last.levelname, last.message.partition("HTTP ")[0]) == (
        "ERROR",
        "exiting: the registration was refused: ",
    )
    assert sentence in log.text
    assert "wrong-token" not in log.text
    assert host.orchestrator.count(REGISTER) == 1


async def test_refused_registration_waits_for_the_work_in_hand(host: Host, log: Log) -> None:
    async with host.running_task("[wait-for go][fail 4]", {"timeout_seconds": 9000}) as life:
        host.orchestrator.keys.clear()
        host.orchestrator.always(REGISTER, refusal(401))
        await host.clock.settle()
        seen = len(host.orchestrator.calls)
        await host.clock.advance(HOUR_S)  # the heart beats no more
        assert not life.over.is_set(), "a task is running"
        paths = [call.request.target for call in host.orchestrator.calls[seen:]]
        assert paths.count(REGISTER) == 1
        assert len(paths) <= 3, paths
        assert INVALID in log.text
        host.let_go()
        assert await life.end() == 77
    assert host.state_of("t-1") == "ended"
    assert [report["status"] for report in host.orchestrator.taken] == ["running"]

    host.orchestrator.always(REGISTER, None)
    async with host.runner():
        assert "exit code 4" in (await host.wait_for_end())["message"]
    assert host.starts_of("t-1") == 1


async def test_task_that_a_refused_registration_stopped_begins_later(host: Host) -> None:
    host.orchestrator.holds = True
    async with host.runner() as life:
        await host.wait_for_calls(POLL)
        host.engine.shut("fetch_image")
        host.orchestrator.offer()
        await until(lambda: host.engine.waiting["fetch_image"] == 1)
        host.orchestrator.keys.clear()
        host.orchestrator.always(REGISTER, refusal(401))
        host.engine.open("fetch_image")
        assert await life.end() == 77
    assert host.state_of("t-1") == "accepted"

    host.orchestrator.always(REGISTER, None)
    async with host.runner():
        assert (await host.wait_for_end())["status"] == "success"
    assert host.starts_of("t-1") == 1


AS_A_WHOLE, BY_OPTIONS = "check --orchestrator-url", "check --name, --tag and --capability"


@pytest.mark.parametrize(
    ("failure", "sentence"),
    [
        (DISABLED_503, DISABLED),
        (refusal(404), f"cannot register: HTTP 404: no; {AS_A_WHOLE}"),
        (refusal(422), f"cannot register: HTTP 422: no; {BY_OPTIONS}"),
        (refusal(409), "HTTP 409: no; ask the orchestrator's administrator"),
    ],
    ids=["disabled", "404", "422", "409"],
)
async def test_registration_that_goes_wrong_is_logged_with_advice_and_retried(
    host: Host, log: Log, failure: Answer, sentence: str
) -> None:
    host.orchestrator.then(REGISTER, failure, failure)
    async with host.runner():
        await host.clock.advance(20)
        await host.wait_for_calls(POLL)

    logged = [record.levelname for record in log.records if sentence in record.message]
    assert logged == ["ERROR", "DEBUG"]
    assert host.orchestrator.count(REGISTER) == 3


@pytest.mark.parametrize(
    ("path", "failure", "sentence"),
    [
        (REGISTER, refusal(404), "cannot register: "),
        (REGISTER, SILENCE, "cannot register: "),
        (POLL, SILENCE, "Error polling for tasks: "),
    ],
    ids=["refusal", "silence", "silence at the poll"],
)
async def test_once_does_not_wait_for_an_orchestrator_that_is_away(
    host: Host, log: Log, path: str, failure: Answer, sentence: str
) -> None:
    host.orchestrator.always(path, failure)
    async with host.runner(once=True) as life:
        assert await life.end() == 75
    assert host.orchestrator.count(path) == 1
    assert sentence in log.text
