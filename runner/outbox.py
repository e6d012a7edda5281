"""`python -m runner outbox`: list the reports in the outbox; retry or drop parked ones.

A runner may be active: it leaves parked reports alone, and reads its outbox once a minute.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from runner.errors import EXIT_OK, ConfigurationError, JournalError
from runner.journal.journal import JOURNAL_NAME, Journal
from runner.log import printable
from runner.model import OutboxEntry
from runner.settings import Settings


async def list_reports(
    settings: Settings, echo: Callable[[str], None], *, as_json: bool = False
) -> int:
    """Print the reports that are not delivered; return the exit code."""
    entries = await parked_and_waiting(settings)
    if as_json:
        echo(json.dumps([_as_json(entry) for entry in entries], indent=2))
        return EXIT_OK
    for entry in entries:
        echo(describe(entry))
    if not entries:
        echo("no reports in the outbox")
    return EXIT_OK


async def retry_reports(
    settings: Settings, ids: Iterable[str], echo: Callable[[str], None], *, as_json: bool = False
) -> int:
    """Have the runner send these reports again, without ids all that are parked.

    Raises:
        ConfigurationError: there is no such report, or it is another orchestrator's.
    """
    entries = await parked_and_waiting(settings)
    chosen = _choose(entries, ids)
    url = settings.orchestrator_url
    others = [entry for entry in chosen if url not in {"", entry.orchestrator_url}]
    if others:
        raise ConfigurationError(
            f"cannot retry report {others[0].row}: it is for {others[0].orchestrator_url}, and "
            f"no report goes to another orchestrator; drop it, or name the reports for {url}"
        )
    with _opened_to_write(settings) as journal:
        await journal.unpark([entry.row for entry in chosen])
    when = "sent within a minute, or when the runner starts"
    _print_changed(chosen, "retried", when, echo, as_json=as_json)
    return EXIT_OK


async def drop_reports(
    settings: Settings, ids: Iterable[str], echo: Callable[[str], None], *, as_json: bool = False
) -> int:
    """Delete these parked reports, without ids all that are parked.

    Raises:
        ConfigurationError: there is no such report, or it is not parked.
    """
    ids = set(ids)
    chosen = _choose(await parked_and_waiting(settings), ids)
    for entry in chosen:
        has_parked = any(other.parked for other in chosen if other.task_id == entry.task_id)
        if entry.parked is None and (str(entry.row) in ids or not has_parked):
            raise ConfigurationError(
                f"cannot drop report {entry.row}: it is not parked, and the runner still tries to "
                "deliver it; see `victoria-runner outbox list`"
            )
    chosen = [entry for entry in chosen if entry.parked is not None]
    with _opened_to_write(settings) as journal:
        await journal.drop_parked([entry.row for entry in chosen])
    _print_changed(chosen, "dropped", "the orchestrator does not get it", echo, as_json=as_json)
    return EXIT_OK


async def parked_and_waiting(settings: Settings) -> list[OutboxEntry]:
    """Return the entries of the outbox.

    Raises:
        ConfigurationError: there is no journal, or this user cannot read it.
        JournalError: it is damaged.
    """
    path = settings.state_dir / JOURNAL_NAME
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConfigurationError(
            f"cannot read {path}: {(error.strerror or str(error)).lower()}; give the --state-dir "
            "of the runner, and run as its user"
        ) from error
    journal = Journal(path, read_only=True)
    try:
        return await journal.entries()
    finally:
        journal.close_file()


def describe(entry: OutboxEntry) -> str:
    """Return an entry as a line for people, which begins with its id."""
    created_at = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(entry.created_at))
    state = f"waiting, {entry.attempts} attempts failed"
    if entry.parked is not None:
        state = f"parked: {entry.parked}"
    return printable(f"{entry.row} {entry.path} of task {entry.task_id}, {created_at}, {state}")


def _choose(entries: list[OutboxEntry], ids: Iterable[str]) -> list[OutboxEntry]:
    """Return the entries of these ids, their own or their tasks'; without ids the parked ones.

    Raises:
        ConfigurationError: there is none of an id.
    """
    wanted = set(ids)
    if not wanted:
        return [entry for entry in entries if entry.parked is not None]
    unknown = wanted - {text for entry in entries for text in (str(entry.row), entry.task_id)}
    if unknown:
        raise ConfigurationError(
            f"cannot find report {min(unknown)}: the outbox has none of this id or task; see "
            "`victoria-runner outbox list`"
        )
    return [entry for entry in entries if not wanted.isdisjoint({str(entry.row), entry.task_id})]


@contextmanager
def _opened_to_write(settings: Settings) -> Iterator[Journal]:
    """Open a journal of this version's. Another one belongs to a runner of another version."""
    path = settings.state_dir / JOURNAL_NAME
    journal = Journal(path, read_only=True)
    is_current = journal.is_current
    journal.close_file()
    if not is_current:
        raise JournalError(
            f"cannot change the journal {path}: an older version wrote it; restart the runner first"
        )
    journal = Journal(path)
    try:
        yield journal
    finally:
        journal.close_file()


def _print_changed(
    entries: list[OutboxEntry],
    verb: str,
    effect: str,
    echo: Callable[[str], None],
    *,
    as_json: bool,
) -> None:
    if as_json:
        echo(json.dumps({verb: [_as_json(entry) for entry in entries]}, indent=2))
        return
    for entry in entries:
        echo(printable(f"{verb} {entry.row} {entry.path} of task {entry.task_id}: {effect}"))
    if not entries:
        echo("no parked reports")


def _as_json(entry: OutboxEntry) -> dict[str, object]:
    return {
        "id": entry.row,
        "task_id": entry.task_id,
        "report": entry.path,
        "orchestrator_url": entry.orchestrator_url,
        "created_at": entry.created_at,
        "attempts": entry.attempts,
        "parked": entry.parked,
    }
