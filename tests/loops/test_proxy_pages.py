"""A proxy's page in place of the orchestrator's answer, as one shows while that is replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.loops.host import IDLE
from tests.loops.orchestrator import STATUS
from tests.unit.scripted_server import http
from tests.unit.until import until

if TYPE_CHECKING:
    from tests.loops.host import Host

pytestmark = pytest.mark.anyio

PAGES = {
    "html": (b"<html>404 page not found</html>", {"Content-Type": "text/html"}),
    "text": (b"404 page not found", {"Content-Type": "text/plain"}),
    "nothing": (b"", {}),
}


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("status", [403, 404, 405])
async def test_page_in_place_of_the_last_answer_loses_no_end(
    host: Host, status: int, page: str
) -> None:
    host.orchestrator.offer("t-1", "[wait-for go]")
    async with host.runner():
        await host.wait_for_state("t-1", "running")
        await host.clock.settle(IDLE)
        host.orchestrator.then(STATUS, http(status, *PAGES[page]))
        host.let_go()
        await until(lambda: host.state_of("t-1") in {"ended", "closed"})
        await host.clock.advance(300, asleep=IDLE)
        assert host.orchestrator.taken[-1]["status"] == "success"


async def test_page_that_stays_for_hours_parks_the_report(host: Host) -> None:
    host.orchestrator.offer("t-1", "[wait-for go]")
    async with host.runner(heartbeat_interval_s=300.0):
        await host.wait_for_state("t-1", "running")
        await host.clock.settle(IDLE)
        host.orchestrator.always(STATUS, http(404, *PAGES["html"]))
        host.let_go()
        await until(lambda: host.state_of("t-1") == "ended")
        await host.clock.advance(4 * 3600, asleep=IDLE)
        assert host.state_of("t-1") == "closed"


async def test_pages_in_place_of_a_file_end_no_task(host: Host) -> None:
    page = http(404, *PAGES["html"])
    host.orchestrator.files["a.csv"] = b"1,2"
    host.orchestrator.then("/files/a.csv", page, page)
    host.orchestrator.offer("t-1", files=["a.csv"])
    async with host.runner():
        await host.pass_time_until_closed("t-1")
        assert (await host.wait_for_end("t-1"))["status"] == "success"
