"""A task's own session is found, read while it is written, and cut to what the wire takes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from runner.crush.database import CrushError
from runner.crush.log import LOG_LIMIT_BYTES, truncate, wire_size
from runner.crush.sessions import (
    Candidates,
    SessionQuery,
    find_session,
    find_sessions,
    read_session,
    session_mark,
)
from runner.model import log_body
from tests.fakes.crush import DURING, SCHEMA, Crush, text
from tests.unit.another_user import as_another_user

if TYPE_CHECKING:
    from collections.abc import Iterator

TASK_ID = "11111111-2222-4333-8444-555555555555"
STARTED_AT = 1_700_000_000.7
ENDED_AT = 1_700_000_100.2
LIMIT = 20_000
LONGEST_WRITE_S = 60.0
"""How long another process may be at a disk that others use."""
MIB = 1 << 20

OLD_SCHEMA = """
CREATE TABLE sessions (id TEXT PRIMARY KEY, title TEXT, created_at INTEGER);
CREATE TABLE messages (
    id TEXT PRIMARY KEY, session_id TEXT, role TEXT, parts BLOB, created_at INTEGER);
"""


@pytest.fixture
def crush(tmp_path: Path) -> Iterator[Crush]:
    """Run a Crush that has its database open."""
    running = Crush(tmp_path / ".crush" / "crush.db")
    yield running
    running.close()


def read(database: Path, limit_bytes: int = LOG_LIMIT_BYTES) -> dict[str, object]:
    session = read_session(database, "s1", limit_bytes=limit_bytes, busy_timeout_s=LONGEST_WRITE_S)
    assert session is not None
    assert wire_size(log_body(TASK_ID, session)) <= limit_bytes
    return session


def messages(session: dict[str, object]) -> list[dict[str, object]]:
    return cast("list[dict[str, object]]", session["messages"])


def contents(session: dict[str, object]) -> list[str]:
    return [str(message["content"]) for message in messages(session)]


def find(
    database: Path,
    *,
    prompt: str | None = None,
    mark: str | None = None,
    ended_at: float | None = ENDED_AT,
    others: tuple[str | None, ...] = (),
) -> str | None:
    return find_session(database, SessionQuery(STARTED_AT, ended_at, prompt, mark, others))


# Reading


def test_session_is_given_as_the_orchestrator_takes_it(crush: Crush) -> None:
    crush.begin("s1", prompt="Count the sales")
    crush.say("s1", text("There are 12."))

    assert read(crush.path) == {
        "id": "s1",
        "title": "A title",
        "prompt_tokens": 1200,
        "completion_tokens": 340,
        "cost": 0.25,
        "created_at": DURING,
        "updated_at": DURING + 5,
        "messages": [
            {
                "id": "m1",
                "role": "user",
                "content": "Count the sales",
                "model": "a-model",
                "provider": "a-provider",
                "created_at": DURING,
                "finished_at": DURING + 1,
            },
            {
                "id": "m2",
                "role": "assistant",
                "content": "There are 12.",
                "model": "a-model",
                "provider": "a-provider",
                "created_at": DURING,
                "finished_at": DURING + 1,
            },
        ],
    }


def test_messages_come_in_the_order_of_their_times_then_of_their_writing(crush: Crush) -> None:
    crush.begin("s1")
    for said, at in (("third", 30), ("first", 10), ("second", 20), ("fourth", 30)):
        crush.say("s1", text(said), at=at)

    assert contents(read(crush.path)) == ["first", "second", "third", "fourth"]


def test_messages_of_other_sessions_and_of_sub_agents_are_left_out(crush: Crush) -> None:
    crush.begin("s1", prompt="mine")
    crush.begin("s2", prompt="another's")
    crush.begin("s3", parent="s1", prompt="a sub-agent's")

    assert contents(read(crush.path)) == ["mine"]


@pytest.mark.parametrize(
    ("kind", "data", "shown"),
    [
        ("text", {"text": "Ünïcödé 🚀"}, "Ünïcödé 🚀"),
        ("reasoning", {"thinking": "So.", "signature": "xyz"}, "[reasoning]\nSo."),
        ("reasoning", {"thinking": "", "signature": "xyz"}, ""),
        (
            "tool_call",
            {"id": "c1", "name": "bash", "input": '{"command":"ls"}', "finished": True},
            '[tool call: bash]\n{"command":"ls"}',
        ),
        (
            "tool_result",
            {"tool_call_id": "c1", "name": "bash", "content": "a.csv", "is_error": False},
            "[tool result: bash]\na.csv",
        ),
        (
            "tool_result",
            {"tool_call_id": "c1", "name": "bash", "content": "no", "is_error": True},
            "[tool error: bash]\nno",
        ),
        (
            "shell_command",
            {"command": "ls", "output": "a.csv", "exit_code": 0},
            "$ ls\na.csv\n[exit code 0]",
        ),
        ("image_url", {"url": "https://example.com/a.png"}, "[image: https://example.com/a.png]"),
        ("image_url", {"url": "data:image/png;base64,AAAA"}, "[image: data:image/png;base64]"),
        (
            "binary",
            {"Path": "a.png", "MIMEType": "image/png", "Data": "AAAA"},
            "[file: a.png, image/png]",
        ),
        ("finish", {"reason": "end_turn", "time": 1}, ""),
        (
            "finish",
            {"reason": "error", "time": 1, "message": "Overloaded", "details": "529"},
            "[finished: error] Overloaded 529",
        ),
        ("novelty", {"a": 1}, '{"type": "novelty", "data": {"a": 1}}'),
        ("text", {"text": 7}, '{"type": "text", "data": {"text": 7}}'),
    ],
)
def test_each_type_of_part_is_shown_as_text(
    crush: Crush, kind: str, data: dict[str, object], shown: str
) -> None:
    crush.begin("s1")
    crush.say("s1", [{"type": kind, "data": data}])

    assert contents(read(crush.path)) == [shown]


def test_parts_are_shown_with_an_empty_line_between(crush: Crush) -> None:
    crush.begin("s1")
    crush.say("s1", [*text("one"), *text("two")])

    assert contents(read(crush.path)) == ["one\n\ntwo"]


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ("no JSON at all", "no JSON at all"),
        ('[{"type": "text", "da', '[{"type": "text", "da'),
        ('{"a": 1}', '{"a": 1}'),
        ("[1" + "0" * 5000 + "]", "[1" + "0" * 5000 + "]"),
        ("[" * 100_000, "[" * 100_000),
        ("[" + "{}," * 500_000, "[" + "{}," * 500_000),
        ("[]", ""),
        ("", ""),
        (b'[{"type": "text", "data": {"text": "a blob"}}]', "a blob"),
        (b"\x28\xb5\x2f\xfd\x00\x01", "[… 6 compressed bytes …]"),
    ],
    ids=[
        "no JSON",
        "half a list",
        "no list",
        "a number without end",
        "nested too deep",
        "nothing but brackets",
        "no part",
        "no text",
        "a blob",
        "zstd",
    ],
)
def test_parts_that_cannot_be_parsed_are_kept_as_they_are(
    crush: Crush, stored: str | bytes, shown: str
) -> None:
    crush.begin("s1")
    crush.say("s1", stored)

    assert contents(read(crush.path)) == [shown]


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        (text("half \ud83d, NUL \x00."), "half ?, NUL \ufffd."),
        (b'[{"type": "text", "data": {"text": "\xff\xfe"}}]', "\ufffd\ufffd"),
        (b"\xc3(", "\ufffd("),
    ],
)
def test_text_that_is_no_unicode_can_still_be_sent(
    crush: Crush, stored: object, shown: str
) -> None:
    crush.begin("s1")
    crush.say("s1", stored)

    session = read(crush.path)

    assert contents(session) == [shown]
    json.dumps(session, allow_nan=False, ensure_ascii=False).encode()


def test_invalid_text_in_a_title_can_still_be_sent(crush: Crush) -> None:
    crush.begin("s1")
    crush.connection.execute("UPDATE sessions SET title = CAST(x'61FF' AS TEXT)")

    assert read(crush.path)["title"] == "a\ufffd"


def test_columns_that_an_older_crush_did_not_have_are_empty(tmp_path: Path) -> None:
    crush = Crush(tmp_path / "crush.db", OLD_SCHEMA)
    crush.connection.execute("INSERT INTO sessions VALUES ('s1', NULL, ?)", (DURING,))
    crush.connection.execute("INSERT INTO messages VALUES ('m1', 's1', 'user', NULL, ?)", (DURING,))
    crush.close()

    assert find(crush.path) == "s1"
    assert read(crush.path) == {
        "id": "s1",
        "title": "",
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "cost": 0.0,
        "created_at": DURING,
        "updated_at": 0,
        "messages": [
            {
                "id": "m1",
                "role": "user",
                "content": "",
                "model": None,
                "provider": None,
                "created_at": DURING,
                "finished_at": None,
            }
        ],
    }


def test_numbers_that_json_does_not_have_are_nought(crush: Crush) -> None:
    crush.begin("s1")
    crush.connection.execute("UPDATE sessions SET cost = 9e999, prompt_tokens = 'many'")

    session = read(crush.path)

    assert (session["cost"], session["prompt_tokens"]) == (0.0, 0)


# The database


def test_without_a_database_there_is_no_session(tmp_path: Path) -> None:
    for missing in (tmp_path / "crush.db", tmp_path / "no folder" / "crush.db"):
        assert find(missing) is None
        assert read_session(missing, "s1") is None


def test_database_that_is_still_empty_has_no_session(tmp_path: Path) -> None:
    database = tmp_path / "crush.db"
    database.touch()

    assert find(database) is None
    assert read_session(database, "s1") is None


@pytest.mark.parametrize("session_id", ["s2", "", "s1\x00", "\ud800"], ids=ascii)
def test_unknown_session_is_none(crush: Crush, session_id: str) -> None:
    crush.begin("s1")

    assert read_session(crush.path, session_id) is None


@pytest.mark.parametrize("name", ["crush.db", "a b?c#d%20é.db"])
def test_reading_leaves_nothing_beside_a_database_that_nobody_has_open(
    tmp_path: Path, name: str
) -> None:
    crush = Crush(tmp_path / name)
    crush.begin("s1", prompt="mine")
    crush.close()

    assert find(crush.path, prompt="mine") == "s1"
    assert contents(read(crush.path)) == ["mine"]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_damaged_database_is_told(crush: Crush) -> None:
    crush.begin("s1", prompt="mine")
    for _ in range(200):
        crush.say("s1", text("x" * 2000))
    crush.close()
    with crush.path.open("r+b") as file:
        file.seek(8192)
        file.write(os.urandom(300_000))

    with pytest.raises(CrushError, match=r"^cannot read the Crush database: .*malformed"):
        read_session(crush.path, "s1")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(at=st.integers(0, 60_000), damage=st.binary(min_size=1, max_size=64))
@example(at=4052, damage=b"\x80")  # in the schema's text
def test_damage_anywhere_is_borne_or_told(at: int, damage: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        crush = Crush(Path(folder) / "crush.db")
        with closing(crush.connection):
            crush.begin("s1", prompt="mine")
            for _ in range(100):
                crush.say("s1", text("x" * 400))
        with crush.path.open("r+b") as file:
            file.seek(at)
            file.write(damage)

        with suppress(CrushError):
            find(crush.path, prompt="mine")
            read_session(crush.path, "s1")


def test_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    database = tmp_path / "crush.db"
    database.write_bytes(b"no database" * 1000)

    with pytest.raises(CrushError, match=r"^cannot read the Crush database: file is not"):
        find(database)


def test_database_of_another_program_is_told(tmp_path: Path) -> None:
    Crush(tmp_path / "crush.db", "CREATE TABLE recipes (id);").close()

    with pytest.raises(CrushError, match="it has no table sessions"):
        find(tmp_path / "crush.db")


def test_tables_without_the_columns_that_matter_are_told(tmp_path: Path) -> None:
    schema = "CREATE TABLE sessions (id); CREATE TABLE messages (id);"
    Crush(tmp_path / "crush.db", schema).close()

    with pytest.raises(CrushError, match="no such column"):
        find(tmp_path / "crush.db")


def test_table_that_hides_the_numbers_of_its_rows_is_told(tmp_path: Path) -> None:
    Crush(tmp_path / "crush.db", SCHEMA.replace("finished_at", "RowId")).close()

    with pytest.raises(CrushError, match="its messages are not Crush's"):
        find(tmp_path / "crush.db")


def test_folder_pipe_or_link_in_the_databases_place_is_told(tmp_path: Path, crush: Crush) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(crush.path)
    (tmp_path / "linked").symlink_to(crush.path.parent)

    for path, reason in (
        ("folder", "it is no file"),
        ("pipe", "it is no file"),
        ("link", "it is behind a symbolic link"),
        ("linked/crush.db", "it is behind a symbolic link"),
    ):
        with pytest.raises(CrushError, match=reason):
            find(tmp_path / path)


@pytest.mark.parametrize("ending", ["-journal", "-wal", "-shm"])
def test_pipe_beside_the_database_is_told(crush: Crush, ending: str) -> None:
    crush.close()
    beside = crush.path.with_name(crush.path.name + ending)
    beside.unlink(missing_ok=True)
    os.mkfifo(beside)

    with pytest.raises(CrushError, match="is no file"):
        find(crush.path)


@pytest.mark.parametrize("journal", ["WAL", "DELETE"])
def test_database_that_stays_locked_is_told_in_time(crush: Crush, journal: str) -> None:
    crush.begin("s1")
    crush.connection.execute(f"PRAGMA journal_mode = {journal}")
    crush.connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    crush.connection.execute("PRAGMA cache_size = 1")
    crush.connection.execute("BEGIN EXCLUSIVE")
    crush.say("s1", text("x" * 200_000))

    began = time.monotonic()
    with pytest.raises(CrushError, match="another process keeps it locked"):
        read_session(crush.path, "s1", busy_timeout_s=0.2)
    assert time.monotonic() - began < 5


def test_view_in_a_tables_place_is_not_asked(tmp_path: Path) -> None:
    schema = """
        CREATE TABLE messages (id, session_id, role, parts, created_at);
        CREATE VIEW sessions AS
            WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
            SELECT i AS id, i AS created_at FROM n;
    """
    Crush(tmp_path / "crush.db", schema).close()

    with pytest.raises(CrushError, match="it has no table sessions"):
        find(tmp_path / "crush.db")


WRITE = """
import sqlite3, sys

