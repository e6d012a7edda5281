"""A task's files are retried, by the host's clock and not without end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.harness.orchestrator import STATUS
from tests.harness.server import http, json_response
from tests.harness.until import until

if TYPE_CHECKING:
    from tests.harness.host import Host

pytestmark = pytest.mark.anyio

FILE = "/files/a.csv"


async def test_file_that_cannot_be_had_yet_is_waited_for(host: Host) -> None:
    host.orchestrator.then(FILE, http(503, headers={"Retry-After": "1800"}), http(500))
    host.orchestrator.files["a.csv"] = b"1,2"
    host.orchestrator.offer("t-1", files=["a.csv"])
    async with host.runner():
        await host.wait_for_calls(FILE)
        await host.clock.advance(2100)

        assert (await host.wait_for_end("t-1"))["status"] == "success"
    first, second, _ = host.orchestrator.called(FILE)
    assert 1800 <= second.at_s - first.at_s <= 1980


async def test_file_that_cannot_be_had_for_an_hour_makes_the_task_unstartable(host: Host) -> None:
    host.orchestrator.always(FILE, http(503, headers={"Retry-After": "600"}))
    host.orchestrator.offer("t-1", files=["a.csv"])
    async with host.runner(heartbeat_interval_s=60.0):
        await host.wait_for_calls(FILE)
        await host.clock.advance(3601)
        end = await host.wait_for_end("t-1")

    assert end["message"].startswith("unstartable: cannot fetch the file 'a.csv': HTTP 503")
    assert host.starts_of("t-1") == 0


@pytest.mark.parametrize("status", [403, 404, 410])
async def test_files_that_are_refused_since_the_task_is_no_longer_ours_are_no_end_of_it(
    host: Host, status: int
) -> None:
    host.orchestrator.then(FILE, json_response({"detail": "not this node's task"}, status))
    host.orchestrator.then(
        STATUS, json_response({"detail": "the task is not assigned to this node"}, 409)
    )
    host.orchestrator.files["a.csv"] = b"1,2"
    host.orchestrator.offer("t-1", files=["a.csv"])
    async with host.runner():
        await host.wait_for_calls(FILE)
        await until(lambda: not host.rows("SELECT * FROM tasks"))
        assert not host.orchestrator.ends("t-1")
        await host.clock.settle()
        host.orchestrator.offer("t-1", files=["a.csv"])
        await host.clock.advance(34)
        assert (await host.wait_for_end("t-1"))["status"] == "success"

    assert host.starts_of("t-1") == 1


@pytest.mark.parametrize("refusals", [1, 2])
async def test_file_that_is_refused_although_the_task_is_ours_is_asked_for_once_more(
    host: Host, refusals: int
) -> None:
    host.orchestrator.then(FILE, *[json_response({"detail": "no such file"}, 404)] * refusals)
    host.orchestrator.files["a.csv"] = b"1,2"
    end = await host.finish_task(assigned={"files": ["a.csv"]})

    assert host.orchestrator.count(FILE) == 2
    if refusals == 1:
        assert end["status"] == "success"
    else:
        assert end["message"].startswith("unstartable: cannot fetch the file 'a.csv': HTTP 404")
