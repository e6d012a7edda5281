"""The MCP server through which the agent in a container reports; the only file that imports mcp.

It speaks the protocol on standard input and output and logs to standard error. It ends when the
agent closes its input. Without ORCHESTRATOR_URL or JOB_ID it has no orchestrator to report to: it
prints which one is missing and exits with 0.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

import anyio
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, TextContent, ToolAnnotations
from pydantic import Field, StringConstraints, ValidationError

from runner import __version__
from runner.api.client import OrchestratorClient
from runner.errors import EXIT_OK, ConfigurationError, RunnerError
from runner.model import TaskStatus
from runner.reporter.job import Job, job_in, missing_in
from runner.reporter.reporter import Reporter, ToolAnswer

log = logging.getLogger(__name__)


def main(variables: Mapping[str, str] = os.environ) -> int:
    """Serve until the agent closes the connection; return the exit code."""
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(message)s")
    missing = missing_in(variables)
    if missing is not None:
        _print(f"{missing} is not set: there is nobody to report to")
        return EXIT_OK
    try:
        anyio.run(_serve, job_in(variables))
    except ConfigurationError as error:
        _print(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_OK
    return EXIT_OK


async def _serve(job: Job) -> None:
    async with OrchestratorClient(job.orchestrator_url) as orchestrator:
        await server_for(Reporter(job, orchestrator)).run_stdio_async()


def _print(sentence: str) -> None:
    print(f"victoria-status-reporter: {sentence}", file=sys.stderr, flush=True)  # noqa: T201 - for the agent's log


# What a language model reads

_INSTRUCTIONS = (
    "You work on a task that an orchestrator has given out. Call report_started first, "
    "report_status as you go, and report_complete or report_error as the last thing you do."
)
_ANSWER = (
    'The response is {"sent": true, ...}, or {"sent": false, "error": "..."} when the orchestrator '
    "did not accept it; keep working after a failed report."
)
_REPORT_STATUS = (
    "Report to the orchestrator how this task stands. Call it when a new step begins and at least "
    "every few minutes of work, with 'running' while you gather and change things and 'analyzing' "
    "while you evaluate. For the end of the task use report_complete or report_error instead: "
    f"they submit the log too. {_ANSWER} A note in the response says when the task was cancelled "
    "meanwhile: then stop."
)
_REPORT_STARTED = (
    "Report to the orchestrator that you have begun to work. Call it once, before anything else. "
    f"It is report_status with 'running'. {_ANSWER}"
)
_REPORT_COMPLETE = (
    "Report to the orchestrator that the task is done, and submit the log. Call it once, as the "
    f"last thing you do, with the result in 'message'. {_ANSWER} A report that could not be sent "
    "is kept and delivered later: do not repeat it."
)
_REPORT_ERROR = (
    "Report to the orchestrator that the task cannot be done, and submit the log. Call it once, "
    "when you give up, as the last thing you do; not for a step that failed and that you can still "
    f"get around. {_ANSWER} A report that could not be sent is kept and delivered later: do not "
    "repeat it."
)
_SUBMIT_CRUSH_LOGS = (
    "Hand in this conversation as the task's log as it stands now. Seldom needed: report_complete "
    "and report_error do it, and what is missing at the end is handed in for you. The last one "
    f"handed in counts. {_ANSWER}"
)
_GET_JOB_INFO = (
    "Show which task you work on, where reports go, and whether the log and a final status are "
    "handed in already. Nothing is sent."
)
_SENDS = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False)
_READS = ToolAnnotations(read_only_hint=True, destructive_hint=False, open_world_hint=False)

# Texts are `str` and never `str | None`: mcp parses a string for any other type as JSON first, so
# that a message of '[12, 13]' would be refused and one of 'null' would be lost.
Status = Annotated[
    Literal["running", "analyzing", "success", "error"],
    Field(description="How the task stands; success and error are its end."),
]
Message = Annotated[
    str,
    Field(description="What the people who wait for this task should read, in a sentence or two."),
]
Progress = Annotated[
    float | None,
    Field(strict=True, ge=0, le=100, description="How much of the work is done, in percent."),
]
ErrorMessage = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1),
    Field(description="What went wrong, and what would have to change."),
]
SubmitLogs = Annotated[
    bool,
    Field(
        strict=True,
        description="Hand in this conversation as the task's log first. Leave it as it is.",
    ),
]
SessionId = Annotated[str, Field(description="A session of this task; without it, the latest.")]
_EXPECTED = {
    "status": "one of running, analyzing, success, error",
    "message": "text",
    "progress": "a number from 0 to 100",
    "error_message": "text that says what went wrong",
    "submit_logs": "true or false",
    "session_id": "text",
}
"""What each parameter must be, for the response to a wrong argument."""


def server_for(reporter: Reporter) -> MCPServer[Any]:
    """Return the MCP server whose tools the reporter answers."""
    server = _ReporterServer(
        "victoria-status-reporter", version=__version__, instructions=_INSTRUCTIONS
    )

    @server.tool(title="Report status", description=_REPORT_STATUS, annotations=_SENDS)
    async def report_status(
        status: Status, message: Message = "", progress: Progress = None
    ) -> ToolAnswer:
        return await reporter.report(status, message or None, progress)

    @server.tool(title="Report start", description=_REPORT_STARTED, annotations=_SENDS)
    async def report_started(message: Message = "") -> ToolAnswer:
        return await reporter.report(TaskStatus.RUNNING, message or None, None)

    @server.tool(title="Report success", description=_REPORT_COMPLETE, annotations=_SENDS)
    async def report_complete(
        message: Message = "", *, submit_logs: SubmitLogs = True
    ) -> ToolAnswer:
        return await reporter.finish(TaskStatus.SUCCESS, message or None, submit_logs=submit_logs)

    @server.tool(title="Report failure", description=_REPORT_ERROR, annotations=_SENDS)
    async def report_error(
        error_message: ErrorMessage, *, submit_logs: SubmitLogs = True
    ) -> ToolAnswer:
        return await reporter.finish(TaskStatus.ERROR, error_message, submit_logs=submit_logs)

    @server.tool(title="Hand in the log", description=_SUBMIT_CRUSH_LOGS, annotations=_SENDS)
    async def submit_crush_logs(session_id: SessionId = "") -> ToolAnswer:
        return await reporter.hand_in(session_id or None)

    @server.tool(title="Show the job", description=_GET_JOB_INFO, annotations=_READS)
    async def get_job_info() -> ToolAnswer:
        return await reporter.job_info()

    return server


class UnusableCall(RunnerError):
    """There is no such tool, or it does not take these arguments."""


class _ReporterServer(MCPServer[Any]):
    """Answers every call, even one that cannot be carried out, and carries it out to its end."""

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None = None
    ) -> CallToolResult:
        """Call a tool; return one sentence, marked as an error, where that is not possible."""
        # The agent may cancel or go away: a report that it asked for is sent all the same.
        with anyio.CancelScope(shield=True):
            try:
                answer, is_error = await self._call(name, arguments, context), False
            except UnusableCall as error:
                answer, is_error = {"sent": False, "error": str(error)}, True
            except Exception as error:
                log.exception("a defect of the status reporter")
                kind = type(error.__cause__ or error).__name__
                sentence = f"a defect of the status reporter: {kind}"
                answer, is_error = {"sent": False, "error": sentence}, True
        # mcp would indent the text; on one line it has fewer tokens, and fits a line of a log.
        text = json.dumps(answer, ensure_ascii=False)
        return CallToolResult(
            content=[TextContent(type="text", text=text)],
            structured_content=answer,
            is_error=is_error,
        )

    async def _call(
        self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None
    ) -> ToolAnswer:
        parameters = {
            tool.name: tool.input_schema["properties"] for tool in await self.list_tools()
        }
        if name not in parameters:
            names = ", ".join(parameters)
            raise UnusableCall(f"there is no tool {name[:80]!r}; the tools are {names}")
        unknown = sorted(set(arguments) - set(parameters[name]))
        if unknown:
            names = ", ".join(parameters[name]) or "no arguments"
            raise UnusableCall(f"{name} takes {names}, and not {unknown[0][:80]!r}")
        # Models write null for what they leave out.
        arguments = {key: value for key, value in arguments.items() if value is not None}
        try:
            result = await super().call_tool(name, arguments, context)
        except ToolError as error:
            if isinstance(error.__cause__, ValidationError):
                raise UnusableCall(_wrong_argument(error.__cause__)) from None
            raise
        return cast("CallToolResult", result).structured_content or {}


def _wrong_argument(error: ValidationError) -> str:
    """Return a sentence on the first argument that is wrong."""
    details = error.errors()[0]
    name = str(details["loc"][0])
    value = "missing" if details["type"] == "missing" else repr(details["input"])[:80]
    return f"{name} must be {_EXPECTED[name]}, and is {value}"
