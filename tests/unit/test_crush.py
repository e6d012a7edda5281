"""A task's own session is recognised, read while it is written, and cut to what fits."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import cast

import anyio
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runner.crush.log import truncate, wire_size
from runner.crush.search import answer
from runner.crush.sessions import (
    DATABASE,
    JOURNAL,
    LOG_LIMIT_BYTES,
    WAL,
    WAL_BEFORE,
    Candidates,
    ChildLimits,
    CrushBusy,
    CrushError,
    Request,
    SessionQuery,
    find_sessions,
    prompt_digest,
    read_session,
    session_mark,
    session_of_task,
)
from runner.model import log_body
from tests.fakes.crush import DURING, SCHEMA, Crush, text
from tests.fakes.hostile_crush import REFUSED, SCHEMAS, hostile_crush
from tests.unit.another_user import as_another_user

TASK_ID = "11111111-2222-4333-8444-555555555555"
STARTED_AT = 1_700_000_000.7
ENDED_AT = 1_700_000_100.2
LIMIT = 20_000
ROOT = Path(__file__).parents[2]

OLD_SCHEMA = """
CREATE TABLE sessions (id TEXT PRIMARY KEY, title TEXT, created_at INTEGER);
CREATE TABLE messages (
    id TEXT PRIMARY KEY, session_id TEXT, role TEXT, parts BLOB, created_at INTEGER);