path, pairs, stays = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "stays"
connection = sqlite3.connect(path, timeout=90, isolation_level=None)
for number in range(pairs):
    if not stays:
        connection.close()
        connection = sqlite3.connect(path, timeout=90, isolation_level=None)
    # Who sees one of the two without the other has seen half a write.
    connection.execute("BEGIN")
    for name in (f"a{number}", f"b{number}"):
        connection.execute(
            "INSERT INTO messages VALUES (?, 's1', 'assistant', ?, NULL, ?, 0, NULL, NULL)",
            (name, name * 500, number),
        )
    connection.execute("COMMIT")
connection.close()
"""


@pytest.mark.parametrize("way", ["stays", "comes and goes"])
def test_session_is_read_whole_while_another_process_writes_it(tmp_path: Path, way: str) -> None:
    crush = Crush(tmp_path / "crush.db")
    crush.begin("s1")
    crush.close()
    pairs = 300

    counts = []
    with subprocess.Popen(
        [sys.executable, "-c", WRITE, str(crush.path), str(pairs), way]
    ) as writer:
        deadline = time.monotonic() + 60
        while writer.poll() is None and time.monotonic() < deadline:
            counts.append(len(messages(read(crush.path))))

    assert writer.returncode == 0
    assert all(count % 2 == 0 for count in counts)
    assert counts == sorted(counts)
    assert len(messages(read(crush.path))) == 2 * pairs


COME_AND_GO = """
import pathlib, sys

