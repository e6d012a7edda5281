"""`victoria-orchestrator` at a scripted server: output, artifacts, pages, and what goes wrong."""

import hashlib
import json
import os
import pty
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from datetime import datetime, timezone
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.archive import Entry, zip_pieces
from orchestrator.client import watch
from orchestrator.client.access import Access
from orchestrator.client.api import Api
from orchestrator.client.text import OutputFilter
from tests.orchestrator.people import Person
from tests.orchestrator.scripted import Reply, Scripted, scripted

REPOSITORY = Path(__file__).parents[2]
TASK = "/tasks/t"
EVENTS = "text/event-stream"
RED, RESET = "\x1b[31m", "\x1b[0m"


@pytest.fixture
def server() -> Iterator[Scripted]:
    with scripted() as script:
        yield script


@pytest.fixture
def person(server: Scripted) -> Person:
    return Person(server.url)


@pytest.fixture(autouse=True)
def config_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def task(status: str = "running", **fields: object) -> Reply:
    return Reply({"id": "t", "status": status, **fields})


def output(*chunks: tuple[int, str], ends: bool = False) -> Reply:
    """Return a stream of events; each chunk is its offset and its text."""
    lines = [": alive\n\n"]
    for offset, text in chunks:
        data = json.dumps({"offset": offset, "text": text}, ensure_ascii=False)
        lines.append(f"id: {offset + len(text.encode())}\nevent: output\ndata: {data}\n\n")
    if ends:
        lines.append('event: end\ndata: {"status": "success"}\n\n')
    return Reply("".join(lines).encode(), kind=EVENTS)


# Watching output


def test_watch_streams_the_output_to_the_end(server: Scripted, person: Person) -> None:
    server.on(f"GET {TASK}", task(), task("success", result="all done"))
    server.on(f"GET {TASK}/output", output((0, "one\n"), (4, "zwei ü\u2028\n"), ends=True))
    watched = person.tries("task", "watch", "t")
    assert watched.exit_code == 0
    assert watched.stdout == "one\nzwei ü\u2028\n"
    assert watched.stderr.splitlines() == ["running", "success: all done"]


def test_a_stream_that_breaks_goes_on_without_a_line_twice_or_missing(
    server: Scripted, person: Person
) -> None:
    server.on(f"GET {TASK}", *[task()] * 5, task("success"))
    server.on(
        f"GET {TASK}/output",
        output((0, "aä\n")),
        Reply({"detail": "away"}, 503),
        Reply(b"<html>", 502, kind="text/html"),
        output((0, "aä\n"), (4, "b\n")),  # all of it again
        output((4, "b\nc\n"), (8, "d\n"), ends=True),  # a chunk again, with more in it
    )
    watched = person.tries("task", "watch", "t")
    assert watched.stdout == "aä\nb\nc\nd\n"
    assert watched.exit_code == 0
    asked = [one for one in server.asked if one.call.endswith("/output")]
    assert [one.headers.get("Last-Event-ID") for one in asked] == [None, "4", "4", "4", "6"]
    assert [one.query for one in asked][1:] == [f"offset={n}" for n in (4, 4, 4, 6)]


