"""The outcome of a task, and what its messages must not show."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.engine.base import Container, Phase
from runner.model import EndReason, Task, TaskState
from runner.redaction import Secret, known_secrets, redact_output
from runner.tasks.outcome import decide_outcome

TASK = Task("t-1", TaskState.RUNNING, "https://orchestrator.example.com", None, accepted_at=1.0)


def test_value_with_a_line_separator_in_it_is_redacted_whole(tmp_path: Path) -> None:
    env_file = tmp_path / "env"
    env_file.write_text("PASSWORD=first-half\u2028second-half\r\n# NOTE=not-a-secret\n")
    known = known_secrets(Secret("registration-token"), env_file=env_file)
    output = "registration-token first-half\u2028second-half second-half not-a-secret"
    assert redact_output(output, known) == "*** *** second-half not-a-secret"


@pytest.mark.parametrize(
    ("code", "reason", "while_away"),
    [
        *((code, EndReason.FAILED, EndReason.LOST) for code in (137, 143)),
        *((code, EndReason.FAILED, EndReason.FAILED) for code in (1, 42)),
        (0, EndReason.COMPLETED, EndReason.COMPLETED),
    ],
)
def test_only_an_end_by_a_signal_while_the_daemon_was_away_is_lost(
    code: int, reason: EndReason, while_away: EndReason
) -> None:
    ended = Container("c", "victoria-t-1", Phase.EXITED, code, started_at=1.0, finished_at=5.0)
    assert decide_outcome(TASK, ended).reason is reason
    assert decide_outcome(TASK, ended, was_daemon_away=True).reason is while_away
