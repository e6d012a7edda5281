"""What commands print: tables and fields for people, JSON for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, TypeVar

import click

from orchestrator.client.errors import Unconfigured
from orchestrator.client.text import one_line, printable

if TYPE_CHECKING:
    from rich.console import Console

F = TypeVar("F", bound=Callable[..., Any])

_STYLES = {
    "success": "green",
    "idle": "green",
    "error": "red",
    "offline": "red",
    "running": "cyan",
    "analyzing": "cyan",
    "busy": "cyan",
    "assigned": "yellow",
    "pending": "yellow",
    "paused": "yellow",
    "cancelled": "magenta",
}
_GAP = 2
_MIN_LAST_WIDTH = 20
_NO_WIDTH = 1 << 16
"""A file or a pipe has no width: nothing is cut there."""


def json_option(command: F) -> F:
    """Add `--json` to a command."""
    option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
    return option(command)


def yes_option(command: F) -> F:
    """Add `--yes` to a command that cannot be undone."""
    return click.option("--yes", is_flag=True, help="Do not ask.")(command)


def confirm(question: str, *, yes: bool) -> None:
    """Ask on a terminal before what cannot be undone. Raises UsageError where nobody can answer."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("this cannot be undone: add --yes")
    click.confirm(question, abort=True, err=True)


def print_json(document: object) -> None:
    """Print one JSON document; one that a terminal shows cannot control it."""
    text = json.dumps(document, indent=2, ensure_ascii=sys.stdout.isatty())
    click.echo(text)


def note(sentence: str) -> None:
    """Print a remark, to standard error: standard output is the result."""
    click.echo(printable(sentence), err=True)


def waiting_text(reason: str) -> str:
    """Return a sentence with the reason for which an orchestrator says that a task waits."""
    return reason if reason.startswith("it ") else f"it waits: {reason}"


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], none: str) -> None:
    """Print rows in columns, or the remark `none`; a terminal's width cuts only the last column."""
    cells = [[_text(one_line(cell)) for cell in row] for row in rows]
    if not cells:
        note(none)
        return
    console = _console()
    from rich.table import Table  # noqa: PLC0415 - see _console

    widths = [
        max(len(name), *(row[number].cell_len for row in cells))
        for number, name in enumerate(columns)
    ]
    # rich would cut ids to make room; on a terminal that is too narrow, lines wrap instead.
    fixed = sum(widths[:-1]) + _GAP * len(widths[:-1])
    widths[-1] = min(widths[-1], max(console.width - fixed, _MIN_LAST_WIDTH))
    console.width = max(console.width, fixed + widths[-1])
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, width in zip(columns, widths, strict=True):
        table.add_column(name, no_wrap=True, overflow="ellipsis", width=width)
    for row in cells:
        table.add_row(*row)
    console.print(table, crop=False)


def print_fields(fields: Mapping[str, str | None]) -> None:
    """Print a name and its value on each line; those without a value are left out."""
    console = _console()
    present = {name: value for name, value in fields.items() if value not in {None, ""}}
    width = max(map(len, present), default=0)
    for name, value in present.items():
        shown = printable(str(value)).replace("\n", "\n" + " " * (width + 2))
        line = _text("").append(f"{name:{width}}  ", "bold").append_text(_text(shown))
        console.print(line, soft_wrap=True)


def has_colours() -> bool:
    """Return whether standard output is a terminal that shows colours."""
    is_plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") in {"dumb", "unknown"}
    return sys.stdout.isatty() and not is_plain


def shown_time(value: object) -> str | None:
    """Return a time in the local zone, as of ISO 8601; what is not one is returned as it is."""
    moment = parse_time(value)
    if moment is None:
        return None if value is None else str(value)
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S %Z}"


def age(value: object, now: datetime | None = None) -> str:
    """Return how long ago a time was, or in how long it will be: `5 min ago`, `in 2 h`."""
    moment = parse_time(value)
    if moment is None:
        return ""
    passed = ((now or datetime.now(timezone.utc)) - moment).total_seconds()
    return f"{duration(passed)} ago" if passed >= 0 else f"in {duration(-passed)}"


def duration(seconds: float) -> str:
    """Return a duration in its two largest units at most: `45 s`, `12 min`, `3 h`, `2 d`."""
    for length, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"


def between(begin: object, end: object) -> str:
    """Return the duration between two times, to now if there is no end."""
    first, last = parse_time(begin), parse_time(end)
    if first is None:
        return ""
    passed = (last or datetime.now(timezone.utc)) - first
    return duration(max(passed, timedelta()).total_seconds())


def parse_time(value: object) -> datetime | None:
    """Return a time of ISO 8601 with its zone, UTC if it has none; None for anything else."""
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value.replace("Z", "+00:00"))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def shown_tags(tags: object) -> str:
    """Return tags as `key=value`, separated by blanks."""
    if not isinstance(tags, dict):
        return ""
    return " ".join(f"{key}={value}" for key, value in sorted(tags.items()))


def shown_list(values: object) -> str:
    """Return the entries of a list, separated by commas."""
    return ", ".join(map(str, values)) if isinstance(values, list) else ""


def _text(text: str, style: str = "") -> Any:  # noqa: ANN401 - rich.text.Text, not yet imported
    from rich.text import Text  # noqa: PLC0415 - see _console

    # Never markup: what a task or a node is called must not style anything.
    return Text(text, style or _STYLES.get(text, ""))


def _console() -> Console:
    try:
        # Only what prints a table needs it: help and completion are faster without.
        from rich.console import Console  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise Unconfigured(
            f"cannot print tables: the package {error.name} is not installed; install"
            " victoria-runner[client], or use --json"
        ) from error
    is_terminal = sys.stdout.isatty()
    return Console(
        file=sys.stdout,
        force_terminal=is_terminal,
        width=None if is_terminal else _NO_WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
    )
