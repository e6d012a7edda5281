"""A task in hand, and the reporter as a process of its own, beside an agent that speaks to it."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcp import Client, StdioServerParameters

from runner.workspace.handover import ReporterState, read_reporter_state
from tests.orchestrator.serving import RunningOrchestrator

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "runner.status_reporter")

Json = dict[str, Any]


@dataclass(frozen=True)
class Held:
    """A task that a node has taken, so that it may be reported on."""

    orchestrator: RunningOrchestrator
    home: Path
    task_id: str
    api_key: str

    @property
    def variables(self) -> dict[str, str]:
        """What a container of the task has in its environment."""
        return {
            "ORCHESTRATOR_URL": self.orchestrator.url,
            "JOB_ID": self.task_id,
            "TASK_ID": self.task_id,
            "NODE_API_KEY": self.api_key,
            "VICTORIA_HOME": str(self.home),
        }

    @property
    def task(self) -> Json:
        """The task as the orchestrator shows it."""
        return self.orchestrator.task(self.task_id)

    @property
    def log(self) -> Json:
        """The log that the orchestrator has of it."""
        return self.orchestrator.log_of(self.task_id)

    @property
    def trace(self) -> ReporterState:
        """What the reporter has left for the runner."""
        return read_reporter_state(self.home, self.task_id)


class Agent:
    """An agent's end of the protocol."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def call(self, tool: str, **arguments: object) -> Json:
        """Call a tool; return its structured answer, which must not be marked as an error."""
        result = await self.client.call_tool(tool, arguments)
        assert not result.is_error
        assert isinstance(result.structured_content, dict)
        return result.structured_content

    async def call_in_vain(self, tool: str, **arguments: object) -> Json:
        """Call a tool; return its structured answer, which must be marked as an error."""
        result = await self.client.call_tool(tool, arguments)
        assert result.is_error
        assert isinstance(result.structured_content, dict)
        return result.structured_content


@asynccontextmanager
async def connected(variables: Mapping[str, str]) -> AsyncIterator[Agent]:
    """Start a reporter and speak with it."""
    server = StdioServerParameters(
        command=COMMAND[0], args=list(COMMAND[1:]), env=dict(variables), cwd=ROOT
    )
    async with Client(server) as client:
        yield Agent(client)
