"""`key` and `token`: create, list, show, rotate, revoke and delete. A secret is shown once."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING
from urllib.parse import quote

import click

from orchestrator.client import show
from orchestrator.client.connect import connect
from orchestrator.client.parse import Moment
from orchestrator.client.text import one_line

if TYPE_CHECKING:
    from orchestrator.client.api import Json

_ROLES = ("submitter", "operator", "admin")
_KEY_COLUMNS = ("ID", "NAME", "ROLE", "STATE", "CREATED", "EXPIRES", "NODES")
_TOKEN_COLUMNS = ("ID", "NAME", "STATE", "USES", "CREATED", "EXPIRES", "NODES")
_TOKENS = "/registration-tokens"


@click.group()
def key() -> None:
    """Manage keys: who may create tasks, for which nodes, and see what."""


@key.command("create")
@click.argument("name")
@click.option("--description", default="", help="What it is for; else its name.")
@click.option(
    "--role",
    type=click.Choice(_ROLES),
    default="submitter",
    show_default=True,
    help="What it may do: create tasks; see and cancel its own too; everything.",
)
@click.option(
    "--nodes",
    "patterns",
    multiple=True,
    metavar="PATTERN",
    help="Only for nodes of such names; may be repeated. Default: all.",
)
@click.option("--rate-limit", type=click.IntRange(min=1), help="Calls a minute.")
@click.option("--expires-in-days", type=click.IntRange(min=1), help="Days until it expires.")
@show.json_option
def create_key(  # noqa: PLR0913 - click passes every option as an argument
    name: str,
    *,
    description: str,
    role: str,
    patterns: tuple[str, ...],
    rate_limit: int | None,
    expires_in_days: int | None,
    as_json: bool,
) -> None:
    """Create a key and print its secret, which is shown only now."""
    body = {
        "name": name,
        "description": description or name,
        "role": role,
        "allowed_node_patterns": list(patterns) or None,
        "rate_limit": rate_limit,
        "expires_in_days": expires_in_days,
    }
    present = {field: value for field, value in body.items() if value is not None}
    created = connect().json("create the key", "POST", "/keys", json=present)
    _print_secret(created, "api_key", "key_id", as_json=as_json)


@key.command("list")
@show.json_option
def list_keys(*, as_json: bool) -> None:
    """List keys, without their secrets."""
    rows = connect().rows("list the keys", "/keys")
    if as_json:
        show.print_json(rows)
    else:
        show.print_table(_KEY_COLUMNS, map(_key_row, rows), "no keys")


@key.command("show")
@click.argument("key_id")
@show.json_option
def show_key(key_id: str, *, as_json: bool) -> None:
    """Show a key, without its secret."""
    body = connect().json(f"show key {key_id}", "GET", _path("/keys", key_id))
    _print(body, as_json=as_json)


@key.command()
@click.argument("key_id")
@click.option(
    "--grace-period-hours",
    type=click.IntRange(min=0),
    default=24,
    show_default=True,
    help="How long the previous secret stays valid.",
)
@show.json_option
def rotate(key_id: str, *, grace_period_hours: int, as_json: bool) -> None:
    """Replace a key's secret and print the new one, which is shown only now."""
    path, params = _path("/keys", key_id), {"grace_period_hours": grace_period_hours}
    rotated = connect().json(f"rotate key {key_id}", "POST", f"{path}/rotate", params)
    _print_secret(rotated, "api_key", "key_id", as_json=as_json)


_cancel_option = click.option(
    "--cancel-tasks", is_flag=True, help="Cancel the tasks that it created."
)


@key.command()
@click.argument("key_id")
@_cancel_option
@show.json_option
def revoke(key_id: str, *, cancel_tasks: bool, as_json: bool) -> None:
    """Revoke a key at once; it stays on the list."""
    path, params = _path("/keys", key_id), {"cancel_tasks": cancel_tasks or None}
    revoked = connect().json(f"revoke key {key_id}", "POST", f"{path}/revoke", params)
    if as_json:
        show.print_json(revoked)
    else:
        click.echo(f"{key_id} revoked")


