"""`cleanup`, `stats`, `audit` and `health`."""

from __future__ import annotations

import click

from orchestrator.client import show
from orchestrator.client.connect import connect


@click.command()
@click.option(
    "--days",
    type=click.IntRange(min=0),
    default=7,
    show_default=True,
    help="Tasks that ended at least so many days ago.",
)
@show.yes_option
@show.json_option
def cleanup(*, days: int, yes: bool, as_json: bool) -> None:
    """Delete tasks that ended long ago, with all that they left, and files no task needs."""
    show.confirm(f"delete the tasks that ended at least {days} days ago?", yes=yes)
    deleted = connect().json("clean up", "POST", "/tasks/cleanup", {"days": days})
    if as_json:
        show.print_json(deleted)
    else:
        click.echo(f"{deleted.get('deleted_count')} deleted")


@click.command()
@show.json_option
def stats(*, as_json: bool) -> None:
    """Show numbers of nodes and tasks; today is in UTC."""
    counts = connect().json("show the numbers", "GET", "/dashboard/stats")
    _print(counts, as_json=as_json)


@click.command()
@show.json_option
def health(*, as_json: bool) -> None:
    """Show whether the orchestrator answers, and its version."""
    api = connect()
    response = api.json("ask for its health", "GET", "/health")
    _print({"url": api.url, **response}, as_json=as_json)


@click.command()
@click.option("--key-id", help="Only entries of this key; admin is the admin key.")
@click.option("--action", help="Only entries with this action.")
@click.option(
    "--hours",
    type=click.IntRange(min=1),
    default=24,
    show_default=True,
    help="Only the last so many hours.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="At most so many.",
)
@show.json_option
def audit(*, key_id: str | None, action: str | None, hours: int, limit: int, as_json: bool) -> None:
    """Show who used which key for what, the newest first."""
    params = {"key_id": key_id, "action": action, "hours": hours, "limit": limit}
    log = connect().json("show the audit", "GET", "/keys/audit", params)
    if as_json:
        show.print_json(log)
        return
    entries = log.get("entries")
    rows = [
        (
            show.shown_time(entry.get("timestamp")) or "",
            *(str(entry.get(name) or "") for name in ("key_id", "action", "client", "detail")),
        )
        for entry in (entries if isinstance(entries, list) else [])
    ]
    show.print_table(("TIME", "KEY", "ACTION", "FROM", "DETAIL"), rows, "no entries")
    if isinstance(total := log.get("total"), int) and total > len(rows):
        show.note(f"{len(rows)} of {total} are shown; --limit shows more")


def _print(document: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        show.print_json(document)
        return
    show.print_fields({name.replace("_", " "): str(value) for name, value in document.items()})
