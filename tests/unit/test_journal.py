"""What the journal has taken in is there whatever happens next, and says what it said."""

from __future__ import annotations

import itertools
import os
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from runner.errors import JournalError
from runner.journal.journal import (
    JOURNAL_NAME,
    Journal,
    open_journal,
    read_unfinished_tasks,
)
from runner.journal.schema import MIGRATIONS
from runner.model import (
    Assignment,
    EndReason,
    Identity,
    OutboxEntry,
    Outcome,
    Registration,
    Report,
    Task,
    TaskFile,
    TaskState,
)
from runner.redaction import Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.anyio

URL = "https://o.example.com"
NODE: dict[str, object] = {"name": "n-1", "tags": {"env": "prod"}, "capabilities": []}
FIRST = Identity("node-1", Secret("key-1"))
SECOND = Identity("node-2", Secret("key-2"))
TASK = Assignment("t-1", "count", URL, 60, (TaskFile("a", "0" * 64),))
STATUS = Report("status", {"job_id": "t-1", "task_id": "t-1", "status": "success"})
LOGS = Report("logs", {"job_id": "t-1", "task_id": "t-1", "session": {"title": "ä"}})
DONE = Outcome(EndReason.COMPLETED, "completed: exit code 0", 0)
MOST_WRITES = 200


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Give the place of a journal that is not there yet."""
    return tmp_path / JOURNAL_NAME


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """Open a new journal."""
    opened, said = open_journal(tmp_path, "now")
    assert said is None
    yield opened
    opened.close_file()


@pytest.fixture
async def registered(journal: Journal) -> Journal:
    """Give a journal that knows who we are."""
    await journal.store_registration(Registration(FIRST, NODE), URL, 1.0)
    return journal


@pytest.fixture
async def accepted(registered: Journal) -> Journal:
    """Give a journal with a task that was taken on."""
    assert await registered.accept(TASK, FIRST, 10.0)
    return registered


@pytest.fixture
async def running(accepted: Journal) -> Journal:
    """Give a journal with a task that runs."""
    await accepted.start("t-1", "boot-1", "podman")
    await accepted.run("t-1", "c0ffee", 20.0, 80.0)
    return accepted


@pytest.fixture
async def ended(running: Journal) -> Journal:
    """Give a journal with a task that has ended and two reports to deliver."""
    await running.end("t-1", DONE, [LOGS, STATUS], 30.0)
    return running


async def the_task(journal: Journal) -> Task:
    task = await journal.task("t-1")
    assert task is not None
    return task


async def only_letter(journal: Journal) -> OutboxEntry:
    (letter,) = await journal.entries()
    return letter


async def reports_in(journal: Journal) -> list[Report]:
    bodies = [(letter.path, await journal.body(letter.row)) for letter in await journal.entries()]
    return [Report(path, body) for path, body in bodies if body is not None]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def open_to_all(path: Path) -> None:
    path.touch()
    path.chmod(0o644)


def names_in(folder: Path) -> list[str]:
    return sorted(found.name for found in folder.iterdir())


def content_of(path: Path) -> bytes:
    return path.read_bytes()


def content(path: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


# Who we are


async def test_new_journal_knows_nobody(journal: Journal) -> None:
    assert await journal.registration(URL) is None


async def test_what_is_written_waits_for_the_disk(journal: Journal) -> None:
    (synchronous,) = journal.connection.execute("PRAGMA synchronous").fetchone()
    (mode,) = journal.connection.execute("PRAGMA journal_mode").fetchone()
    assert (synchronous, mode) == (2, "wal"), "FULL: a power cut takes nothing that was said"


async def test_registration_is_kept(registered: Journal) -> None:
    assert await registered.registration(URL) == Registration(FIRST, NODE)


async def test_registration_does_not_hold_at_another_orchestrator(registered: Journal) -> None:
    assert await registered.registration("https://other.example.com") is None


async def test_newest_registration_holds(registered: Journal) -> None:
    await registered.store_registration(Registration(SECOND, NODE), URL, 2.0)

    assert await registered.registration(URL) == Registration(SECOND, NODE)


async def test_refused_identity_holds_no_longer(registered: Journal) -> None:
    await registered.refuse_identity(FIRST)

    assert await registered.registration(URL) is None


async def test_new_description_takes_the_place_of_the_one_with_the_same_key(
    accepted: Journal,
) -> None:
    again = Registration(FIRST, {**NODE, "tags": {}}, frozenset({"reregister", "pace"}))

    await accepted.store_registration(again, URL, 2.0)

    assert await accepted.registration(URL) == again
    assert content(accepted.path, "SELECT count(*) FROM identities") == [(1,)]
    assert (await the_task(accepted)).identity == FIRST


async def test_extensions_that_are_named_later_are_kept(registered: Journal) -> None:
    await registered.store_extensions(FIRST, ["reregister"])

    expected = Registration(FIRST, NODE, frozenset({"reregister"}))
    assert await registered.registration(URL) == expected


# What we have taken on


async def test_accepted_task_is_written_down_whole(accepted: Journal) -> None:
    assert await the_task(accepted) == Task("t-1", TaskState.ACCEPTED, URL, TASK, 10.0, FIRST)


async def test_unknown_task_is_none(journal: Journal) -> None:
    assert await journal.task("t-1") is None


async def test_task_is_taken_on_once(accepted: Journal) -> None:
    assert not await accepted.accept(Assignment("t-1", "other", URL, 5), FIRST, 11.0)
    assert (await the_task(accepted)).assignment == TASK


async def test_task_is_not_taken_on_again_after_its_end(ended: Journal) -> None:
    assert not await ended.accept(TASK, FIRST, 40.0)
    assert (await the_task(ended)).state is TaskState.ENDED


async def test_task_cannot_be_taken_on_by_nobody(journal: Journal) -> None:
    with pytest.raises(JournalError):
        await journal.accept(TASK, FIRST, 10.0)


async def test_rejected_task_ends_where_it_began_with_its_report(registered: Journal) -> None:
    end = Outcome(EndReason.REJECTED, "rejected: its prompt is missing or empty")

    assert await registered.reject("t-1", end, STATUS, FIRST, 10.0)

    task = await the_task(registered)
    assert (task.state, task.assignment, task.outcome) == (TaskState.ENDED, None, end)
    assert await reports_in(registered) == [STATUS]


async def test_task_is_rejected_once(registered: Journal) -> None:
    end = Outcome(EndReason.REJECTED, "rejected")
    await registered.reject("t-1", end, STATUS, FIRST, 10.0)

    assert not await registered.reject("t-1", end, STATUS, FIRST, 11.0)
    assert len(await registered.entries()) == 1


async def test_task_that_runs_is_not_rejected(running: Journal) -> None:
    assert not await running.reject("t-1", Outcome(EndReason.REJECTED, "no"), STATUS, FIRST, 21.0)
    assert (await the_task(running)).state is TaskState.RUNNING
    assert await running.entries() == []


async def test_start_keeps_the_boot(accepted: Journal) -> None:
    await accepted.start("t-1", "boot-1", "podman")

    task = await the_task(accepted)
    assert (task.state, task.boot_id) == (TaskState.STARTING, "boot-1")


async def test_run_keeps_container_start_and_deadline(running: Journal) -> None:
    task = await the_task(running)

    assert task.state is TaskState.RUNNING
    assert (task.container_id, task.started_at, task.deadline_uptime_s) == ("c0ffee", 20.0, 80.0)


async def test_end_keeps_reason_message_and_exit_code(running: Journal) -> None:
    end = Outcome(EndReason.FAILED, "failed: exit code 3\nlast line", 3)

    await running.end("t-1", end, [], 30.0)

    task = await the_task(running)
    assert (task.state, task.outcome, task.ended_at) == (TaskState.ENDED, end, 30.0)


async def test_end_puts_its_reports_into_the_outbox_in_their_order(ended: Journal) -> None:
    assert await reports_in(ended) == [LOGS, STATUS]


async def test_reports_of_an_end_whose_log_is_pending_are_released_once(running: Journal) -> None:
    await running.end("t-1", DONE, [], 30.0, is_log_pending=True)
    assert (await the_task(running)).is_log_pending

    await running.release("t-1", [LOGS, STATUS], 31.0)
    await running.release("t-1", [STATUS], 32.0)

    assert not (await the_task(running)).is_log_pending
    assert await reports_in(running) == [LOGS, STATUS]


async def test_end_without_a_row_for_its_reports_is_no_end(running: Journal) -> None:
    unwritable = Report("status", {"status": object()})

    with pytest.raises(TypeError):
        await running.end("t-1", DONE, [STATUS, unwritable], 30.0)

    assert (await the_task(running)).state is TaskState.RUNNING
    assert await running.entries() == []


async def test_task_moves_along_the_table_only(accepted: Journal) -> None:
    with pytest.raises(ValueError, match="no way from accepted to running"):
        await accepted.run("t-1", "c0ffee", 20.0, 80.0)

    assert (await the_task(accepted)).state is TaskState.ACCEPTED


async def test_task_ends_once(ended: Journal) -> None:
    with pytest.raises(ValueError, match="no way from ended to ended"):
        await ended.end("t-1", Outcome(EndReason.LOST, "lost"), [STATUS], 31.0)

    assert (await the_task(ended)).outcome == DONE
    assert len(await ended.entries()) == 2


async def test_state_is_looked_at_and_changed_in_one_transaction(
    accepted: Journal, path: Path
) -> None:
    raised = anyio.Event()

    async def start() -> None:
        with pytest.raises(ValueError, match="no way from ended to starting"):
            await accepted.start("t-1", "boot-1", "podman")
        raised.set()

    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(start)
            with anyio.move_on_after(0.2):
                await raised.wait()
            assert not raised.is_set()
            other.execute("UPDATE tasks SET state = 'ended'")
            other.execute("COMMIT")

    assert raised.is_set()


async def test_first_reason_to_stop_stands(running: Journal) -> None:
    first = await running.ask_to_stop("t-1", EndReason.TIMED_OUT, 80.0)
    second = await running.ask_to_stop("t-1", EndReason.CANCELLED, 81.0)

    assert (first, second) == (EndReason.TIMED_OUT, EndReason.TIMED_OUT)
    task = await the_task(running)
    assert (task.stop_reason, task.stop_asked_at) == (EndReason.TIMED_OUT, 80.0)


async def test_open_tasks_are_those_not_closed_oldest_first(registered: Journal) -> None:
    for number, moment in [(1, 12.0), (2, 10.0), (3, 11.0)]:
        await registered.accept(Assignment(f"t-{number}", "p", URL, 60), FIRST, moment)
    await registered.end("t-3", DONE, [], 20.0)
    await registered.close("t-3", 21.0)

    assert [task.task_id for task in await registered.open_tasks()] == ["t-2", "t-1"]


async def test_task_with_a_report_to_deliver_is_not_closed(ended: Journal) -> None:
    assert not await ended.close("t-1", 40.0)
    assert (await the_task(ended)).state is TaskState.ENDED


async def test_task_is_closed_when_its_reports_are_delivered_or_parked(ended: Journal) -> None:
    logs, status = await ended.entries()
    await ended.park(logs.row, "HTTP 413")
    await ended.delivered(status.row)

    assert await ended.close("t-1", 40.0)
    assert (await the_task(ended)).state is TaskState.CLOSED


async def test_task_that_runs_cannot_be_closed(running: Journal) -> None:
    with pytest.raises(ValueError, match="no way from running to closed"):
        await running.close("t-1", 40.0)


async def test_prompt_of_a_closed_task_is_not_kept(accepted: Journal) -> None:
    await accepted.end("t-1", DONE, [], 20.0)
    await accepted.close("t-1", 21.0)

    assert (await the_task(accepted)).assignment is None


async def test_forgotten_task_can_be_taken_on_again(accepted: Journal) -> None:
    await accepted.drop("t-1")

    assert await accepted.task("t-1") is None
    assert await accepted.accept(TASK, FIRST, 20.0)


async def test_tasks_closed_long_ago_are_forgotten_with_their_parked_reports(
    registered: Journal,
) -> None:
    for task_id, closed_at in [("old", 100.0), ("new", 200.0)]:
        await registered.accept(Assignment(task_id, "p", URL, 60), FIRST, 10.0)
        await registered.end(task_id, DONE, [STATUS], 20.0)
        await registered.park((await registered.entries())[-1].row, "HTTP 410")
        await registered.close(task_id, closed_at)

    assert await registered.prune_closed(150.0) == 1
    assert await registered.task("old") is None
    assert content(registered.path, "SELECT task_id FROM outbox") == [("new",)]


async def test_open_tasks_are_never_forgotten_for_their_age(ended: Journal) -> None:
    assert await ended.prune_closed(1e12) == 0
    assert len(await ended.entries()) == 2


async def test_assignment_that_a_later_version_would_not_take_is_still_read(
    accepted: Journal, path: Path
) -> None:
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("UPDATE tasks SET assignment = replace(assignment, 'count', '')")

    assert (await the_task(accepted)).assignment == Assignment("t-1", "", URL, 60, TASK.files)


# What we still have to say


async def test_task_has_the_identity_that_took_it_on(running: Journal) -> None:
    await running.store_registration(Registration(SECOND, NODE), URL, 35.0)

    assert (await the_task(running)).identity == FIRST
    assert await running.identity_for("t-1") == FIRST


async def test_task_has_no_identity_once_that_is_refused(running: Journal) -> None:
    await running.refuse_identity(FIRST)

    assert (await the_task(running)).identity is None
    assert await running.identity_for("t-1") == FIRST, "its key is still a secret"


async def test_entry_names_the_orchestrator_that_it_is_for(ended: Journal) -> None:
    await ended.store_registration(Registration(SECOND, NODE), "https://other.example.com", 35.0)

    assert {entry.orchestrator_url for entry in await ended.entries()} == {URL}


async def test_unfinished_tasks_are_open_or_have_a_report_to_deliver(registered: Journal) -> None:
    for number, task_id in enumerate(["open", "closed", "again", "parked"]):
        await registered.accept(Assignment(task_id, "p", URL, 60), FIRST, 10.0 + number)
    for task_id in ("closed", "again", "parked"):
        await registered.end(task_id, DONE, [], 20.0)
        await registered.close(task_id, 21.0)
    for task_id in ("again", "parked"):
        await registered.report_again(task_id, STATUS, 30.0)
    await registered.park((await registered.entries())[-1].row, "HTTP 422")

    assert [task.task_id for task in await registered.unfinished_tasks()] == ["open", "again"]


async def test_unfinished_tasks_are_read_without_a_change_to_the_journal(
    ended: Journal, path: Path
) -> None:
    ended.close_file()
    before = content_of(path)

    assert [task.task_id for task in await read_unfinished_tasks(path.parent)] == ["t-1"]
    assert content_of(path) == before


async def test_folder_without_a_journal_that_can_be_read_has_no_unfinished_tasks(
    tmp_path: Path,
) -> None:
    assert await read_unfinished_tasks(tmp_path / "gone") == []
    (tmp_path / JOURNAL_NAME).write_bytes(b"this is no database" * 100)
    assert await read_unfinished_tasks(tmp_path) == []


# What was found without a page


FOUND = Task(
    "t-1",
    TaskState.RUNNING,
    URL,
    Assignment("t-1", "", URL, 60),
    accepted_at=20.0,
    identity=FIRST,
    boot_id="boot-1",
    container_id="c0ffee",
    started_at=20.0,
    deadline_uptime_s=80.0,
)


async def test_found_task_is_taken_on_once_with_the_identity_that_started_it(
    journal: Journal,
) -> None:
    assert await journal.adopt(FOUND, FIRST, 50.0)
    assert not await journal.adopt(FOUND, SECOND, 51.0)

    assert await the_task(journal) == FOUND
    assert await journal.identity_for("t-1") == FIRST


async def test_task_that_is_known_is_not_changed_by_being_found(ended: Journal) -> None:
    before = await the_task(ended)
    assert not await ended.adopt(FOUND, SECOND, 50.0)

    assert await the_task(ended) == before
    assert await ended.identity_for("t-1") == FIRST


async def test_found_identity_holds_where_there_is_no_other(journal: Journal) -> None:
    await journal.adopt(FOUND, FIRST, 50.0)

    assert await journal.registration(URL) == Registration(FIRST, None)


async def test_found_identity_takes_the_place_of_no_other(registered: Journal) -> None:
    await registered.adopt(FOUND, SECOND, 50.0)

    assert await registered.registration(URL) == Registration(FIRST, NODE)


async def test_letter_is_new_until_it_was_tried(accepted: Journal) -> None:
    await accepted.end("t-1", DONE, [STATUS], 20.0)

    letter = await only_letter(accepted)
    assert (letter.task_id, letter.path, letter.created_at) == ("t-1", "status", 20.0)
    assert (letter.attempts, letter.next_attempt_at, letter.parked) == (0, 0.0, None)


async def test_failed_attempts_are_counted_and_the_next_is_set(accepted: Journal) -> None:
    await accepted.end("t-1", DONE, [STATUS], 20.0)
    row = (await only_letter(accepted)).row

    await accepted.postpone(row, 25.0)
    await accepted.postpone(row, 35.0)

    letter = await only_letter(accepted)
    assert (letter.attempts, letter.next_attempt_at) == (2, 35.0)


async def test_delivered_letter_is_gone(ended: Journal) -> None:
    logs, status = await ended.entries()

    await ended.delivered(logs.row)

    assert await ended.entries() == [status]


async def test_letters_of_a_task_are_due_and_counted_anew_when_one_is_delivered(
    ended: Journal,
) -> None:
    logs, status = await ended.entries()
    await ended.postpone(logs.row, 5000.0)

    await ended.delivered(status.row)

    assert await ended.entries() == [logs]


@pytest.mark.parametrize("damaged", ["", "{", "7", "{\0}"])
async def test_letters_are_listed_without_their_bodies_which_may_be_damaged(
    ended: Journal, path: Path, damaged: str
) -> None:
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("UPDATE outbox SET body = ? WHERE path = 'logs'", (damaged,))

    logs, status = await ended.entries()
    assert await ended.body(logs.row) is None
    assert await ended.body(status.row) == STATUS.body


async def test_body_of_a_letter_that_is_gone_is_none(ended: Journal) -> None:
    logs, _ = await ended.entries()
    await ended.delivered(logs.row)

    assert await ended.body(logs.row) is None


async def test_parked_letter_is_kept_with_its_reason(ended: Journal) -> None:
    logs, _ = await ended.entries()

    await ended.park(logs.row, "HTTP 413: too long")

    assert [letter.parked for letter in await ended.entries()] == ["HTTP 413: too long", None]


async def test_end_is_reported_again_when_it_is_asked_for(accepted: Journal) -> None:
    await accepted.end("t-1", DONE, [], 20.0)
    await accepted.close("t-1", 21.0)

    assert await accepted.report_again("t-1", STATUS, 30.0)
    assert await reports_in(accepted) == [STATUS]


async def test_parked_report_keeps_no_later_one_back_and_is_replaced_by_it(ended: Journal) -> None:
    logs, status = await ended.entries()
    await ended.delivered(logs.row)
    await ended.park(status.row, "HTTP 422")
    await ended.close("t-1", 40.0)

    assert await ended.report_again("t-1", STATUS, 50.0)
    letter = await only_letter(ended)
    assert (letter.parked, letter.created_at) == (None, 50.0)


async def test_end_is_not_reported_again_while_a_report_waits(ended: Journal) -> None:
    assert not await ended.report_again("t-1", STATUS, 40.0)
    assert len(await ended.entries()) == 2


async def test_number_of_a_delivered_letter_is_never_given_again(accepted: Journal) -> None:
    await accepted.end("t-1", DONE, [STATUS], 20.0)
    first = (await only_letter(accepted)).row
    await accepted.delivered(first)

    await accepted.report_again("t-1", STATUS, 30.0)

    assert (await only_letter(accepted)).row > first


# The file


async def test_everything_is_there_after_reopening(ended: Journal, tmp_path: Path) -> None:
    before = (await ended.open_tasks(), await ended.entries())
    ended.close_file()

    reopened, said = open_journal(tmp_path, "now")

    assert said is None
    assert (await reopened.open_tasks(), await reopened.entries()) == before
    reopened.close_file()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
async def test_journal_is_nobody_else_s(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        journal, _ = open_journal(tmp_path, "now")
        await journal.store_registration(Registration(FIRST, NODE), URL, 1.0)
    finally:
        os.umask(before)

    modes = {name: mode_of(tmp_path / name) for name in names_in(tmp_path)}
    journal.close_file()
    assert modes == {JOURNAL_NAME + ending: 0o600 for ending in ("", "-wal", "-shm")}


async def test_journal_that_others_could_read_is_closed_to_them(path: Path) -> None:
    open_to_all(path)

    journal, _ = open_journal(path.parent, "now")

    assert mode_of(path) == 0o600
    journal.close_file()


async def test_readers_and_the_writer_do_not_shut_each_other_out(
    registered: Journal, path: Path
) -> None:
    assert registered.path == path
    assert content(path, "PRAGMA journal_mode") == [("wal",)]


@pytest.mark.parametrize("strange", ["a?mode=ro", "a#b", "50%", "a b", "ü"])
async def test_folder_s_name_may_be_strange(tmp_path: Path, strange: str) -> None:
    folder = tmp_path / strange
    folder.mkdir()

    journal, _ = open_journal(folder, "now")
    await journal.store_registration(Registration(FIRST, NODE), URL, 1.0)
    journal.close_file()

    assert names_in(folder) == [JOURNAL_NAME]


async def test_schema_s_version_is_kept_in_the_file(journal: Journal, path: Path) -> None:
    assert content(path, "PRAGMA user_version") == [(len(MIGRATIONS),)]
    assert await journal.open_tasks() == []


async def test_writers_in_one_process_take_turns(registered: Journal) -> None:
    async with anyio.create_task_group() as tasks:
        for number in range(50):
            assignment = Assignment(f"t-{number}", "p", URL, 60)
            tasks.start_soon(registered.accept, assignment, FIRST, float(number))

    assert len(await registered.open_tasks()) == 50


# A reader beside the writer


async def test_reader_sees_what_the_writer_has_written(running: Journal, path: Path) -> None:
    reader = Journal(path, read_only=True)
    before = await reader.open_tasks()

    await running.end("t-1", DONE, [STATUS], 30.0)

    after = await reader.open_tasks()
    reader.close_file()
    assert [task.state for task in before + after] == [TaskState.RUNNING, TaskState.ENDED]


async def test_reader_needs_no_writer(ended: Journal, path: Path) -> None:
    ended.close_file()

    reader = Journal(path, read_only=True)

    assert len(await reader.entries()) == 2
    reader.close_file()


async def test_reader_does_not_wait_for_a_writer_in_the_middle(
    accepted: Journal, path: Path
) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE tasks SET state = 'ended'")
        reader = Journal(path, read_only=True)
        task = await the_task(reader)
        reader.close_file()

    assert task.state is TaskState.ACCEPTED
    assert await accepted.open_tasks() == [task]


async def test_journal_of_an_earlier_version_is_read_before_and_after_its_upgrade(
    path: Path,
) -> None:
    with closing(sqlite3.connect(path)) as earlier, earlier:
        earlier.executescript(MIGRATIONS[0])
        earlier.execute("PRAGMA user_version = 1")
        earlier.execute(
            "INSERT INTO identities VALUES (1, 'node-1', 'key', 'https://o', '{}', 1, 0)"
        )
        earlier.execute(
            "INSERT INTO tasks (task_id, identity, state, accepted_at)"
            " VALUES ('t-1', 1, 'ended', 1)"
        )

    reader = Journal(path, read_only=True)

    (task,) = await reader.open_tasks()
    reader.close_file()
    upgraded = Journal(path)
    # Its reports are in the outbox already.
    assert not task.is_log_pending
    assert await upgraded.open_tasks() == [task]
    upgraded.close_file()


async def test_reader_cannot_write(accepted: Journal, path: Path) -> None:
    reader = Journal(path, read_only=True)

    with pytest.raises(JournalError, match="readonly"):
        await reader.drop("t-1")

    reader.close_file()
    assert len(await accepted.open_tasks()) == 1


async def test_reader_makes_no_journal(path: Path) -> None:
    with pytest.raises(JournalError, match="cannot open the journal"):
        Journal(path, read_only=True)

    assert names_in(path.parent) == []


# What cannot be used


def garbage(path: Path) -> None:
    path.write_bytes(b"this is no database" * 1000)


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def overwritten(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[4096:] = b"\xa5" * (len(whole) - 4096)
    path.write_bytes(whole)


def from_a_newer_version(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")


def another_program_s(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE tasks (id)")


def without_tables(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def changed(path: Path, change: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"UPDATE tasks SET {change}")  # noqa: S608 - our own text


def with_a_state_that_nobody_knows(path: Path) -> None:
    changed(path, "state = 'endxd'")


def with_a_reason_that_nobody_knows(path: Path) -> None:
    changed(path, "stop_reason = ''")


def with_half_an_assignment(path: Path) -> None:
    changed(path, "assignment = substr(assignment, 1, 20)")


def with_another_assignment(path: Path) -> None:
    changed(path, "assignment = '[]'")


def with_text_that_is_none(path: Path) -> None:
    changed(path, "message = CAST(x'ff' AS TEXT)")


def damaged(path: Path, damage: Callable[[Path], None]) -> bytes:
    damage(path)
    return path.read_bytes()


every_damage = pytest.mark.parametrize(
    "damage",
    [
        garbage,
        torn,
        overwritten,
        from_a_newer_version,
        another_program_s,
        without_tables,
        with_a_state_that_nobody_knows,
        with_a_reason_that_nobody_knows,
        with_half_an_assignment,
        with_another_assignment,
        with_text_that_is_none,
    ],
)


@every_damage
async def test_unusable_journal_is_set_aside_under_a_dated_name_and_said(
    ended: Journal, path: Path, damage: Callable[[Path], None]
) -> None:
    ended.close_file()
    unusable = damaged(path, damage)

    journal, said = open_journal(path.parent, "20260131T092653Z")

    aside = path.with_name(f"{JOURNAL_NAME}.20260131T092653Z.unusable")
    assert content_of(aside) == unusable
    assert said is not None
    assert said.endswith(f"; it was set aside as {aside.name} and a new one begun")
    assert await journal.open_tasks() == []
    journal.close_file()


@every_damage
async def test_journal_begun_anew_works_and_is_nobody_else_s(
    ended: Journal, path: Path, damage: Callable[[Path], None]
) -> None:
    ended.close_file()
    damage(path)

    journal, _ = open_journal(path.parent, "now")
    await journal.store_registration(Registration(FIRST, NODE), URL, 1.0)

    assert await journal.accept(TASK, FIRST, 2.0)
    assert mode_of(path) == 0o600
    journal.close_file()


@pytest.mark.parametrize(
    "damage", [with_a_state_that_nobody_knows, with_half_an_assignment, with_text_that_is_none]
)
async def test_reader_of_damaged_text_is_told_so(
    ended: Journal, path: Path, damage: Callable[[Path], None]
) -> None:
    assert await ended.open_tasks()
    damage(path)

    reader = Journal(path, read_only=True)
    with pytest.raises(JournalError, match=r"is damaged|decode"):
        await reader.open_tasks()
    reader.close_file()


def test_journal_that_cannot_be_opened_for_another_reason_is_not_set_aside(path: Path) -> None:
    path.mkdir()

    with pytest.raises(JournalError, match="cannot open the journal"):
        open_journal(path.parent, "now")

    assert names_in(path.parent) == [JOURNAL_NAME]


def test_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(JournalError) as caught:
        open_journal(tmp_path / "gone", "now")

    assert str(caught.value) == (
        f"cannot write the journal {tmp_path / 'gone' / JOURNAL_NAME}: No such file or directory"
    )


# kill -9


def acknowledged_before_a_kill(folder: Path, writes: int) -> dict[str, str]:
    """Give the last state that the writer says is written, for each task."""
    program = [sys.executable, "-m", "tests.unit.journal_writer", str(folder)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(program, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = list(itertools.islice(process.stdout, writes))
        process.kill()
        lines += [line for line in process.stdout if line.endswith("\n")]
    assert len(lines) >= writes
    return dict(line.split() for line in lines)


@pytest.mark.parametrize("writes", [1, 7, MOST_WRITES])
async def test_acknowledged_writes_survive_a_kill(tmp_path: Path, writes: int) -> None:
    acknowledged = acknowledged_before_a_kill(tmp_path, writes)

    journal, said = open_journal(tmp_path, "now")

    assert said is None
    tasks = {task.task_id: task for task in await journal.open_tasks()}
    order = list(TaskState)
    for task_id, state in acknowledged.items():
        assert order.index(tasks[task_id].state) >= order.index(TaskState(state))
    told = [letter.task_id for letter in await journal.entries()]
    for task_id, task in tasks.items():
        assert told.count(task_id) == (2 if task.state is TaskState.ENDED else 0)
    journal.close_file()