"""


@pytest.fixture
def crush(tmp_path: Path) -> Iterator[Crush]:
    with closing(Crush(tmp_path / ".crush" / "crush.db")) as crush:
        yield crush


def ask(database: Path, **fields: object) -> tuple[Candidates, dict[str, object] | None]:
    """Do in this process what the child does."""
    with tempfile.TemporaryDirectory() as copy_dir:
        request = Request(str(database), copy_dir=copy_dir, **fields)  # type: ignore[arg-type]
        try:
            return answer(request)
        finally:
            assert not list(Path(copy_dir).glob("*")) or sys.exc_info()[0]


def read(
    database: Path, limit_bytes: int = LOG_LIMIT_BYTES, secrets: tuple[str, ...] = ()
) -> dict[str, object]:
    _, session = ask(database, session_id="s1", limit_bytes=limit_bytes, secrets=secrets)
    assert session is not None
    assert wire_size(log_body(TASK_ID, session)) <= limit_bytes
    return session


def messages(session: dict[str, object]) -> list[dict[str, object]]:
    return cast("list[dict[str, object]]", session["messages"])


def contents(session: dict[str, object]) -> list[str]:
    return [str(message["content"]) for message in messages(session)]


def content(crush: Crush, parts: object, limit: int, *secrets: str) -> str:
    crush.begin("s1")
    crush.say("s1", parts)
    (shown,) = contents(read(crush.path, limit, secrets))
    return shown


def candidates(database: Path, *, ended_at: float | None = ENDED_AT, **known: object) -> Candidates:
    query = SessionQuery(STARTED_AT, ended_at, **known)  # type: ignore[arg-type]
    return ask(database, query=query)[0]


def find(database: Path, **known: object) -> str | None:
    ids, is_certain = candidates(database, **known)  # type: ignore[arg-type]
    return ids[0] if is_certain else None


def part(kind: str, **data: object) -> list[object]:
    return [{"type": kind, "data": data}]


# Reading


def test_session_is_read_as_the_orchestrator_takes_it(crush: Crush) -> None:
    crush.begin("s1", prompt="Count the sales")
    crush.begin("s2", prompt="another's")
    crush.begin("s3", parent="s1", prompt="a sub-agent's")
    message: dict[str, object]
    message = {"id": "m1", "role": "user", "content": "Count the sales", "model": "a-model"}
    message |= {"provider": "a-provider", "created_at": DURING, "finished_at": DURING + 1}
    session = {"id": "s1", "title": "A title", "created_at": DURING, "updated_at": DURING + 5}
    counts = {"prompt_tokens": 1200, "completion_tokens": 340, "cost": 0.25}
    assert read(crush.path) == {**session, **counts, "messages": [message]}


def test_messages_come_in_the_order_of_their_times_then_of_their_writing(crush: Crush) -> None:
    crush.begin("s1")
    for content, at in (("third", 30), ("first", 10), ("second", 20), ("fourth", 30)):
        crush.say("s1", text(content), at=at)
    assert contents(read(crush.path)) == ["first", "second", "third", "fourth"]


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        (text("Ünïcödé 🚀"), "Ünïcödé 🚀"),
        ([*text("one"), *text("two")], "one\n\ntwo"),
        (part("reasoning", thinking="So.", signature="xyz"), "[reasoning]\nSo."),
        (part("reasoning", thinking="", signature="xyz"), ""),
        (part("tool_call", id="c1", name="bash", input='{"a":1}'), '[tool call: bash]\n{"a":1}'),
        (part("tool_result", name="b", content="a.csv"), "[tool result: b]\na.csv"),
        (part("tool_result", name="bash", content="no", is_error=True), "[tool error: bash]\nno"),
        (part("shell_command", command="ls", output="a", exit_code=0), "$ ls\na\n[exit code 0]"),
        (part("image_url", url="https://a.example/a.png"), "[image: https://a.example/a.png]"),
        (part("image_url", url="data:image/png;base64,AAAA"), "[image: data:image/png;base64]"),
        (part("binary", Path="a.png", MIMEType="image/png"), "[file: a.png, image/png]"),
        (part("finish", reason="end_turn", time=1), ""),
        (part("finish", reason="error", message="Oh", details="529"), "[finished: error] Oh 529"),
        (part("novelty", a=1), '{"type": "novelty", "data": {"a": 1}}'),
        (part("text", text=7), '{"type": "text", "data": {"text": 7}}'),
        # What cannot be parsed is shown as it is.
        ("no JSON at all", "no JSON at all"),
        ('{"a": 1}', '{"a": 1}'),
        ("[1" + "0" * 5000 + "]", "[1" + "0" * 5000 + "]"),
        ("[" * 100_000, "[" * 100_000),
        ("", ""),
        (b'[{"type": "text", "data": {"text": "a blob"}}]', "a blob"),
        (b"\x28\xb5\x2f\xfd\x00\x01", "[… 6 compressed bytes …]"),
        # What is not Unicode can still be sent.
        (text("half \ud83d, NUL \x00."), "half ?, NUL \ufffd."),
        (b'[{"type": "text", "data": {"text": "\xff\xfe"}}]', "\ufffd\ufffd"),
    ],
    ids=str,
)
def test_parts_of_a_message_are_shown_as_text(crush: Crush, stored: object, shown: str) -> None:
    assert content(crush, stored, LOG_LIMIT_BYTES) == shown


def test_column_that_an_older_crush_lacks_is_replaced(tmp_path: Path) -> None:
    with closing(Crush(tmp_path / "crush.db", OLD_SCHEMA)) as old:
        old.connection.execute("INSERT INTO sessions VALUES ('s1', NULL, ?)", (DURING,))
        old.connection.execute("INSERT INTO messages VALUES ('m', 's1', 'user', NULL, 1)")
        assert find(old.path) == "s1"
        session = read(old.path)
    assert (session["title"], session["cost"], session["updated_at"]) == ("", 0.0, 0)
    (message,) = messages(session)
    assert (message["content"], message["model"], message["finished_at"]) == ("", None, None)


def test_value_that_json_does_not_have_is_replaced(crush: Crush) -> None:
    crush.begin("s1")
    crush.connection.execute("UPDATE sessions SET cost = 9e999, prompt_tokens = 'many'")
    crush.connection.execute("UPDATE sessions SET title = CAST(x'61FF' AS TEXT)")
    session = read(crush.path)
    assert (session["cost"], session["prompt_tokens"], session["title"]) == (0.0, 0, "a\ufffd")


# The database


def test_missing_database_and_unknown_session_are_none(crush: Crush, tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    for missing in ("crush.db", "no folder/crush.db", "empty.db"):
        assert find(tmp_path / missing) is None
    crush.begin("s1")
    for session_id in ("s2", "", "s1\x00", "\ud800"):
        assert ask(crush.path, session_id=session_id, limit_bytes=LIMIT)[1] is None


@settings(max_examples=25)
@given(at=st.integers(0, 60_000), damage=st.binary(min_size=1, max_size=64))
@example(at=4052, damage=b"\x80")  # in the schema's text
@example(at=4096, damage=b"x" * 40_000)
@example(at=0, damage=b"no database")
def test_damage_anywhere_is_read_around_or_a_crush_error(at: int, damage: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with closing(Crush(Path(folder) / "crush.db")) as crush:
            crush.begin("s1", prompt="mine")
            for _ in range(100):
                crush.say("s1", text("x" * 400))
        with crush.path.open("r+b") as file:
            file.seek(at)
            file.write(damage)
        with suppress(CrushError):
            find(crush.path, prompt="mine")
            ask(crush.path, session_id="s1", limit_bytes=LIMIT)


COMPUTED = "finished_at INTEGER AS (created_at + 1)"


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("CREATE TABLE recipes (id);", "it has no table sessions"),
        ("CREATE TABLE sessions (id); CREATE TABLE messages (id);", "no such column: created_at"),
        (SCHEMA.replace("finished_at INTEGER", COMPUTED), "its messages are not Crush's"),
        (SCHEMA.replace("finished_at", "RowId"), "its messages are not Crush's"),
    ],
    ids=["another program's", "too few columns", "a generated column", "a column rowid"],
)
def test_schema_that_is_not_crushs_is_refused(tmp_path: Path, schema: str, reason: str) -> None:
    Crush(tmp_path / "crush.db", schema).close()
    with pytest.raises(CrushError, match=f"^cannot read the Crush database: {reason}"):
        find(tmp_path / "crush.db")


def test_what_is_not_a_regular_file_below_no_link_is_refused(tmp_path: Path, crush: Crush) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(crush.path)
    (tmp_path / "linked").symlink_to(crush.path.parent)
    shutil.copy(crush.path, tmp_path / "other.db")
    os.mkfifo(tmp_path / "other.db-wal")
    reasons = {name: f"{name} is not a regular file" for name in ("folder", "pipe", "link")}
    reasons |= {"linked/crush.db": "not a directory"}
    reasons |= {"other.db": "other.db-wal is not a regular file"}
    for path, reason in reasons.items():
        with pytest.raises(CrushError, match=reason):
            find(tmp_path / path)


def test_database_within_a_transaction_of_a_rollback_journal_is_not_read(crush: Crush) -> None:
    crush.path.with_name("crush.db-journal").write_text("not empty")
    with pytest.raises(CrushError, match="another process keeps writing it"):
        ask(crush.path, session_id="s1", limits=ChildLimits(copy_timeout_s=0.1))


def write_pairs(database: Path, pairs: int) -> None:
    with closing(Crush(database)) as crush:
        crush.connection.execute("PRAGMA wal_autocheckpoint = 20")
        for number in range(pairs):
            # A reader that sees one of the two without the other has seen half a write.
            crush.connection.execute("BEGIN")
            crush.say("s1", text("a" * 500), at=number)
            crush.say("s1", text("b" * 500), at=number)
            crush.connection.execute("COMMIT")


def test_session_is_read_whole_while_another_process_writes_it(crush: Crush) -> None:
    crush.begin("s1")
    crush.close()
    counts = []
    program = "import pathlib, sys; from tests.unit import test_crush as t; path = sys.argv[1];"
    program += "t.write_pairs(pathlib.Path(path), 400)"
    with subprocess.Popen([sys.executable, "-c", program, crush.path], cwd=ROOT) as writer:
        while writer.poll() is None:
            with suppress(CrushError):  # it may be written too often
                counts.append(len(messages(read(crush.path))))

    assert writer.returncode == 0
    assert all(count % 2 == 0 for count in counts)
    assert counts == sorted(counts)
    assert len(messages(read(crush.path))) == 800


def test_wal_of_a_killed_crush_is_read_and_nothing_written(crush: Crush, tmp_path: Path) -> None:
    crush.begin("s1", prompt="in the database")
    crush.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    crush.say("s1", text("in the WAL"))
    left = tmp_path / "left"
    left.mkdir()
    for name in ("crush.db", "crush.db-wal"):
        shutil.copy(crush.path.with_name(name), left)
    assert contents(read(left / "crush.db")) == ["in the database", "in the WAL"]
    assert sorted(path.name for path in left.iterdir()) == ["crush.db", "crush.db-wal"]


def test_database_that_may_only_be_read_is_read_and_one_that_may_not_is_refused() -> None:
    with tempfile.TemporaryDirectory() as made, closing(Crush(Path(made) / "crush.db")) as crush:
        crush.begin("s1", prompt="mine")
        for path in Path(made).iterdir():
            path.chmod(0o444)
        Path(made).chmod(0o555)
        with as_another_user():
            assert find(crush.path, prompt="mine") == "s1"
        crush.path.chmod(0)
        with as_another_user(), pytest.raises(CrushError, match="permission denied"):
            find(crush.path)
        Path(made).chmod(0o755)


# What an engine has archived, because this user may not open it


def archive(folder: Path, name: str, source: Path) -> None:
    if source.exists():
        with tarfile.open(folder / name, "w") as tar:
            tar.add(source, source.name)


@pytest.fixture
def archives(crush: Crush, tmp_path: Path) -> Path:
    """Archive a database of which a part is still in its write-ahead log."""
    folder = tmp_path / "archives"
    folder.mkdir()
    wal = crush.path.with_name("crush.db-wal")
    archive(folder, WAL_BEFORE, wal)
    crush.begin("s1", prompt="mine")
    archive(folder, DATABASE, crush.path)
    crush.say("s1", text("more"))
    archive(folder, WAL, wal)
    return folder


def ask_archives(folder: Path) -> list[str]:
    _, session = ask(folder / "none", session_id="s1", limit_bytes=LIMIT, archive_dir=str(folder))
    return [] if session is None else contents(session)


def test_session_is_read_from_archives_that_were_made_while_it_was_written(archives: Path) -> None:
    assert ask_archives(archives) == ["mine", "more"]
    (archives / DATABASE).unlink()
    assert ask_archives(archives) == []


def test_archives_of_a_database_that_was_begun_again_meanwhile_are_made_again(
    crush: Crush, archives: Path
) -> None:
    crush.connection.execute("PRAGMA wal_checkpoint(RESTART)")
    crush.say("s1", text("after that"))
    archive(archives, WAL, crush.path.with_name("crush.db-wal"))
    with pytest.raises(CrushBusy, match="another process keeps writing it"):
        ask_archives(archives)
    archive(archives, WAL_BEFORE, crush.path.with_name("crush.db-wal"))
    (archives / "half").write_text("written")
    archive(archives, JOURNAL, archives / "half")
    with pytest.raises(CrushBusy, match="another process keeps writing it"):
        ask_archives(archives)


@pytest.mark.parametrize(
    ("plant", "reason"),
    [
        (os.mkfifo, "it is not a regular file"),
        (lambda path: path.symlink_to("/etc/passwd"), "it is not a regular file"),
        (Path.mkdir, "it is not a regular file"),
        (lambda path: path.write_bytes(b"no database" * 99), "file is not a database"),
    ],
    ids=["pipe", "link", "folder", "other file"],
)
def test_anything_else_in_an_archive_is_a_sentence(
    tmp_path: Path, archives: Path, plant: Callable[[Path], object], reason: str
) -> None:
    plant(tmp_path / "planted")
    with tarfile.open(archives / DATABASE, "w") as tar:
        tar.add(tmp_path / "planted", "crush.db")
    for name in (WAL_BEFORE, WAL):
        (archives / name).unlink()
    with pytest.raises(CrushError, match=f"^cannot read the Crush database: {reason}"):
        ask_archives(archives)


def test_broken_archive_is_a_sentence(archives: Path) -> None:
    content = (archives / DATABASE).read_bytes()
    for broken in (b"", b"x" * 10_000, content[:700], content[:2000]):
        (archives / DATABASE).write_bytes(broken)
        with pytest.raises(CrushError, match=r"^cannot read the Crush database: "):
            ask_archives(archives)


# The child process


@pytest.mark.parametrize("name", ["crush.db", "a b?c#d%20é.db"])
def test_child_reads_what_is_read_here(tmp_path: Path, name: str) -> None:
    with closing(Crush(tmp_path / name)) as crush:
        crush.begin("s1", prompt="🚀 mine, not \x00 s3cret-s3cret")
        crush.say("s1", text("more"))
        query = SessionQuery(STARTED_AT, None, others=(None, "\ud83d"), digests=("0f",))
        secrets = ("s3cret-s3cret",)
        session = read(crush.path, secrets=secrets)

        assert anyio.run(find_sessions, crush.path, query) == candidates(
            crush.path, others=query.others, digests=query.digests
        )
        query = SessionQuery(STARTED_AT, ENDED_AT)
        assert anyio.run(session_of_task, crush.path, query, secrets) == session
        relative = Path(os.path.relpath(crush.path))
        assert anyio.run(read_session, relative, "s1") == read(crush.path)
        assert anyio.run(read_session, crush.path, "s2") is None
        assert anyio.run(read_session, tmp_path / "none.db", "s1") is None


def test_child_that_takes_too_long_or_is_cancelled_is_killed(crush: Crush) -> None:
    async def read_soon() -> None:
        with anyio.move_on_after(0.02):
            await read_session(crush.path, "s1")
        with pytest.raises(CrushError, match=r"it takes longer than 0\.001 s"):
            await read_session(crush.path, "s1", read_timeout_s=0.001)

    crush.begin("s1")
    anyio.run(read_soon)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


READ = """
import sys, threading, time
from pathlib import Path