@pytest.mark.parametrize(
    "reply",
    [Reply({"detail": "no"}, 500), Reply(b"<html>", 502, kind="text/html"), output((0, "a\n"))],
    ids=["500", "proxy", "no end"],
)
def test_a_task_that_has_ended_is_watched_no_longer_though_its_output_is_never_complete(
    reply: Reply, server: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    server.on(f"GET {TASK}", task("error", error_message="lost"))
    server.on(f"GET {TASK}/output", reply)
    assert watch.watch_task(Api(Access(server.url, "k")), "t", end_within_s=1.5) == 1
    notes = capsys.readouterr().err.splitlines()
    assert notes[-2:] == ["what is left of its output does not come", "error: lost"]
    assert "".join(notes).count("trying again") <= 1
    assert server.calls().count(f"GET {TASK}/output") < 10


def test_a_gap_in_the_output_is_shown(server: Scripted, person: Person) -> None:
    server.on(f"GET {TASK}", task())
    server.on(f"GET {TASK}/output", output((0, "a\n"), (100, "z\n"), ends=True))
    assert "[98 bytes are missing here]" in person.tries("task", "watch", "t").stdout


@pytest.mark.parametrize("chunks", [[(0, "of the 1st\n")], [(0, "of the 1st\n"), (4, "nd\n")]])
def test_output_of_a_task_that_is_assigned_again_is_shown_whole_after_a_line_that_says_so(
    chunks: list[tuple[int, str]], server: Scripted, person: Person
) -> None:
    before = [{"status": "pending"}, {"status": "assigned"}]
    after = [*before, {"status": "pending", "message": "its node was removed"}]
    assigned = task("assigned", history=before)
    server.on(f"GET {TASK}", assigned, assigned, task("success", history=after, result="done"))
    # The server goes on where the new output is, or with what it has of it.
    server.on(f"GET {TASK}/output", output(*chunks), output((0, "2nd\n"), (4, "nd\n"), ends=True))
    watched = person.tries("task", "watch", "t")
    mark = f"[{watch.STARTS_OVER}]"
    assert watched.stdout == f"of the 1st\n\n{mark}\n2nd\nnd\n"
    steps = ["pending", "assigned", "pending: its node was removed", "success: done"]
    assert watched.stderr.splitlines() == steps
    asked = [one.query for one in server.asked if one.call.endswith("/output")]
    assert asked == ["offset=0", "offset=0"]


def test_output_starts_over_at_an_orchestrator_without_history_too(
    server: Scripted, person: Person
) -> None:
    server.on(f"GET {TASK}", task(), task(), task("pending"), task("success"))
    again = output((0, "2nd\n"), ends=True)
    server.on(f"GET {TASK}/output", output((0, "of the 1st\n"), (2, "d\n")), again)
    watched = person.reads_lines("task", "watch", "t")
    shown = [event.get("text", event["event"]) for event in watched]
    assert shown == ["status", "of the 1st\n", "restart", "status", "2nd\n", "end"]


def test_last_lines_in_the_message_are_not_shown_twice(server: Scripted, person: Person) -> None:
    message = "completed: exit code 0\n…wo\nthree"
    server.on(f"GET {TASK}", task(), task("success", result=message))
    lines = f"one\n{RED}two{RESET}\nthree\n"
    server.on(f"GET {TASK}/output", output((0, lines), ends=True))
    assert person.tries("task", "watch", "t").stderr.endswith("success: completed: exit code 0\n")
    server.on(f"GET {TASK}/output", output((0, f"{lines}four\n"), ends=True))
    assert person.tries("task", "watch", "t").stderr.endswith(f"success: {message}\n")


def test_watch_prints_events_as_lines_of_json(server: Scripted, person: Person) -> None:
    ended = task("error", error_message="no")
    server.on(f"GET {TASK}", task("pending", waiting="all are busy"), task(), ended)
    server.on(f"GET {TASK}/output", output(), output((0, f"{RED}a"), ends=True))
    watched = person.tries("task", "watch", "t", "--json")
    events = [json.loads(line) for line in watched.stdout.splitlines()]
    assert watched.exit_code == 1
    assert [event["event"] for event in events] == ["status", "waiting", "status", "output", "end"]
    assert events[3] == {"event": "output", "offset": 0, "text": f"{RED}a"}
    assert events[4]["task"]["error_message"] == "no"


def test_a_task_can_be_watched_as_soon_as_it_is_created(server: Scripted, person: Person) -> None:
    server.on("GET /nodes", Reply([]))
    server.on("POST /tasks", Reply({"id": "t", "status": "pending", "waiting": "no node matches"}))
    server.on(f"GET {TASK}", task("cancelled"))
    server.on(f"GET {TASK}/output", output((0, "a\n"), ends=True))
    watched = person.tries("task", "create", "do it", "--watch")
    assert watched.exit_code == watch.EXIT_CODES["cancelled"]
    assert watched.stdout == "t\na\n"
    assert "it waits: no node matches" in watched.stderr


# Output and colours


def test_output_so_far_is_printed(server: Scripted, person: Person) -> None:
    headers = {"X-Output-Offset": "2", "X-Output-Length": "9", "X-Output-Done": "false"}
    text = f"{RED}ü{RESET}\x1b[2J"
    reply = Reply(text.encode(), headers=headers, kind="text/plain; charset=utf-8")
    server.on(f"GET {TASK}/output", reply)
    assert person.does("task", "output", "t", "--offset", "2") == "ü"
    assert server.asked[-1].query == "offset=2"
    expected = {"offset": 2, "length": 9, "done": False, "text": text}
    assert person.reads("task", "output", "t") == expected


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"{RED}red{RESET}", f"{RED}red{RESET}"),
        ("\x1b[1;38;5;9;48;2;1;2;3mx", "\x1b[1;38;5;9;48;2;1;2;3mx"),
        ("\x1b[8mhidden", "hidden"),
        ("\x1b[5mblink", "blink"),
        ("\x1b[38;5;9;8mx", "x"),
        ("\x1b]0;title\x07a\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "alink"),
        ("\x1b[2J\x1b[H\x1b[10Aa", "a"),
        ("a\rb\r\nc", "a\nb\nc"),
        ("a\x08\x07\x00b\x9b31mc\u202ed", "abcd"),
        ("\x1bPq#0\x1b\\a\x1b(0b\x1bcc", "abc"),
        ("\x1b]0;never ends\nb", "\nb"),
        ("tab\tand 数据 🚀", "tab\tand 数据 🚀"),
    ],
)
def test_of_what_a_terminal_can_do_only_colours_are_left(text: str, shown: str) -> None:
    keeps = OutputFilter(has_colours=True)
    kept = keeps.feed(text) + keeps.end()
    assert kept in {shown, shown + RESET}
    drops = OutputFilter(has_colours=False)
    assert "\x1b" not in drops.feed(text) + drops.end()


