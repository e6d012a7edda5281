"""The MCP server through which the agent in a container reports; the only file that imports mcp.

It speaks the protocol on standard input and output, and everything else on standard error. It
ends when the agent closes its input. With ORCHESTRATOR_URL or JOB_ID unset there is nobody to
report to: it says so and exits with 0.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio
from mcp import types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

from runner import __version__
from runner.api.client import OrchestratorClient
from runner.errors import EXIT_OK, ConfigurationError, RunnerError
from runner.reporter.job import Job, job_in, missing_in
from runner.reporter.reporter import Answer, Reporter
from runner.reporter.tools import TOOLS, Arguments, Tool, checked, tool_called

log = logging.getLogger(__name__)
_INSTRUCTIONS = (
    "You work on a task that an orchestrator has given out. Call report_started first, "
    "report_status as you go, and report_complete or report_error as the last thing you do."
)


def main(variables: Mapping[str, str] = os.environ) -> int:
    """Serve until the agent has enough; give the exit code."""
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(message)s")
    missing = missing_in(variables)
    if missing is not None:
        _say(f"{missing} is not set: there is nobody to report to")
        return EXIT_OK
    try:
        anyio.run(_serve, job_in(variables))
    except ConfigurationError as error:
        _say(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_OK
    return EXIT_OK


async def _serve(job: Job) -> None:
    async with OrchestratorClient(job.orchestrator_url) as orchestrator:
        server = server_for(Reporter(job, orchestrator))
        async with stdio_server() as (incoming, outgoing):
            await server.run(incoming, outgoing, server.create_initialization_options())


def server_for(reporter: Reporter) -> Server[Any]:
    """Give the MCP server whose tools the reporter answers."""

    async def list_tools(_context: object, _params: object) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[_listed(tool) for tool in TOOLS])

    async def call_tool(
        _context: object, params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        # What was asked for is done, though the agent has gone away or will not wait.
        with anyio.CancelScope(shield=True):
            answer = await _answer(reporter, params.name, params.arguments or {})
        return types.CallToolResult(
            content=[types.TextContent(type="text", text=json.dumps(answer, ensure_ascii=False))],
            structured_content=answer,
        )

    return Server(
        "victoria-status-reporter",
        version=__version__,
        instructions=_INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


async def _answer(reporter: Reporter, name: str, raw: Mapping[str, object]) -> Answer:
    """Do what a call says; an agent is told of a failure, and never meets an exception."""
    try:
        tool = tool_called(name)
        return await _done(reporter, tool.name, checked(tool, raw))
    except RunnerError as error:
        return {"sent": False, "error": str(error)}
    except Exception as error:
        log.exception("a defect of the status reporter")
        return {"sent": False, "error": f"a defect of the status reporter: {type(error).__name__}"}


async def _done(reporter: Reporter, name: str, told: Arguments) -> Answer:
    calls: dict[str, Callable[[], Awaitable[Answer]]] = {
        "report_status": lambda: reporter.report(told.status, told.message, told.progress),
        "report_started": lambda: reporter.report("running", told.message, None),
        "report_complete": lambda: reporter.finish(
            "success", told.message, submit_logs=told.submit_logs
        ),
        "report_error": lambda: reporter.finish(
            "error", told.message, submit_logs=told.submit_logs
        ),
        "submit_crush_logs": lambda: reporter.hand_in(told.session_id),
        "get_job_info": reporter.job_info,
    }
    return await calls[name]()


def _listed(tool: Tool) -> types.Tool:
    return types.Tool(
        name=tool.name,
        title=tool.title,
        description=tool.description,
        input_schema=tool.input_schema,
        output_schema=tool.output_schema,
        annotations=types.ToolAnnotations(
            read_only_hint=tool.is_read_only, destructive_hint=False, open_world_hint=False
        ),
    )


def _say(sentence: str) -> None:
    print(f"victoria-status-reporter: {sentence}", file=sys.stderr, flush=True)  # noqa: T201 - for the agent's log
