"""Answers without end, and such as unpack to more than there is room for: the runner goes on."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import pytest

from runner.api.http import MAX_ANSWER_BYTES
from tests.loops.host import IDLE
from tests.loops.orchestrator import BEAT, POLL, REGISTER, STATUS
from tests.unit.scripted_server import endless, http, told

if TYPE_CHECKING:
    from tests.loops.host import Host
    from tests.unit.scripted_server import Answer

pytestmark = pytest.mark.anyio

FILE = "/files/a.csv"
BOMB = gzip.compress(b"{}" + b" " * (4 * MAX_ANSWER_BYTES), compresslevel=1)
"""Good JSON, once it has become four times as large as any answer may be."""
PACKED = {"Content-Encoding": "gzip"}
TOO_LONG = "its answer is longer than 16 MiB"
NO_JSON = "its answer is no JSON; is this the orchestrator's address?"
COMPRESSED = "it compressed a file that was asked for as it is"
GOOD = told({})


@pytest.mark.parametrize(
    ("path", "before", "answer", "said"),
    [
        *((path, (), endless(), TOO_LONG) for path in (REGISTER, POLL, BEAT, STATUS)),
        (STATUS, (GOOD,), endless(), "cannot deliver a report"),
        *((path, (), http(200, BOMB, PACKED), NO_JSON) for path in (REGISTER, POLL, BEAT, STATUS)),
        (STATUS, (GOOD,), http(200, BOMB, PACKED), NO_JSON),
        (FILE, (), http(200, BOMB, PACKED), COMPRESSED),
        (FILE, (), http(404, BOMB, PACKED), ""),
    ],
    ids=[
        *("endless-register", "endless-poll", "endless-heartbeat", "endless-claim", "endless-end"),
        *("bomb-register", "bomb-poll", "bomb-heartbeat", "bomb-claim", "bomb-end", "bomb-file"),
        "bomb-in-a-refusal",
    ],
)
async def test_greedy_answer_is_given_up_and_work_goes_on(  # noqa: PLR0913, PLR0917 - the table's columns
    host: Host,
    log: pytest.LogCaptureFixture,
    path: str,
    before: tuple[Answer, ...],
    answer: Answer,
    said: str,
) -> None:
    host.orchestrator.files["a.csv"] = b"1,2"
    host.orchestrator.then(path, *before, answer)
    host.orchestrator.offer("t-1", files=["a.csv"])
    async with host.runner():
        while host.state_of("t-1") != "closed":
            # Before the registration nobody but its loop, deliver and the watchdog sleeps.
            await host.clock.advance(5, asleep=IDLE - 1)
        end = await host.wait_for_end("t-1")
        host.orchestrator.offer("t-2")
        await host.clock.advance(34, asleep=IDLE)
        assert (await host.wait_for_end("t-2"))["status"] == "success"

    assert said in log.text
    assert end["status"] == "success"
    assert host.starts_of("t-1") == 1
