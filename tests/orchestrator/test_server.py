"""The server: where its root leads, and that it leaves no connection behind."""

import gc
from pathlib import Path
from urllib.parse import urlsplit

from tests.harness.knocking import knocking
from tests.orchestrator.serving import RunningOrchestrator, serve

TIMES = 10


def test_root_leads_to_the_dashboard(shared: RunningOrchestrator) -> None:
    page = shared.client().get("/", follow_redirects=True)
    assert (page.status_code, str(page.url)) == (200, f"{shared.url}/dashboard")
    assert page.headers["Content-Type"].startswith("text/html")


def test_who_connects_while_it_stops_is_closed_too(tmp_path: Path) -> None:
    with serve(tmp_path) as orchestrator:
        port = int(urlsplit(orchestrator.url).port or 0)
        for _ in range(TIMES):
            with knocking(port):
                orchestrator.stop()
            orchestrator.start()
    gc.collect()  # what is left open warns now, and a warning is an error
