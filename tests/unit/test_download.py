"""Files are downloaded completely, verified and into their folder only, or the task ends."""

import hashlib
import os
import re
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from runner.api.client import OrchestratorClient
from runner.errors import FileRefused, Unauthorised, Unstartable
from runner.handles import free_disk
from runner.model import Assignment, Identity, TaskFile
from runner.workspace.download import fetch_files, files_folder, folder_in_container
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
MIB = 1 << 20
PAGE = http(404, b"<html>404 page not found</html>", {"Content-Type": "text/html"})
GARBLED = http(200, b"garbled")
BREAKS_OFF = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n", bytes(2 * MIB))
OUTAGE = json_response({"detail": "maintenance"}, 503)
COMPRESSED = http(200, b"\x1f\x8b bomb", {"Content-Encoding": "gzip"})


def sales(content: bytes = CONTENT) -> TaskFile:
    return TaskFile("sales.csv", hashlib.sha256(content).hexdigest())


@dataclass
class Fetch:
    """`fetch_files` from the scripted server, with what most tests have in common."""

    orchestrator: OrchestratorClient
    identity: Identity
    server: ScriptedServer
    home: Path
    clock: PassingClock = field(default_factory=PassingClock)

    async def __call__(self, *files: TaskFile, min_free_disk: int = 0) -> None:
        """Fetch these files."""
        assignment = Assignment(TASK_ID, "count", "https://o.example.com", 60, files)
        await fetch_files(
            *(self.orchestrator, self.identity, assignment, self.home),
            min_free_disk=min_free_disk,
            clock=self.clock,
        )

    @property
    def folder(self) -> Path:
        return files_folder(self.home, TASK_ID)

    def content(self, name: str = "sales.csv") -> bytes:
        assert not (self.folder / name).is_symlink()
        return (self.folder / name).read_bytes()

    def names(self) -> list[str]:
        return names_in(self.folder)


@pytest.fixture
def fetch(
    orchestrator: OrchestratorClient, identity: Identity, server: ScriptedServer, tmp_path: Path
) -> Fetch:
    (tmp_path / "Victoria").mkdir()
    server.answer(http(200, CONTENT))
    return Fetch(orchestrator, identity, server, tmp_path / "Victoria")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    path = tmp_path / "outside"
    make(path / "precious", lambda file: file.write_bytes(CONTENT))
    return path


