"""A task's files are waited for, by the host's clock and not without end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.loops.host import WITH_TASK
from tests.unit.scripted_server import http

if TYPE_CHECKING:
    from tests.loops.host import Host

pytestmark = pytest.mark.anyio

FILE = "/files/a.csv"


async def test_file_that_cannot_be_had_yet_is_waited_for(host: Host) -> None:
    host.orchestrator.then(FILE, http(503, headers={"Retry-After": "1800"}), http(500))
    host.orchestrator.files["a.csv"] = b"1,2"
    host.orchestrator.offer("t-1", files=["a.csv"])
    async with host.runner():
        await host.wait_for_calls(FILE)
        await host.clock.advance(2100, asleep=WITH_TASK)

        assert (await host.wait_for_end("t-1"))["status"] == "success"
    first, second, _ = host.orchestrator.called(FILE)
    assert 1800 <= second.at_s - first.at_s <= 1980


async def test_file_that_cannot_be_had_for_an_hour_makes_the_task_unstartable(host: Host) -> None:
    host.orchestrator.always(FILE, http(503, headers={"Retry-After": "600"}))
    host.orchestrator.offer("t-1", files=["a.csv"])
    async with host.runner(heartbeat_interval_s=60.0):
        await host.wait_for_calls(FILE)
        await host.clock.advance(3601, asleep=WITH_TASK)
        end = await host.wait_for_end("t-1")

    assert end["message"].startswith("unstartable: cannot fetch the file 'a.csv': HTTP 503")
    assert host.starts_of("t-1") == 0