def test_hostile_text_takes_no_longer_than_another() -> None:
    text = "\x90" * 2_000_000 + "\n"
    assert OutputFilter(has_colours=True).feed(text) == "\n"


_PIECES = st.sampled_from(
    [
        RED,
        RESET,
        "\x1b",
        "[",
        "]0;",
        "\x07",
        "\x1b\\",
        "\r",
        "\n",
        "8m",
        "\x9b",
        "2J",
        "a",
        "ü",
        ";",
    ]
)


@given(st.lists(_PIECES, max_size=12).map("".join), st.data())
def test_it_does_not_matter_where_chunks_end(text: str, data: st.DataObject) -> None:
    whole = OutputFilter(has_colours=True)
    expected = whole.feed(text) + whole.end()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    split = OutputFilter(has_colours=True)
    assert "".join(map(split.feed, parts)) + split.end() == expected


@pytest.mark.parametrize("has_terminal", [True, False])
def test_colours_are_for_terminals_only(server: Scripted, *, has_terminal: bool) -> None:
    task_id, prompt = "9f2efda5-581e-4284-8ed7-afde2dbc8e32", f"[red]x[/red]{'y' * 99}"
    server.on("GET /tasks", Reply([{"id": task_id, "status": "error", "prompt": prompt}]))
    reading, writing = pty.openpty() if has_terminal else os.pipe()
    variables = {
        "VICTORIA_ORCHESTRATOR_URL": server.url,
        "VICTORIA_ORCHESTRATOR_API_KEY": "k",
        "TERM": "xterm-256color",
    }
    program = [sys.executable, "-m", "orchestrator", "task", "list"]
    subprocess.run(program, stdout=writing, env=variables, cwd=REPOSITORY, check=True)
    os.close(writing)
    shown = b""
    try:
        while block := os.read(reading, 65536):
            shown += block
    except OSError:
        pass  # a terminal whose other end is closed
    os.close(reading)
    assert (b"\x1b[31merror" in shown) == has_terminal
    assert (b"\x1b" in shown) == has_terminal
    assert f"{task_id}  ".encode() in shown
    assert b"[red]x[/red]" in shown
    assert (prompt.encode() in shown) != has_terminal  # cut to the width


# Lists


