"""Files are downloaded completely, verified and into their folder only, or the task ends."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from runner.api.client import OrchestratorClient
from runner.errors import FileRefused, Unauthorised, Unstartable
from runner.handles import free_disk
from runner.model import Assignment, Identity, TaskFile
from runner.workspace.download import (
    CONTAINER_HOME,
    fetch_files,
    files_folder,
    files_folder_in_container,
)
from tests.harness.clock import PassingClock
from tests.harness.server import (
    Answer,
    ScriptedServer,
    endless,
    http,
    json_response,
    raw,
    stalled,
    zeros,
)
from tests.harness.until import DEADLINE_S, until

pytestmark = pytest.mark.anyio

TASK_ID = "11111111-2222-4333-8444-555555555555"
CONTENT = b"region,sales\nnorth,12\n"
PART = ".victoria-part-0011223344556677"
MIB = 1 << 20


def sales(content: bytes = CONTENT) -> TaskFile:
    return TaskFile("sales.csv", hashlib.sha256(content).hexdigest())


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Fetch:
    """`fetch_files` from the scripted server, with what most tests have in common."""

    def __init__(
        self,
        orchestrator: OrchestratorClient,
        identity: Identity,
        server: ScriptedServer,
        home: Path,
    ) -> None:
        self.orchestrator = orchestrator
        self.identity = identity
        self.server = server
        self.home = home
        self.folder = home / "tasks" / TASK_ID / "files"
        self.clock = PassingClock()
        server.answer(http(200, CONTENT))

    async def __call__(self, *files: TaskFile, min_free_disk: int = 0) -> None:
        """Fetch these files, sales.csv if none is named."""
        await fetch_files(
            self.orchestrator,
            self.identity,
            Assignment(TASK_ID, "count", "https://o.example.com", 60, files or (sales(),)),
            self.home,
            min_free_disk=min_free_disk,
            clock=self.clock,
        )

    def content(self, name: str = "sales.csv") -> bytes:
        """Return the content of a file, which is not a link."""
        assert not (self.folder / name).is_symlink()
        return (self.folder / name).read_bytes()

    def names(self) -> list[str]:
        """List what is in the folder."""
        return names_in(self.folder)


@pytest.fixture
def fetch(
    orchestrator: OrchestratorClient, identity: Identity, server: ScriptedServer, tmp_path: Path
) -> Fetch:
    """Return a fetch into a new Victoria home."""
    home = tmp_path / "Victoria"
    home.mkdir()
    return Fetch(orchestrator, identity, server, home)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Make a folder beside the Victoria home, with a file in it."""
    path = tmp_path / "outside"
    path.mkdir()
    (path / "precious").write_bytes(CONTENT)
    return path


def next_attempts_s(caplog: pytest.LogCaptureFixture) -> list[int]:
    records = [record for record in caplog.records if "fetch a file" in record.getMessage()]
    assert {record.levelname for record in records} == {"WARNING"}
    return [vars(record)["fields"]["next_attempt_s"] for record in records]


async def test_files_land_in_the_folder_of_their_task(fetch: Fetch) -> None:
    contents = {"a": b"first", "b": b"", "c": b"third"}
    fetch.server.answer(*(http(200, content) for content in contents.values()))

    await fetch(
        *(TaskFile(name, sales(content).sha256) for name, content in contents.items()),
    )

    assert fetch.folder == files_folder(fetch.home, TASK_ID)
    assert {name: fetch.content(name) for name in fetch.names()} == contents
    keys = {request.headers["x-api-key"] for request in fetch.server.requests}
    assert keys == {fetch.identity.api_key.reveal()}


def test_folder_of_a_task_in_its_container_is_the_documented_one() -> None:
    assert files_folder_in_container("t-1") == "/workspace/Victoria/tasks/t-1/files"
    assert CONTAINER_HOME == "/workspace/Victoria"


