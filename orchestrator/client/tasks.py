"""`task`: list, show, cancel, rerun and purge; the longer ones have modules of their own."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import click

from orchestrator.client import show
from orchestrator.client.connect import connect
from orchestrator.client.errors import Refused
from orchestrator.client.lazy import LazyGroup
from orchestrator.client.parse import Moment, Tag
from orchestrator.client.text import one_line

if TYPE_CHECKING:
    from orchestrator.client.api import Api, Json

STATUSES = ("pending", "assigned", "running", "analyzing", "success", "error", "cancelled")
DEFAULT_LIMIT = 50
_ADMIN = "00000000-0000-4000-8000-000000000000"
"""The reference orchestrator's id of the admin key, which is not in the list of keys."""

_COMMANDS = {
    "create": ("orchestrator.client.create:create", "Create a task."),
    "list": ("orchestrator.client.tasks:list_tasks", "List tasks, the newest first."),
    "show": ("orchestrator.client.tasks:show_task", "Show a task and its history."),
    "watch": ("orchestrator.client.watch:watch", "Show a task's output until it ends."),
    "cancel": ("orchestrator.client.tasks:cancel", "Cancel tasks that have not ended."),
    "rerun": ("orchestrator.client.tasks:rerun", "Create tasks like earlier ones."),
    "purge": ("orchestrator.client.tasks:purge", "Delete tasks that have ended."),
    "output": ("orchestrator.client.output:output", "Print the output of a task."),
    "artifacts": ("orchestrator.client.artifacts:artifacts", "List the files a task made."),
    "download": ("orchestrator.client.artifacts:download", "Download the files a task made."),
    "logs": ("orchestrator.client.output:logs", "Print the session of a task's agent."),
}


@click.command(cls=LazyGroup, lazy=_COMMANDS)
def task() -> None:
    """Create, watch and manage tasks."""


@click.command("list")
@click.option("--status", type=click.Choice(STATUSES), help="Only tasks with this status.")
@click.option("--node", metavar="NODE", help="Only tasks of this node: its name or id.")
@click.option("--tag", "tags", type=Tag(), multiple=True, help="Only tasks that target this tag.")
@click.option("--created-by", metavar="KEY_ID", help="Only tasks that this key created.")
@click.option("--after", type=Moment(), help="Only tasks created at this time or later.")
@click.option("--before", type=Moment(), help="Only tasks created before this time.")
@click.option("--text", help="Only tasks with this text in their prompt.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=DEFAULT_LIMIT,
    show_default=True,
    help="At most so many.",
)
@click.option("--all", "is_all", is_flag=True, help="All of them.")
@show.json_option
def list_tasks(  # noqa: PLR0913 - click passes every option as an argument
    *,
    status: str | None,
    node: str | None,
    tags: tuple[tuple[str, str], ...],
    created_by: str | None,
    after: datetime | None,
    before: datetime | None,
    text: str | None,
    limit: int,
    is_all: bool,
    as_json: bool,
) -> None:
    """List tasks, the newest first.

    The filters other than --status need an orchestrator that has them.
    """
    api = connect()
    filters: Json = {
        "node": node,
        "tag": [f"{name}={value}" for name, value in tags] or None,
        "created_by": created_by,
        "created_after": after and after.isoformat(),
        "created_before": before and before.isoformat(),
        "text": text,
    }
    params = {"status_filter": status, **filters}
    rows = api.rows("list the tasks", "/tasks", params, None if is_all else limit)
    names = {} if as_json and node is None else _names_for(api, rows)
    if not all(_passes(row, filters, names) for row in rows):
        raise Refused(
            f"cannot filter the tasks: {api.url} does not know these filters; use --status only,"
            " or search in what --all --json prints"
        )
    if as_json:
        show.print_json(rows)
        return
    columns = ("ID", "STATUS", "CREATED", "TOOK", "NODE", "PROMPT")
    show.print_table(columns, [_row(row, names) for row in rows], "no tasks")
    if not is_all and len(rows) == limit:
        show.note(f"the newest {limit} are shown; --limit or --all shows more")


def _passes(row: Json, filters: Json, names: dict[str, str]) -> bool:
    """Return whether a task may have passed the filters, which some orchestrators ignore."""
    created = show.parse_time(row.get("created_at"))
    after, before = (show.parse_time(filters[f"created_{side}"]) for side in ("after", "before"))
    text, creator = filters["text"], filters["created_by"]
    tags = row.get("target_tags") or {}
    return (
        (text is None or text.lower() in str(row.get("prompt")).lower())
        and (after is None or created is None or created >= after)
        and (before is None or created is None or created < before)
        and (creator is None or creator.lower() == str(row.get("created_by")).lower())
        and _is_on(row, filters["node"], names)
        and set(filters["tag"] or ()) <= {f"{name}={value}" for name, value in tags.items()}
    )


def _is_on(row: Json, node: str | None, names: dict[str, str]) -> bool:
    node_id = row.get("assigned_node_id")
    # A node that was removed has no name any more.
    if node is None or node_id is None:
        return node is None
    return node.lower() == str(node_id).lower() or node == names.get(node_id, node)