@key.command("delete")
@click.argument("key_id")
@_cancel_option
@show.yes_option
@show.json_option
def delete_key(key_id: str, *, cancel_tasks: bool, yes: bool, as_json: bool) -> None:
    """Delete a key at once; its tasks and its audit entries stay."""
    show.confirm(f"delete key {key_id}?", yes=yes)
    path, params = _path("/keys", key_id), {"cancel_tasks": cancel_tasks or None}
    deleted = connect().json(f"delete key {key_id}", "DELETE", path, params)
    if as_json:
        show.print_json(deleted)
    else:
        click.echo(f"{key_id} deleted")


@click.group()
def token() -> None:
    """Manage registration tokens: which nodes may register."""


@token.command("create")
@click.argument("name")
@click.option(
    "--nodes",
    "patterns",
    multiple=True,
    required=True,
    metavar="PATTERN",
    help="For nodes of such names; may be repeated.",
)
@click.option("--expires-at", type=Moment(), help="When it expires.")
@click.option("--max-uses", type=click.IntRange(min=1), help="How many nodes it may register.")
@show.json_option
def create_token(
    name: str,
    *,
    patterns: tuple[str, ...],
    expires_at: datetime | None,
    max_uses: int | None,
    as_json: bool,
) -> None:
    """Create a registration token and print its secret, which is shown only now."""
    body = {
        "name": name,
        "allowed_node_patterns": list(patterns),
        "expires_at": expires_at and expires_at.isoformat(),
        "max_uses": max_uses,
    }
    present = {field: value for field, value in body.items() if value is not None}
    created = connect().json("create the token", "POST", _TOKENS, json=present)
    _print_secret(created, "token", "token_id", as_json=as_json)


@token.command("list")
@show.json_option
def list_tokens(*, as_json: bool) -> None:
    """List registration tokens, without their secrets."""
    rows = connect().rows("list the tokens", _TOKENS)
    if as_json:
        show.print_json(rows)
    else:
        show.print_table(_TOKEN_COLUMNS, map(_token_row, rows), "no tokens")


@token.command("show")
@click.argument("token_id")
@show.json_option
def show_token(token_id: str, *, as_json: bool) -> None:
    """Show a registration token, without its secret."""
    body = connect().json(f"show token {token_id}", "GET", _path(_TOKENS, token_id))
    _print(body, as_json=as_json)


@token.command("delete")
@click.argument("token_id")
@show.yes_option
@show.json_option
def delete_token(token_id: str, *, yes: bool, as_json: bool) -> None:
    """Revoke a registration token at once; nodes that it registered stay."""
    show.confirm(f"revoke token {token_id}?", yes=yes)
    deleted = connect().json(f"revoke token {token_id}", "DELETE", _path(_TOKENS, token_id))
    if as_json:
        show.print_json(deleted)
    else:
        click.echo(f"{token_id} revoked")


def _path(parent: str, name: str) -> str:
    return f"{parent}/{quote(name, safe='')}"


def _print_secret(created: Json, secret: str, name: str, *, as_json: bool) -> None:
    if as_json:
        show.print_json(created)
        return
    show.note(f"id {created.get(name)}; the secret is shown only now:")
    click.echo(one_line(str(created.get(secret))))


def _print(body: Json, *, as_json: bool) -> None:
    if as_json:
        show.print_json(body)
        return
    shown = {}
    for name, value in body.items():
        is_time = name.endswith("_at")
        text = show.shown_list(value) if isinstance(value, list) else value
        shown[name.replace("_", " ")] = show.shown_time(text) if is_time else _word(text)
    show.print_fields(shown)


def _word(value: object) -> str | None:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return None if value is None else str(value)


def _key_row(row: Json) -> tuple[str, ...]:
    return (
        str(row.get("key_id")),
        str(row.get("name")),
        str(row.get("role") or show.shown_list(row.get("permissions"))),
        _state(row),
        show.age(row.get("created_at")),
        show.age(row.get("expires_at")),
        show.shown_list(row.get("allowed_node_patterns")),
    )


def _token_row(row: Json) -> tuple[str, ...]:
    most = row.get("max_uses")
    return (
        str(row.get("token_id")),
        str(row.get("name")),
        _state(row),
        str(row.get("uses")) if most is None else f"{row.get('uses')} of {most}",
        show.age(row.get("created_at")),
        show.age(row.get("expires_at")),
        show.shown_list(row.get("allowed_node_patterns")),
    )


def _state(row: Json) -> str:
    return "enabled" if row.get("enabled") else "disabled"