def test_a_list_is_read_page_by_page_and_the_key_stays_with_its_orchestrator(
    server: Scripted, person: Person
) -> None:
    first = {"Link": '<http://elsewhere.example/tasks?limit=2&cursor=a%26b&tag=x%3D1>; rel="next"'}
    rows = [{"id": str(n), "status": "running", "target_tags": {"x": "1"}} for n in range(4)]
    server.on("GET /tasks", Reply(rows[:2], headers=first), Reply(rows[2:]))
    listed = person.reads("task", "list", "--limit", "3", "--tag", "x=1")
    assert [row["id"] for row in listed] == ["0", "1", "2"]
    assert [one.query for one in server.asked] == [
        "tag=x%3D1&limit=3",
        "limit=2&cursor=a%26b&tag=x%3D1",
    ]


def test_filters_are_sent(server: Scripted, person: Person) -> None:
    server.on("GET /tasks", Reply([]))
    person.does(
        *("task", "list", "--status", "error", "--node", "n", "--tag", "a=b", "--tag", "c="),
        *("--created-by", "k", "--after", "2026-01-01T00:00Z", "--before", "2026-01-02T00:00Z"),
        *("--text", "x y"),
    )
    sent = server.asked[0].query
    for part in ("status_filter=error", "node=n", "tag=a%3Db", "tag=c%3D", "created_by=k"):
        assert part in sent.split("&")
    assert "created_after=2026-01-01" in sent
    assert "text=x+y" in sent or "text=x%20y" in sent


def test_ids_in_filters_may_be_in_upper_case(server: Scripted, person: Person) -> None:
    ids = {"assigned_node_id": "0a", "created_by": "0b"}
    server.on("GET /tasks", Reply([{"id": "1", "status": "error", **ids}]))
    server.on("GET /nodes", Reply([{"id": "0a", "name": "n"}]))
    assert person.reads("task", "list", "--node", "0A", "--created-by", "0B")


@pytest.mark.parametrize(
    "options",
    [
        ["--text", "b"],
        ["--node", "n"],
        ["--created-by", "k"],
        ["--tag", "a=b"],
        ["--after", "2100-01-01"],
    ],
)
def test_filters_that_the_orchestrator_ignores_are_a_refusal(
    options: list[str], server: Scripted, person: Person
) -> None:
    server.on(
        "GET /tasks", Reply([{"id": "1", "prompt": "a", "created_at": "2026-01-01T00:00:00Z"}])
    )
    code, sentence = person.refused("task", "list", *options)
    assert code == 4
    assert "does not know these filters" in sentence


def test_all_tasks_are_listed_without_pages_too(server: Scripted, person: Person) -> None:
    rows = [{"id": str(n), "status": "success"} for n in range(1200)]
    server.on("GET /tasks", Reply(rows[:1000]), Reply(rows))
    assert len(person.reads("task", "list", "--all")) == 1200


# What not every orchestrator has

EXTENSIONS = [
    (["task", "rerun", "t"], f"POST {TASK}/rerun", {"id": "u"}, "u"),
    (["task", "purge", "t", "--yes"], f"POST {TASK}/purge", {"task_id": "t"}, "t deleted"),
    (["task", "artifacts", "t"], f"GET {TASK}/artifacts", [{"path": "a", "size": 3}], "a"),
    (["node", "pause", "n"], "POST /nodes/i/pause", {"id": "i"}, "n paused"),
    (["node", "resume", "n"], "POST /nodes/i/resume", {"id": "i"}, "n resumed"),
]


@pytest.mark.parametrize(("arguments", "call", "body", "shown"), EXTENSIONS)
def test_calls_that_not_every_orchestrator_has(
    arguments: list[str], call: str, body: object, shown: str, server: Scripted
) -> None:
    person = Person(server.url)
    server.on("GET /nodes", Reply([{"id": "i", "name": "n"}]))
    server.on(call, Reply(body))
    assert shown in person.does(*arguments)
    assert person.reads(*arguments) == body
    assert call in server.calls()


