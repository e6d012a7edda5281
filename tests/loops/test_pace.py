"""The runner follows the pace of its orchestrator, and polls as long as what is between lets it."""

import os
import signal
from itertools import pairwise

import pytest
from anyio.abc import ByteStream

from runner.errors import NoResponse
from runner.loops.poll import Hold
from runner.timing import DEFAULT_TIMINGS
from tests.harness.clock import VirtualClock
from tests.harness.host import Host
from tests.harness.orchestrator import BEAT, POLL, SILENCE
from tests.harness.server import Answer, http, json_response
from tests.harness.until import until
from tests.loops.steps import Log

pytestmark = pytest.mark.anyio

PACED = ["pace"]


def _paces(host: Host, interval_s: object, extensions: list[str] = PACED) -> None:
    body = {"extensions": extensions, "heartbeat_interval_seconds": interval_s}
    host.orchestrator.always(BEAT, json_response(body))


def _gaps(host: Host) -> list[float]:
    beats = host.orchestrator.called(BEAT)
    # Before the first response nobody has asked for anything.
    return [after.at_s - before.at_s for before, after in pairwise(beats)]


@pytest.mark.parametrize(
    ("asked_s", "extensions", "option_s", "interval_s"),
    [
        (100, PACED, None, 100),
        (1, PACED, None, 5),
        (10**9, PACED, None, 300),
        (100, [], None, 15),
        ("100", PACED, None, 15),
        (None, PACED, None, 15),
        (True, PACED, None, 15),
        (float("nan"), PACED, None, 15),
        (10**400, PACED, None, 15),
        (100, PACED, 20.0, 20),
    ],
)
async def test_heartbeats_have_the_interval_that_the_orchestrator_asks_for(
    host: Host,
    asked_s: object,
    extensions: list[str],
    option_s: float | None,
    interval_s: float,
) -> None:
    _paces(host, asked_s, extensions)
    async with host.runner(heartbeat_interval_s=option_s, poll_interval_s=600.0):
        await host.clock.advance(1300)

    gaps = _gaps(host)
    assert len(gaps) >= 3
    assert all(0.9 * interval_s <= gap <= 1.1 * interval_s for gap in gaps)


async def test_node_with_a_task_beats_every_15_s_whatever_it_is_told(host: Host) -> None:
    _paces(host, 100)
    host.orchestrator.offer("t-1", "[hang]")
    async with host.runner(heartbeat_interval_s=None):
        await host.wait_for_state("t-1", "running")
        before = host.orchestrator.count(BEAT)
        await host.clock.advance(100)

    assert host.orchestrator.count(BEAT) - before >= 6


async def test_drain_is_followed_by_a_heartbeat_at_once(host: Host, log: Log) -> None:
    async with host.running_task(max_tasks=2, heartbeat_interval_s=10_000.0):
        await host.clock.advance(5)
        before = host.orchestrator.count(BEAT)
        os.kill(os.getpid(), signal.SIGUSR1)
        await until(lambda: "draining: " in log.text)
        await host.clock.advance(1.5)
        assert host.orchestrator.count(BEAT) == before + 1


def _after(host: Host, seconds: float, answer: Answer) -> Answer:
    async def send(stream: ByteStream) -> None:
        await host.clock.sleep(seconds)
        await answer(stream)

    return send


