"""A task moves along the table of transitions only; its end has a reason, a status, no secret."""

import itertools

import pytest

from runner.engine.base import Container, Phase
from runner.model import EndReason, Task, TaskState, TaskStatus, check_transition, status_body
from runner.redaction import proxy_secrets, redact_output
from runner.tasks.outcome import cannot_execute, decide_outcome

TASK = Task("t-1", TaskState.RUNNING, "https://orchestrator.example.com", None, accepted_at=1.0)
ALLOWED = {
    (TaskState.ACCEPTED, TaskState.STARTING),
    (TaskState.ACCEPTED, TaskState.ENDED),
    (TaskState.STARTING, TaskState.RUNNING),
    (TaskState.STARTING, TaskState.ENDED),
    (TaskState.RUNNING, TaskState.ENDED),
    (TaskState.ENDED, TaskState.CLOSED),
}


def test_task_moves_along_the_table_only() -> None:
    for before, after in ALLOWED:
        check_transition(before, after)
    for before, after in {*itertools.product(TaskState, repeat=2)} - ALLOWED:
        with pytest.raises(ValueError, match=f"no way from {before.value} to {after.value}"):
            check_transition(before, after)


@pytest.mark.parametrize("reason", EndReason)
def test_only_a_completed_task_is_a_success(reason: EndReason) -> None:
    is_success = reason is EndReason.COMPLETED
    assert reason.status is (TaskStatus.SUCCESS if is_success else TaskStatus.ERROR)


@pytest.mark.parametrize("status", TaskStatus)
def test_status_is_written_as_the_word_of_the_api(status: TaskStatus) -> None:
    assert status.is_final is (status in {"success", "error", "cancelled"})
    body = status_body("t-1", status, None, 0)
    assert type(body["status"]) is str
    assert body["status"] == status.value == f"{status}"


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        ("\x1b[1;31mError:\x1b[0m it \x1b(Bbroke\x1b[K", "Error: it broke"),
        ("\x9b31mred\x9b0m", "red"),
        ("\x1b]0;title\x07a\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\ \x1bPq\x9cb", "alink b"),
        ("\x1b]0;a title without an end\nlast words", "last words"),
        ("10%\r 20%\r100%\r\ndone\r\n", "100%\ndone"),
        ("working |\b/\b-\b\\", "working \\"),
        ("col\tumn \x07\x00\x1b", "col\tumn"),
        ("hunter2-\x1b[1mhunter2\x1b[0m", "***"),
    ],
)
def test_no_escape_sequence_and_no_overwritten_progress_is_in_an_output(
    output: str, shown: str
) -> None:
    assert redact_output(output, ["hunter2-hunter2"]) == shown


@pytest.mark.parametrize(
    ("value", "output", "shown"),
    [
        ("http://svc:Sup3rSecret!@proxy:3128", "", "http://svc:***@proxy:3128"),
        ("svc:S%33cret-word%21@proxy", "S3cret-word!", "svc:***@proxy ***"),
        (
            "http://svc:Sup3rSecret!@proxy",
            "Basic c3ZjOlN1cDNyU2VjcmV0IQ==",
            "http://svc:***@proxy Basic ***",
        ),
        ("socks5://svc:short@proxy:3128/", "short", "socks5://***/ short"),
        ("http://svc:pa/ss#wo@rd@proxy", "", "http://svc:***@proxy"),
        ("http://a-user-name@proxy:3128", "", "http://a-user-name@proxy:3128"),
    ],
)
def test_password_of_a_proxy_is_redacted_in_each_form(value: str, output: str, shown: str) -> None:
    for variable in ("HTTPS_PROXY", "all_proxy"):
        known = [secret.reveal() for secret in proxy_secrets({}, {variable: value})]
        assert redact_output(f"{value} {output}", known) == shown


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


@pytest.mark.parametrize(
    ("output", "exit_code", "ended_at", "expected"),
    [
        ("exec /usr/bin/agent: exec format error", 1, 1.1, True),
        ("exec /usr/bin/agent: exec format error\n", 255, 1.1, True),
        ('standard_init_linux.go:228: exec user process caused "exec format error"', 1, 1.1, True),
        ('{"msg":"exec container process `/a`: Exec format error","level":"error"}', 1, 1.1, True),
        ("working\nexec /usr/bin/agent: exec format error", 1, 1.1, False),
        ("exec /usr/bin/agent: exec format error", 0, 1.1, False),
        ("exec /usr/bin/agent: exec format error", 1, 60.0, False),
        ("it says: exec format error", 1, 1.1, False),
    ],
)
def test_program_for_another_architecture_is_recognised_by_what_the_runtime_printed_alone(
    output: str, exit_code: int, ended_at: float, *, expected: bool
) -> None:
    ended = Container("c", "n", Phase.EXITED, exit_code, started_at=1.0, finished_at=ended_at)
    assert cannot_execute(ended, output) is expected
