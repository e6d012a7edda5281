"""A failure that lasts is a line as it begins, one every ten minutes, and one when it is over."""

import logging
from typing import Any

import pytest

from runner.errors import EngineError, Refused, Unavailable
from runner.node import Problems
from runner.outage import FailureLog, Outage
from runner.timing import ChangeSignal, Timings
from tests.harness.clock import VirtualClock

AWAY = Unavailable("Connection refused")
FAILS = Unavailable("HTTP 500", status=500)
PAGE = Refused("HTTP 404", 404)
REFUSED = Refused("HTTP 422: no", 422, "no")
BACK = "the orchestrator responds again"
MINUTE_S = 60.0


class Calls:
    """Calls to one orchestrator that fail and succeed, and what is logged of them above DEBUG."""

    def __init__(self, log: pytest.LogCaptureFixture) -> None:
        log.set_level(logging.INFO, "runner")
        self.clock = VirtualClock()
        self.outage = Outage(self.clock)
        vital = {"poll": True, "beat": True, "report": False, "claim": False}
        self._calls = {
            name: FailureLog(name, self.clock, Timings(), {"id": 1}, self.outage, is_vital=is_vital)
            for name, is_vital in vital.items()
        }
        self._log = log

    def fail(self, name: str, error: Exception = AWAY, *, after_s: float = 1.0) -> None:
        self.clock.move(after_s)
        self._calls[name].note(error, 2.0, f"{name}: {error}")

    def succeed(self, name: str) -> None:
        self._calls[name].end()

    @property
    def lines(self) -> list[str]:
        return [record.getMessage() for record in self._log.records]

    @property
    def last_facts(self) -> dict[str, Any]:
        return dict(vars(self._log.records[-1])["fields"])


@pytest.fixture
def calls(caplog: pytest.LogCaptureFixture) -> Calls:
    return Calls(caplog)


def test_calls_that_fail_together_are_one_outage(calls: Calls) -> None:
    for name in ("poll", "report", "beat", "claim", "poll"):
        calls.fail(name)
    assert calls.lines == ["poll: Connection refused"]
    assert calls.last_facts.items() >= {"id": 1, "failures": 1, "next_attempt_s": 2}.items()
    calls.fail("beat", after_s=10 * MINUTE_S)
    assert calls.lines[1:] == ["beat: Connection refused"]
    assert calls.last_facts.items() >= {"failures": 6, "lasted_s": 604}.items()
    calls.fail("report")
    calls.succeed("poll")
    assert len(calls.lines) == 2, "the heart does not beat yet"
    calls.succeed("beat")
    assert calls.lines[2:] == [BACK]
    assert calls.last_facts["since"].endswith("Z")
    calls.fail("report")
    calls.succeed("report")
    calls.fail("poll")
    assert calls.lines[3:] == ["poll: Connection refused"], "another outage"


def test_call_that_is_not_made_any_more_neither_ends_an_outage_nor_prolongs_it(
    calls: Calls,
) -> None:
    calls.fail("poll")
    calls.outage.drop("poll")
    assert calls.lines == ["poll: Connection refused"]
    calls.succeed("report")
    assert calls.lines[1:] == [BACK]


def test_call_that_fails_alone_is_logged_by_itself_and_hides_no_outage(calls: Calls) -> None:
    calls.fail("report", FAILS)
    calls.succeed("poll")
    calls.fail("poll")
    calls.succeed("poll")
    calls.fail("report", FAILS, after_s=10 * MINUTE_S)
    calls.succeed("report")
    report, poll = "report: HTTP 500", "poll: Connection refused"
    assert calls.lines == [report, poll, BACK, report, "retry succeeded: report"]


def test_call_that_began_an_outage_and_fails_on_does_not_begin_one_after_another(
    calls: Calls,
) -> None:
    for _ in range(5):
        calls.fail("report")
        calls.succeed("beat")
    assert calls.lines == ["report: Connection refused", BACK]


@pytest.mark.parametrize(
    ("error", "is_outage"),
    [(FAILS, True), (PAGE, True), (REFUSED, False), (EngineError("no"), False)],
    ids=["500", "page of a proxy", "refusal", "not of the orchestrator"],
)
def test_refusal_in_the_orchestrator_s_own_words_is_no_outage(
    calls: Calls, error: Exception, *, is_outage: bool
) -> None:
    calls.fail("poll", error)
    calls.fail("beat")
    assert len(calls.lines) == (1 if is_outage else 2)
    calls.succeed("poll")
    assert calls.lines[2:] == ([] if is_outage else ["retry succeeded: poll"])


def test_error_is_logged_at_once_and_once_within_an_outage(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "runner")
    clock = VirtualClock()
    register = FailureLog("register", clock, Timings(), outage=Outage(clock), is_vital=True)
    for sentence, level in (("away", logging.WARNING), ("wrong token", logging.ERROR)) * 3:
        register.note(AWAY, 1.0, sentence, level)
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]


def test_engine_that_does_not_answer_for_several_tasks_is_one_problem_of_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "runner")
    problems = Problems(ChangeSignal(), clock=VirtualClock())
    names = ("engine/t-1/", "engine", "engine/t-2/run")
    for name in (*names, *names):
        problems.set(name, f"{name} is unknown")
    assert set(problems.sentences) == set(names), "heartbeats and the status line have them all"
    for name in names:
        problems.clear(name)
    assert [record.getMessage() for record in caplog.records] == [
        "engine/t-1/ is unknown",
        "problem is over",
    ]


def test_problem_that_lasts_is_logged_every_ten_minutes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "runner")
    clock = VirtualClock()
    problems = Problems(ChangeSignal(), clock=clock)
    for _ in range(21):
        problems.set("disk", "no room")
        clock.move(MINUTE_S)
    problems.clear("disk")
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["no room"] * 3 + ["problem is over"]
    assert vars(caplog.records[-1])["fields"]["lasted_s"] == 21 * MINUTE_S