import anyio

from runner.crush.sessions import CrushError, SessionQuery, session_of_task

query, reason = SessionQuery(time.time() - 60, None, None, "a-mark"), ""
try:
    anyio.run(session_of_task, Path(sys.argv[1]), query, [])
except CrushError as error:
    reason = str(error)
# Of this program alone; what getrusage says is handed down from its parent.
peak_kib = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
for thread in threading.enumerate():
    if thread is not threading.current_thread():
        thread.join(5)  # a worker's that waits for work ends with the event loop, soon
print(peak_kib, threading.active_count(), reason)
"""


@pytest.mark.parametrize("kind", SCHEMAS)
def test_hostile_database_does_not_harm_its_reader(tmp_path: Path, kind: str) -> None:
    database = tmp_path / ".crush" / "crush.db"
    command = [sys.executable, "-c", READ, str(database)]
    with hostile_crush(database, kind):
        output = subprocess.check_output(command, cwd=ROOT, text=True, timeout=200)
    peak_kib, threads, reason = output.rstrip("\n").split(" ", 2)
    assert int(peak_kib) < 60 * 1024
    assert threads == "1"
    if kind in REFUSED:
        assert reason == "cannot read the Crush database: its sessions are not Crush's"


# Which session is the task's


def marked(*task_ids: str) -> list[object]:
    marks = [{"sent": True, "reporter": session_mark(task_id)} for task_id in task_ids]
    return [part("tool_result", content=json.dumps(mark)) for mark in marks]


def test_candidates_were_begun_while_the_task_ran_and_come_newest_first(crush: Crush) -> None:
    moments = (1_699_999_999, 1_700_000_000, DURING, 1_700_000_100, 1_700_000_101)
    for number, at in enumerate(moments):
        crush.begin(f"s{number}", at)
        crush.say(f"s{number}", text("more"), at=DURING)
    crush.begin("s9", DURING, parent="s1")  # a sub-agent's
    crush.begin("s" * 201, DURING)  # would not fit into a final report if it were a megabyte
    assert candidates(crush.path) == Candidates(["s3", "s2", "s1"], certain=False)
    while_it_runs = Candidates(["s4", "s3", "s2", "s1"], certain=False)
    assert candidates(crush.path, ended_at=None) == while_it_runs


@pytest.mark.parametrize(
    ("first", "prompt", "ours"),
    [
        ([("Count", "t-1"), ("Count", "t-2")], "Count", "s1"),
        ([("Count", "t-2"), ("Count", "t-3")], "Count", None),
        ([("Count", "t-2"), ("Count", "")], "Count", "s2"),
        ([("Count", "t-1 t-2")], "Count", "s1"),
        ([("Count", "t-2 t-1")], "Count", None),
        ([("Count", "t-10")], "Count", None),
        ([("Draw", "t-2")], None, None),
        ([("Count", "t-1"), ("Count", "t-1")], "Count", "s2"),
    ],
)
def test_session_is_the_tasks_whose_mark_came_first_in_it(
    crush: Crush, first: list[tuple[str, str]], prompt: str | None, ours: str | None
) -> None:
    for number, (content, task_ids) in enumerate(first, start=1):
        crush.begin(f"s{number}", DURING + number, prompt=content)
        for message in marked(*task_ids.split()):
            crush.say(f"s{number}", message)
        crush.say(f"s{number}", text("I see the folders t-1 and t-2."))
    assert find(crush.path, prompt=prompt, mark=session_mark("t-1")) == ours


def test_mark_is_recognised_in_a_sentence_and_behind_a_long_message(crush: Crush) -> None:
    crush.begin("s1", prompt="Count")
    crush.say("s1", text("x" * 3_000_000))
    crush.say("s1", text(f"The reporter says {session_mark(TASK_ID)}."))
    assert find(crush.path, prompt="Draw", mark=session_mark(TASK_ID)) == "s1"
    assert find(crush.path, prompt="Count", mark=session_mark("another")) is None


@pytest.mark.parametrize(
    ("first", "prompt", "others", "closed", "ours"),
    [
        (["Count\nthe  sales", "Draw"], "Count the sales", (), (), "s1"),
        (["Draw", "Count the sales"], "Count the sales\n", (), (), "s2"),
        (["Count", "Count it all"], "Count", (), (), "s1"),
        (["Victoria.\n\nCount\n\nBe brief.", "Victoria.\n\nDraw"], "Count", (), (), "s1"),
        ([""], "Count", (), (), None),
        (["Count", "Count"], "Count", (), (), None),
        (["Count", "Draw"], None, (), (), None),
        # A task beside this one can have begun it.
        (["Count"], "Count", (), (), "s1"),
        (["Count"], "Count", ("Count",), (), None),
        (["Count"], "Count", ("Count it all",), (), "s1"),
        (["Count"], "Count", (None,), (), None),
        (["You: Count. Now"], "Count", ("Draw",), (), "s1"),
        (["You: Count. Now"], "Count", ("Count. Now",), (), None),
        (["You: Count all"], "Count all", ("Count",), (), "s1"),
        (["You: Count all"], "Count", ("all",), (), None),
        (["Count"], None, (), (), "s1"),
        (["Count"], None, ("Draw",), (), None),
        # Of a task that is closed there is only a digest of the whole prompt.
        (["Count"], "Count", (), ("Draw",), "s1"),
        (["Count"], "Count", (), ("Count",), None),
        (["Count it"], "Count it", (), (" Count\nit",), None),
        (["\x00"], "\x00", (), ("\ufffd",), None),
        (["You: Count"], "Count", (), ("Draw",), None),
        (["Count"], None, (), ("Draw",), None),
    ],
)
def test_session_without_a_mark_is_the_only_one_that_no_other_task_can_have_begun(  # noqa: PLR0913 - a table
    crush: Crush,
    *,
    first: list[str],
    prompt: str | None,
    others: tuple[str | None],
    closed: tuple[str],
    ours: str | None,
) -> None:
    for number, content in enumerate(first, start=1):
        crush.begin(f"s{number}", prompt=content)
        crush.say(f"s{number}", text("Count"), at=DURING + 1)
        crush.say(f"s{number}", text("Count"), role="user" if content else "tool")
    digests = tuple(prompt_digest(one) for one in closed)
    mark = session_mark(TASK_ID)
    assert find(crush.path, prompt=prompt, mark=mark, others=others, digests=digests) == ours


# Secrets

ODD_VALUE = 'key-"0<1>2ü'  # JSON escapes it, and Go's JSON escapes more of it than others do
AS_JSON = json.dumps(ODD_VALUE, ensure_ascii=False)

ODD_PARTS: dict[str, object] = {
    "result": part("tool_result", name="bash", content=f"KEY={ODD_VALUE}"),
    "call": part("tool_call", name="b", input=json.dumps({"command": ODD_VALUE})),
    "unknown": [{"type": "novelty", "data": ODD_VALUE}],
    "unknown call": part("novelty", input=json.dumps(ODD_VALUE)),
    "not JSON": ODD_VALUE,
    "half of a list": "[" + AS_JSON,
    "Go's": "[" + AS_JSON.replace("<", "\\u003c").replace(">", "\\u003e"),
}


@pytest.mark.parametrize("parts", ODD_PARTS.values(), ids=ODD_PARTS)
def test_secret_is_redacted_in_whatever_the_agent_wrote(crush: Crush, parts: object) -> None:
    shown = content(crush, parts, LIMIT, ODD_VALUE)
    assert "***" in shown
    assert not any(piece in shown for piece in ("key-", "0<1>2", "003c"))


def test_secret_is_redacted_in_the_title_and_in_names(crush: Crush) -> None:
    crush.begin("s1", prompt="mine")
    title = "x" * 295 + ODD_VALUE
    crush.connection.execute("UPDATE sessions SET title = ?", (title,))
    crush.connection.execute("UPDATE messages SET model = ?", (f"a-model of {ODD_VALUE}",))
    session = read(crush.path, secrets=(ODD_VALUE,))
    assert session["title"] == "x" * 295 + "***"
    assert messages(session)[0]["model"] == "a-model of ***"


@pytest.mark.parametrize("length", range(17_950, 18_150, 7))
def test_no_part_of_a_secret_is_left_where_a_content_is_cut(crush: Crush, length: int) -> None:
    secret = "".join(f"<{number:02d}>" for number in range(25))
    shown = content(crush, "x" * 50_000 + secret + "x" * length, LIMIT, secret)
    assert not any(f"{number:02d}>" in shown for number in range(25))


# Cutting


def test_oldest_messages_go_first_and_their_number_is_shown(crush: Crush) -> None:
    crush.begin("s1")
    for number in range(300):
        crush.say("s1", text(f"{number} " + "x" * 500), at=DURING + number)

    session = read(crush.path, LIMIT)

    mark, *rest = messages(session)
    first = 300 - len(rest)
    assert len(rest) > 20
    content = f"[… {first} older messages cut …]"
    shown = {"id": "cut", "role": "system", "content": content, "created_at": DURING + first}
    assert mark == {**dict.fromkeys(("model", "provider", "finished_at")), **shown}
    expected = [f"{number} " + "x" * 500 for number in range(first, 300)]
    assert [message["content"] for message in rest] == expected
    longer = read(crush.path, 100_000)
    assert truncate(longer, 110_000) is None
    assert truncate(longer, LIMIT) == session, "as if it had been cut so at once"


def test_long_content_loses_its_head_and_what_is_newer_stays(crush: Crush) -> None:
    newest = "the newest " + "x" * 3_000
    crush.begin("s1", prompt="the oldest")
    crush.say("s1", text("".join(f"{number:06d}" for number in range(3_000))))
    crush.say("s1", text(newest))
    mark, cut, last = contents(read(crush.path, LIMIT))
    assert mark == "[… 1 older messages cut …]"
    assert cut.startswith("[... ")
    assert cut.endswith("002999")
    assert last == newest


@pytest.mark.parametrize(
    ("parts", "end"),
    [("x" * 100_000 + " the end", " the end"), ("🚀" * 20_000, "🚀"), ("\x01" * 4_000, "\x01")],
    ids=["plain", "wide", "escaped"],
)
def test_message_above_the_limit_is_kept_by_its_end(crush: Crush, parts: str, end: str) -> None:
    crush.begin("s1")
    crush.say("s1", parts)
    session = read(crush.path, LIMIT)
    mark, _, rest = contents(session)[0].partition("\n")
    assert rest.endswith(end)
    assert mark == f"[... {len(parts) - len(rest)} characters cut ...]"
    assert wire_size(log_body(TASK_ID, session)) > LIMIT * 0.9


def test_message_that_no_log_can_hold_is_shown_by_its_size(crush: Crush) -> None:
    assert content(crush, "x" * 60_000_000, LOG_LIMIT_BYTES) == "[… 60000000 bytes …]"


@settings(max_examples=60)
@given(
    pieces=st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=()), max_size=40),
            st.integers(1, 2_000),
            st.sampled_from(["text", "tool_result", "raw"]),
        ),
        max_size=12,
    ),
    limit=st.integers(10_000, 60_000),
)
def test_no_session_exceeds_the_limit(pieces: list[tuple[str, int, str]], limit: int) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(Crush(Path(folder) / "crush.db")) as crush,
    ):
        crush.begin("s1")
        for start, times, kind in pieces:
            whole = start * times
            raw = whole.encode("utf-8", "surrogatepass")
            crush.say("s1", raw if kind == "raw" else part(kind, text=whole, content=whole))
        count = len(contents(read(crush.path, limit)))  # `read` checks the size
    assert count <= len(pieces)
    assert bool(count) == bool(pieces)