def make(path: Path, how: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    how(path)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def content_of(path: Path) -> bytes:
    return path.read_bytes()


class SlowClock(PassingClock):
    """A clock by which half a minute passes between two looks at it."""

    def awake_s(self) -> float:
        self.move(31)
        return super().awake_s()


async def test_log_has_how_much_of_the_files_has_come_and_how_long_it_took(
    fetch: Fetch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "runner")
    fetch.clock = SlowClock()
    fetch.server.answer(zeros(3 * MIB), http(200, CONTENT))
    await fetch(TaskFile("big.bin", None), TaskFile("small.csv", None))
    events = [(record.message, vars(record)["fields"]) for record in caplog.records]
    ids = {"task_id": TASK_ID, "files": 2}
    assert events[0] == ("fetching files", ids)
    assert events[1][0] == "fetching files"
    assert 0 < float(events[1][1]["fetched_mib"]) <= 3
    last, facts = events[-1]
    assert (last, facts["fetched_mib"]) == ("files fetched", "3.0")
    assert facts["duration_s"] > 0


async def test_files_land_in_the_folder_of_their_task(fetch: Fetch) -> None:
    contents = {"a": b"first", "b": b"", "c": b"third"}
    fetch.server.answer(*(http(200, content) for content in contents.values()))
    await fetch()
    assert names_in(fetch.home) == [], "a task without files gets no folder"
    await fetch(*(TaskFile(name, sales(content).sha256) for name, content in contents.items()))
    assert fetch.folder == fetch.home / "tasks" / TASK_ID / "files"
    assert folder_in_container("t-1") == "/workspace/Victoria/tasks/t-1"
    assert {name: fetch.content(name) for name in fetch.names()} == contents
    keys = {request.headers["x-api-key"] for request in fetch.server.requests}
    assert keys == {fetch.identity.api_key.reveal()}


@pytest.mark.parametrize("name", ["Umsätze #1?.csv", "a%2Fb", "n" * 255])
async def test_file_has_its_plain_name_and_anybody_can_read_it(fetch: Fetch, name: str) -> None:
    before = os.umask(0o077)
    try:
        await fetch(TaskFile(name, None))
    finally:
        os.umask(before)
    (path,) = fetch.folder.iterdir()
    assert (path.name, path.stat().st_mode & 0o777) == (name, 0o644)


@pytest.mark.parametrize(
    ("there", "file", "requests"),
    [(CONTENT, sales(), 0), (b"old", sales(), 1), (b"old", TaskFile("sales.csv", None), 1)],
    ids=["same", "different", "without a checksum"],
)
async def test_file_that_is_there_is_fetched_again_unless_its_checksum_is_right(
    fetch: Fetch, there: bytes, file: TaskFile, requests: int
) -> None:
    make(fetch.folder / "sales.csv", lambda path: path.write_bytes(there))
    await fetch(file)
    assert fetch.content() == CONTENT
    assert len(fetch.server.requests) == requests


async def test_partial_file_of_a_killed_runner_is_removed(fetch: Fetch, outside: Path) -> None:
    part = ".victoria-part-0011223344556677"
    make(fetch.folder / part, lambda path: path.write_bytes(b"half"))
    make(fetch.folder / ".victoria-part-00", lambda path: path.symlink_to(outside / "precious"))
    make(fetch.folder / ".victoria-part-01", lambda path: path.mkdir())
    await fetch(sales())
    assert fetch.names() == [".victoria-part-01", "sales.csv"]
    assert content_of(outside / "precious") == CONTENT


@pytest.mark.parametrize("level", ["tasks", f"tasks/{TASK_ID}", f"tasks/{TASK_ID}/files"])
@pytest.mark.parametrize("target", [".", "made", "precious"], ids=["folder", "nowhere", "file"])
async def test_folder_link_is_refused(fetch: Fetch, outside: Path, level: str, target: str) -> None:
    make(fetch.home / level, lambda path: path.symlink_to(outside / target))
    with pytest.raises(Unstartable, match=r"cannot open the folder .*: Not a directory"):
        await fetch(sales())
    assert names_in(outside) == ["precious"]
    assert fetch.server.requests == []


@pytest.mark.parametrize("content", [CONTENT, b""], ids=["content as outside", "no content"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
async def test_what_is_in_place_of_the_file_is_replaced_and_not_followed_or_waited_for(
    fetch: Fetch, outside: Path, kind: str, content: bytes
) -> None:
    plants = {"link": lambda path: path.symlink_to(outside / "precious"), "pipe": os.mkfifo}
    make(fetch.folder / "sales.csv", plants[kind])
    fetch.server.answer(http(200, content))
    with anyio.fail_after(DEADLINE_S):
        await fetch(sales(content))
    assert fetch.content() == content
    assert content_of(outside / "precious") == CONTENT


@pytest.mark.parametrize(
    ("place", "how", "reason"),
    [
        (f"tasks/{TASK_ID}/files/sales.csv", "mkdir", "write the file 'sales.csv': Is a directory"),
        ("tasks", "touch", "open the folder .*: Not a directory"),
        (".", "rmdir", "open the folder .*: No such file or directory"),
    ],
    ids=["folder for a file", "file for a folder", "no Victoria home"],
)
async def test_unwritable_is_unstartable(fetch: Fetch, place: str, how: str, reason: str) -> None:
    make(fetch.home / place, lambda path: getattr(path, how)())
    with pytest.raises(Unstartable, match=f"^cannot {reason}"):
        await fetch(sales())


async def test_victoria_home_itself_may_be_a_link(fetch: Fetch) -> None:
    link = fetch.home.with_name("by-another-name")
    make(link, lambda path: path.symlink_to(fetch.home))
    fetch.home = link
    await fetch(sales())
    assert fetch.content() == CONTENT


@pytest.mark.parametrize(
    "failures",
    [[GARBLED], [BREAKS_OFF], [OUTAGE, raw(b""), http(500)], [PAGE] * 5],
    ids=["wrong checksum", "breaks off", "outage", "page of a proxy"],
)
async def test_failure_that_passes_is_retried(fetch: Fetch, failures: list[Answer]) -> None:
    fetch.server.answer(*failures, http(200, CONTENT))
    await fetch(sales())
    assert fetch.content() == CONTENT
    assert len(fetch.server.requests) == len(failures) + 1


TOO_LARGE = endless({"Content-Length": str(1 << 60)})
SUMS = f"{sales(b'garbled').sha256}, not {sales().sha256}$"
ENDS: dict[str, tuple[Answer, type[Exception], str, int]] = {
    "wrong checksum": (GARBLED, Unstartable, f"^cannot use {{}}: its SHA-256 is {SUMS}", 2),
    "page of a proxy": (PAGE, FileRefused, "^cannot fetch {}: HTTP 404$", 6),
    "refused": (json_response({"detail": "no"}, 404), FileRefused, "^cannot .*: HTTP 404: no$", 1),
    "unknown key": (json_response({"detail": "no"}, 401), Unauthorised, "^HTTP 401: no$", 1),
    "too large": (TOO_LARGE, Unstartable, "^cannot fetch {}: it takes 1,099,511,627,776 MiB m", 1),
}


@pytest.mark.parametrize(("response", "error", "message", "requests"), ENDS.values(), ids=ENDS)
async def test_failure_that_stays_is_an_error_and_leaves_nothing(
    fetch: Fetch, response: Answer, error: type[Exception], message: str, requests: int
) -> None:
    fetch.server.answer(response)
    with pytest.raises(error, match=message.format("the file 'sales.csv'")):
        await fetch(sales(), min_free_disk=MIB)
    assert len(fetch.server.requests) == requests
    assert fetch.names() == []


@pytest.mark.parametrize(
    ("outage", "reason"),
    [
        (OUTAGE, "HTTP 503: maintenance"),
        (COMPRESSED, "it sent a compressed file, which was not asked for"),
    ],
    ids=["unavailable", "compressed"],
)
async def test_outage_of_an_hour_is_unstartable(fetch: Fetch, outage: Answer, reason: str) -> None:
    fetch.server.answer(outage)
    begun_at = fetch.clock.awake_s()
    with pytest.raises(Unstartable) as caught:
        await fetch(sales())
    attempts = len(fetch.server.requests)
    sentence = rf"cannot fetch the file 'sales\.csv': {reason} \(attempt {attempts}\)"
    assert re.fullmatch(sentence, str(caught.value))
    assert fetch.clock.awake_s() - begun_at == pytest.approx(3600)
    assert fetch.names() == []


async def test_full_disk_ends_a_file_without_an_announced_length(fetch: Fetch) -> None:
    fetch.server.answer(endless())
    least = free_disk(fetch.home) - 32 * MIB
    message = f"--min-free-disk keeps.*remove folders of old tasks from {fetch.home}/tasks$"
    with pytest.raises(Unstartable, match=message):
        await fetch(sales(), min_free_disk=least)
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
    assert (fetch.folder / "zeros").stat().st_size == 32 * MIB
    assert turns > 32
    assert peak < 20 * MIB


async def test_cancelled_download_leaves_nothing(fetch: Fetch) -> None:
    fetch.server.answer(stalled(bytes(3 * MIB)))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fetch, TaskFile("a", None))
        await until(lambda: any(fetch.folder.glob(".victoria-part-*")))
        tasks.cancel_scope.cancel()
    assert list(fetch.folder.iterdir()) == []
