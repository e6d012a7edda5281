"""A task that a node has claimed, and an agent that calls its reporter."""

import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from runner.api.client import OrchestratorClient
from runner.reporter.job import job_in
from runner.reporter.reporter import Reporter
from runner.reporter.server import server_for
from runner.workspace.handover import ReporterState, read_reporter_state
from tests.fakes.crush import Crush
from tests.orchestrator.serving import RunningOrchestrator

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "runner.status_reporter")

Json = dict[str, Any]


@dataclass(frozen=True)
class Held:
    """A task that a node has, so that it may be reported on."""

    orchestrator: RunningOrchestrator
    home: Path
    task_id: str
    api_key: str

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables of the task's container."""
        return {
            "ORCHESTRATOR_URL": self.orchestrator.url,
            "JOB_ID": self.task_id,
            "TASK_ID": self.task_id,
            "NODE_API_KEY": self.api_key,
            "VICTORIA_HOME": str(self.home),
            "TASK_ARTIFACTS_DIR": str(self.home / "tasks" / self.task_id / "artifacts"),
        }

    @property
    def task(self) -> Json:
        return self.orchestrator.task(self.task_id)

    @property
    def log(self) -> Json:
        return self.orchestrator.log_of(self.task_id)

    @property
    def state(self) -> ReporterState:
        return read_reporter_state(self.home, self.task_id)


class Agent:
    """A client of the reporter's MCP server."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def call(self, tool: str, *, is_error: bool = False, **arguments: object) -> Json:
        result = await self.client.call_tool(tool, arguments)
        assert result.is_error is is_error
        assert isinstance(result.structured_content, dict)
        return result.structured_content


@asynccontextmanager
async def connected(variables: Mapping[str, str]) -> AsyncIterator[Agent]:
    """Connect an agent to a reporter with these environment variables."""
    job = job_in(variables)
    async with (
        OrchestratorClient(job.orchestrator_url) as orchestrator,
        Client(server_for(Reporter(job, orchestrator))) as client,
    ):
        yield Agent(client)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def orchestrator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningOrchestrator]:
    with RunningOrchestrator(tmp_path_factory.mktemp("orchestrator")) as running:
        yield running


@pytest.fixture
def held(orchestrator: RunningOrchestrator, tmp_path: Path) -> Held:
    """Create a task that a node claims, so that it may be reported on."""
    node = orchestrator.register()
    task_id = orchestrator.create_task("Count the sales")["id"]
    assert node.poll() is not None
    return Held(orchestrator, tmp_path, task_id, node.api_key)


@pytest.fixture
async def agent(held: Held) -> AsyncIterator[Agent]:
    async with connected(held.variables) as agent:
        yield agent


@pytest.fixture
def crush(tmp_path: Path) -> Iterator[Crush]:
    running = Crush(tmp_path / ".crush" / "crush.db", now=int(time.time()))
    running.begin("s1", prompt="Count the sales")
    yield running
    running.close()