@click.command("show")
@click.argument("task_id")
@show.json_option
def show_task(task_id: str, *, as_json: bool) -> None:
    """Show a task, its history and its result."""
    from orchestrator.client.api import task_path  # noqa: PLC0415 - see connect

    api = connect()
    found = api.json(f"show task {task_id}", "GET", task_path(task_id))
    if as_json:
        show.print_json(found)
        return
    print_task(found, _names_for(api, [found]))
    history = found.get("history")
    if isinstance(history, list) and history:
        click.echo()
        show.print_table(("TIME", "AFTER", "STATUS", "", "MESSAGE"), _steps(history), "no steps")


def print_task(found: Json, names: dict[str, str]) -> None:
    """Print the fields of a task that have a value."""
    target = {
        "node": names.get(str(found.get("target_node_id")), found.get("target_node_id")),
        "name": found.get("target_node_name"),
        "tags": show.shown_tags(found.get("target_tags")),
    }
    seconds, creator = found.get("timeout_seconds"), found.get("created_by")
    fields = {
        "id": found.get("id"),
        "status": found.get("status"),
        "waiting": found.get("waiting"),
        "target": ", ".join(f"{name} {value}" for name, value in target.items() if value) or "any",
        "node": names.get(str(found.get("assigned_node_id")), found.get("assigned_node_id")),
        "priority": found.get("priority"),
        "time limit": "none" if seconds == 0 else seconds and f"{seconds} s",
        "created": show.shown_time(found.get("created_at")),
        "created by": "the admin key" if creator == _ADMIN else creator,
        "due": show.shown_time(found.get("scheduled_for")),
        "repeat": found.get("recurrence"),
        "rerun of": found.get("rerun_of"),
        "started": show.shown_time(found.get("started_at")),
        "ended": show.shown_time(found.get("completed_at")),
        "took": _took(found),
        "node ended": show.shown_time(found.get("node_ended_at")),
        "files": show.shown_list(found.get("files")),
        "prompt": found.get("prompt"),
        "result": found.get("result"),
        "error": found.get("error_message"),
    }
    shown = {name: None if value is None else str(value) for name, value in fields.items()}
    show.print_fields(shown)


@click.command()
@click.argument("task_ids", nargs=-1, required=True)
@show.json_option
def cancel(task_ids: tuple[str, ...], *, as_json: bool) -> None:
    """Cancel tasks that have not ended; their nodes stop them after the next heartbeat."""
    from orchestrator.client.api import each, task_path  # noqa: PLC0415 - see connect

    api = connect()
    for task_id in each(task_ids):
        cancelled = api.json(f"cancel task {task_id}", "DELETE", task_path(task_id))
        if as_json:
            show.print_json(cancelled)
        else:
            click.echo(f"{task_id} cancelled")


@click.command()
@click.argument("task_ids", nargs=-1, required=True)
@show.json_option
def rerun(task_ids: tuple[str, ...], *, as_json: bool) -> None:
    """Create tasks with the same content as earlier ones, and print their ids."""
    from orchestrator.client.api import each, task_path  # noqa: PLC0415 - see connect

    api = connect()
    for task_id in each(task_ids):
        what, path = f"rerun task {task_id}", task_path(task_id)
        created = api.extension_json(what, "POST", f"{path}/rerun", path)
        print_created(created, as_json=as_json)


def print_created(created: Json, *, as_json: bool) -> None:
    """Print the id of a task that was created, and why it waits."""
    if as_json:
        show.print_json(created)
        return
    click.echo(one_line(str(created.get("id"))))
    if created.get("waiting"):
        show.note(show.waiting_text(str(created["waiting"])))


@click.command()
@click.argument("task_ids", nargs=-1, required=True)
@show.yes_option
@show.json_option
def purge(task_ids: tuple[str, ...], *, yes: bool, as_json: bool) -> None:
    """Delete tasks that have ended, with their logs, output and artifacts."""
    from orchestrator.client.api import each, task_path  # noqa: PLC0415 - see connect

    show.confirm(f"delete {len(set(task_ids))} task(s) and all that they left?", yes=yes)
    api = connect()
    for task_id in each(task_ids):
        what, path = f"purge task {task_id}", task_path(task_id)
        purged = api.extension_json(what, "POST", f"{path}/purge", path)
        if as_json:
            show.print_json(purged)
        else:
            click.echo(f"{task_id} deleted")


def _names_for(api: Api, rows: list[Json]) -> dict[str, str]:
    from orchestrator.client.api import node_names  # noqa: PLC0415 - see connect

    has_nodes = any(row.get("assigned_node_id") or row.get("target_node_id") for row in rows)
    return node_names(api) if has_nodes else {}


def _row(row: Json, names: dict[str, str]) -> tuple[str, ...]:
    node_id = row.get("assigned_node_id")
    target = row.get("target_node_name") or show.shown_tags(row.get("target_tags"))
    return (
        str(row.get("id")),
        str(row.get("status")),
        show.age(row.get("created_at")),
        _took(row) or "",
        names.get(str(node_id), str(node_id)) if node_id else f"({target or 'any'})",
        str(row.get("prompt")),
    )


def _took(row: Json) -> str | None:
    """Return how long a task ran or has been running."""
    if not row.get("started_at"):
        return None
    return show.between(row["started_at"], row.get("completed_at"))


def _steps(history: list[Json]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    previous = None
    for step in history:
        progress, moment = step.get("progress"), step.get("timestamp")
        rows.append(
            (
                show.shown_time(moment) or "",
                f"+{show.between(previous, moment)}" if previous else "",
                str(step.get("status")),
                "" if progress is None else f"{progress:.0f} %",
                str(step.get("message") or ""),
            )
        )
        previous = moment
    return rows
