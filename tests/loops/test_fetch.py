"""A task's files are retried, by the host's clock and not without end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.harness.orchestrator import STATUS
from tests.harness.server import http, json_response
from tests.harness.until import until
from tests.loops.steps import finish_another

if TYPE_CHECKING:
    from tests.harness.host import Host

pytestmark = pytest.mark.anyio

FILE = "/files/a.csv"
FILES = {"files": ["a.csv"]}


@pytest.mark.parametrize(("failures", "status"), [(5, "success"), (7, "error")])
async def test_file_that_cannot_be_fetched_is_retried_for_an_hour(
    host: Host, failures: int, status: str
) -> None:
    later = http(503, headers={"Retry-After": "600"})
    host.orchestrator.then(FILE, *[later] * failures)
    host.orchestrator.files["a.csv"] = b"1,2"
    host.orchestrator.offer("t-1", **FILES)
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
async def test_files_that_are_refused_since_the_task_is_no_longer_ours_are_no_end_of_it(
    host: Host, status: int
) -> None:
    host.orchestrator.then(FILE, json_response({"detail": "not this node's task"}, status))
    host.orchestrator.then(STATUS, json_response({"detail": "not assigned to this node"}, 409))
    host.orchestrator.offer("t-1", **FILES)
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
    end = await host.finish_task(assigned=FILES)

    assert host.orchestrator.count(FILE) == 2
    assert end["message"].startswith(message)
