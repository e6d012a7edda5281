"""What a proxy may have refused is no verdict: nothing is given up for it, at any step."""

import pytest

from tests.harness.host import Host
from tests.harness.orchestrator import BEAT, LOGS, POLL, REGISTER, STATUS
from tests.harness.server import Answer, http, json_response
from tests.harness.until import until
from tests.loops.steps import Log, leave_task

pytestmark = pytest.mark.anyio

INVALID = "Registration failed - invalid registration token"
FILE = "/files/a.csv"
RUNNING = json_response({"status": "running"})
UNEXPLAINED = (
    http(401),
    http(403, b"Forbidden", {"Content-Type": "text/plain"}),
    json_response({"error": "not found"}, 404),
)
"""What proxies show while what is behind them is replaced; the seed's 401 has no body either."""
EVERYTHING = (POLL, BEAT, STATUS, REGISTER)


@pytest.mark.parametrize(
    ("path", "accepted"),
    [(REGISTER, []), (BEAT, []), (POLL, []), (FILE, []), (STATUS, []), (STATUS, [RUNNING])],
    ids=["registration", "heartbeat", "poll", "file", "claim", "final report"],
)
async def test_refusals_without_a_reason_that_pass_have_no_consequence(
    host: Host, path: str, accepted: list[Answer]
) -> None:
    host.orchestrator.then(path, *accepted, *UNEXPLAINED)
    host.orchestrator.files["a.csv"] = b"1,2"
    host.orchestrator.offer("t-1", files=["a.csv"])
    async with host.runner():
        await host.pass_time_until_closed("t-1")
        await host.pass_time_until(lambda: host.orchestrator.count(BEAT) > 3)
        assert (await host.wait_for_end())["status"] == "success"
    assert host.starts_of("t-1") == 1
    assert host.orchestrator.keys == {"node-key-1"}


async def test_log_that_is_refused_without_a_reason_is_sent_again(host: Host) -> None:
    host.orchestrator.then(LOGS, *UNEXPLAINED)
    await leave_task(host, log={"id": "s-1", "messages": []})
    async with host.runner():
        await host.pass_time_until(lambda: not host.rows("SELECT * FROM outbox"))
    assert host.orchestrator.count(LOGS) == 4


@pytest.mark.parametrize(
    ("refusal", "sentence"),
    [
        (UNEXPLAINED[0], INVALID),
        (UNEXPLAINED[1], "Registration failed - HTTP 403 without a reason"),
    ],
    ids=["401", "403"],
)
async def test_registration_that_is_refused_without_a_reason_ends_the_runner_after_ten_minutes(
    host: Host, log: Log, refusal: Answer, sentence: str
) -> None:
    host.orchestrator.always(REGISTER, refusal)
    async with host.runner() as life:
        await host.clock.advance(590)
        errors = [one.getMessage() for one in log.records if one.levelname == "ERROR"]
        assert [error[: len(sentence)] for error in errors] == [sentence], "at the first one"
        assert not life.over.is_set()
        await host.clock.advance(80)
        assert await life.end() == 77


async def test_key_that_is_refused_without_a_reason_is_replaced_after_ten_minutes(
    host: Host, log: Log
) -> None:
    async with host.runner():
        await host.wait_for_calls(POLL)
        for path in (POLL, BEAT):
            host.orchestrator.always(path, http(401))
        await host.clock.advance(590)
        assert host.rows("SELECT * FROM identities WHERE refused") == []
        await host.pass_time_until(lambda: host.orchestrator.count(REGISTER) == 2)
    assert "HTTP 401 without a reason, maybe from a proxy; believed if it lasts 10 min" in log.text


async def test_claim_that_is_refused_without_a_reason_drops_the_task_after_ten_minutes(
    host: Host, log: Log
) -> None:
    host.orchestrator.always(STATUS, UNEXPLAINED[1])
    host.orchestrator.offer()
    async with host.runner():
        await host.wait_for_calls(STATUS)
        await host.clock.advance(590)
        assert host.state_of("t-1") == "accepted"
        await host.pass_time_until(lambda: "task is dropped: HTTP 403" in log.text)
    assert host.starts_of("t-1") == 0


async def test_report_that_is_forbidden_without_a_reason_is_parked_after_ten_minutes(
    host: Host,
) -> None:
    host.orchestrator.then(STATUS, RUNNING)
    host.orchestrator.always(STATUS, UNEXPLAINED[1])
    host.orchestrator.offer()
    async with host.runner():
        await host.wait_for_state("t-1", "ended")
        await host.clock.advance(590)
        assert [row["parked"] for row in host.rows("SELECT * FROM outbox")] == [None]
        await host.pass_time_until_closed("t-1")
    assert [row["parked"] for row in host.rows("SELECT * FROM outbox")] == ["HTTP 403"]


async def test_refused_runner_delivers_what_it_can_before_it_ends(host: Host, log: Log) -> None:
    async with host.running_task(assigned={"timeout_seconds": 9000}) as life:
        for path in EVERYTHING:
            host.orchestrator.always(path, http(401))
        await host.pass_time_until(lambda: log.text.count(INVALID) == 2)  # the last is believed
        for path in EVERYTHING:
            host.orchestrator.always(path, None)
        host.let_go()
        assert await life.end() == 77
    assert host.state_of("t-1") == "closed"
    assert [one["status"] for one in host.orchestrator.taken] == ["running", "success"]
    assert {call.key for call in host.orchestrator.called(STATUS)} == {"node-key-1"}


async def test_refused_runner_does_not_wait_for_what_nobody_takes(host: Host, log: Log) -> None:
    async with host.running_task() as life:
        host.orchestrator.keys.clear()
        host.orchestrator.always(REGISTER, json_response({"detail": "no"}, 401))
        await host.clock.advance(60)
        await until(lambda: INVALID in log.text)
        host.let_go()
        assert await life.end() == 77
    assert len(host.orchestrator.ends("t-1")) == 1
    assert "undelivered reports wait in the journal for the next start" in log.text
