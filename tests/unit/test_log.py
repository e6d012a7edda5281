"""One event is one line, for people and for machines, whatever is in it."""

import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

import orchestrator.log
import runner.log
from runner.log import JournalFormatter, JsonFormatter, TextFormatter, fields


def record(message: str, *args: object, **values: object) -> logging.LogRecord:
    made = logging.getLogger("runner.test").makeRecord(
        "runner.test", logging.INFO, __file__, 1, message, args, None, extra=fields(**values)
    )
    made.created = 1769851613.589
    return made


def as_text(event: logging.LogRecord) -> str:
    return TextFormatter().format(event)


def from_json(event: logging.LogRecord) -> dict[str, object]:
    line = JsonFormatter().format(event)
    assert len(line.splitlines()) == 1
    return dict(json.loads(line))


def test_event_has_its_moment_level_message_and_fields() -> None:
    event = record("task %s", "accepted", task_id="t-1", files=2)
    assert as_text(event) == "2026-01-31T09:26:53.589Z INFO task accepted task_id=t-1 files=2"
    event_as_json = from_json(event)
    assert list(event_as_json) == ["time", "level", "logger", "message", "task_id", "files"]
    assert [*event_as_json.values()][1:] == ["INFO", "runner.test", "task accepted", "t-1", 2]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("two words", 'why="two words"'),
        ("", 'why=""'),
        ('say "so"', 'why="say \\"so\\""'),
        ("\x1b[31m", 'why="\\u001b[31m"'),
        (None, "why=None"),
        ("Umsätze.csv", "why=Umsätze.csv"),
    ],
)
def test_value_of_a_field_ends_where_it_can_be_seen(value: object, shown: str) -> None:
    assert as_text(record("x", why=value)).endswith(f" {shown}")


@given(st.text(), st.text())
def test_event_of_any_kind_stays_one_line(message: str, value: str) -> None:
    event = record("%s", message, task_id=value)
    assert as_text(event).isprintable()
    assert from_json(event)["task_id"] == value


def test_traceback_stays_on_the_line_and_is_a_name_in_json() -> None:
    event = record("defect", where=b"here")
    error = ValueError("two\nlines")
    event.exc_info = (ValueError, error, None)
    assert len(as_text(event).splitlines()) == 1
    assert "ValueError: two\\nlines" in as_text(event)
    assert "ValueError: two\nlines" in str(from_json(event)["traceback"])
    assert from_json(event)["where"] == "b'here'", "what JSON does not know is shown as text"


SET_UPS = """
import logging
import sh
from runner.log import fields, set_up_logging
log = logging.getLogger("runner.x")
for form, verbosity in (("text", 0), ("text", 1), ("json", 0)):
    set_up_logging(form, verbosity)
    log.debug("the rest")
    log.info("a\\ud800b", extra=fields(task_id="t-1"))
    sh.Command("true")("hunter2")
    logging.getLogger("httpx").info("HTTP Request: GET https://o.example.com")
"""
EVENT = {"time": "", "level": "INFO", "logger": "runner.x", "message": "a\ud800b", "task_id": "t-1"}


def test_log_has_the_events_of_the_runner_and_none_of_a_library() -> None:
    command = [sys.executable, "-c", SET_UPS]
    done = subprocess.run(command, check=True, capture_output=True, encoding="utf-8")
    assert done.stdout == ""
    shown = [re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z ?", "", line) for line in done.stderr.splitlines()]
    text = "INFO a b task_id=t-1"
    assert shown == [text, "DEBUG the rest", text, json.dumps(EVENT)]


JOURNAL = r"""
import logging
from {package}.log import fields, print_error, set_up_logging
log = logging.getLogger("{package}.x")
for form in ("text", "json"):
    set_up_logging(form, {level})
    for level in (10, 20, 30, 40, 50):
        log.log(level, "two\nlines", extra=fields(node_id="n-1"))
try:
    raise ValueError("x" * 60_000 + "the reason")
except ValueError:
    log.exception("defect")
    set_up_logging("text", {level})
    log.exception("defect")
print_error("Usage: one\n\nError: two")
"""


@pytest.mark.parametrize(
    ("package", "level"),
    [("runner", "1"), ("orchestrator", "'debug'")],
    ids=["runner", "orchestrator"],
)
def test_in_the_journal_an_event_is_one_entry_with_its_priority_and_no_time(
    tmp_path: Path, package: str, level: str
) -> None:
    statements = JOURNAL.format(package=package, level=level)
    with (tmp_path / "journal").open("w+") as journal:
        status = os.fstat(journal.fileno())
        variables = {**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        command = [sys.executable, "-c", statements]
        subprocess.run(command, check=True, env=variables, stderr=journal)
        journal.seek(0)
        entries = journal.read().splitlines()
    names = [(7, "DEBUG"), (6, "INFO"), (4, "WARNING"), (3, "ERROR"), (2, "CRITICAL")]
    assert entries[:5] == [f"<{number}>{name} two lines node_id=n-1" for number, name in names]
    assert [entry[:4] for entry in entries[5:10]] == [f"<{number}>{{" for number, _ in names]
    assert json.loads(entries[5][3:])["message"] == "two\nlines"
    as_json, as_text, printed = entries[10:]
    assert json.loads(as_json[3:])["traceback"].endswith("the reason")
    assert as_text.startswith("<3>ERROR defect traceback=")
    assert as_text.endswith('the reason"')
    assert max(len(entry) for entry in entries) < 48 << 10, "journald would split it"
    assert printed == "<3>Usage: one  Error: two"


@given(st.text(min_size=1))
def test_entry_of_any_text_is_one_line(text: str) -> None:
    assert JournalFormatter(TextFormatter()).format(record("%s", text)).isprintable()


IsJournal = Callable[[TextIO, dict[str, str]], bool]


@pytest.mark.parametrize(
    "is_journal",
    [runner.log.is_journal, orchestrator.log.is_journal],
    ids=["runner", "orchestrator"],
)
def test_stream_that_the_variable_does_not_name_is_not_the_journal(
    tmp_path: Path, is_journal: IsJournal
) -> None:
    with (tmp_path / "a").open("w") as stream, (tmp_path / "b").open("w") as other:
        status = os.fstat(other.fileno())
        variables = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        assert is_journal(other, variables)
        assert not is_journal(stream, variables), "a terminal inherits the variable"
        assert not is_journal(io.StringIO(), variables), "a stream without a file"
        for unusable in ({}, {"JOURNAL_STREAM": ""}, {"JOURNAL_STREAM": "journal"}):
            assert not is_journal(other, unusable)
