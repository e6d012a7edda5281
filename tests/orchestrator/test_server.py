"""The server leaves no connection behind."""

import gc
from pathlib import Path
from urllib.parse import urlsplit

from tests.harness.knocking import knocking
from tests.orchestrator.serving import serve

TIMES = 10


def test_who_connects_while_it_stops_is_closed_too(tmp_path: Path) -> None:
    with serve(tmp_path) as orchestrator:
        port = urlsplit(orchestrator.url).port
        assert port is not None
        for _ in range(TIMES):
            with knocking(port):
                orchestrator.stop()
            orchestrator.start()
    gc.collect()  # what was forgotten warns now, and a warning is an error
