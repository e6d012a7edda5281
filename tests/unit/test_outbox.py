"""`victoria-runner outbox`: what an operator does about reports that are not delivered."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from runner import cli
from runner.errors import ConfigurationError, RunnerError
from runner.journal.journal import JOURNAL_NAME, open_journal
from tests.unit.test_doctor import write_journal

WAITING_LOG, PARKED_STATUS = 1, 2


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """Return a state folder whose journal has a log that waits, and a status that is parked."""
    write_journal(tmp_path, "ordinary")
    open_journal(tmp_path, "now")[0].close_file()
    with closing(sqlite3.connect(tmp_path / JOURNAL_NAME)) as journal, journal:
        journal.execute(
            "UPDATE outbox SET parked = 'HTTP 404: \x1b[1mgone', attempts = 1 WHERE id = 2"
        )
    return tmp_path


def outbox(state_dir: Path, *arguments: str, typed: str | None = None) -> tuple[int, str]:
    """Return the exit code, or the message of the error, and the output."""
    options = ["--state-dir", str(state_dir), "outbox", *arguments]
    done = CliRunner().invoke(cli.command, options, input=typed)
    if isinstance(done.exception, RunnerError):
        return done.exception.exit_code, str(done.exception)
    return done.exit_code, done.output


def left_in(state_dir: Path) -> dict[int, str | None]:
    with closing(sqlite3.connect(state_dir / JOURNAL_NAME)) as journal:
        return dict(journal.execute("SELECT id, parked FROM outbox").fetchall())


def test_reports_are_listed_with_what_came_of_them(state_dir: Path) -> None:
    code, output = outbox(state_dir, "list")
    waiting, parked = output.splitlines()
    assert (code, waiting.startswith("1 logs of task t-ended, 2033-05-18 ")) == (0, True)
    assert waiting.endswith(", waiting, 0 attempts failed")
    assert parked.endswith(", parked: HTTP 404:  [1mgone"), "no control characters"
    code, output = outbox(state_dir, "list", "--json")
    reports = json.loads(output)
    assert [(one["id"], one["parked"]) for one in reports] == list(left_in(state_dir).items())


def test_folder_without_a_journal_is_not_an_empty_outbox(tmp_path: Path) -> None:
    for command in ("list", "retry", "drop"):
        code, output = outbox(tmp_path, command, *(["--all"] if command == "drop" else []))
        assert code == 78
        assert output.endswith("give the --state-dir of the runner, and run as its user")
    assert list(tmp_path.iterdir()) == []


def test_parked_reports_are_retried_and_those_that_wait_stay(state_dir: Path) -> None:
    code, output = outbox(state_dir, "retry", "--json")
    assert (code, [one["id"] for one in json.loads(output)["retried"]]) == (0, [PARKED_STATUS])
    assert left_in(state_dir) == {WAITING_LOG: None, PARKED_STATUS: None}


@pytest.mark.parametrize("ids", [("2",), ("t-ended",), ("--all",)], ids=["id", "task", "all"])
def test_parked_reports_are_dropped(state_dir: Path, ids: tuple[str, ...]) -> None:
    code, output = outbox(state_dir, "drop", *ids)
    assert (code, output.startswith("dropped 2 status of task t-ended: ")) == (0, True)
    assert left_in(state_dir) == {WAITING_LOG: None}


@pytest.mark.parametrize(
    ("arguments", "exit_code", "sentence"),
    [
        (("drop",), 2, "Missing the ids of the reports: give them, or '--all'."),
        (("drop", "1"), 78, "cannot drop report 1: it is not parked, and the runner still tries"),
        (("drop", "2", "9"), 78, "cannot find report 9: the outbox has none of this id or task"),
        (("retry", "t-none"), 78, "cannot find report t-none: the outbox has none of"),
    ],
    ids=["none named", "waiting", "unknown", "unknown task"],
)
def test_what_cannot_be_done_is_a_sentence_and_changes_nothing(
    state_dir: Path, arguments: tuple[str, ...], exit_code: int, sentence: str
) -> None:
    before = left_in(state_dir)
    code, output = outbox(state_dir, *arguments)
    assert (code, sentence in output) == (exit_code, True), output
    assert left_in(state_dir) == before


def test_no_report_is_sent_to_another_orchestrator(state_dir: Path) -> None:
    options = ["--state-dir", str(state_dir), "--orchestrator-url", "https://new.example.com"]
    done = CliRunner().invoke(cli.command, [*options, "outbox", "retry"])
    assert isinstance(done.exception, ConfigurationError)
    assert "cannot retry report 2: it is for http://orchestrator.example, and no" in str(
        done.exception
    )


def test_journal_of_an_older_version_is_not_changed(tmp_path: Path) -> None:
    write_journal(tmp_path, "ordinary")
    code, output = outbox(tmp_path, "retry", "1")
    assert (code, "an older version wrote it; restart the runner first" in output) == (75, True)