path = pathlib.Path(sys.argv[1])
print("begun", flush=True)
while True:
    path.touch()
    path.unlink()
"""


@pytest.mark.parametrize("ending", ["-wal", "-shm"])
def test_file_beside_the_database_that_goes_while_we_look_is_no_fault(
    crush: Crush, ending: str
) -> None:
    crush.begin("s1", prompt="mine")
    crush.close()

    beside = crush.path.with_name(f"crush.db{ending}")
    with subprocess.Popen(
        [sys.executable, "-c", COME_AND_GO, str(beside)], stdout=subprocess.PIPE
    ) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            for _ in range(1_000):
                assert contents(read(crush.path)) == ["mine"]
        finally:
            other.kill()


def test_what_a_killed_crush_left_in_its_wal_is_read(crush: Crush, tmp_path: Path) -> None:
    crush.begin("s1", prompt="in the database")
    crush.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    crush.say("s1", text("in the WAL"))
    shutil.copytree(crush.path.parent, tmp_path / "left")

    assert contents(read(tmp_path / "left" / "crush.db")) == ["in the database", "in the WAL"]


@pytest.mark.parametrize("is_running", [True, False], ids=["running", "ended"])
def test_database_in_a_folder_that_we_may_not_write_is_read(is_running: bool) -> None:  # noqa: FBT001 - pytest passes it
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        crush = Crush(folder / "crush.db")
        with closing(crush.connection):
            crush.begin("s1", prompt="mine")
            if not is_running:
                crush.close()
            before = sorted(folder.iterdir())
            for path in before:
                path.chmod(0o444)
            folder.chmod(0o555)
            try:
                with as_another_user():
                    assert find(crush.path, prompt="mine") == "s1"
                    assert contents(read(crush.path)) == ["mine"]
                assert sorted(folder.iterdir()) == before
            finally:
                folder.chmod(0o755)


def test_database_that_we_may_not_read_is_told() -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        Crush(folder / "crush.db").close()
        folder.chmod(0o755)
        (folder / "crush.db").chmod(0)
        with as_another_user(), pytest.raises(CrushError, match="unable to open database file"):
            find(folder / "crush.db")


# Finding


@pytest.mark.parametrize(
    ("at", "belongs"),
    [
        (1_699_999_999, False),
        (1_700_000_000, True),
        (DURING, True),
        (1_700_000_100, True),
        (1_700_000_101, False),
    ],
)
def test_session_belongs_when_it_was_begun_while_the_task_ran(
    crush: Crush, *, at: int, belongs: bool
) -> None:
    crush.begin("s1", at)

    assert find(crush.path) == ("s1" if belongs else None)


def test_session_from_before_is_not_ours_though_it_was_gone_on_with(crush: Crush) -> None:
    crush.begin("s1", 1_699_000_000, prompt="mine")
    crush.say("s1", text("more"), at=DURING)

    assert find(crush.path, prompt="mine") is None


def test_while_the_task_runs_any_later_session_belongs(crush: Crush) -> None:
    crush.begin("s1", 1_800_000_000)

    assert find(crush.path, ended_at=None) == "s1"


def test_sessions_of_sub_agents_are_not_the_tasks(crush: Crush) -> None:
    crush.begin("s1", DURING)
    crush.begin("s2", DURING + 1, parent="s1")

    assert find(crush.path) == "s1"


def test_of_two_tasks_at_once_each_has_its_own_session(crush: Crush) -> None:
    crush.begin("s1", prompt="Count the sales\nof the  north")
    crush.begin("s2", prompt="Count the sales of the south")

    assert find(crush.path, prompt="Count the sales of the north") == "s1"
    assert find(crush.path, prompt="Count the sales of the south\n") == "s2"


def test_prompt_itself_goes_before_one_that_contains_it(crush: Crush) -> None:
    crush.begin("s1", prompt="Count the sales")
    crush.begin("s2", prompt="Count the sales of the south")

    assert find(crush.path, prompt="Count the sales") == "s1"


def test_prompt_that_was_added_to_is_recognised(crush: Crush) -> None:
    crush.begin("s1", prompt="You are Victoria.\n\nCount the sales\n\nBe brief.")
    crush.begin("s2", prompt="You are Victoria.\n\nDraw the map\n\nBe brief.")

    assert find(crush.path, prompt="Count the sales") == "s1"


def test_first_message_of_the_user_decides_not_a_later_one(crush: Crush) -> None:
    crush.begin("s1", prompt="Draw the map")
    crush.say("s1", text("Count the sales"), role="user", at=DURING + 1)

    assert find(crush.path, prompt="Count the sales") is None


def test_only_session_in_the_window_is_not_ours_when_its_prompt_is_anothers(crush: Crush) -> None:
    crush.begin("s1", prompt="Draw the map")

    assert find(crush.path, prompt="Count the sales") is None


def test_session_without_a_message_is_not_known_to_be_ours(crush: Crush) -> None:
    crush.begin("s1")

    assert find(crush.path, prompt="Count the sales") is None


def test_no_session_is_given_when_two_could_be_ours(crush: Crush) -> None:
    crush.begin("s1", DURING, prompt="Count the sales")
    crush.begin("s2", DURING + 1, prompt="Count the sales")

    assert find(crush.path) is None
    assert find(crush.path, prompt="Count the sales") is None
    found = find_sessions(crush.path, SessionQuery(STARTED_AT, None))
    assert found == Candidates(["s2", "s1"], certain=False)


def test_of_two_tasks_with_one_prompt_each_has_the_session_that_it_was_told_its_id_in(
    crush: Crush,
) -> None:
    for session_id, task_id in (("s1", TASK_ID), ("s2", "another-task")):
        crush.begin(session_id, prompt="Count the sales")
        told = {"content": json.dumps({"sent": True, "reporter": session_mark(task_id)})}
        crush.say(session_id, [{"type": "tool_result", "data": told}])
        crush.say(session_id, text(f"I see the folders {TASK_ID} and another-task."))

    assert find(crush.path, prompt="Count the sales", mark=session_mark(TASK_ID)) == "s1"
    assert find(crush.path, prompt="Count the sales", mark=session_mark("another-task")) == "s2"
    assert find(crush.path, prompt="Count the sales", mark=session_mark("a-third-task")) is None


def test_session_that_has_the_mark_is_ours_though_its_prompt_was_put_otherwise(
    crush: Crush,
) -> None:
    crush.begin("s1", prompt="Please count what was sold")
    crush.begin("s2", prompt="Draw the map")
    crush.say("s1", text(f"The reporter says {session_mark(TASK_ID)}."))

    assert find(crush.path, prompt="Count the sales", mark=session_mark(TASK_ID)) == "s1"


def marked(crush: Crush, session_id: str, *task_ids: str) -> None:
    for task_id in task_ids:
        told = {"content": json.dumps({"sent": True, "reporter": session_mark(task_id)})}
        crush.say(session_id, [{"type": "tool_result", "data": told}])


@pytest.mark.parametrize(
    ("said", "prompt"),
    [
        ("Count the sales", "Count the sales"),
        ("Count the sales of the south", "Count the sales"),
        ("Draw the map", None),
    ],
    ids=["the same prompt", "a prompt that contains ours", "our prompt not known"],
)
def test_only_session_is_not_ours_when_another_task_has_marked_it(
    crush: Crush, said: str, prompt: str | None
) -> None:
    crush.begin("s1", prompt=said)
    marked(crush, "s1", "another-task")

    assert find(crush.path, prompt=prompt, mark=session_mark(TASK_ID)) is None
    found = find_sessions(crush.path, SessionQuery(STARTED_AT, None, prompt, session_mark(TASK_ID)))
    assert found == Candidates([], certain=False)


def test_mark_that_only_begins_like_ours_is_anothers(crush: Crush) -> None:
    crush.begin("s1", prompt="Count the sales")
    marked(crush, "s1", "t-10")

    assert find(crush.path, prompt="Count the sales", mark=session_mark("t-1")) is None
    assert find(crush.path, prompt="Count the sales", mark=session_mark("t-10")) == "s1"


def test_mark_is_found_behind_a_message_that_is_too_long_to_search(crush: Crush) -> None:
    crush.begin("s1", prompt="Count the sales")
    crush.say("s1", text("x" * 3_000_000))
    marked(crush, "s1", "another-task")

    assert find(crush.path, prompt="Count the sales", mark=session_mark(TASK_ID)) is None
    assert find(crush.path, prompt="Count the sales", mark=session_mark("another-task")) == "s1"


def test_session_is_the_tasks_whose_mark_came_first_in_it(crush: Crush) -> None:
    crush.begin("s1", prompt="Count the sales")
    marked(crush, "s1", TASK_ID, "another-task")

    assert find(crush.path, prompt="Count the sales", mark=session_mark(TASK_ID)) == "s1"
    assert find(crush.path, prompt="Count the sales", mark=session_mark("another-task")) is None


def test_unmarked_session_is_ours_when_the_others_are_marked_by_other_tasks(crush: Crush) -> None:
    crush.begin("s1", prompt="Count the sales")
    crush.begin("s2", prompt="Count the sales")
    marked(crush, "s2", "another-task")

    assert find(crush.path, prompt="Count the sales", mark=session_mark(TASK_ID)) == "s1"


@pytest.mark.parametrize(
    ("said", "prompt", "others", "is_ours"),
    [
        ("Count", "Count", (), True),
        ("Count", "Count", ("Draw",), True),
        ("Count", "Count", ("Count",), False),
        ("Count", "Count", ("Count it all",), True),
        ("Count", "Count", (None,), True),
        ("You: Count. Now", "Count", ("Draw",), True),
        ("You: Count. Now", "Count", ("Count. Now",), False),
        ("You: Count. Now", "Count", (None,), False),
        ("You: Count all", "Count all", ("Count",), True),
        ("You: Count all", "Count", ("all",), False),
        ("Count", None, (), True),
        ("Count", None, ("Draw",), False),
    ],
)
def test_session_without_a_mark_is_ours_unless_a_task_beside_can_have_begun_it(
    crush: Crush,
    *,
    said: str,
    prompt: str | None,
    others: tuple[str | None, ...],
    is_ours: bool,
) -> None:
    crush.begin("s1", prompt=said)

    found = find(crush.path, prompt=prompt, mark=session_mark(TASK_ID), others=others)
    assert found == ("s1" if is_ours else None)


def test_of_a_tasks_own_sessions_the_newest_is_given(crush: Crush) -> None:
    for number in (1, 2):
        crush.begin(f"s{number}", DURING + number, prompt="Count the sales")
        crush.say(f"s{number}", text(session_mark(TASK_ID)))

    assert find(crush.path, prompt="Count the sales", mark=session_mark(TASK_ID)) == "s2"


# Secrets

KEPT = 'key-"0<1>2ü'
"""One that JSON, and Go's more than others, writes otherwise."""


