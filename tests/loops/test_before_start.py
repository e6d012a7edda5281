"""Before its container starts, a task's files are there and its claim has been accepted."""

import pytest

from tests.harness.host import Host
from tests.harness.orchestrator import POLL, STATUS
from tests.harness.server import Answer, http, json_response
from tests.harness.until import until
from tests.loops.steps import Log, finish_another

pytestmark = pytest.mark.anyio

FILE = "/files/a.csv"


@pytest.mark.parametrize("status", [403, 404, 409, 410])
async def test_task_of_another_node_starts_only_when_offered_again(
    host: Host, log: Log, status: int
) -> None:
    host.orchestrator.then(STATUS, json_response({"detail": "given to another node"}, status))
    host.orchestrator.offer()
    async with host.runner():
        await until(lambda: "task is dropped: " in log.text)
        await until(lambda: not host.rows("SELECT * FROM tasks"))
        assert host.starts_of("t-1") == 0
        assert not host.orchestrator.ends("t-1")
        await finish_another(host, "t-1")
    assert host.starts_of("t-1") == 1


@pytest.mark.parametrize("status", ["success", "error"])
async def test_task_that_ended_elsewhere_never_starts(host: Host, log: Log, status: str) -> None:
    host.orchestrator.standing["t-1"] = status
    host.orchestrator.offer()
    async with host.runner():
        await until(lambda: "task is dropped: " in log.text)
        await until(lambda: not host.rows("SELECT * FROM tasks"))
    assert host.starts_of("t-1") == 0
    assert not host.orchestrator.ends("t-1")


async def test_task_that_was_cancelled_meanwhile_never_starts_and_is_reported(host: Host) -> None:
    host.orchestrator.standing["t-1"] = "cancelled"
    assert (await host.finish_task())["message"] == "cancelled: before it started"
    assert host.starts_of("t-1") == 0


@pytest.mark.parametrize("status", [400, 405, 422])
async def test_claim_that_is_not_understood_does_not_hold_up_a_task(
    host: Host, status: int
) -> None:
    host.orchestrator.then(STATUS, http(status))
    assert (await host.finish_task())["status"] == "success"


@pytest.mark.parametrize(
    "claimed",
    [json_response({"detail": "no"}, 409), json_response({"status": "error"})],
    ids=["409", "ended"],
)
async def test_refused_task_that_is_offered_on_and_on_makes_no_flood(
    host: Host, claimed: Answer
) -> None:
    host.orchestrator.always(STATUS, claimed)
    host.orchestrator.always(POLL, json_response({"task_id": "t-1", "prompt": "do it"}))
    async with host.runner():
        await host.wait_for_calls(POLL)
        await host.clock.settle()  # its next request waits for the interval
        await host.clock.advance(600)
        assert 15 <= host.orchestrator.count(POLL) <= 50


# Files


@pytest.mark.parametrize(("failures", "status"), [(5, "success"), (7, "error")])
async def test_file_is_retried_for_an_hour(host: Host, failures: int, status: str) -> None:
    later = http(503, headers={"Retry-After": "600"})
    host.orchestrator.then(FILE, *[later] * failures)
    host.orchestrator.files["a.csv"] = b"1,2"
    host.orchestrator.offer("t-1", files=["a.csv"])
    async with host.runner(heartbeat_interval_s=60.0):
        await host.wait_for_calls(FILE)
        await host.clock.advance(3601)
        end = await host.wait_for_end("t-1")
    assert end["status"] == status
    message = "unstartable: cannot fetch the file 'a.csv': HTTP 503"
    assert end["message"].startswith(message) == (status == "error")
    first, second, *_ = host.orchestrator.called(FILE)
    assert 600 <= second.at_s - first.at_s <= 660


@pytest.mark.parametrize("status", [403, 404, 410])
async def test_refused_file_of_another_nodes_task_is_not_its_end(host: Host, status: int) -> None:
    host.orchestrator.then(FILE, json_response({"detail": "not this node's task"}, status))
    host.orchestrator.then(STATUS, json_response({"detail": "not assigned to this node"}, 409))
    host.orchestrator.offer("t-1", files=["a.csv"])
    async with host.runner():
        await host.wait_for_calls(FILE)
        await until(lambda: not host.rows("SELECT * FROM tasks"))
        assert not host.orchestrator.ends("t-1")
        await finish_another(host, "t-1")
    assert host.starts_of("t-1") == 1


@pytest.mark.parametrize(
    ("refusals", "message"),
    [(1, "completed: "), (2, "unstartable: cannot fetch the file 'a.csv': HTTP 404: no")],
)
async def test_file_that_is_refused_although_the_task_is_ours_is_requested_once_more(
    host: Host, refusals: int, message: str
) -> None:
    host.orchestrator.then(FILE, *[json_response({"detail": "no"}, 404)] * refusals)
    host.orchestrator.files["a.csv"] = b"1,2"
    end = await host.finish_task(assigned={"files": ["a.csv"]})
    assert host.orchestrator.count(FILE) == 2
    assert end["message"].startswith(message)
