"""The trace that a container leaves is believed only if the reporter could have written it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from runner.workspace.handover import (
    FinalStatus,
    HandoverError,
    ReporterState,
    read_reporter_state,
    write_reporter_state,
)

WORD = {"status": "success", "message": "done", "session_id": "s1", "is_sent": False}


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """Give the place where a reporter leaves its trace."""
    path = tmp_path / "tasks" / "t-1" / "reporter.json"
    path.parent.mkdir(parents=True)
    return path


def test_trace_is_read_as_it_was_written(tmp_path: Path) -> None:
    trace = ReporterState("a" * 64, "s1", FinalStatus("error", "größer 🚀\n", "s1", is_sent=True))
    write_reporter_state(tmp_path, "t-1", ReporterState())
    write_reporter_state(tmp_path, "t-1", trace)

    assert read_reporter_state(tmp_path, "t-1") == trace
    (file,) = (tmp_path / "tasks" / "t-1").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_trace_with_the_longest_message_can_be_read(tmp_path: Path) -> None:
    trace = ReporterState(
        final=FinalStatus("success", "🚀" * 80_000 + "\x01" * 20_000, None, is_sent=True)
    )
    write_reporter_state(tmp_path, "t-1", trace)

    assert read_reporter_state(tmp_path, "t-1") == trace


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_trace_that_a_root_writes_belongs_to_the_homes_owner(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12345)
    write_reporter_state(tmp_path, "t-1", ReporterState())

    assert (tmp_path / "tasks" / "t-1" / "reporter.json").stat().st_uid == 12345


def test_no_trace_is_an_empty_one(tmp_path: Path, left: Path) -> None:
    assert read_reporter_state(tmp_path, "t-1") == ReporterState()
    assert read_reporter_state(tmp_path, "t-2") == ReporterState()
    assert read_reporter_state(tmp_path / "nowhere", "t-1") == ReporterState()
    assert not left.exists()


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
            json.dumps({"version": 1, "final": {**WORD, **wrong}}).encode()
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
def test_trace_that_the_reporter_cannot_have_written_is_refused(
    tmp_path: Path, left: Path, content: bytes
) -> None:
    left.write_bytes(content)

    with pytest.raises(HandoverError, match=r"^cannot read the reporter's trace: "):
        read_reporter_state(tmp_path, "t-1")


@pytest.mark.parametrize("what", ["link", "pipe", "folder", "linked folder"])
def test_trace_that_is_no_file_is_refused(tmp_path: Path, left: Path, what: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / left.name).write_text('{"version": 1}')
    if what == "link":
        left.symlink_to(elsewhere / left.name)
    elif what == "pipe":
        os.mkfifo(left)
    elif what == "folder":
        left.mkdir()
    else:
        left.parent.rmdir()
        left.parent.symlink_to(elsewhere)

    with pytest.raises(HandoverError, match=r"^cannot read the reporter's trace: "):
        read_reporter_state(tmp_path, "t-1")


def test_trace_is_not_written_through_a_link(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "t-1").symlink_to(elsewhere)

    with pytest.raises(OSError, match="t-1"):
        write_reporter_state(tmp_path, "t-1", ReporterState())
    assert not list(elsewhere.iterdir())