@pytest.mark.parametrize(
    "parts",
    [
        [{"type": "tool_result", "data": {"name": "bash", "content": f"KEY={KEPT}"}}],
        [{"type": "tool_call", "data": {"name": "b", "input": json.dumps({"command": KEPT})}}],
        [{"type": "novelty", "data": KEPT}],
        [{"type": "novelty", "data": {"input": json.dumps(KEPT)}}],
        KEPT,
        "[" + json.dumps(KEPT, ensure_ascii=False),
        "[" + json.dumps(KEPT, ensure_ascii=False).replace("<", "\\u003c").replace(">", "\\u003e"),
    ],
    ids=["result", "call", "unknown", "unknown call", "no JSON", "half of a list", "Go's"],
)
def test_secret_is_blanked_in_whatever_the_agent_wrote(crush: Crush, parts: object) -> None:
    crush.begin("s1")
    crush.say("s1", parts)

    session = read_session(crush.path, "s1", secrets=[KEPT])
    assert session is not None
    (content,) = contents(session)
    assert "***" in content
    assert not any(piece in content for piece in ("key-", "0<1>2", "003c"))


def test_secret_is_blanked_in_the_title_and_in_names(crush: Crush) -> None:
    crush.begin("s1", prompt="mine")
    title = "x" * 295 + KEPT
    crush.connection.execute("UPDATE sessions SET title = ?", (title,))
    crush.connection.execute("UPDATE messages SET model = ?", (f"a-model of {KEPT}",))

    session = read_session(crush.path, "s1", secrets=[KEPT])

    assert session is not None
    assert session["title"] == "x" * 295 + "***"
    assert messages(session)[0]["model"] == "a-model of ***"


