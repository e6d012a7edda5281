"""The status reporter's tools: what a language model is told of them, and what they take.

A schema alone keeps no model from sending something else, so each call's arguments are checked
here as well, in sentences that say what would be right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runner.errors import RunnerError

Schema = dict[str, Any]
STATUSES = ("running", "analyzing", "success", "error")
_ALL_DONE = 100


class BadArguments(RunnerError):
    """A call's arguments are not what the tool takes."""


@dataclass(frozen=True)
class Tool:
    """A tool as it is listed."""

    name: str
    title: str
    description: str
    parameters: Mapping[str, Schema]
    required: tuple[str, ...] = ()
    is_read_only: bool = False

    @property
    def input_schema(self) -> Schema:
        """Give the JSON Schema of its arguments."""
        return {
            "type": "object",
            "properties": dict(self.parameters),
            "required": list(self.required),
            "additionalProperties": False,
        }

    @property
    def output_schema(self) -> Schema:
        """Give the JSON Schema of its answer."""
        if self.is_read_only:
            return {"type": "object", "properties": {"job_id": {"type": "string"}}}
        return {
            "type": "object",
            "properties": {
                "sent": {"type": "boolean", "description": "Whether the orchestrator has it."},
                "error": {"type": "string", "description": "Why it was not sent."},
            },
            "required": ["sent"],
        }


_MESSAGE: Schema = {
    "type": "string",
    "description": "What the people who wait for this task should read, in a sentence or two.",
}


_SUBMIT_LOGS: Schema = {
    "type": "boolean",
    "default": True,
    "description": "Hand in this conversation as the task's log first. Leave it as it is.",
}


_ANSWER = (
    'The answer is {"sent": true, ...}, or {"sent": false, "error": "..."} when the orchestrator '
    "could not be told; a failed report is no reason to stop working."
)


TOOLS = (
    Tool(
        "report_status",
        "Report status",
        "Tell the orchestrator how this task stands. Call it when a new step begins and at least "
        "every few minutes of work, with 'running' while you gather and change things and "
        "'analyzing' while you evaluate. For the end of the task use report_complete or "
        f"report_error instead: they hand in the log too. {_ANSWER} A note in the answer says "
        "when the task was cancelled meanwhile: then stop.",
        {
            "status": {
                "type": "string",
                "enum": list(STATUSES),
                "description": "How the task stands; success and error are its end.",
            },
            "message": _MESSAGE,
            "progress": {
                "type": "number",
                "minimum": 0,
                "maximum": 100,
                "description": "How much of the work is done, in percent.",
            },
        },
        ("status",),
    ),
    Tool(
        "report_started",
        "Report start",
        "Tell the orchestrator that you have begun to work. Call it once, before anything else. "
        f"It is report_status with 'running'. {_ANSWER}",
        {"message": _MESSAGE},
    ),
    Tool(
        "report_complete",
        "Report success",
        "Tell the orchestrator that the task is done, and hand in the log. Call it once, as the "
        f"last thing you do, with the result in 'message'. {_ANSWER} A report that could not be "
        "sent is kept and delivered later: do not repeat it.",
        {"message": _MESSAGE, "submit_logs": _SUBMIT_LOGS},
    ),
    Tool(
        "report_error",
        "Report failure",
        "Tell the orchestrator that the task cannot be done, and hand in the log. Call it once, "
        "when you give up, as the last thing you do; not for a step that failed and that you can "
        f"still get around. {_ANSWER} A report that could not be sent is kept and delivered "
        "later: do not repeat it.",
        {
            "error_message": {
                "type": "string",
                "minLength": 1,
                "description": "What went wrong, and what would have to change.",
            },
            "submit_logs": _SUBMIT_LOGS,
        },
        ("error_message",),
    ),
    Tool(
        "submit_crush_logs",
        "Hand in the log",
        "Hand in this conversation as the task's log as it stands now. Seldom needed: "
        "report_complete and report_error do it, and what is missing at the end is handed in for "
        f"you. The last one handed in counts. {_ANSWER}",
        {
            "session_id": {
                "type": "string",
                "description": "A session of this task; without it, the latest.",
            }
        },
    ),
    Tool(
        "get_job_info",
        "Show the job",
        "Show which task you work on, where reports go, and whether the log and a final status "
        "are handed in already. Nothing is sent.",
        {},
        is_read_only=True,
    ),
)


@dataclass(frozen=True)
class Arguments:
    """What a call brought, checked; what it did not bring is as the tool's defaults have it."""

    status: str = ""
    message: str | None = None
    progress: float | None = None
    submit_logs: bool = True
    session_id: str | None = None


def tool_called(name: str) -> Tool:
    """Give the tool of that name.

    Raises:
        BadArguments: there is none.
    """
    for tool in TOOLS:
        if tool.name == name:
            return tool
    names = ", ".join(tool.name for tool in TOOLS)
    raise BadArguments(f"there is no tool {name[:80]!r}; the tools are {names}")


def checked(tool: Tool, raw: Mapping[str, object]) -> Arguments:
    """Check the arguments of a call.

    Raises:
        BadArguments: they are not what the tool takes; the sentence says what would be.
    """
    unknown = sorted(set(raw) - set(tool.parameters))
    if unknown:
        taken = ", ".join(tool.parameters) or "no arguments"
        raise BadArguments(f"{tool.name} takes {taken}, and not {unknown[0][:80]!r}")
    told = _text(raw, "error_message") if "error_message" in tool.parameters else None
    if "error_message" in tool.parameters and not (told and told.strip()):
        raise BadArguments("error_message must say what went wrong, and is missing or empty")
    return Arguments(
        status=_status(raw) if "status" in tool.parameters else "",
        message=told or _text(raw, "message"),
        progress=_progress(raw),
        submit_logs=_switch(raw, "submit_logs", default=True),
        session_id=_text(raw, "session_id") or None,
    )


def _status(raw: Mapping[str, object]) -> str:
    status = raw.get("status")
    if status not in STATUSES or not isinstance(status, str):
        raise BadArguments(f"status must be one of {', '.join(STATUSES)}, and is {_shown(status)}")
    return status


def _progress(raw: Mapping[str, object]) -> float | None:
    progress = raw.get("progress")
    if progress is None:
        return None
    if (
        isinstance(progress, int | float)
        and not isinstance(progress, bool)
        and 0 <= progress <= _ALL_DONE
    ):
        return float(progress)
    raise BadArguments(f"progress must be a number from 0 to 100, and is {_shown(progress)}")


def _text(raw: Mapping[str, object], name: str) -> str | None:
    text = raw.get(name)
    if text is not None and not isinstance(text, str):
        raise BadArguments(f"{name} must be text, and is {_shown(text)}")
    return text


def _switch(raw: Mapping[str, object], name: str, *, default: bool) -> bool:
    value = raw.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise BadArguments(f"{name} must be true or false, and is {_shown(value)}")
    return value


def _shown(value: object) -> str:
    return "missing" if value is None else repr(value)[:80]
