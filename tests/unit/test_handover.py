"""The state that the reporter leaves is believed only if the reporter could have written it."""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from runner.model import TaskStatus
from runner.workspace.handover import (
    FinalStatus,
    HandoverError,
    ReporterState,
    read_reporter_state,
    update_reporter_state,
)


def write_reporter_state(home: Path, task_id: str, state: ReporterState) -> None:
    update_reporter_state(home, task_id, lambda _: state)


FINAL = {"status": "success", "message": "done", "session_id": "s1", "is_sent": False}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    state = tmp_path / "tasks" / "t-1" / "reporter.json"
    state.parent.mkdir(parents=True)
    return state


@pytest.mark.parametrize("message", ["größer 🚀\n", "🚀" * 80_000 + "\x01" * 20_000])
def test_state_is_read_as_it_was_written(tmp_path: Path, message: str) -> None:
    final = FinalStatus(TaskStatus.ERROR, message, "s1", is_sent=True)
    state = ReporterState("a" * 64, "s1", final)
    write_reporter_state(tmp_path, "t-1", ReporterState())
    write_reporter_state(tmp_path, "t-1", state)
    assert read_reporter_state(tmp_path, "t-1") == state
    (file,) = (tmp_path / "tasks" / "t-1").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_state_that_a_root_writes_belongs_to_the_homes_owner(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12345)
    write_reporter_state(tmp_path, "t-1", ReporterState())
    for path in ("tasks", "tasks/t-1", "tasks/t-1/reporter.json"):
        assert (tmp_path / path).stat().st_uid == 12345


def test_reporters_that_change_the_state_at_once_lose_no_change(tmp_path: Path) -> None:
    def count(state: ReporterState) -> ReporterState:
        return replace(state, log_session_id=str(int(state.log_session_id or 0) + 1))

    def count_often(_: int) -> None:
        for _ in range(10):
            update_reporter_state(tmp_path, "t-1", count)

    with ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(count_often, range(4)))
    assert read_reporter_state(tmp_path, "t-1").log_session_id == "40"


def test_lock_of_a_reporter_that_is_killed_is_released(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, sys, time\n"
        "from runner.workspace.handover import update_reporter_state\n"
        "update_reporter_state(pathlib.Path(sys.argv[1]), 't-1', lambda _: print(flush=True)"
        " or time.sleep(1000))"
    )
    command = (sys.executable, "-c", program, str(tmp_path))
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        holder.stdout.readline()
        folder = os.open(tmp_path / "tasks" / "t-1", os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        holder.kill()
        holder.wait()
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(folder)


def test_no_state_is_an_empty_one(tmp_path: Path, path: Path) -> None:
    for home, task_id in ((tmp_path, "t-1"), (tmp_path, "t-2"), (tmp_path / "nowhere", "t-1")):
        assert read_reporter_state(home, task_id) == ReporterState()
    assert not path.exists()


def state(**fields: object) -> bytes:
    return json.dumps({"version": 1, **fields}).encode()


def final(**fields: object) -> bytes:
    return state(final={**FINAL, **fields})


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"no JSON", b"\xff\xfe", b"[]", b"null", b"[" * 100_000, b'{"version": 2}'),
        *(state(final=[]), state(log_digest=7), state(log_session_id="x" * 201)),
        *(final(status="running"), final(status=["success"]), final(is_sent="yes")),
        *(final(message=7), final(message="x" * 100_001), final(message="\ud800")),
        *(final(message="\x00"), final(session_id={"a": 1}), state() + b" " * (2 << 20)),
    ],
    ids=lambda content: str(content[-40:]),
)
def test_state_of_another_shape_is_refused(tmp_path: Path, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(HandoverError, match=r"^cannot read the reporter's state: "):
        read_reporter_state(tmp_path, "t-1")


PLANTS: dict[str, Callable[[Path, Path], object]] = {
    "link": lambda path, elsewhere: path.symlink_to(elsewhere / path.name),
    "pipe": lambda path, _: os.mkfifo(path),
    "folder": lambda path, _: path.mkdir(),
}


@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS)
def test_state_that_is_not_a_regular_file_is_refused(
    tmp_path: Path, path: Path, plant: Callable[[Path, Path], object]
) -> None:
    (tmp_path / path.name).write_bytes(state())
    plant(path, tmp_path)
    with pytest.raises(HandoverError, match=r"^cannot read the reporter's state: "):
        read_reporter_state(tmp_path, "t-1")


def test_state_is_neither_read_nor_written_through_a_linked_folder(
    tmp_path: Path, path: Path
) -> None:
    path.parent.rmdir()
    path.parent.symlink_to(tmp_path)
    with pytest.raises(OSError, match="t-1"):
        write_reporter_state(tmp_path, "t-1", ReporterState())
    assert not (tmp_path / path.name).exists()
    (tmp_path / path.name).write_bytes(state())
    with pytest.raises(HandoverError, match=r"^cannot read the reporter's state: "):
        read_reporter_state(tmp_path, "t-1")