def test_secret_that_contains_another_is_blanked_whole_and_short_ones_are_left(
    crush: Crush,
) -> None:
    crush.begin("s1", prompt="key-12345678-and-more, key-12345678, 1234567")

    session = read_session(
        crush.path, "s1", secrets=["key-12345678", "key-12345678-and-more", "1234567", ""]
    )

    assert session is not None
    assert contents(session) == ["***, ***, 1234567"]


@pytest.mark.parametrize("length", range(17_950, 18_150, 7))
def test_no_part_of_a_secret_is_left_where_a_content_is_cut(crush: Crush, length: int) -> None:
    secret = "".join(f"<{number:02d}>" for number in range(25))
    crush.begin("s1")
    crush.say("s1", "x" * 50_000 + secret + "x" * length)

    session = read_session(crush.path, "s1", secrets=[secret], limit_bytes=LIMIT)

    assert session is not None
    (content,) = contents(session)
    assert not any(f"{number:02d}>" in content for number in range(25))


# Cutting


def test_session_that_fits_is_not_cut(crush: Crush) -> None:
    crush.begin("s1")
    for number in range(50):
        crush.say("s1", text(f"{number}"))

    assert contents(read(crush.path, LIMIT)) == [f"{number}" for number in range(50)]


def test_oldest_messages_go_first_and_their_number_is_told(crush: Crush) -> None:
    crush.begin("s1")
    for number in range(100):
        crush.say("s1", text(f"{number} " + "x" * 500), at=DURING + number)

    session = read(crush.path, LIMIT)

    mark, *kept = messages(session)
    first = 100 - len(kept)
    assert len(kept) > 20
    assert mark == {
        "id": "cut",
        "role": "system",
        "content": f"[… {first} older messages cut …]",
        "model": None,
        "provider": None,
        "created_at": DURING + first,
        "finished_at": None,
    }
    assert [message["content"] for message in kept] == [
        f"{number} " + "x" * 500 for number in range(first, 100)
    ]


