"""What the orchestrator's tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.orchestrator.serving import RegisteredNode, RunningOrchestrator, serve


@pytest.fixture
def orchestrator(tmp_path: Path) -> Iterator[RunningOrchestrator]:
    """Serve with the default settings."""
    with serve(tmp_path / "data") as running:
        yield running


@pytest.fixture
def node(orchestrator: RunningOrchestrator) -> RegisteredNode:
    """Register a node with it."""
    return orchestrator.register()
