"""What the tests of the status reporter share."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.fakes.crush import Crush
from tests.orchestrator.serving import RunningOrchestrator
from tests.reporter.held import Agent, Held, connected


@pytest.fixture
def anyio_backend() -> str:
    """Name the event loop that the reporter uses."""
    return "asyncio"


@pytest.fixture(scope="session")
def orchestrator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningOrchestrator]:
    """Serve the reference orchestrator."""
    with RunningOrchestrator(tmp_path_factory.mktemp("orchestrator")) as running:
        yield running


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Make a Victoria home."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def held(orchestrator: RunningOrchestrator, home: Path) -> Held:
    """Create a task that a node claims, so that it may be reported on."""
    node = orchestrator.register()
    task_id = orchestrator.create_task("Count the sales")["id"]
    assert node.poll() is not None
    return Held(orchestrator, home, task_id, node.api_key)


@pytest.fixture
async def agent(held: Held) -> AsyncIterator[Agent]:
    """Connect an agent to the reporter of that task."""
    async with connected(held.variables) as agent:
        yield agent


@pytest.fixture
def crush(home: Path) -> Iterator[Crush]:
    """Run a Crush whose session was begun just now."""
    running = Crush(home / ".crush" / "crush.db", now=int(time.time()))
    running.begin("s1", prompt="Count the sales")
    yield running
    running.close()
