"""A host that cannot run tasks reports that and takes none, so the queue is not used up."""

import pytest

from runner.engine.base import LABEL_RUNNER, LABEL_TASK, Phase
from runner.errors import EngineError, EngineSilent, NameInUse
from runner.model import TaskState
from tests.harness.host import IMAGE, Host
from tests.harness.orchestrator import POLL
from tests.harness.until import until
from tests.loops.steps import Log, leave_task, start_container

pytestmark = pytest.mark.anyio

OTHER_IMAGE = "localhost/other:1"


@pytest.mark.parametrize(
    ("name", "away", "there", "sentence"),
    [
        ("image", OTHER_IMAGE, IMAGE, f"until a container starts: cannot fetch the image {IMAGE}"),
        ("silent", True, False, "no new task is taken: cannot reach the fake engine"),
    ],
    ids=["image", "engine"],
)
async def test_no_task_is_taken_before_image_and_engine_are_there(  # noqa: PLR0913, PLR0917 - a table
    host: Host, log: Log, name: str, away: object, there: object, sentence: str
) -> None:
    setattr(host.engine, name, away)
    host.orchestrator.offer()
    async with host.runner():
        await host.wait_for_beat("error")
        await host.clock.advance(100)
        assert not host.orchestrator.count(POLL)
        setattr(host.engine, name, there)
        await host.clock.advance(400)
        assert (await host.wait_for_end("t-1"))["status"] == "success"
    assert sum(sentence in line for line in log.messages) == 1


async def test_image_that_is_gone_costs_one_task_and_not_the_queue(host: Host) -> None:
    host.orchestrator.holds = True
    async with host.runner():
        await host.wait_for_calls(POLL)
        host.engine.image = OTHER_IMAGE
        host.orchestrator.offer("t-1")
        host.orchestrator.offer("t-2")
        assert (await host.wait_for_end("t-1"))["message"].startswith("unstartable: ")
        await host.clock.advance(100)
        assert host.state_of("t-2") is None
        host.engine.image = IMAGE
        await host.pass_time_until(lambda: host.state_of("t-2") is not None)
        assert (await host.wait_for_end("t-2"))["status"] == "success"
        await host.pass_time_until(lambda: host.orchestrator.beats()[-1] == "idle", 1.0)


async def test_image_that_went_between_two_looks_is_fetched_again(host: Host) -> None:
    host.orchestrator.offer()
    host.engine.shut("run")
    async with host.runner():
        await until(lambda: host.engine.waiting["run"] == 1)
        host.engine.image = OTHER_IMAGE
        host.engine.open("run")
        end = await host.wait_for_end("t-1")
    assert end["message"] == f"unstartable: cannot fetch the image {IMAGE}: no registry answers"
    assert host.engine.called["fetch_image"] == 3


async def test_engine_that_refuses_every_start_is_given_fewer_and_fewer_tasks(host: Host) -> None:
    host.engine.break_("run", EngineError("cannot start the container: unknown flag: --x"))
    for number in range(50):
        host.orchestrator.offer(f"t-{number}")
    async with host.runner():
        await host.wait_for_end("t-0")
        await host.clock.advance(600)
        ended = host.rows("SELECT task_id FROM tasks")
        assert 3 <= len(ended) <= 9
        assert host.orchestrator.beats()[-1] == "error"
        host.engine.mend()
        await host.clock.advance(400)
        assert (await host.wait_for_end("t-49"))["status"] == "success"
        await host.pass_time_until(lambda: host.orchestrator.beats()[-1] == "idle", 1.0)


async def test_slow_start_is_logged_every_minute_and_begun_once(host: Host, log: Log) -> None:
    host.engine.shut("run")
    host.orchestrator.offer()
    async with host.runner():
        await until(lambda: host.engine.waiting["run"] == 1)
        await host.clock.advance(599)
        sentence = "podman is still starting the container; "
        assert sum(line.startswith(sentence) for line in log.messages) == 9
        assert host.orchestrator.beats()[-1] == "busy"
        host.engine.open("run")
        assert (await host.wait_for_end())["status"] == "success"
    assert host.engine.called["run"] == 1


async def test_name_in_use_by_what_cannot_be_seen_is_freed_without_haste(host: Host) -> None:
    sentence = "cannot start the container: the name victoria-t-1 is in use"
    killed = EngineSilent("cannot do podman run: no answer within 300 s")
    host.engine.fail("run", killed, *[NameInUse(sentence) for _ in range(4)])
    host.orchestrator.offer()
    async with host.runner():
        await until(lambda: host.engine.called["run"] == 1)
        await host.clock.advance(6)
        await until(lambda: host.engine.called["remove"] == 1)
        assert host.engine.called["run"] == 3
        await host.clock.advance(20)
        assert (await host.wait_for_end("t-1"))["status"] == "success"
    assert host.starts_of("t-1") == 1


async def test_name_in_use_by_what_is_not_shown_and_not_ours_ends_the_task(host: Host) -> None:
    sentence = "cannot start the container: the name victoria-t-1 is in use"
    host.engine.fail("run", *[NameInUse(sentence) for _ in range(2)])
    end = await host.finish_task()
    assert end["message"].startswith(f"unstartable: {sentence}, by something that podman does not")
    assert host.engine.called["remove"] == 0


@pytest.mark.parametrize(
    "labels",
    [{}, {LABEL_TASK: "t-1"}, {LABEL_TASK: "t-1", LABEL_RUNNER: "another"}],
    ids=["no label", "no runner's", "another runner's"],
)
@pytest.mark.parametrize("is_restarted", [False, True], ids=["offered", "at a restart"])
async def test_container_of_the_tasks_name_that_is_not_ours_is_neither_read_nor_touched(
    host: Host, log: Log, labels: dict[str, str], *, is_restarted: bool
) -> None:
    if is_restarted:
        await leave_task(host, TaskState.STARTING)
    else:
        host.orchestrator.offer()
    await start_container(host, "victoria-t-1", "[print-line password][hang]", labels=labels)
    async with host.runner():
        end = await host.wait_for_end()
    sentence = "unstartable: cannot start the container: the name victoria-t-1 belongs to a contai"
    assert end["message"].startswith(sentence)
    stranger = await host.engine.inspect("victoria-t-1")
    assert stranger is not None
    assert stranger.phase is Phase.RUNNING
    calls = ("last_output", "wait", "stop", "remove", "remove_stopped")
    assert not [call for call in calls if host.engine.called[call]]
    assert "password" not in f"{log.text} {host.orchestrator.taken}"
    assert not host.engine.called["run"] > 2


async def test_no_task_is_taken_while_one_in_hand_waits_for_the_engine(host: Host) -> None:
    async with host.running_task(max_tasks=2):
        host.engine.break_("inspect", EngineError("cannot do podman inspect: no answer"))
        await host.clock.advance(31)
        await until(lambda: host.orchestrator.beats()[-1] == "error")
        host.orchestrator.offer("t-2")
        await host.clock.advance(200)
        assert host.orchestrator.queue
        host.engine.mend()
        await host.clock.advance(200)
        assert (await host.wait_for_end("t-2"))["status"] == "success"
        assert host.orchestrator.beats()[-1] == "busy"
        host.let_go()
        assert (await host.wait_for_end("t-1"))["status"] == "success"
