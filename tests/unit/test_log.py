"""One event is one line, for people and for machines, whatever is in it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.log import JsonFormatter, TextFormatter, fields


def record(
    message: str, *args: object, level: int = logging.INFO, **values: object
) -> logging.LogRecord:
    made = logging.getLogger("runner.test").makeRecord(
        "runner.test", level, __file__, 1, message, args, None, extra=fields(**values)
    )
    made.created = 1769851613.589
    return made


def failed() -> logging.LogRecord:
    try:
        raise ValueError("two\nlines")  # noqa: TRY301 - to have a traceback
    except ValueError:
        made = record("defect")
        made.exc_info = sys.exc_info()
        return made


def lines_logged(statements: str, log_format: str = "text", verbosity: int = 0) -> list[str]:
    """Return the lines that another process logs, without their moment."""
    program = (
        "import logging\n"
        "from runner.log import fields, set_up_logging\n"
        f"set_up_logging({log_format!r}, {verbosity})\n{statements}"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, encoding="utf-8"
    )
    assert done.stdout == ""
    return [line.partition("Z ")[2] or line for line in done.stderr.splitlines()]


def test_event_has_its_moment_level_message_and_fields() -> None:
    event = record("task %s", "accepted", task_id="t-1", files=2)
    assert TextFormatter().format(event) == (
        "2026-01-31T09:26:53.589Z INFO task accepted task_id=t-1 files=2"
    )
    assert json.loads(JsonFormatter().format(event)) == {
        "time": "2026-01-31T09:26:53.589Z",
        "level": "INFO",
        "logger": "runner.test",
        "message": "task accepted",
        "task_id": "t-1",
        "files": 2,
    }


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("two words", 'why="two words"'),
        ("", 'why=""'),
        ("a=b", 'why="a=b"'),
        ('say "so"', 'why="say \\"so\\""'),
        ("a\nb", 'why="a\\nb"'),
        ("\x1b[31m", 'why="\\u001b[31m"'),
        (None, "why=None"),
        (0.5, "why=0.5"),
        ("Umsätze.csv", "why=Umsätze.csv"),
    ],
)
def test_value_of_a_field_ends_where_it_can_be_seen(value: object, shown: str) -> None:
    assert TextFormatter().format(record("x", why=value)).endswith(f" {shown}")


@given(st.text(), st.text())
def test_event_of_any_kind_stays_one_line(message: str, value: str) -> None:
    event = record("%s", message, task_id=value)
    as_json = JsonFormatter().format(event)

    assert TextFormatter().format(event).isprintable()
    assert len(as_json.splitlines()) == 1
    assert json.loads(as_json)["task_id"] == value


def test_traceback_stays_on_the_line_and_is_a_name_in_json() -> None:
    line = TextFormatter().format(failed())

    assert len(line.splitlines()) == 1
    assert "ValueError: two\\nlines" in line
    assert "ValueError: two\nlines" in json.loads(JsonFormatter().format(failed()))["traceback"]


def test_value_that_json_does_not_know_is_shown_as_text() -> None:
    assert json.loads(JsonFormatter().format(record("x", where=b"here")))["where"] == "b'here'"


LOG = "log = logging.getLogger('runner.x')\n"
SURROGATE = f"{LOG}log.info('a\\ud800b')"
SH = "import sh\nsh.Command('true')('hunter2')"
HTTPX = "logging.getLogger('httpx').info('HTTP Request: GET https://o.example.com')"


@pytest.mark.parametrize(
    ("statements", "verbosity", "lines"),
    [
        (f"{LOG}log.debug('rest')\nlog.info('life')", 0, ["INFO life"]),
        (f"{LOG}log.debug('rest')\nlog.info('life')", 1, ["DEBUG rest", "INFO life"]),
        (SURROGATE, 0, ["INFO a b"]),
        (SH, 0, []),
        (SH, 1, []),
        (HTTPX, 0, []),
        (HTTPX, 1, []),
    ],
    ids=["info", "debug", "surrogate", "sh", "sh, verbose", "httpx", "httpx, verbose"],
)
def test_log_goes_to_standard_error_without_what_the_libraries_log(
    statements: str, verbosity: int, lines: list[str]
) -> None:
    assert lines_logged(statements, verbosity=verbosity) == lines


def test_log_in_json_is_json() -> None:
    (line,) = lines_logged(f"{LOG}log.info('life', extra=fields(task_id='t-1'))", "json")

    assert json.loads(line)["task_id"] == "t-1"