@pytest.mark.parametrize("status", [404, 405])
@pytest.mark.parametrize(
    "arguments",
    [
        *(one[0] for one in EXTENSIONS),
        ["task", "output", "t"],
        ["task", "download", "t"],
        ["task", "download", "t", "--zip", "x.zip"],
    ],
    ids=" ".join,
)
def test_an_orchestrator_without_a_call_is_one_sentence(
    arguments: list[str], status: int, server: Scripted, person: Person
) -> None:
    server.on("GET /nodes", Reply([{"id": "i", "name": "n"}]))
    server.on("GET /nodes/i", Reply({"id": "i"}))
    server.on(f"GET {TASK}", task())
    for call in {one[1] for one in EXTENSIONS}:
        server.on(call, Reply({"detail": "x"}, status))
    code, sentence = person.refused(*arguments)
    assert code == 4
    assert sentence.endswith(": this orchestrator does not have that call")
    server.on(f"GET {TASK}", Reply({"detail": "there is no such task"}, 404))
    if arguments[0] == "task":
        assert person.refused(*arguments)[1].endswith(": there is no such task")


# Downloads


def serve_artifacts(server: Scripted, **files: bytes) -> list[dict[str, Any]]:
    rows = [
        {"path": path, "size": len(raw), "checksum": hashlib.sha256(raw).hexdigest()}
        for path, raw in files.items()
    ]
    server.on(f"GET {TASK}/artifacts", Reply(rows))
    return rows


def test_artifacts_are_downloaded_once_with_their_folders(
    server: Scripted, person: Person, tmp_path: Path
) -> None:
    rows = serve_artifacts(server, **{"a ü/b#?.txt": b"one", "c": b""})
    server.on(f"GET {TASK}/artifacts/a%20%C3%BC/b%23%3F.txt", Reply(b"one"))
    server.on(f"GET {TASK}/artifacts/c", Reply(b""))
    target = tmp_path / "to"
    person.does("task", "download", "t", "--to", str(target))
    assert (target / "a ü" / "b#?.txt").read_bytes() == b"one"
    assert (target / "c").read_bytes() == b""
    count = len(server.asked)
    saved = person.reads("task", "download", "t", rows[0]["path"], "--to", str(target))
    assert saved == [str(target / "a ü" / "b#?.txt")]
    assert len(server.asked) == count + 1  # the list


def test_a_download_replaces_another_file_only_if_asked(
    server: Scripted, person: Person, tmp_path: Path
) -> None:
    serve_artifacts(server, a=b"new")
    server.on(f"GET {TASK}/artifacts/a", Reply(b"new"))
    (tmp_path / "a").write_bytes(b"mine")
    assert person.refused("task", "download", "t", "--to", str(tmp_path))[0] == 4
    assert (tmp_path / "a").read_bytes() == b"mine"
    person.does("task", "download", "t", "--to", str(tmp_path), "--force")
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize(
    "reply",
    [Reply(b"other"), Reply(b"new", breaks_off=True), Reply({"detail": "gone"}, 404)],
    ids=["checksum", "broken off", "404"],
)
def test_of_a_download_that_fails_nothing_is_left(
    reply: Reply, server: Scripted, person: Person, tmp_path: Path
) -> None:
    serve_artifacts(server, a=b"new")
    server.on(f"GET {TASK}/artifacts/a", reply)
    assert person.refused("task", "download", "t", "--to", str(tmp_path / "to"))[0] in {4, 69}
    assert not list((tmp_path / "to").iterdir())


@pytest.mark.parametrize(
    "path", ["../x", "/etc/x", "a/../../x", "a//x", ".", "a\x1bx", "a\u202ex", ""]
)
def test_no_path_of_a_task_leads_out_of_the_folder(
    path: str, server: Scripted, person: Person, tmp_path: Path
) -> None:
    serve_artifacts(server, **{"fine": b"", path: b"x"})
    target = tmp_path / "to"
    code, sentence = person.refused("task", "download", "t", "--to", str(target))
    assert code == 4
    assert "--zip has it" in sentence
    assert sentence.isprintable()
    assert not target.exists()


def test_no_link_in_the_folder_leads_a_download_out_of_it(
    server: Scripted, person: Person, tmp_path: Path
) -> None:
    serve_artifacts(server, **{"a/x": b"x"})
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "a").symlink_to(tmp_path)
    assert person.refused("task", "download", "t", "--to", str(tmp_path / "to"))[0] == 4
    assert not (tmp_path / "x").exists()


