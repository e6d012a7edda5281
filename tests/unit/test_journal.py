"""What the journal has stored is there whatever happens next."""

import itertools
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from runner.errors import JournalError
from runner.journal.journal import JOURNAL_NAME, Journal, open_journal, read_unfinished_tasks
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

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
URL = "https://o.example.com"
OTHER_URL = "https://other.example.com"
NODE: dict[str, object] = {"name": "n-1", "tags": {"env": "prod"}, "capabilities": []}
FIRST = Identity("node-1", Secret("key-1"))
SECOND = Identity("node-2", Secret("key-2"))
TASK = Assignment("t-1", "count", URL, 60, (TaskFile("a", "0" * 64),))
STATUS = Report("status", {"job_id": "t-1", "task_id": "t-1", "status": "success"})
LOGS = Report("logs", {"job_id": "t-1", "task_id": "t-1", "session": {"title": "ä"}})
DONE = Outcome(EndReason.COMPLETED, "completed: exit code 0", 0)
REJECTED = Outcome(EndReason.REJECTED, "rejected: its prompt is missing or empty")
UNKNOWN = Assignment("t-1", "", URL, 60)
RECOVERED = replace(
    Task("t-1", TaskState.RUNNING, URL, UNKNOWN, 20.0, FIRST, "boot-1", container_id="c0ffee"),
    started_at=20.0,
    deadline_uptime_s=80.0,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / JOURNAL_NAME


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened, sentence = open_journal(tmp_path, "now")
    assert sentence is None
    yield opened
    opened.close_file()


@pytest.fixture
async def registered(journal: Journal) -> Journal:
    await journal.store_registration(Registration(FIRST, NODE), URL, 1.0)
    return journal


@pytest.fixture
async def accepted(registered: Journal) -> Journal:
    assert await registered.accept(TASK, FIRST, 10.0)
    return registered


@pytest.fixture
async def running(accepted: Journal) -> Journal:
    await accepted.start("t-1", "boot-1", "podman")
    await accepted.run("t-1", "c0ffee", 20.0, 80.0)
    return accepted


@pytest.fixture
async def ended(running: Journal) -> Journal:
    await running.end("t-1", DONE, [LOGS, STATUS], 30.0)
    return running


async def the_task(journal: Journal) -> Task:
    task = await journal.task("t-1")
    assert task is not None
    return task


async def only_entry(journal: Journal) -> OutboxEntry:
    (entry,) = await journal.entries()
    return entry


def ids(tasks: list[Task]) -> list[str]:
    return [task.task_id for task in tasks]


async def reports_in(journal: Journal) -> list[Report]:
    bodies = [(entry.path, await journal.body(entry.row)) for entry in await journal.entries()]
    return [Report(path, body) for path, body in bodies if body is not None]


def content_of(path: Path) -> bytes:
    return path.read_bytes()


def modes_in(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def select(path: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.executescript(statement)


# The node


async def test_newest_registration_holds_until_it_is_refused(journal: Journal) -> None:
    assert await journal.registration(URL) is None
    with pytest.raises(JournalError):
        await journal.accept(TASK, FIRST, 10.0)
    for identity, moment in ((FIRST, 1.0), (SECOND, 2.0)):
        await journal.store_registration(Registration(identity, NODE), URL, moment)
        assert await journal.registration(URL) == Registration(identity, NODE)
    assert await journal.registration(OTHER_URL) is None
    await journal.refuse_identity(SECOND)
    assert await journal.registration(URL) == Registration(FIRST, NODE)


async def test_new_description_replaces_the_one_with_the_same_key(accepted: Journal) -> None:
    again = Registration(FIRST, {**NODE, "tags": {}}, frozenset({"reregister", "pace"}))
    await accepted.store_registration(again, URL, 2.0)
    assert await accepted.registration(URL) == again
    assert select(accepted.path, "SELECT count(*) FROM identities") == [(1,)]
    assert (await the_task(accepted)).identity == FIRST
    await accepted.store_extensions(FIRST, ["pace"])
    expected = replace(again, extensions=frozenset({"pace"}))
    assert await accepted.registration(URL) == expected


async def test_task_keeps_its_identity_until_that_is_refused(running: Journal) -> None:
    await running.store_registration(Registration(SECOND, NODE), URL, 35.0)
    assert (await the_task(running)).identity == FIRST
    await running.refuse_identity(FIRST)
    assert (await the_task(running)).identity is None
    assert await running.keys_of_node_with("t-1") == [FIRST.api_key], "it is still a secret"


async def test_new_key_holds_and_after_its_refusal_the_one_before_it(running: Journal) -> None:
    keys = [replace(FIRST, api_key=Secret(f"key-1{letter}")) for letter in "bc"]
    before = FIRST
    for key in keys:
        await running.rotate_key(before, Registration(key, NODE), URL, 40.0)
        assert await running.registration(URL) == Registration(key, NODE)
        assert (await the_task(running)).identity == key
        before = key
    known = {identity.api_key for identity in (FIRST, *keys)}
    assert set(await running.keys_of_node_with("t-1")) == known, "all are redacted"
    for refused, left in ((keys[1], keys[0]), (keys[0], None)):
        await running.refuse_identity(refused)
        registration = await running.registration(URL)
        assert (registration and registration.identity) == left, "the first key is given up"


# The life of a task


async def test_task_is_stored_at_every_step(registered: Journal) -> None:
    assert await registered.task("t-1") is None
    await registered.accept(TASK, FIRST, 10.0)
    accepted = Task("t-1", TaskState.ACCEPTED, URL, TASK, 10.0, FIRST)
    assert await the_task(registered) == accepted

    await registered.start("t-1", "boot-1", "podman")
    starting = replace(accepted, state=TaskState.STARTING, boot_id="boot-1", engine="podman")
    assert await the_task(registered) == starting

    await registered.run("t-1", "c0ffee", 20.0, 80.0)
    running = replace(starting, state=TaskState.RUNNING, container_id="c0ffee", started_at=20.0)
    assert await the_task(registered) == replace(running, deadline_uptime_s=80.0)

    outcome = Outcome(EndReason.FAILED, "failed: exit code 3\nlast line", 3)
    await registered.end("t-1", outcome, [LOGS, STATUS], 30.0)
    task = await the_task(registered)
    assert (task.state, task.outcome, task.ended_at) == (TaskState.ENDED, outcome, 30.0)
    assert await reports_in(registered) == [LOGS, STATUS]


async def test_key_of_a_task_is_replaced_until_it_runs(registered: Journal) -> None:
    first, second = (replace(TASK, task_key=Secret(f"vt_{name}")) for name in ("1", "2"))
    assert not await registered.replace_task_key(first), "it is not known"
    await registered.accept(first, FIRST, 10.0)
    for same in (first, TASK):
        assert not await registered.replace_task_key(same)
    assert await registered.replace_task_key(replace(second, prompt="other"))
    assert (await the_task(registered)).assignment == second
    await registered.start("t-1", "boot-1", "podman")
    assert await registered.replace_task_key(first)
    await registered.run("t-1", "c0ffee", 20.0, 80.0)
    assert not await registered.replace_task_key(second)
    assert (await the_task(registered)).assignment == first


async def test_journal_with_keys_can_be_read_by_the_version_before(registered: Journal) -> None:
    await registered.accept(replace(TASK, task_key=Secret("vt_1")), FIRST, 10.0)
    assert select(registered.path, "PRAGMA user_version") == [(5,)], "else it would be set aside"


async def test_images_are_kept_by_name_and_engine_and_read_from_any_version(
    running: Journal, path: Path
) -> None:
    await running.end("t-1", DONE, [], 30.0, image=("i:latest", "new"))
    change(path, "INSERT INTO images VALUES (0, 'i:latest', 'old', 'podman'), (9, 'i', 'x', '')")
    assert await running.images("i:latest", "podman") == ["new", "old"]
    assert await running.images("i:latest", "docker") == []
    change(path, "DROP TABLE images")
    assert await running.images("i:latest", "podman") == [], "as in the version before"


async def test_task_is_accepted_once(running: Journal) -> None:
    other = Assignment("t-1", "other", URL, 5)
    assert not await running.accept(other, FIRST, 21.0)
    assert (await the_task(running)).assignment == TASK
    await running.end("t-1", DONE, [], 30.0)
    assert not await running.accept(other, FIRST, 40.0)
    assert (await the_task(running)).state is TaskState.ENDED


async def test_task_is_rejected_once_unless_it_is_known(registered: Journal) -> None:
    assert await registered.reject("t-1", REJECTED, STATUS, FIRST, 10.0)
    assert not await registered.reject("t-1", REJECTED, STATUS, FIRST, 11.0)
    task = await the_task(registered)
    assert (task.state, task.assignment, task.outcome) == (TaskState.ENDED, None, REJECTED)
    await registered.accept(Assignment("t-2", "p", URL, 60), FIRST, 12.0)
    assert not await registered.reject("t-2", REJECTED, STATUS, FIRST, 13.0)
    assert await reports_in(registered) == [STATUS]


async def test_reports_of_an_end_whose_log_is_pending_are_released_once(running: Journal) -> None:
    await running.end("t-1", DONE, [], 30.0, is_log_pending=True)
    assert (await the_task(running)).is_log_pending
    await running.release("t-1", [LOGS, STATUS], 31.0)
    await running.release("t-1", [STATUS], 32.0)
    assert not (await the_task(running)).is_log_pending
    assert await reports_in(running) == [LOGS, STATUS]


async def test_end_and_its_reports_are_stored_together_or_not_at_all(running: Journal) -> None:
    unwritable = Report("status", {"status": object()})
    with pytest.raises(TypeError):
        await running.end("t-1", DONE, [STATUS, unwritable], 30.0)
    assert (await the_task(running)).state is TaskState.RUNNING
    assert await running.entries() == []


async def test_task_ends_once(accepted: Journal) -> None:
    await accepted.end("t-1", DONE, [STATUS], 30.0)
    with pytest.raises(ValueError, match="no way from ended to ended"):
        await accepted.end("t-1", Outcome(EndReason.LOST, "lost"), [STATUS], 31.0)
    assert (await the_task(accepted)).outcome == DONE
    assert len(await accepted.entries()) == 1


async def test_state_is_checked_in_the_transaction_that_changes_it(accepted: Journal) -> None:
    async def start() -> None:
        with pytest.raises(ValueError, match="no way from ended to starting"):
            await accepted.start("t-1", "boot-1", "podman")

    with closing(sqlite3.connect(accepted.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(start)
            await anyio.sleep(0.2)  # so that it waits for the other's transaction
            other.execute("UPDATE tasks SET state = 'ended'")
            other.execute("COMMIT")


async def test_first_reason_to_stop_stands(running: Journal) -> None:
    for reason, moment in ((EndReason.TIMED_OUT, 80.0), (EndReason.CANCELLED, 81.0)):
        assert await running.ask_to_stop("t-1", reason, moment) is EndReason.TIMED_OUT
    task = await the_task(running)
    assert (task.stop_reason, task.stop_asked_at) == (EndReason.TIMED_OUT, 80.0)


async def test_task_is_closed_once_its_reports_are_delivered_or_parked(ended: Journal) -> None:
    logs, status = await ended.entries()
    assert not await ended.close("t-1", 40.0)
    await ended.park(logs.row, "HTTP 413: too long")
    assert [entry.parked for entry in await ended.entries()] == ["HTTP 413: too long", None]
    await ended.delivered(status.row)
    assert await ended.close("t-1", 40.0)
    task = await the_task(ended)
    assert (task.state, task.assignment) == (TaskState.CLOSED, None), "its prompt is not kept"


async def test_closed_task_is_beside_those_it_overlapped(running: Journal) -> None:
    await running.end("t-1", DONE, [], 30.0)
    await running.close("t-1", 40.0, "a digest")
    (beside,) = await running.tasks_beside("t-2", 30.0, 50.0)
    assert (beside.assignment, beside.prompt_digest) == (None, "a digest")
    assert await running.tasks_beside("t-2", 30.1, 50.0) == []
    assert await running.tasks_beside("t-2", 10.0, 19.9) == []
    assert TASK.prompt not in str(select(running.path, "SELECT * FROM tasks"))


@pytest.mark.parametrize(("reason", "count"), [(EndReason.LOST, 1), (EndReason.UNSTARTABLE, 0)])
async def test_lost_task_is_beside_others(accepted: Journal, reason: EndReason, count: int) -> None:
    await accepted.start("t-1", "boot-1", "podman")
    assert len(await accepted.tasks_beside("t-2", 20.0, 50.0)) == 1
    await accepted.end("t-1", Outcome(reason, reason.value), [], 30.0)
    await accepted.close("t-1", 40.0)
    assert len(await accepted.tasks_beside("t-2", 20.0, 50.0)) == count


async def test_old_closed_tasks_are_pruned_with_their_parked_reports(registered: Journal) -> None:
    for task_id, closed_at in [("old", 100.0), ("new", 200.0), ("open", None)]:
        await registered.accept(Assignment(task_id, "p", URL, 60), FIRST, 10.0)
        await registered.end(task_id, DONE, [STATUS], 20.0)
        if closed_at is not None:
            await registered.park((await registered.entries())[-1].row, "HTTP 410")
            await registered.close(task_id, closed_at)
    assert await registered.prune_closed(150.0) == 1
    assert await registered.task("old") is None
    assert select(registered.path, "SELECT task_id FROM outbox") == [("new",), ("open",)]
    assert await registered.prune_closed(1e12) == 1
    assert ids(await registered.open_tasks()) == ["open"]


async def test_closed_task_is_not_pruned_while_one_it_overlapped_is_open(ended: Journal) -> None:
    await ended.accept(Assignment("t-2", "p", URL, 60), FIRST, 30.0)
    for entry in await ended.entries():
        await ended.delivered(entry.row)
    await ended.close("t-1", 40.0)
    assert await ended.prune_closed(1e12) == 0
    await ended.end("t-2", DONE, [], 50.0, is_log_pending=True)
    assert await ended.prune_closed(1e12) == 0
    await ended.release("t-2", [], 60.0)
    assert await ended.prune_closed(1e12) == 1


async def test_assignment_that_would_be_rejected_now_is_still_read(accepted: Journal) -> None:
    change(accepted.path, f"{SET_ASSIGNMENT} replace(assignment, 'count', '')")
    assert (await the_task(accepted)).assignment == Assignment("t-1", "", URL, 60, TASK.files)


async def test_open_tasks_and_those_with_a_report_are_unfinished(registered: Journal) -> None:
    moments = {"younger": 11.0, "older": 10.0, "closed": 12.0, "again": 13.0, "parked": 14.0}
    for task_id, moment in moments.items():
        await registered.accept(Assignment(task_id, "p", URL, 60), FIRST, moment)
    for task_id in ("closed", "again", "parked"):
        await registered.end(task_id, DONE, [], 20.0)
        await registered.close(task_id, 21.0)
    for task_id in ("again", "parked"):
        await registered.report_again(task_id, STATUS, 30.0)
    await registered.park((await registered.entries())[-1].row, "HTTP 422")
    assert ids(await registered.open_tasks()) == ["older", "younger"]
    assert ids(await registered.unfinished_tasks()) == ["older", "younger", "again"]


async def test_unfinished_tasks_are_read_without_a_change(ended: Journal, path: Path) -> None:
    ended.close_file()
    before = content_of(path)
    assert ids(await read_unfinished_tasks(path.parent)) == ["t-1"]
    assert content_of(path) == before
    assert await read_unfinished_tasks(path.parent / "gone") == []
    DAMAGES["garbage"](path)
    assert await read_unfinished_tasks(path.parent) == []


# Recovered without a journal


async def test_task_is_adopted_once_with_its_identity(journal: Journal) -> None:
    assert await journal.adopt(RECOVERED, FIRST, 50.0)
    assert not await journal.adopt(RECOVERED, SECOND, 51.0)
    assert await the_task(journal) == RECOVERED
    assert (await the_task(journal)).identity == FIRST
    assert await journal.registration(URL) == Registration(FIRST, None)


async def test_adoption_replaces_neither_a_known_task_nor_an_identity(ended: Journal) -> None:
    before = await the_task(ended)
    assert not await ended.adopt(RECOVERED, SECOND, 50.0)
    assert await the_task(ended) == before
    assert (await the_task(ended)).identity == FIRST
    await ended.adopt(replace(RECOVERED, task_id="t-2"), SECOND, 50.0)
    assert await ended.registration(URL) == Registration(FIRST, NODE)


async def test_key_of_an_adopted_task_is_no_registration(journal: Journal) -> None:
    key = replace(SECOND, is_task_key=True)
    assert await journal.adopt(replace(RECOVERED, identity=key), key, 50.0)
    assert (await the_task(journal)).identity == key
    assert await journal.registration(URL) is None
    assert await journal.identity_of_node("node-2", URL) is None
    await journal.store_registration(Registration(FIRST, NODE), URL, 60.0)
    assert await journal.registration(URL) == Registration(FIRST, NODE)


# The outbox


async def test_entry_is_due_at_once_and_its_attempts_are_counted(accepted: Journal) -> None:
    await accepted.end("t-1", DONE, [STATUS], 20.0)
    await accepted.store_registration(Registration(SECOND, NODE), OTHER_URL, 35.0)
    entry = await only_entry(accepted)
    assert entry == OutboxEntry(entry.row, "t-1", "status", URL, 20.0, 0, 0.0, None)
    await accepted.postpone(entry.row, 25.0)
    await accepted.postpone(entry.row, 35.0)
    assert await only_entry(accepted) == replace(entry, attempts=2, next_attempt_at=35.0)


async def test_delivered_entry_is_gone_and_its_task_s_others_are_due(ended: Journal) -> None:
    logs, status = await ended.entries()
    await ended.postpone(logs.row, 5000.0)
    await ended.delivered(status.row)
    assert await ended.entries() == [logs]
    assert await ended.body(status.row) is None


@pytest.mark.parametrize("damaged", ["''", "'{'", "'7'", "CAST(x'7b007d' AS TEXT)"])
async def test_entries_are_listed_though_a_body_is_damaged(ended: Journal, damaged: str) -> None:
    change(ended.path, f"UPDATE outbox SET body = {damaged} WHERE path = 'logs'")  # noqa: S608 - ours
    logs, status = await ended.entries()
    assert await ended.body(logs.row) is None
    assert await ended.body(status.row) == STATUS.body


async def test_end_is_reported_again_unless_a_report_waits(accepted: Journal) -> None:
    await accepted.end("t-1", DONE, [STATUS], 20.0)
    first = (await only_entry(accepted)).row
    assert not await accepted.report_again("t-1", STATUS, 30.0)
    await accepted.delivered(first)
    assert await accepted.report_again("t-1", STATUS, 30.0)
    parked = (await only_entry(accepted)).row
    assert parked > first
    await accepted.park(parked, "HTTP 422")
    assert await accepted.report_again("t-1", STATUS, 50.0)
    entry = await only_entry(accepted)
    assert (entry.parked, entry.created_at) == (None, 50.0)


# The file


async def test_write_waits_for_the_disk_and_keeps_no_reader_waiting(journal: Journal) -> None:
    names = ("synchronous", "journal_mode")
    values = [journal.connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]
    assert values == [2, "wal"], "FULL: a power cut takes nothing that was stored"


@pytest.mark.parametrize("folder", ["a?mode=ro", "a#b", "50%", "a b", "ü"])
async def test_all_is_kept_in_any_folder(ended: Journal, tmp_path: Path, folder: str) -> None:
    before = (await ended.open_tasks(), await ended.entries())
    ended.close_file()
    moved = tmp_path / folder
    os.renames(tmp_path / JOURNAL_NAME, moved / JOURNAL_NAME)
    reopened, sentence = open_journal(moved, "now")
    assert sentence is None
    assert (await reopened.open_tasks(), await reopened.entries()) == before
    await reopened.drop("t-1")
    reopened.close_file()
    assert names_in(moved) == [JOURNAL_NAME]


@pytest.mark.parametrize("umask", [0o000, 0o077])
@pytest.mark.parametrize("is_readable_by_others", [False, True])
async def test_journal_is_for_its_owner_alone(
    path: Path, *, umask: int, is_readable_by_others: bool
) -> None:
    before = os.umask(umask)
    try:
        if is_readable_by_others:
            change(path, "PRAGMA user_version")
        journal, _ = open_journal(path.parent, "now")
        await journal.store_registration(Registration(FIRST, NODE), URL, 1.0)
    finally:
        os.umask(before)
    modes = modes_in(path.parent)
    journal.close_file()
    assert modes == {JOURNAL_NAME + ending: 0o600 for ending in ("", "-wal", "-shm")}


# A reader beside the writer


async def test_reader_sees_commits_and_waits_for_no_writer(running: Journal, path: Path) -> None:
    reader = Journal(path, read_only=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE tasks SET state = 'ended'")
        assert (await the_task(reader)).state is TaskState.RUNNING
        writer.execute("COMMIT")
        assert (await the_task(reader)).state is TaskState.ENDED
    running.close_file()
    assert (await the_task(reader)).state is TaskState.ENDED
    with pytest.raises(JournalError, match="readonly"):
        await reader.drop("t-1")
    reader.close_file()


async def test_journal_of_version_1_is_read_before_and_after_its_upgrade(path: Path) -> None:
    change(
        path,
        MIGRATIONS[0],
        "PRAGMA user_version = 1;"
        "INSERT INTO identities VALUES (1, 'node-1', 'key', 'https://o', '{}', 1, 0);"
        "INSERT INTO tasks (task_id, identity, state, accepted_at) VALUES ('t-1', 1, 'ended', 1)",
    )

    reader = Journal(path, read_only=True)
    (task,) = await reader.open_tasks()
    reader.close_file()
    assert not task.is_log_pending, "its reports are in the outbox already"

    upgraded = Journal(path)
    assert await upgraded.open_tasks() == [task]
    assert select(path, "PRAGMA user_version") == [(len(MIGRATIONS),)]
    upgraded.close_file()


# What cannot be used


def overwrite(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xa5" * (len(whole) - 4096))


def begin_anew(path: Path, statement: str) -> None:
    path.unlink()
    change(path, statement)


SET_ASSIGNMENT = "UPDATE tasks SET assignment ="
NEWER_VERSION = f"PRAGMA user_version = {len(MIGRATIONS) + 1}"
OUR_VERSION = f"PRAGMA user_version = {len(MIGRATIONS)}"
DAMAGES: dict[str, Callable[[Path], object]] = {
    "garbage": lambda path: path.write_bytes(b"this is not a database" * 1000),
    "torn": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "overwritten": overwrite,
    "a newer version's": lambda path: change(path, NEWER_VERSION),
    "another program's": lambda path: begin_anew(path, "CREATE TABLE tasks (id)"),
    "without tables": lambda path: begin_anew(path, OUR_VERSION),
    "unknown state": lambda path: change(path, "UPDATE tasks SET state = 'endxd'"),
    "unknown reason": lambda path: change(path, "UPDATE tasks SET stop_reason = ''"),
    "half an assignment": lambda path: change(path, f"{SET_ASSIGNMENT} substr(assignment, 1, 20)"),
    "not an assignment": lambda path: change(path, f"{SET_ASSIGNMENT} '[]'"),
    "not Unicode": lambda path: change(path, "UPDATE tasks SET message = CAST(x'ff' AS TEXT)"),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_unusable_journal_is_set_aside(ended: Journal, path: Path, damage: str) -> None:
    ended.close_file()
    DAMAGES[damage](path)
    unusable = content_of(path)
    journal, sentence = open_journal(path.parent, "20260131T092653Z")
    aside = path.with_name(f"{JOURNAL_NAME}.20260131T092653Z.unusable")
    assert content_of(aside) == unusable
    assert sentence is not None
    assert sentence.endswith(f"; it was set aside as {aside.name} and a new one begun")
    await journal.store_registration(Registration(FIRST, NODE), URL, 1.0)
    assert await journal.accept(TASK, FIRST, 2.0)
    assert modes_in(path.parent)[JOURNAL_NAME] == 0o600
    journal.close_file()


@pytest.mark.parametrize("damage", ["unknown state", "half an assignment", "not Unicode"])
async def test_damaged_text_is_a_journal_error(ended: Journal, path: Path, damage: str) -> None:
    assert await ended.open_tasks()
    DAMAGES[damage](path)
    reader = Journal(path, read_only=True)
    with pytest.raises(JournalError, match=r"is damaged|decode"):
        await reader.open_tasks()
    reader.close_file()


def test_journal_that_cannot_be_opened_is_neither_made_nor_set_aside(path: Path) -> None:
    with pytest.raises(JournalError, match="cannot open the journal"):
        Journal(path, read_only=True)
    assert names_in(path.parent) == []
    path.mkdir()
    with pytest.raises(JournalError, match="cannot open the journal"):
        open_journal(path.parent, "now")
    assert names_in(path.parent) == [JOURNAL_NAME]
    gone = path.parent / "gone"
    reason = f"^cannot write the journal {gone / JOURNAL_NAME}: No such file or directory$"
    with pytest.raises(JournalError, match=reason):
        open_journal(gone, "now")


# kill -9


async def write_for_ever(folder: str) -> None:
    """Store tasks until this process is killed; print each write that has returned."""
    journal, _ = open_journal(Path(folder), "now")
    await journal.store_registration(Registration(FIRST, NODE), URL, 0.0)
    for number in itertools.count():
        task_id = f"t-{number}"
        await journal.accept(Assignment(task_id, "p" * 500, URL, 60), FIRST, 1.0)
        os.write(1, f"{task_id} accepted\n".encode())
        await journal.end(task_id, DONE, [Report("logs", {"x": "x" * 4000}), STATUS], 3.0)
        os.write(1, f"{task_id} ended\n".encode())


@pytest.mark.parametrize("writes", [1, 200])
async def test_acknowledged_writes_survive_a_kill(tmp_path: Path, writes: int) -> None:
    program = f"import anyio, {__name__} as t; anyio.run(t.write_for_ever, {str(tmp_path)!r})"
    output = b""
    async with await anyio.open_process([sys.executable, "-c", program], cwd=ROOT) as process:
        assert process.stdout is not None
        while output.count(b"\n") < writes:
            output += await process.stdout.receive()
        process.kill()
        output += b"".join([chunk async for chunk in process.stdout])

    journal, sentence = open_journal(tmp_path, "now")

    assert sentence is None
    states = {task.task_id: task.state for task in await journal.open_tasks()}
    for task_id, state in (line.split() for line in output.decode().split("\n")[:-1]):
        assert states[task_id] in {state, TaskState.ENDED}
    reported = [entry.task_id for entry in await journal.entries()]
    for task_id, stored in states.items():
        assert reported.count(task_id) == (2 if stored is TaskState.ENDED else 0)
    journal.close_file()
