"""`node`: list, show, pause, resume, remove; and which nodes a target matches."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from orchestrator.client import show
from orchestrator.client.connect import connect
from orchestrator.client.errors import Refused
from orchestrator.client.parse import Tag

if TYPE_CHECKING:
    from orchestrator.client.api import Api, Json

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def target_matches(
    node: Json, node_id: str | None, pattern: str | None, tags: Mapping[str, str]
) -> bool:
    """Return whether a task with this target may run on the node; `*` is any text."""
    if node_id is not None and node_id.lower() != str(node.get("id")).lower():
        return False
    if pattern is not None:
        expression = ".*".join(map(re.escape, re.split(r"\*+", pattern)))
        if not re.fullmatch(expression, str(node.get("name")), re.DOTALL):
            return False
    has = node.get("tags") or {}
    return all(has.get(key) == value for key, value in tags.items())


def find_node(api: Api, node: str) -> str:
    """Return the id of the node with this id or name. Raises Refused if there is not one."""
    if _ID.fullmatch(node):
        return node.lower()
    rows = api.rows(f"find node {node}", "/nodes")
    ids = [str(row.get("id")) for row in rows if row.get("name") == node]
    if not ids:
        raise Refused(f"cannot find node {node}: no node has this name or id; see 'node list'")
    if len(ids) > 1:
        raise Refused(
            f"cannot choose node {node}: several have this name; give an id of {', '.join(ids)}"
        )
    return ids[0]


@click.group()
def node() -> None:
    """List, pause and remove nodes."""


@node.command("list")
@click.option(
    "--name", "pattern", metavar="PATTERN", help="Only nodes of this name; * is any text."
)
@click.option("--tag", "tags", type=Tag(), multiple=True, help="Only nodes with this tag.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many.")
@show.json_option
def list_nodes(
    *, pattern: str | None, tags: tuple[tuple[str, str], ...], limit: int | None, as_json: bool
) -> None:
    """List nodes. --name and --tag show which nodes a task with this target may run on."""
    api = connect()
    # With a pattern, the first ones need not match.
    most = None if pattern or tags else limit
    rows = api.rows("list the nodes", "/nodes", limit=most)
    rows = [row for row in rows if target_matches(row, None, pattern, dict(tags))][:limit]
    if as_json:
        show.print_json(rows)
        return
    columns = ("NAME", "STATUS", "HEARTBEAT", "TASK", "ID", "TAGS")
    show.print_table(columns, map(_row, rows), "no nodes")


def status_of(row: Json) -> str:
    """Return a node's status; of one that is paused and not offline, that it is paused."""
    status = str(row.get("status"))
    return "paused" if row.get("paused") and status != "offline" else status


def _row(row: Json) -> tuple[str, ...]:
    return (
        str(row.get("name")),
        status_of(row),
        show.age(row.get("last_heartbeat")),
        str(row.get("current_task_id") or ""),
        str(row.get("id")),
        show.shown_tags(row.get("tags")),
    )


@node.command("show")
@click.argument("name")
@show.json_option
def show_node(name: str, *, as_json: bool) -> None:
    """Show a node, by its name or id."""
    from orchestrator.client.api import node_path  # noqa: PLC0415 - see connect

    api = connect()
    body = api.json(f"show node {name}", "GET", node_path(find_node(api, name)))
    if as_json:
        show.print_json(body)
        return
    show.print_fields(
        {
            "id": str(body.get("id")),
            "name": str(body.get("name")),
            "status": str(body.get("status")),
            "paused": "yes" if body.get("paused") else None,
            "task": body.get("current_task_id"),
            "host name": body.get("hostname"),
            "system": body.get("os_type"),
            "tags": show.shown_tags(body.get("tags")),
            "capabilities": show.shown_list(body.get("capabilities")),
            "heartbeat": show.shown_time(body.get("last_heartbeat")),
            "registered": show.shown_time(body.get("registered_at")),
        }
    )


@node.command()
@click.argument("names", nargs=-1, required=True, metavar="NODE...")
@show.json_option
def pause(names: tuple[str, ...], *, as_json: bool) -> None:
    """Pause nodes: they get no new tasks, and those that run go on."""
    _switch("pause", names, as_json=as_json)


@node.command()
@click.argument("names", nargs=-1, required=True, metavar="NODE...")
@show.json_option
def resume(names: tuple[str, ...], *, as_json: bool) -> None:
    """Resume paused nodes: they get tasks again."""
    _switch("resume", names, as_json=as_json)


def _switch(action: str, names: tuple[str, ...], *, as_json: bool) -> None:
    from orchestrator.client.api import each, node_path  # noqa: PLC0415 - see connect

    api = connect()
    for name in each(names):
        path = node_path(find_node(api, name))
        switched = api.extension_json(f"{action} node {name}", "POST", f"{path}/{action}", path)
        if as_json:
            show.print_json(switched)
        else:
            click.echo(f"{name} {action}d")


@node.command()
@click.argument("names", nargs=-1, required=True, metavar="NODE...")
@show.yes_option
@show.json_option
def remove(names: tuple[str, ...], *, yes: bool, as_json: bool) -> None:
    """Unregister nodes. A runner that is still alive registers again."""
    from orchestrator.client.api import each, node_path  # noqa: PLC0415 - see connect

    show.confirm(f"remove {len(set(names))} node(s)?", yes=yes)
    api = connect()
    for name in each(names):
        removed = api.json(f"remove node {name}", "DELETE", node_path(find_node(api, name)))
        if as_json:
            show.print_json(removed)
        else:
            click.echo(f"{name} removed")


@node.command("rotate-key")
@click.argument("name", metavar="NODE")
@show.json_option
def rotate_key(name: str, *, as_json: bool) -> None:
    """Replace a node's key; its next heartbeat brings it the new one."""
    from orchestrator.client.api import node_path  # noqa: PLC0415 - see connect

    api = connect()
    path = node_path(find_node(api, name))
    rotated = api.extension_json(
        f"rotate the key of node {name}", "POST", f"{path}/rotate-key", path
    )
    if as_json:
        show.print_json(rotated)
    else:
        click.echo(f"{name} gets a new key with its next heartbeat")