def test_long_content_loses_its_head_and_what_is_newer_stays(crush: Crush) -> None:
    long = "".join(f"{number:06d}" for number in range(3_000))
    newest = "the newest " + "x" * 3_000
    crush.begin("s1", prompt="the oldest")
    crush.say("s1", text(long))
    crush.say("s1", text(newest))

    session = read(crush.path, LIMIT)

    mark, cut, last = contents(session)
    assert mark == "[… 1 older messages cut …]"
    head, _, end = cut.partition("\n")
    assert head == f"[... {len(long) - len(end)} characters cut ...]"
    assert long.endswith(end)
    assert last == newest
    assert wire_size(log_body(TASK_ID, session)) > LIMIT * 0.9


def test_session_that_is_cut_further_is_as_if_it_had_been_cut_so_at_once(crush: Crush) -> None:
    crush.begin("s1")
    for number in range(300):
        crush.say("s1", text(f"{number} " + "x" * 500), at=DURING + number)

    whole = read(crush.path, 100_000)
    assert truncate(whole, 110_000) is None
    assert truncate(whole, LIMIT) == read(crush.path, LIMIT)
    assert messages(whole)[0]["id"] == "cut"


def test_message_that_is_longer_than_the_limit_is_kept_by_its_end(crush: Crush) -> None:
    parts = json.dumps(text("x" * 100_000 + " the end"))
    crush.begin("s1")
    crush.say("s1", parts)

    (cut,) = contents(read(crush.path, LIMIT))

    head, _, end = cut.partition("\n")
    assert head == f"[... {len(parts) - len(end)} bytes cut ...]"
    assert end.endswith(' the end"}}]')


