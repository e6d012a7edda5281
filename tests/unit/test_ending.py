"""The outcome of a task, and what its messages must not show."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.engine.base import Container, Phase
from runner.model import EndReason, Task, TaskState
from runner.redaction import Secret, known_secrets, redact_output
from runner.tasks.outcome import decide_outcome

TASK = Task("t-1", TaskState.RUNNING, "https://orchestrator.example.com", None, accepted_at=1.0)


def ended(exit_code: int) -> Container:
    """Return a container that has exited with this code."""
    return Container(
        "c0ffee",
        "victoria-t-1",
        Phase.EXITED,
        exit_code,
        out_of_memory=False,
        started_at=1.0,
        finished_at=5.0,
        labels={},
    )


def test_value_with_a_line_separator_in_it_is_redacted_whole(tmp_path: Path) -> None:
    env_file = tmp_path / "env"
    env_file.write_text("PASSWORD=first-half\u2028second-half\r\n# NOTE=not-a-secret\n")
    known = known_secrets(Secret("registration-token"), env_file=env_file)
    output = "registration-token first-half\u2028second-half second-half not-a-secret"
    assert redact_output(output, known) == "*** *** second-half not-a-secret"


@pytest.mark.parametrize("code", [137, 143])
def test_end_by_a_signal_while_the_daemon_was_away_is_lost_and_not_failed(code: int) -> None:
    assert decide_outcome(TASK, ended(code), was_daemon_away=True).reason is EndReason.LOST
    assert decide_outcome(TASK, ended(code)).reason is EndReason.FAILED


@pytest.mark.parametrize("code", [0, 1, 42])
def test_end_by_itself_while_the_daemon_was_away_is_what_it_is(code: int) -> None:
    reason = EndReason.FAILED if code else EndReason.COMPLETED
    assert decide_outcome(TASK, ended(code), was_daemon_away=True).reason is reason
