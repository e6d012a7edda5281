"""Files are downloaded completely, verified, into their folder only, or the task says why not."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import stat
import tracemalloc
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

TASK_ID = "11111111-2222-4333-8444-555555555555"
CONTENT = b"region,sales\nnorth,12\n"
MIB = 1 << 20
NO_LIMIT = 0


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Make a Victoria home."""
    path = tmp_path / "Victoria"
    path.mkdir()
    return path


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Make a folder beside the Victoria home that nobody may write in."""
    path = tmp_path / "outside"
    path.mkdir()
    return path


class Fetch:
    """`fetch_files` with what most tests have in common."""

    def __init__(self, orchestrator: OrchestratorClient, identity: Identity, home: Path) -> None:
        self.orchestrator = orchestrator
        self.identity = identity
        self.home = home
        self.folder = files_folder(home, TASK_ID)
        self.clock = PassingClock()

    async def __call__(self, *files: TaskFile, min_free_disk: int = NO_LIMIT) -> None:
        """Fetch these files."""
        await fetch_files(
            self.orchestrator,
            self.identity,
            Assignment(TASK_ID, "count", "https://o.example.com", 60, files),
            self.home,
            min_free_disk=min_free_disk,
            clock=self.clock,
        )

    def names(self) -> list[str]:
        """List what is in the folder."""
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def fetch(orchestrator: OrchestratorClient, identity: Identity, home: Path) -> Fetch:
    """Fetch from the scripted server."""
    return Fetch(orchestrator, identity, home)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sales(content: bytes = CONTENT) -> TaskFile:
    return TaskFile("sales.csv", sha256(content))


def next_attempts_s(caplog: pytest.LogCaptureFixture) -> list[int]:
    records = [record for record in caplog.records if "fetch a file" in record.getMessage()]
    return [vars(record)["fields"]["next_attempt_s"] for record in records]


def tree(path: Path) -> list[str]:
    return sorted(str(found.relative_to(path)) for found in path.rglob("*"))


async def test_file_lands_in_the_folder_of_its_task(fetch: Fetch, server: ScriptedServer) -> None:
    server.answer(http(200, CONTENT))

    await fetch(sales())

    assert (fetch.home / "tasks" / TASK_ID / "files" / "sales.csv").read_bytes() == CONTENT


async def test_several_files_are_fetched_in_their_order(
    fetch: Fetch, server: ScriptedServer
) -> None:
    server.answer(http(200, b"first"), http(200, b"second"))

    await fetch(TaskFile("a", sha256(b"first")), TaskFile("b", sha256(b"second")))

    assert (fetch.folder / "a").read_bytes() == b"first"
    assert (fetch.folder / "b").read_bytes() == b"second"


async def test_file_without_a_checksum_is_taken_as_it_comes(
    fetch: Fetch, server: ScriptedServer
) -> None:
    server.answer(http(200, CONTENT))

    await fetch(TaskFile("sales.csv", None))

    assert (fetch.folder / "sales.csv").read_bytes() == CONTENT


async def test_empty_file_is_a_file(fetch: Fetch, server: ScriptedServer) -> None:
    server.answer(http(200, b""))

    await fetch(sales(b""))

    assert (fetch.folder / "sales.csv").read_bytes() == b""


async def test_task_without_files_gets_no_folder(fetch: Fetch, server: ScriptedServer) -> None:
    await fetch()

    assert tree(fetch.home) == []
    assert server.requests == []


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("two words.csv", "/files/two%20words.csv"),
        ("Umsätze.csv", "/files/Ums%C3%A4tze.csv"),
        ("a#b?c.csv", "/files/a%23b%3Fc.csv"),
        ("100%.csv", "/files/100%25.csv"),
        ("a%2Fb", "/files/a%252Fb"),
        ("a+b&c=d;e:f@g", "/files/a%2Bb%26c%3Dd%3Be%3Af%40g"),
        ("…", "/files/%E2%80%A6"),
    ],
)
async def test_name_is_encoded_on_the_wire_and_plain_on_the_disk(
    fetch: Fetch, server: ScriptedServer, name: str, target: str
) -> None:
    server.answer(http(200, CONTENT))

    await fetch(TaskFile(name, None))

    assert [request.target for request in server.requests] == [target]
    assert fetch.names() == [name]


async def test_name_of_255_bytes_fits(fetch: Fetch, server: ScriptedServer) -> None:
    server.answer(http(200, CONTENT))

    await fetch(TaskFile("n" * 255, None))

    assert fetch.names() == ["n" * 255]


async def test_fetched_file_can_be_read_by_the_container_whoever_it_runs_as(
    fetch: Fetch, server: ScriptedServer
) -> None:
    server.answer(http(200, CONTENT))
    before = os.umask(0o077)
    try:
        await fetch(sales())
    finally:
        os.umask(before)

    assert stat.S_IMODE((fetch.folder / "sales.csv").stat().st_mode) == 0o644


async def test_key_of_the_node_is_sent_with_the_download(
    fetch: Fetch, server: ScriptedServer
) -> None:
    server.answer(http(200, CONTENT))

    await fetch(sales())

    assert server.requests[0].headers["x-api-key"] == fetch.identity.api_key.reveal()


# A restart while files are fetched


async def test_file_that_is_there_already_is_not_fetched_again(
    fetch: Fetch, server: ScriptedServer
) -> None:
    fetch.folder.mkdir(parents=True)
    (fetch.folder / "sales.csv").write_bytes(CONTENT)

    await fetch(sales())

    assert server.requests == []


async def test_file_that_is_there_with_other_content_is_replaced(
    fetch: Fetch, server: ScriptedServer
) -> None:
    fetch.folder.mkdir(parents=True)
    (fetch.folder / "sales.csv").write_bytes(b"old")
    server.answer(http(200, CONTENT))

    await fetch(sales())

    assert (fetch.folder / "sales.csv").read_bytes() == CONTENT


async def test_file_that_is_there_without_a_checksum_to_go_by_is_fetched_again(
    fetch: Fetch, server: ScriptedServer
) -> None:
    fetch.folder.mkdir(parents=True)
    (fetch.folder / "sales.csv").write_bytes(CONTENT)
    server.answer(http(200, b"new"))

    await fetch(TaskFile("sales.csv", None))

    assert (fetch.folder / "sales.csv").read_bytes() == b"new"


async def test_what_a_killed_runner_left_half_done_is_removed(
    fetch: Fetch, server: ScriptedServer
) -> None:
    fetch.folder.mkdir(parents=True)
    (fetch.folder / ".victoria-part-0011223344556677").write_bytes(b"half")
    server.answer(http(200, CONTENT))

    await fetch(sales())

    assert fetch.names() == ["sales.csv"]


async def test_folder_in_place_of_a_half_done_file_is_left_alone(
    fetch: Fetch, server: ScriptedServer
) -> None:
    (fetch.folder / ".victoria-part-0011223344556677").mkdir(parents=True)
    server.answer(http(200, CONTENT))

    await fetch(sales())

    assert fetch.names() == [".victoria-part-0011223344556677", "sales.csv"]


# What an earlier task may have planted


@pytest.mark.parametrize("level", ["tasks", f"tasks/{TASK_ID}", f"tasks/{TASK_ID}/files"])
async def test_link_in_place_of_a_folder_is_not_followed(
    fetch: Fetch, server: ScriptedServer, outside: Path, level: str
) -> None:
    planted = fetch.home / level
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.symlink_to(outside)
    server.answer(http(200, CONTENT))

    with pytest.raises(Unstartable, match=r"cannot open the folder .*: Not a directory"):
        await fetch(sales())

    assert tree(outside) == []
    assert server.requests == []


@pytest.mark.parametrize("level", ["tasks", f"tasks/{TASK_ID}", f"tasks/{TASK_ID}/files"])
async def test_link_to_nowhere_in_place_of_a_folder_makes_nothing_there(
    fetch: Fetch, server: ScriptedServer, outside: Path, level: str
) -> None:
    planted = fetch.home / level
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.symlink_to(outside / "made")
    server.answer(http(200, CONTENT))

    with pytest.raises(Unstartable):
        await fetch(sales())

    assert tree(outside) == []


async def test_link_in_place_of_the_file_is_replaced_and_not_followed(
    fetch: Fetch, server: ScriptedServer, outside: Path
) -> None:
    precious = outside / "passwd"
    precious.write_bytes(b"root")
    fetch.folder.mkdir(parents=True)
    (fetch.folder / "sales.csv").symlink_to(precious)
    server.answer(http(200, CONTENT))

    await fetch(sales())

    assert precious.read_bytes() == b"root"
    assert not (fetch.folder / "sales.csv").is_symlink()
    assert (fetch.folder / "sales.csv").read_bytes() == CONTENT


async def test_link_to_the_right_content_elsewhere_is_no_file_of_ours(
    fetch: Fetch, server: ScriptedServer, outside: Path
) -> None:
    (outside / "same.csv").write_bytes(CONTENT)
    fetch.folder.mkdir(parents=True)
    (fetch.folder / "sales.csv").symlink_to(outside / "same.csv")
    server.answer(http(200, CONTENT))

    await fetch(sales())

    assert not (fetch.folder / "sales.csv").is_symlink()


async def test_planted_half_done_link_is_removed_and_not_what_it_points_to(
    fetch: Fetch, server: ScriptedServer, outside: Path
) -> None:
    (outside / "precious").write_bytes(b"root")
    fetch.folder.mkdir(parents=True)
    (fetch.folder / ".victoria-part-00").symlink_to(outside / "precious")
    server.answer(http(200, CONTENT))

    await fetch(sales())

    assert (outside / "precious").read_bytes() == b"root"
    assert fetch.names() == ["sales.csv"]


async def test_pipe_in_place_of_the_file_holds_nobody_up(
    fetch: Fetch, server: ScriptedServer
) -> None:
    fetch.folder.mkdir(parents=True)
    os.mkfifo(fetch.folder / "sales.csv")
    server.answer(http(200, CONTENT))

    with anyio.fail_after(DEADLINE_S):
        await fetch(sales())

    assert (fetch.folder / "sales.csv").read_bytes() == CONTENT


async def test_pipe_is_no_empty_file(fetch: Fetch, server: ScriptedServer) -> None:
    fetch.folder.mkdir(parents=True)
    os.mkfifo(fetch.folder / "sales.csv")
    server.answer(http(200, b""))

    await fetch(sales(b""))

    assert (fetch.folder / "sales.csv").is_file()


async def test_folder_in_place_of_the_file_makes_the_task_unstartable(
    fetch: Fetch, server: ScriptedServer
) -> None:
    (fetch.folder / "sales.csv").mkdir(parents=True)
    server.answer(http(200, CONTENT))

    with pytest.raises(Unstartable, match=r"cannot write the file 'sales.csv': Is a directory"):
        await fetch(sales())

    assert fetch.names() == ["sales.csv"]


async def test_file_in_place_of_a_folder_makes_the_task_unstartable(
    fetch: Fetch, server: ScriptedServer
) -> None:
    (fetch.home / "tasks").write_bytes(b"")
    server.answer(http(200, CONTENT))

    with pytest.raises(Unstartable, match="Not a directory"):
        await fetch(sales())


async def test_victoria_home_itself_may_be_a_link(
    orchestrator: OrchestratorClient, identity: Identity, server: ScriptedServer, home: Path
) -> None:
    link = home.with_name("by-another-name")
    link.symlink_to(home)
    server.answer(http(200, CONTENT))

    await Fetch(orchestrator, identity, link)(sales())

    assert (files_folder(home, TASK_ID) / "sales.csv").read_bytes() == CONTENT


async def test_victoria_home_that_is_gone_makes_the_task_unstartable(
    fetch: Fetch, server: ScriptedServer
) -> None:
    fetch.home.rmdir()
    server.answer(http(200, CONTENT))

    with pytest.raises(Unstartable, match="No such file or directory"):
        await fetch(sales())


# Wrong bytes


async def test_wrong_checksum_is_fetched_once_more(fetch: Fetch, server: ScriptedServer) -> None:
    server.answer(http(200, b"garbled"), http(200, CONTENT))

    await fetch(sales())

    assert (fetch.folder / "sales.csv").read_bytes() == CONTENT


async def test_checksum_wrong_twice_makes_the_task_unstartable(
    fetch: Fetch, server: ScriptedServer
) -> None:
    server.answer(http(200, b"garbled"))

    with pytest.raises(Unstartable) as caught:
        await fetch(sales())

    assert str(caught.value) == (
        f"cannot use the file 'sales.csv': its SHA-256 is {sha256(b'garbled')}, "
        f"not {sha256(CONTENT)}"
    )
    assert len(server.requests) == 2


async def test_file_of_the_wrong_checksum_never_gets_its_name(
    fetch: Fetch, server: ScriptedServer
) -> None:
    server.answer(http(200, b"garbled"))

    with pytest.raises(Unstartable):
        await fetch(sales())

    assert fetch.names() == []


async def test_body_that_breaks_off_is_fetched_again(fetch: Fetch, server: ScriptedServer) -> None:
    server.answer(zeros(3 * MIB // 2, promised=3 * MIB), zeros(3 * MIB))

    await fetch(TaskFile("zeros", None))

    assert (fetch.folder / "zeros").stat().st_size == 3 * MIB


async def test_body_that_always_breaks_off_leaves_nothing(
    fetch: Fetch, server: ScriptedServer
) -> None:
    server.answer(zeros(3 * MIB // 2, promised=3 * MIB))

    with pytest.raises(Unstartable, match="cannot fetch the file 'zeros': "):
        await fetch(TaskFile("zeros", None))

    assert fetch.names() == []


async def test_compressed_file_is_not_unpacked(fetch: Fetch, server: ScriptedServer) -> None:
    server.answer(http(200, b"\x1f\x8b bomb", {"Content-Encoding": "gzip"}))

    with pytest.raises(Unstartable, match="it sent a compressed file, which was not asked for"):
        await fetch(TaskFile("sales.csv", None))

    assert server.requests[0].headers["accept-encoding"] == "identity"


# An orchestrator that does not answer


@pytest.mark.parametrize(
    "trouble",
    [http(500), http(503, b"<html>"), http(429, b"", {"Retry-After": "1"}), raw(b""), raw(b"junk")],
    ids=["500", "503", "429", "closed", "junk"],
)
async def test_outage_while_files_are_fetched_is_waited_out(
    fetch: Fetch,
    server: ScriptedServer,
    caplog: pytest.LogCaptureFixture,
    trouble: Answer,
) -> None:
    server.answer(trouble, http(200, CONTENT))

    with caplog.at_level(logging.WARNING, "runner"):
        await fetch(sales())

    assert (fetch.folder / "sales.csv").read_bytes() == CONTENT
    assert [
        record.levelname for record in caplog.records if "fetch a file" in record.getMessage()
    ] == ["WARNING"]


async def test_wait_that_the_orchestrator_asks_for_is_granted(
    fetch: Fetch, server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.answer(http(429, b"", {"Retry-After": "120"}), http(200, CONTENT))

    with caplog.at_level(logging.WARNING, "runner"):
        await fetch(sales())

    assert 120 <= next_attempts_s(caplog)[0] <= 132


async def test_wait_that_is_asked_for_is_granted_for_an_hour_at_most(
    fetch: Fetch, server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.answer(http(503, b"", {"Retry-After": "86400"}), http(200, CONTENT))

    with caplog.at_level(logging.WARNING, "runner"):
        await fetch(sales())

    assert next_attempts_s(caplog) == [3600]


async def test_outage_without_end_makes_the_task_unstartable(
    fetch: Fetch, server: ScriptedServer
) -> None:
    server.answer(json_response({"detail": "maintenance"}, 503))
    begun_at = fetch.clock.awake_s()

    with pytest.raises(Unstartable) as caught:
        await fetch(sales())

    attempt = len(server.requests)
    assert str(caught.value) == (
        f"cannot fetch the file 'sales.csv': HTTP 503: maintenance (attempt {attempt})"
    )
    assert fetch.clock.awake_s() - begun_at == pytest.approx(3600)


@pytest.mark.parametrize("status", [400, 403, 404, 409, 410, 422])
async def test_refused_file_makes_the_task_unstartable_at_once(
    fetch: Fetch, server: ScriptedServer, status: int
) -> None:
    server.answer(json_response({"detail": "no such file"}, status))

    with pytest.raises(Unstartable) as caught:
        await fetch(sales())

    assert str(caught.value) == f"cannot fetch the file 'sales.csv': HTTP {status}: no such file"
    assert len(server.requests) == 1


PAGES = [
    http(404, b"<html>404 page not found</html>", {"Content-Type": "text/html"}),
    http(403, b"forbidden", {"Content-Type": "text/plain"}),
    http(404),
    http(404, b"\x1f\x8b bomb", {"Content-Encoding": "gzip"}),
]


@pytest.mark.parametrize("page", PAGES, ids=["html", "text", "nothing", "compressed"])
async def test_page_of_a_proxy_in_place_of_a_file_is_retried(
    fetch: Fetch, server: ScriptedServer, page: Answer
) -> None:
    server.answer(*[page] * 5, http(200, CONTENT))

    await fetch(sales())

    assert (fetch.folder / "sales.csv").read_bytes() == CONTENT


@pytest.mark.parametrize("page", PAGES, ids=["html", "text", "nothing", "compressed"])
async def test_page_that_stays_is_a_refusal_in_the_end(
    fetch: Fetch, server: ScriptedServer, page: Answer
) -> None:
    server.answer(page)

    with pytest.raises(FileRefused, match=r"^cannot fetch the file 'sales.csv': HTTP 40[34]$"):
        await fetch(sales())

    assert len(server.requests) == 6


async def test_unknown_key_is_for_the_caller_to_act_on(
    fetch: Fetch, server: ScriptedServer
) -> None:
    server.answer(json_response({"detail": "unknown key"}, 401))

    with pytest.raises(Unauthorised):
        await fetch(sales())

    assert fetch.names() == []


# Disk


async def test_promised_length_that_does_not_fit_is_refused_before_a_byte_is_written(
    fetch: Fetch, server: ScriptedServer
) -> None:
    server.answer(endless({"Content-Length": str(1 << 60)}))

    with pytest.raises(Unstartable) as caught:
        await fetch(sales(), min_free_disk=MIB)

    assert "cannot fetch the file 'sales.csv': it takes 1,099,511,627,776 MiB more" in str(
        caught.value
    )
    assert str(caught.value).endswith(f"remove folders of old tasks from {fetch.home}/tasks")
    assert fetch.names() == []


async def test_full_disk_ends_a_file_without_a_promised_length(
    fetch: Fetch, server: ScriptedServer
) -> None:
    server.answer(endless())

    with pytest.raises(Unstartable, match="--min-free-disk keeps"):
        await fetch(TaskFile("endless", None), min_free_disk=free_disk(fetch.home) - 32 * MIB)

    assert fetch.names() == []


def test_free_disk_is_what_is_left_to_those_without_privileges(home: Path) -> None:
    assert 0 < free_disk(home) <= shutil.disk_usage(home).total


# Cancelling


async def test_cancelled_download_leaves_nothing(fetch: Fetch, server: ScriptedServer) -> None:
    server.answer(stalled(bytes(3 * MIB)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fetch, TaskFile("slow", None))
        await until(lambda: any(fetch.folder.glob(".victoria-part-*")))
        tasks.cancel_scope.cancel()

    assert fetch.names() == []


# Size


async def test_event_loop_goes_on_while_64_mib_are_fetched(
    fetch: Fetch, server: ScriptedServer
) -> None:
    server.answer(zeros(64 * MIB))
    turns = 0

    async def go_on() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(go_on)
        await fetch(TaskFile("zeros", None))
        tasks.cancel_scope.cancel()

    assert (fetch.folder / "zeros").stat().st_size == 64 * MIB
    assert turns > 64


async def test_memory_does_not_grow_with_the_file(fetch: Fetch, server: ScriptedServer) -> None:
    server.answer(zeros(64 * MIB))
    tracemalloc.start()
    try:
        await fetch(TaskFile("large", None))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 20 * MIB


# Where the files are


def test_folder_of_a_task_is_the_documented_one(home: Path) -> None:
    assert files_folder(home, "t-1") == home / "tasks" / "t-1" / "files"


def test_folder_of_a_task_in_its_container_is_the_documented_one() -> None:
    assert files_folder_in_container("t-1") == "/workspace/Victoria/tasks/t-1/files"
    assert CONTAINER_HOME == "/workspace/Victoria"
