"""A registry that hangs, limits its rate or wants a login holds up no task whose image is here."""

import pytest

from runner.errors import ImageMissing, ImageUnchecked, LoginRefused
from runner.model import PullPolicy
from runner.tasks.image import fetch_image_once
from runner.timing import Timings
from tests.harness.host import IMAGE, Host
from tests.harness.orchestrator import POLL
from tests.harness.until import until
from tests.loops.steps import Log, finish_another

pytestmark = pytest.mark.anyio

NEWER = PullPolicy.NEWER
COPIED = "Copying blob e1697c2ac4dd [=>---] 1.0MiB / {}.0MiB\r\n"


async def test_registry_that_hangs_costs_one_wait_and_the_next_tasks_none(
    host: Host, log: Log
) -> None:
    host.engine.shut("pull")
    async with host.runner(pull=NEWER, heartbeat_interval_s=300.0):
        await until(lambda: host.engine.waiting["pull"] == 1)
        await host.clock.advance(119)
        assert not host.orchestrator.count(POLL)
        await host.clock.advance(2)
        await host.wait_for_calls(POLL)
        for task_id in ("t-1", "t-2"):
            await finish_another(host, task_id)
        assert host.engine.called["pull"] == 1
        assert sum("the registry has not answered" in line for line in log.messages) == 1
        assert sum(line == "pulling the image" for line in log.messages) >= 4
        host.engine.open("pull")
        await finish_another(host, "t-3")
        assert host.engine.called["pull"] == 2


async def test_registry_that_fails_is_asked_again_with_backoff_by_all_tasks_together(
    host: Host, log: Log
) -> None:
    host.engine.break_("pull", ImageUnchecked("cannot check for a newer image: too many requests"))
    async with host.runner(pull=NEWER, heartbeat_interval_s=300.0):
        await host.wait_for_calls(POLL)
        await finish_another(host, "t-1")
        assert host.engine.called["pull"] == 1
        assert sum("too many requests" in line for line in log.messages) == 1
        assert host.orchestrator.beats()[-1] != "error"
        await host.clock.advance(600)
        await finish_another(host, "t-3")
        assert host.engine.called["pull"] == 2
        host.engine.mend()
        await host.clock.advance(1200)
        for task_id in ("t-4", "t-5"):
            await finish_another(host, task_id)
        assert host.engine.called["pull"] == 4


async def test_login_that_is_lost_is_an_error_until_it_is_back(host: Host, log: Log) -> None:
    sentence = "cannot check for a newer image: unauthorized; run `podman login`"
    host.engine.break_("pull", LoginRefused(sentence))
    async with host.runner(pull=NEWER, heartbeat_interval_s=300.0):
        await host.wait_for_beat("error")
        await host.wait_for_calls(POLL)
        await finish_another(host, "t-1")
        assert (sentence, "ERROR") in [(line.getMessage(), line.levelname) for line in log.records]
        host.engine.mend()
        await host.clock.advance(600)
        await finish_another(host, "t-2")
        await host.pass_time_until(lambda: host.orchestrator.beats()[-1] == "idle", 1.0)


async def test_first_pull_is_a_problem_while_nothing_is_received_and_the_log_has_how_much_was(
    host: Host, log: Log
) -> None:
    host.engine.image = "another"
    host.engine.shut("pull")
    async with host.runner(pull=NEWER, heartbeat_interval_s=300.0):
        await until(lambda: host.engine.waiting["pull"] == 1)
        await host.clock.advance(100)
        assert host.orchestrator.beats()[-1] == "idle"
        await host.clock.advance(60)
        assert host.orchestrator.beats()[-1] == "error"
        assert host.engine.progress is not None
        host.engine.progress.feed(COPIED.format(3))
        await host.clock.advance(60)
        assert host.orchestrator.beats()[-1] == "idle"
        shown = [getattr(line, "fields", {}) for line in log.records]
        assert [one["downloaded"] for one in shown if one.get("elapsed_s") in {180, 210}] == [
            "1.0 of 3.0 MiB",
            "1.0 of 3.0 MiB",
        ]
        host.engine.image = IMAGE
        host.engine.open("pull")
        await host.wait_for_calls(POLL)


async def test_single_fetch_has_the_image_that_is_here_although_its_registry_hangs_or_fails(
    host: Host,
) -> None:
    timings = Timings(newer_image_timeout_s=0.01)
    host.engine.shut("pull")
    await fetch_image_once(host.engine, IMAGE, NEWER, timings)
    host.engine.open("pull")
    host.engine.break_("pull", ImageUnchecked("cannot check for a newer image: no answer"))
    await fetch_image_once(host.engine, IMAGE, NEWER, timings)
    host.engine.mend()
    with pytest.raises(ImageMissing):
        await fetch_image_once(host.engine, "another", NEWER, timings)
    assert host.engine.called["pull"] == 3
