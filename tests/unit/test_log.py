"""One event is one line, for people and for machines, whatever is in it."""

import json
import logging
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.log import JsonFormatter, TextFormatter, fields


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


LOG = "log = logging.getLogger('runner.x')\n"
SURROGATE = f"{LOG}log.info('a\\ud800b', extra=fields(task_id='t-1'))"
AS_JSON = '{"time": "", "level": "INFO", "logger": "runner.x", "message": "x", "task_id": "t-1"}'
LIBRARIES = (
    "import sh\nsh.Command('true')('hunter2')\n"
    "logging.getLogger('httpx').info('HTTP Request: GET https://o.example.com')"
)


@pytest.mark.parametrize(
    ("statements", "settings", "lines"),
    [
        (f"{LOG}log.debug('rest')\nlog.info('life')", "'text', 0", ["INFO life"]),
        (f"{LOG}log.debug('rest')\nlog.info('life')", "'text', 1", ["DEBUG rest", "INFO life"]),
        (SURROGATE, "'text', 0", ["INFO a b task_id=t-1"]),
        (f"{LOG}log.info('x', extra=fields(task_id='t-1'))", "'json', 0", [AS_JSON]),
        (LIBRARIES, "'text', 1", []),
    ],
    ids=["info", "debug", "surrogate", "JSON", "libraries"],
)
def test_log_has_no_line_of_a_library(statements: str, settings: str, lines: list[str]) -> None:
    set_up = f"from runner.log import fields, set_up_logging\nset_up_logging({settings})\n"
    command = [sys.executable, "-c", f"import logging\n{set_up}{statements}"]
    done = subprocess.run(command, check=True, capture_output=True, encoding="utf-8")
    assert done.stdout == ""
    shown = [re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z ?", "", line) for line in done.stderr.splitlines()]
    assert shown == lines
