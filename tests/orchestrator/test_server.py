"""The server leaves no connection behind, and serves no other application."""

import gc
from urllib.parse import urlsplit

import pytest
from fastapi import FastAPI

from orchestrator.services import services_of
from tests.harness.knocking import knocking
from tests.orchestrator.serving import RunningOrchestrator


def test_connections_made_while_it_stops_are_closed_too(orchestrator: RunningOrchestrator) -> None:
    port = urlsplit(orchestrator.url).port
    assert port is not None
    for _ in range(10):
        with knocking(port):
            orchestrator.stop()
        orchestrator.start()
    gc.collect()  # an open connection that nothing holds warns now, and a warning is an error


def test_application_without_services_is_refused() -> None:
    app = FastAPI()
    app.state.services = None
    with pytest.raises(TypeError, match="not made by create_app"):
        services_of(app)
