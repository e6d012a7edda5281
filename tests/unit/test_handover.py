"""The state that the reporter leaves is believed only if the reporter could have written it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from runner.model import TaskStatus
from runner.workspace.handover import (
    FinalStatus,
    HandoverError,
    ReporterState,
    read_reporter_state,
    write_reporter_state,
)

FINAL = {"status": "success", "message": "done", "session_id": "s1", "is_sent": False}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of the reporter's state."""
    state = tmp_path / "tasks" / "t-1" / "reporter.json"
    state.parent.mkdir(parents=True)
    return state


def test_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    state = ReporterState(
        "a" * 64, "s1", FinalStatus(TaskStatus.ERROR, "größer 🚀\n", "s1", is_sent=True)
    )
    write_reporter_state(tmp_path, "t-1", ReporterState())
    write_reporter_state(tmp_path, "t-1", state)

    assert read_reporter_state(tmp_path, "t-1") == state
    (file,) = (tmp_path / "tasks" / "t-1").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_state_with_the_longest_message_can_be_read(tmp_path: Path) -> None:
    state = ReporterState(
        final=FinalStatus(TaskStatus.SUCCESS, "🚀" * 80_000 + "\x01" * 20_000, None, is_sent=True)
    )
    write_reporter_state(tmp_path, "t-1", state)

    assert read_reporter_state(tmp_path, "t-1") == state


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_state_that_a_root_writes_belongs_to_the_homes_owner(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12345)
    write_reporter_state(tmp_path, "t-1", ReporterState())

    assert (tmp_path / "tasks" / "t-1" / "reporter.json").stat().st_uid == 12345


def test_no_state_is_an_empty_one(tmp_path: Path, path: Path) -> None:
    assert read_reporter_state(tmp_path, "t-1") == ReporterState()
    assert read_reporter_state(tmp_path, "t-2") == ReporterState()
    assert read_reporter_state(tmp_path / "nowhere", "t-1") == ReporterState()
    assert not path.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no JSON",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"version": 2}',
        b'{"version": 1, "final": []}',
        b'{"version": 1, "log_digest": 7}',
        json.dumps({"version": 1, "log_session_id": "x" * 201}).encode(),
        *(
            json.dumps({"version": 1, "final": {**FINAL, **wrong}}).encode()
            for wrong in (
                {"status": "running"},
                {"status": ["success"]},
                {"is_sent": "yes"},
                {"message": 7},
                {"message": "x" * 100_001},
                {"message": "\ud800"},
                {"message": "\x00"},
                {"session_id": {"a": 1}},
            )
        ),
        b'{"version": 1}' + b" " * (2 << 20),
    ],
)
def test_state_that_the_reporter_cannot_have_written_is_refused(
    tmp_path: Path, path: Path, content: bytes
) -> None:
    path.write_bytes(content)

    with pytest.raises(HandoverError, match=r"^cannot read the reporter's state: "):
        read_reporter_state(tmp_path, "t-1")


@pytest.mark.parametrize("what", ["link", "pipe", "folder", "linked folder"])
def test_state_that_is_not_a_regular_file_is_refused(tmp_path: Path, path: Path, what: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / path.name).write_text('{"version": 1}')
    if what == "linked folder":
        path.parent.rmdir()
        path.parent.symlink_to(elsewhere)
        with pytest.raises(OSError, match="t-1"):
            write_reporter_state(tmp_path, "t-1", ReporterState())
        assert (elsewhere / path.name).read_text() == '{"version": 1}'
    elif what == "link":
        path.symlink_to(elsewhere / path.name)
    elif what == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()

    with pytest.raises(HandoverError, match=r"^cannot read the reporter's state: "):
        read_reporter_state(tmp_path, "t-1")
