"""The server: where its root leads, what a defect is to a caller, and that all connections end."""

import gc
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from tests.harness.knocking import knocking
from tests.orchestrator.faulty import Fault, FaultyOrchestrator
from tests.orchestrator.serving import RunningOrchestrator, refusal, serve

TIMES = 10


def test_root_leads_to_the_dashboard(shared: RunningOrchestrator) -> None:
    page = shared.client().get("/", follow_redirects=True)
    assert (page.status_code, str(page.url)) == (200, f"{shared.url}/dashboard")
    assert page.headers["Content-Type"].startswith("text/html")


def _fail(*_: object) -> NoReturn:
    raise LookupError("a defect")


def test_defect_is_500_without_its_traceback(tmp_path: Path) -> None:
    with FaultyOrchestrator(tmp_path) as orchestrator:
        with orchestrator.planted(Fault("GET /nodes", response=_fail)):
            response = orchestrator.admin.get("/nodes")
        assert refusal(response) == (500, "the server failed to answer; its log says why")


def test_who_connects_while_it_stops_is_closed_too(tmp_path: Path) -> None:
    with serve(tmp_path) as orchestrator:
        port = int(urlsplit(orchestrator.url).port or 0)
        for _ in range(TIMES):
            with knocking(port):
                orchestrator.stop()
            orchestrator.start()
    gc.collect()  # what is left open warns now, and a warning is an error