async def test_task_without_files_gets_no_folder(fetch: Fetch) -> None:
    task = Assignment(TASK_ID, "count", "https://o.example.com", 60)
    await fetch_files(
        fetch.orchestrator, fetch.identity, task, fetch.home, min_free_disk=0, clock=fetch.clock
    )

    assert not any(fetch.home.iterdir())
    assert fetch.server.requests == []


@pytest.mark.parametrize(
    "name",
    ["two words.csv", "Umsätze.csv", "a#b?c.csv", "100%.csv", "a%2Fb", "a+b&c=d;e:f@g", "n" * 255],
)
async def test_name_is_plain_on_the_disk(fetch: Fetch, name: str) -> None:
    await fetch(TaskFile(name, None))

    assert fetch.names() == [name]


async def test_fetched_file_can_be_read_by_the_container_of_any_user(fetch: Fetch) -> None:
    before = os.umask(0o077)
    try:
        await fetch()
    finally:
        os.umask(before)

    assert mode_of(fetch.folder / "sales.csv") == 0o644


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


# A restart while files are fetched


@pytest.mark.parametrize(
    ("there", "file", "is_fetched"),
    [
        (CONTENT, sales(), False),
        (b"old", sales(), True),
        (b"old", TaskFile("sales.csv", None), True),
    ],
    ids=["same", "different", "without a checksum"],
)
async def test_file_that_is_there_is_fetched_again_unless_its_checksum_is_right(
    fetch: Fetch,
    there: bytes,
    file: TaskFile,
    is_fetched: bool,  # noqa: FBT001 - a column of the table
) -> None:
    make(fetch.folder / "sales.csv", lambda path: path.write_bytes(there))

    await fetch(file)

    assert fetch.content() == CONTENT
    assert len(fetch.server.requests) == is_fetched


async def test_partial_file_of_a_killed_runner_is_removed_but_a_folder_in_its_place_stays(
    fetch: Fetch, outside: Path
) -> None:
    make(fetch.folder / PART, lambda path: path.write_bytes(b"half"))
    make(fetch.folder / ".victoria-part-00", lambda path: path.symlink_to(outside / "precious"))
    make(fetch.folder / ".victoria-part-01", lambda path: path.mkdir())

    await fetch()

    assert fetch.names() == [".victoria-part-01", "sales.csv"]
    assert content_of(outside / "precious") == CONTENT


