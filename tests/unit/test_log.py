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


def run_logging(statements: str, log_format: str, verbosity: int = 0) -> list[str]:
    """Give the lines that a process of its own logs."""
    program = (
        "import logging\n"
        "from runner.log import fields, set_up_logging\n"
        f"set_up_logging({log_format!r}, {verbosity})\n{statements}"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, encoding="utf-8"
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_event_has_its_moment_level_message_and_fields() -> None:
    assert TextFormatter().format(record("task accepted", task_id="t-1", files=2)) == (
        "2026-01-31T09:26:53.589Z INFO task accepted task_id=t-1 files=2"
    )


def test_arguments_are_put_into_the_message() -> None:
    assert TextFormatter().format(record("%d tasks", 3)).endswith("INFO 3 tasks")


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
def test_value_of_a_field_can_be_told_from_what_follows(value: object, shown: str) -> None:
    assert TextFormatter().format(record("x", why=value)).endswith(f" {shown}")


@given(st.text(), st.text())
def test_text_of_any_kind_stays_one_printable_line(message: str, value: str) -> None:
    shown = TextFormatter().format(record("%s", message, task_id=value))

    assert shown.isprintable()


@given(st.text(), st.text())
def test_json_of_any_kind_stays_one_line(message: str, value: str) -> None:
    shown = JsonFormatter().format(record("%s", message, task_id=value))

    assert len(shown.splitlines()) == 1
    assert json.loads(shown)["task_id"] == value


def test_event_as_json_has_the_same_in_names() -> None:
    assert json.loads(JsonFormatter().format(record("task accepted", task_id="t-1"))) == {
        "time": "2026-01-31T09:26:53.589Z",
        "level": "INFO",
        "logger": "runner.test",
        "message": "task accepted",
        "task_id": "t-1",
    }


def test_traceback_stays_on_its_line() -> None:
    shown = TextFormatter().format(failed())

    assert len(shown.splitlines()) == 1
    assert "ValueError: two\\nlines" in shown


def test_traceback_is_a_name_in_json() -> None:
    assert "ValueError: two\nlines" in json.loads(JsonFormatter().format(failed()))["traceback"]


def test_value_that_json_does_not_know_is_shown_as_text() -> None:
    assert json.loads(JsonFormatter().format(record("x", where=b"here")))["where"] == "b'here'"


def test_log_goes_to_standard_error_from_info_on() -> None:
    lines = run_logging(
        "log = logging.getLogger('runner.x')\nlog.debug('rest')\nlog.info('life')", "text"
    )

    assert [line.split(" ", 1)[1] for line in lines] == ["INFO life"]


def test_verbose_log_has_the_rest() -> None:
    lines = run_logging("logging.getLogger('runner.x').debug('rest')", "text", verbosity=1)

    assert [line.split(" ", 1)[1] for line in lines] == ["DEBUG rest"]


def test_log_in_json_is_json() -> None:
    lines = run_logging(
        "logging.getLogger('runner').info('life', extra=fields(task_id='t-1'))", "json"
    )

    assert [json.loads(line)["task_id"] for line in lines] == ["t-1"]


def test_lone_surrogate_does_not_stop_the_log() -> None:
    assert len(run_logging("logging.getLogger('runner').info('a\\ud800b')", "text")) == 1


@pytest.mark.parametrize("verbosity", [0, 1])
def test_command_lines_that_sh_would_log_are_not_logged(verbosity: int) -> None:
    statements = "import sh\nsh.Command('true')('hunter2')"

    assert run_logging(statements, "text", verbosity) == []


@pytest.mark.parametrize("verbosity", [0, 1])
def test_requests_that_httpx_would_log_are_not_logged(verbosity: int) -> None:
    statements = "logging.getLogger('httpx').info('HTTP Request: GET https://o.example.com')"

    assert run_logging(statements, "text", verbosity) == []
