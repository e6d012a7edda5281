"""`task output` and `task logs`: what a task printed, and what its agent did."""

from __future__ import annotations

from datetime import datetime, timezone
from urllib.parse import quote

import click

from orchestrator.client import show
from orchestrator.client.api import Json, task_path
from orchestrator.client.connect import connect
from orchestrator.client.errors import Refused
from orchestrator.client.text import OutputFilter, printable

_EARLIEST_IN_MS = 10**11
"""A time of an agent that is later, in seconds, would be after the year 5000."""


@click.command()
@click.argument("task_id")
@click.option(
    "--offset", type=click.IntRange(min=0), default=0, help="Leave out so many bytes at the begin."
)
@show.json_option
def output(task_id: str, *, offset: int, as_json: bool) -> None:
    """Print the output of a task so far. On a terminal its colours are shown, and nothing else.

    In a file or a pipe it is plain text; --json has it as it is.
    """
    api = connect()
    what, path = f"read the output of task {task_id}", task_path(task_id)
    response = api.extension(what, "GET", f"{path}/output", path, params={"offset": offset})
    if not response.headers.get("content-type", "").startswith("text/plain"):
        raise Refused(f"cannot {what}: the response is not text")
    response.encoding = "utf-8"
    if as_json:
        show.print_json(
            {
                "offset": _number(response.headers.get("x-output-offset"), offset),
                "length": _number(response.headers.get("x-output-length"), len(response.content)),
                "done": response.headers.get("x-output-done") == "true",
                "text": response.text,
            }
        )
        return
    shown = OutputFilter(has_colours=show.has_colours())
    click.echo(shown.feed(response.text) + shown.end(), nl=False)


def _number(text: str | None, default: int) -> int:
    return int(text) if text is not None and text.isdecimal() else default


@click.command()
@click.argument("task_id")
@show.json_option
def logs(task_id: str, *, as_json: bool) -> None:
    """Print the session of a task's agent: its messages, with their times."""
    what = f"read the session of task {task_id}"
    session = connect().json(what, "GET", f"/logs/{quote(task_id, safe='')}")
    if as_json:
        show.print_json(session)
        return
    title = session.get("title")
    if title:
        click.echo(f"{printable(str(title))}\n")
    messages = session.get("messages")
    # It is as the agent has sent it: nothing in it need have the form of a session.
    for message in messages if isinstance(messages, list) else []:
        if isinstance(message, dict):
            _print_message(message)


def _print_message(message: Json) -> None:
    time = _shown_moment(message.get("created_at"))
    model = f" ({message['model']})" if message.get("model") else ""
    click.echo(printable(f"--- {time}{message.get('role') or 'message'}{model}"))
    click.echo(printable(str(message.get("content") or "").rstrip("\n")) + "\n")


def _shown_moment(moment: object) -> str:
    """Return an agent's time, in the local zone, and a blank; nothing for what is not one."""
    if not isinstance(moment, int | float) or isinstance(moment, bool):
        return ""
    # Some versions of Crush have milliseconds.
    seconds = moment / 1000 if moment > _EARLIEST_IN_MS else moment
    try:
        return f"{datetime.fromtimestamp(seconds, timezone.utc).astimezone():%Y-%m-%d %H:%M:%S} "
    except (ValueError, OverflowError, OSError):
        return ""