def make(path: Path, how: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    how(path)


def content_of(path: Path) -> bytes:
    return path.read_bytes()


# What an earlier task may have planted


@pytest.mark.parametrize("level", ["tasks", f"tasks/{TASK_ID}", f"tasks/{TASK_ID}/files"])
@pytest.mark.parametrize("target", [".", "made", "precious"], ids=["folder", "nowhere", "file"])
async def test_link_in_place_of_a_folder_is_not_followed(
    fetch: Fetch, outside: Path, level: str, target: str
) -> None:
    make(fetch.home / level, lambda path: path.symlink_to(outside / target))

    with pytest.raises(Unstartable, match=r"cannot open the folder .*: Not a directory"):
        await fetch()

    assert names_in(outside) == ["precious"]
    assert fetch.server.requests == []


@pytest.mark.parametrize("content", [CONTENT, b"root"], ids=["same content", "other content"])
async def test_link_in_place_of_the_file_is_replaced_and_not_followed(
    fetch: Fetch, outside: Path, content: bytes
) -> None:
    make(outside / "passwd", lambda path: path.write_bytes(content))
    make(fetch.folder / "sales.csv", lambda path: path.symlink_to(outside / "passwd"))

    await fetch()

    assert fetch.content() == CONTENT
    assert content_of(outside / "passwd") == content


@pytest.mark.parametrize("content", [CONTENT, b""], ids=["a file", "an empty file"])
async def test_pipe_in_place_of_the_file_is_replaced_and_not_waited_for(
    fetch: Fetch, content: bytes
) -> None:
    make(fetch.folder / "sales.csv", os.mkfifo)
    fetch.server.answer(http(200, content))

    with anyio.fail_after(DEADLINE_S):
        await fetch(sales(content))

    assert fetch.content() == content


@pytest.mark.parametrize(
    ("place", "how", "reason"),
    [
        (f"tasks/{TASK_ID}/files/sales.csv", "mkdir", "write the file 'sales.csv': Is a directory"),
        ("tasks", "touch", "open the folder .*: Not a directory"),
        (".", "rmdir", "open the folder .*: No such file or directory"),
    ],
    ids=["folder for a file", "file for a folder", "no Victoria home"],
)
async def test_place_that_cannot_be_written_makes_the_task_unstartable(
    fetch: Fetch, place: str, how: str, reason: str
) -> None:
    make(fetch.home / place, lambda path: getattr(path, how)())

    with pytest.raises(Unstartable, match=f"^cannot {reason}"):
        await fetch()


async def test_victoria_home_itself_may_be_a_link(fetch: Fetch) -> None:
    link = fetch.home.with_name("by-another-name")
    make(link, lambda path: path.symlink_to(fetch.home))
    home, fetch.home = fetch.home, link

    await fetch()

    assert content_of(files_folder(home, TASK_ID) / "sales.csv") == CONTENT


# Wrong bytes


async def test_wrong_checksum_is_fetched_once_more(fetch: Fetch) -> None:
    fetch.server.answer(http(200, b"garbled"), http(200, CONTENT))

    await fetch()

    assert fetch.content() == CONTENT


async def test_checksum_wrong_twice_makes_the_task_unstartable(fetch: Fetch) -> None:
    fetch.server.answer(http(200, b"garbled"))

    with pytest.raises(Unstartable) as caught:
        await fetch()

    assert str(caught.value) == (
        f"cannot use the file 'sales.csv': its SHA-256 is {sales(b'garbled').sha256}, "
        f"not {sales().sha256}"
    )
    assert len(fetch.server.requests) == 2
    assert fetch.names() == []


async def test_body_that_breaks_off_is_fetched_again(fetch: Fetch) -> None:
    fetch.server.answer(zeros(3 * MIB // 2, promised=3 * MIB), zeros(3 * MIB))

    await fetch(TaskFile("zeros", None))

    assert len(fetch.content("zeros")) == 3 * MIB


async def test_body_that_always_breaks_off_leaves_nothing(fetch: Fetch) -> None:
    fetch.server.answer(raw(b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\nhalf"))

    with pytest.raises(Unstartable, match=r"cannot fetch the file 'sales\.csv': "):
        await fetch()

    assert fetch.names() == []


async def test_compressed_file_is_not_unpacked(fetch: Fetch) -> None:
    fetch.server.answer(http(200, b"\x1f\x8b bomb", {"Content-Encoding": "gzip"}))

    with pytest.raises(Unstartable, match="it sent a compressed file, which was not asked for"):
        await fetch()


# An orchestrator that is away


@pytest.mark.parametrize(
    "outage",
    [http(500), http(503, b"<html>"), http(429, b"", {"Retry-After": "1"}), raw(b""), raw(b"junk")],
    ids=["500", "503", "429", "closed", "junk"],
)
async def test_outage_while_files_are_fetched_is_waited_out(
    fetch: Fetch, caplog: pytest.LogCaptureFixture, outage: Answer
) -> None:
    fetch.server.answer(outage, http(200, CONTENT))

    with caplog.at_level(logging.WARNING, "runner"):
        await fetch()

    assert fetch.content() == CONTENT
    assert len(next_attempts_s(caplog)) == 1


@pytest.mark.parametrize(("asked", "shortest", "longest"), [(120, 120, 132), (86400, 3600, 3600)])
async def test_wait_that_the_orchestrator_asks_for_is_granted_for_an_hour_at_most(
    fetch: Fetch, caplog: pytest.LogCaptureFixture, asked: int, shortest: int, longest: int
) -> None:
    fetch.server.answer(http(503, b"", {"Retry-After": str(asked)}), http(200, CONTENT))

    with caplog.at_level(logging.WARNING, "runner"):
        await fetch()

    assert shortest <= next_attempts_s(caplog)[0] <= longest


async def test_outage_without_end_makes_the_task_unstartable(fetch: Fetch) -> None:
    fetch.server.answer(json_response({"detail": "maintenance"}, 503))
    begun_at = fetch.clock.awake_s()

    with pytest.raises(Unstartable) as caught:
        await fetch()

    attempt = len(fetch.server.requests)
    assert str(caught.value) == (
        f"cannot fetch the file 'sales.csv': HTTP 503: maintenance (attempt {attempt})"
    )
    assert fetch.clock.awake_s() - begun_at == pytest.approx(3600)


@pytest.mark.parametrize("status", [400, 403, 404, 409, 410, 422])
async def test_refused_file_makes_the_task_unstartable_at_once(fetch: Fetch, status: int) -> None:
    fetch.server.answer(json_response({"detail": "no such file"}, status))
    reason = rf"^cannot fetch the file 'sales\.csv': HTTP {status}: no such file$"

    with pytest.raises(Unstartable, match=reason):
        await fetch()

    assert len(fetch.server.requests) == 1


@pytest.mark.parametrize(
    "page",
    [
        http(404, b"<html>404 page not found</html>", {"Content-Type": "text/html"}),
        http(403, b"forbidden", {"Content-Type": "text/plain"}),
        http(404),
        http(404, b"\x1f\x8b bomb", {"Content-Encoding": "gzip"}),
    ],
    ids=["html", "text", "nothing", "compressed"],
)
async def test_page_of_a_proxy_is_retried_and_a_refusal_if_it_stays(
    fetch: Fetch, page: Answer
) -> None:
    fetch.server.answer(*[page] * 5, http(200, CONTENT))
    await fetch()
    assert fetch.content() == CONTENT
    assert len(fetch.server.requests) == 6

    fetch.server.answer(page)
    with pytest.raises(FileRefused, match=r"^cannot fetch the file 'b': HTTP 40[34]$"):
        await fetch(TaskFile("b", None))
    assert len(fetch.server.requests) == 12


async def test_unknown_key_is_for_the_caller_to_act_on(fetch: Fetch) -> None:
    fetch.server.answer(json_response({"detail": "unknown key"}, 401))

    with pytest.raises(Unauthorised):
        await fetch()

    assert fetch.names() == []


# Disk


async def test_announced_length_that_does_not_fit_is_refused_before_a_byte_is_written(
    fetch: Fetch,
) -> None:
    fetch.server.answer(endless({"Content-Length": str(1 << 60)}))

    with pytest.raises(Unstartable) as caught:
        await fetch(min_free_disk=MIB)

    message = str(caught.value)
    assert message.startswith("cannot fetch the file 'sales.csv': it takes 1,099,511,627,776 MiB m")
    assert message.endswith(f"remove folders of old tasks from {fetch.home}/tasks")
    assert fetch.names() == []


async def test_full_disk_ends_a_file_without_an_announced_length(fetch: Fetch) -> None:
    fetch.server.answer(endless())
    least = free_disk(fetch.home) - 32 * MIB

    with pytest.raises(Unstartable, match="--min-free-disk keeps"):
        await fetch(min_free_disk=least)

    assert fetch.names() == []


def test_free_disk_is_what_is_left_to_those_without_privileges(tmp_path: Path) -> None:
    assert 0 < free_disk(tmp_path) <= shutil.disk_usage(tmp_path).total


# Cancelling and size


async def test_cancelled_download_leaves_nothing(fetch: Fetch) -> None:
    fetch.server.answer(stalled(bytes(3 * MIB)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fetch)
        await until(lambda: any(fetch.folder.glob(".victoria-part-*")))
        tasks.cancel_scope.cancel()

    assert fetch.names() == []


async def test_large_file_takes_little_memory_and_the_event_loop_goes_on(fetch: Fetch) -> None:
    fetch.server.answer(zeros(32 * MIB))
    turns = 0

    async def go_on() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    tracemalloc.start()
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(go_on)
            await fetch(TaskFile("zeros", None))
            tasks.cancel_scope.cancel()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(fetch.content("zeros")) == 32 * MIB
    assert turns > 32
    assert peak < 20 * MIB