def test_characters_are_not_cut_in_two(crush: Crush) -> None:
    crush.begin("s1")
    crush.say("s1", "🚀" * 20_000)

    (cut,) = contents(read(crush.path, LIMIT))

    assert set(cut.partition("\n")[2]) == {"🚀"}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    said=st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=()), max_size=40),
            st.integers(1, 2_000),
            st.sampled_from(["text", "tool_result", "raw"]),
        ),
        max_size=12,
    ),
    limit=st.integers(10_000, 60_000),
)
def test_no_session_is_ever_larger_than_the_limit(
    said: list[tuple[str, int, str]], limit: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        crush = Crush(Path(folder) / "crush.db")
        with closing(crush.connection):
            crush.begin("s1")
            for start, times, kind in said:
                whole = start * times
                if kind == "raw":
                    crush.say("s1", whole.encode("utf-8", "surrogatepass"))
                else:
                    data = {"text": whole, "content": whole}
                    crush.say("s1", [{"type": kind, "data": data}])

        kept = contents(read(crush.path, limit))  # which looks at the size

    assert len(kept) <= len(said)
    assert bool(kept) == bool(said)


MEASURE = """
import sys, time
from pathlib import Path
from runner.crush.sessions import SessionQuery, find_session, read_session

def peak_kib():
    # Of this program alone; what getrusage says is handed down from whoever started it.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])

before, began_s = peak_kib(), time.process_time()
wanted = SessionQuery(0, None, None, "a-mark")
found = find_session(Path(sys.argv[1]), wanted)
session = read_session(Path(sys.argv[1]), found, secrets=["a-secret-at-the-end"])
assert "a-secret" not in session["messages"][-1]["content"]
print((peak_kib() - before) * 1024, time.process_time() - began_s, len(session["messages"]))
"""


@pytest.mark.parametrize(
    ("count", "size"),
    [
        (40_000, 2_500),
        pytest.param(
            1,
            100_000_000,
            marks=pytest.mark.skipif(
                sys.version_info < (3, 11), reason="its sqlite3 cannot read a value in pieces"
            ),
        ),
    ],
    ids=["many-messages", "one-message"],
)
def test_reading_100_mb_takes_memory_by_the_limit_and_little_time(
    crush: Crush, count: int, size: int
) -> None:
    crush.begin("s1")
    crush.connection.execute("PRAGMA synchronous = OFF")
    crush.connection.execute("BEGIN")
    for _ in range(count):
        crush.say("s1", text("x" * size + "a-secret-at-the-end"))
    crush.connection.execute("COMMIT")

    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, str(crush.path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )

    growth, cpu_s, kept = (float(number) for number in measured.stdout.split())
    assert growth < 30 * MIB
    assert cpu_s < 5
    assert 1 <= kept <= count
