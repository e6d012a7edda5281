"""`task create`: the prompt, its files, its target with a preview of it, and its schedule."""

from __future__ import annotations

import hashlib
import json
import sys
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.client import show
from orchestrator.client.connect import connect
from orchestrator.client.errors import KeyRefused, Refused, Unconfigured
from orchestrator.client.nodes import find_node, status_of, target_matches
from orchestrator.client.parse import Duration, Moment, Tag
from orchestrator.client.tasks import print_created

if TYPE_CHECKING:
    from orchestrator.client.api import Api, Json

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False, readable=True)
_STDIN = "-"
_SHOWN_NAMES = 5


@click.command()
@click.argument("prompt", required=False)
@click.option(
    "--prompt-file",
    type=click.Path(path_type=Path, allow_dash=True, exists=True, dir_okay=False),
    help="Read the prompt from a file; - is standard input.",
)
@click.option("--file", "files", type=_FILE, multiple=True, help="File for the task; repeatable.")
@click.option("--node", metavar="NODE", help="Only this node: its name or id.")
@click.option("--node-name", metavar="PATTERN", help="Only nodes of this name; * is any text.")
@click.option(
    "--tag", "tags", type=Tag(), multiple=True, help="Only nodes with this tag; repeatable."
)
@click.option("--priority", type=int, help="Higher ones are assigned first. Default: 0.")
@click.option("--timeout", type=Duration(), help="Time limit: 90, 45m, 2h; 0 is none. Default: 1h.")
@click.option("--at", "due", type=Moment(), help="Not before this time; local without a zone.")
@click.option("--repeat", metavar="CRON", help="Cron expression in UTC, or @daily and the like.")
@click.option("--watch", "is_watched", is_flag=True, help="Then show its output, as task watch.")
@click.option("--dry-run", is_flag=True, help="Only show which nodes match; create nothing.")
@show.json_option
def create(  # noqa: PLR0913 - click passes every option as an argument
    *,
    prompt: str | None,
    prompt_file: Path | None,
    files: tuple[Path, ...],
    node: str | None,
    node_name: str | None,
    tags: tuple[tuple[str, str], ...],
    priority: int | None,
    timeout: int | None,
    due: datetime | None,
    repeat: str | None,
    is_watched: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Create a task and print its id.

    PROMPT is what the agent is asked to do; without it, or as -, standard input is read. The nodes
    that match are shown first, on standard error.
    """
    text = read_prompt(prompt, prompt_file)
    api = connect()
    body: Json = {
        "prompt": text,
        "target_node_id": None if node is None else find_node(api, node),
        "target_node_name": node_name,
        "target_tags": dict(tags) or None,
        "priority": priority,
        "timeout_seconds": timeout,
        "scheduled_for": due and due.isoformat(),
        "recurrence": repeat,
    }
    matching = _matching(api, body)
    if matching is not None and (dry_run or not as_json):
        show.note(preview(*matching))
    if dry_run:
        if as_json:
            show.print_json(matching and {"matching": matching[0], "nodes": len(matching[1])})
        return
    body["files"] = [_upload(api, path) for path in files] or None
    present = {field: value for field, value in body.items() if value is not None}
    created = api.json("create the task", "POST", "/tasks", json=present)
    if is_watched and as_json:
        click.echo(json.dumps({"event": "created", "task": created}))
    else:
        print_created(created, as_json=as_json)
    if is_watched:
        from orchestrator.client.watch import watch_task  # noqa: PLC0415 - see connect

        sys.exit(watch_task(api, str(created["id"]), as_json=as_json))


def read_prompt(prompt: str | None, path: Path | None) -> str:
    """Return the prompt of the argument, the file or standard input. Raises UsageError."""
    if prompt is not None and path is not None:
        raise click.UsageError("give PROMPT or --prompt-file, not both")
    if prompt is not None and prompt != _STDIN:
        text = prompt
    elif path is not None and str(path) != _STDIN:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise Unconfigured(f"cannot read {path}: {error}; it must be UTF-8") from error
    else:
        if sys.stdin.isatty():
            if prompt is None and path is None:
                raise click.UsageError("PROMPT is missing; - reads it from standard input")
            show.note("type the prompt, then Ctrl-D:")
        try:
            text = sys.stdin.buffer.read().decode()
        except UnicodeDecodeError as error:
            raise click.UsageError(f"standard input is not UTF-8: {error}") from error
    if not text.strip():
        raise click.UsageError("the prompt is empty")
    return text if text is prompt else text.rstrip("\r\n")


def _matching(api: Api, body: Json) -> tuple[list[Json], list[Json]] | None:
    """Return the nodes that the target matches, and all; None if the key may not list them."""
    try:
        nodes = api.rows("list the nodes", "/nodes")
    except (KeyRefused, Refused):
        return None
    target = (body["target_node_id"], body["target_node_name"], body["target_tags"] or {})
    return [row for row in nodes if target_matches(row, *target)], nodes


def preview(matching: list[Json], nodes: list[Json]) -> str:
    """Return which nodes match, and in which states they are."""
    if not matching:
        return f"matches none of {_counted(nodes)}: it waits until one that matches registers"
    names = ", ".join(str(row.get("name")) for row in matching[:_SHOWN_NAMES])
    more = len(matching) - _SHOWN_NAMES
    states: dict[str, int] = {}
    for row in matching:
        states[status_of(row)] = states.get(status_of(row), 0) + 1
    counted = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    rest = f" and {more} more" if more > 0 else ""
    return f"matches {len(matching)} of {_counted(nodes)}: {names}{rest} ({counted})"


def _counted(nodes: list[Json]) -> str:
    return "1 node" if len(nodes) == 1 else f"{len(nodes)} nodes"


def _upload(api: Api, path: Path) -> str:
    what = f"upload {path}"
    with ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb"))
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
            file.seek(0)
        except OSError as error:
            raise Unconfigured(f"cannot read {path}: {error.strerror}") from error
        uploaded = api.json(what, "POST", "/upload", files={"file": (path.name, file)})
    if uploaded.get("checksum") not in {None, digest.hexdigest()}:
        raise Refused(f"cannot {what}: the orchestrator got other bytes; upload it again")
    return str(uploaded.get("filename"))