async def test_polls_are_longer_once_one_was_held_and_shorter_after_one_is_cut_off(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    held = json_response(None, headers={"Preference-Applied": "wait=25"})
    script = [(25, held), (55, held), (40, SILENCE), (25, held), (25, held)]
    host.orchestrator.then(POLL, *(_after(host, *answer) for answer in script))
    async with host.runner():
        await host.clock.advance(200)

    asked = [call.request.headers["prefer"] for call in host.orchestrator.called(POLL)]
    assert asked[:5] == ["wait=25", "wait=55", "wait=55", "wait=25", "wait=25"]
    moments = [call.at_s for call in host.orchestrator.called(POLL)]
    assert [round(moment - moments[0]) for moment in moments[:5]] == [0, 25, 80, 120, 145]
    assert [one.getMessage() for one in caplog.records if "polling" in one.getMessage()] == []


def _proxy(host: Host, longest_s: float, answer: Answer) -> Answer:
    """Hold a poll as long as it asks for; one that asks for longer is cut off like this."""

    async def send(stream: ByteStream) -> None:
        prefer = host.orchestrator.called(POLL)[-1].request.headers["prefer"]
        asked_s = float(prefer.removeprefix("wait="))
        await host.clock.sleep(min(asked_s, longest_s))
        headers = {"Preference-Applied": prefer} if asked_s else {}
        held = json_response(None, headers=headers)
        await (held if asked_s <= longest_s else answer)(stream)

    return send


@pytest.mark.parametrize(
    ("answer", "longest_s", "asked_s", "gap_s", "sentence"),
    [
        (SILENCE, 10, 8, 10, "holding them for 8 s"),
        (http(502), 10, 8, 10, "holding them for 8 s"),
        (http(504), 3, 0, 33, "not holding them"),
    ],
    ids=["silence", "502", "504 very soon"],
)
async def test_proxy_that_cuts_off_polls_is_asked_again_at_once_for_shorter_ones(  # noqa: PLR0913, PLR0917 - a table
    host: Host,
    log: Log,
    answer: Answer,
    longest_s: float,
    asked_s: int,
    gap_s: float,
    sentence: str,
) -> None:
    host.orchestrator.always(POLL, _proxy(host, longest_s, answer))
    async with host.runner():
        await host.clock.advance(300)

    polls = host.orchestrator.called(POLL)
    assert max(after.at_s - before.at_s for before, after in pairwise(polls)) <= gap_s
    assert {call.request.headers["prefer"] for call in polls[2:]} == {f"wait={asked_s}"}
    (event,) = [one for one in log.records if "poll" in one.getMessage()]
    beginning = f"long polls are cut off after {longest_s} s, probably by a proxy ("
    assert event.getMessage().startswith(beginning)
    assert event.levelname == "WARNING"
    assert event.getMessage().endswith(f"; {sentence} from now on")


def test_poll_without_any_response_is_an_outage_unless_it_was_a_long_one() -> None:
    hold = Hold(VirtualClock(), DEFAULT_TIMINGS)
    silence = NoResponse("no response in time")
    assert not hold.was_cut(silence, 55)
    hold.note_response(25)
    assert hold.seconds == 55
    assert hold.was_cut(silence, 85), "a firewall may have dropped the silent connection"
    assert hold.seconds == 25
    assert not hold.was_cut(silence, 55)


async def test_orchestrator_that_restarts_is_asked_for_as_long_as_before(
    host: Host, log: Log
) -> None:
    held = json_response(None, headers={"Preference-Applied": "wait=25"})
    script = [(25, held), (10, SILENCE), (0, SILENCE), (10, SILENCE), (50, held)]
    host.orchestrator.then(POLL, *(_after(host, *answer) for answer in script))
    async with host.runner():
        await host.clock.advance(110)

    asked = [call.request.headers["prefer"] for call in host.orchestrator.called(POLL)]
    assert asked[:6] == ["wait=25", *["wait=55"] * 5]
    assert "cut off" not in log.text


async def test_polls_are_long_again_an_hour_after_one_was_cut_off(host: Host) -> None:
    held = json_response(None, headers={"Preference-Applied": "wait=25"})
    host.orchestrator.then(POLL, *(_after(host, *one) for one in ((25, held), (40, SILENCE))))
    host.orchestrator.always(POLL, _after(host, 25, held))
    async with host.runner():
        await host.clock.advance(3600 + 200)

    asked = [call.request.headers["prefer"] for call in host.orchestrator.called(POLL)]
    assert set(asked[2:140]) == {"wait=25"}
    assert asked[-1] == "wait=55"