def test_all_artifacts_come_as_one_archive(
    server: Scripted, person: Person, tmp_path: Path
) -> None:
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a/b", "one")
    server.on(f"GET {TASK}/artifacts.zip", Reply(archive.getvalue(), kind="application/zip"))
    target = tmp_path / "all.zip"
    assert person.does("task", "download", "t", "--zip", str(target)) == f"{target}\n"
    assert zipfile.ZipFile(target).read("a/b") == b"one"
    assert person.refused("task", "download", "t", "--zip", str(target))[0] == 4


def test_archive_without_its_end_is_not_kept(
    server: Scripted, person: Person, tmp_path: Path
) -> None:
    # As the server ends it when a task is purged meanwhile.
    file = tmp_path / "a"
    file.write_bytes(b"a")
    entries = [Entry(name, 1, datetime.now(timezone.utc), tmp_path / name) for name in ("a", "b")]
    archive = b"".join(zip_pieces(entries))
    server.on(f"GET {TASK}/artifacts.zip", Reply(archive, kind="application/zip"))
    target = tmp_path / "all.zip"
    code, sentence = person.refused("task", "download", "t", "--zip", str(target))
    assert (code, "the archive is not whole" in sentence) == (4, True)
    assert list(tmp_path.iterdir()) == [file]


# What goes wrong


@pytest.mark.parametrize(
    ("reply", "code", "text"),
    [
        (Reply(b"<html>", kind="text/html"), 69, "responds as no orchestrator does"),
        (Reply([1]), 69, "responds as no orchestrator does"),
        (Reply(b"<html>", 502, kind="text/html"), 69, "HTTP 502"),
        (Reply({}, 301, {"Location": "https://new.example"}), 69, "redirects to https://new"),
        (Reply({"detail": "unknown key"}, 401), 77, "unknown key"),
        (Reply(None, 401), 77, "HTTP 401"),
        (Reply({"detail": "not yours"}, 403), 77, "not yours"),
        (Reply({"detail": "slow down"}, 429, {"Retry-After": "7"}), 69, "try again in 7 s"),
        (Reply({"detail": "bad \x1b[31m\nfield"}, 422), 4, "bad \ufffd[31m field"),
        (Reply({"detail": "disk is full"}, 507), 4, "disk is full"),
        (Reply(b"{", breaks_off=True), 69, "the connection failed"),
    ],
)
def test_whatever_comes_back_is_one_sentence(
    reply: Reply, code: int, text: str, server: Scripted, person: Person
) -> None:
    server.on("GET /dashboard/stats", reply)
    refusal = person.refused("stats")
    assert refusal[0] == code
    assert text in refusal[1]
    assert person.tries("stats").stderr.count("\n") == 1


def test_session_of_another_form_is_shown_as_far_as_it_goes(
    server: Scripted, person: Person
) -> None:
    odd = ["text", None, {"role": 1, "content": ["x"], "created_at": 1_790_000_000_000}]
    server.on("GET /logs/t", Reply({"title": {"a": 1}, "messages": odd}))
    shown = person.does("task", "logs", "t")
    assert "2026-09-2" in shown
    assert "['x']" in shown
    server.on("GET /logs/t", Reply({"messages": "none"}))
    assert person.does("task", "logs", "t") == ""


def test_names_from_outside_cannot_control_a_terminal(server: Scripted, person: Person) -> None:
    evil = "a\x1b]0;x\x07\u202eb\nc"
    server.on(
        "GET /nodes", Reply([{"id": "i", "name": evil, "status": evil, "tags": {evil: evil}}])
    )
    shown = person.does("node", "list")
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)
    assert len(shown.splitlines()) == 2
    server.on("GET /nodes", Reply([{"id": evil, "name": "n"}, {"id": evil, "name": "n"}]))
    server.on("POST /tasks", Reply({"id": evil, "waiting": evil}))
    server.on("POST /keys", Reply({"key_id": evil, "api_key": evil}))
    for arguments in (["node", "show", "n"], ["task", "create", "p"], ["key", "create", "k"]):
        assert not {"\x1b", "\x07", "\u202e"} & set(person.tries(*arguments).output), arguments
