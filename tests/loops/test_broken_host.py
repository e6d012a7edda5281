"""A host that cannot run tasks reports that and takes none, so the queue is not used up."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from runner.engine.base import LABEL_RUNNER, LABEL_TASK, Phase
from runner.errors import EngineError, EngineSilent, NameInUse
from runner.model import TaskState
from tests.harness.disk import mount, small_disk, use_up_inodes
from tests.harness.host import IMAGE, Host
from tests.harness.orchestrator import POLL
from tests.harness.until import until
from tests.loops.steps import Log, leave_task, outcomes, start_container

pytestmark = pytest.mark.anyio

Heal: TypeAlias = Callable[[], object]

QUEUE = tuple(f"t-{number}" for number in range(5))
OTHER_IMAGE = "localhost/other:1"


@pytest.mark.parametrize(
    ("name", "away", "there", "sentence"),
    [
        ("image", OTHER_IMAGE, IMAGE, f"until a container starts: cannot fetch the image {IMAGE}"),
        ("silent", True, False, "no new task is taken: cannot reach the fake engine"),
        ("image_architecture", "amd64", "arm64", "it is for amd64, and this host is arm64; use an"),
    ],
    ids=["image", "engine", "architecture"],
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


def refuse_starts(host: Host) -> Heal:
    host.engine.break_("run", EngineError("cannot start the container: unknown flag: --x"))
    return host.engine.mend


def take_away(program: str) -> Callable[[Host], Heal]:
    def plant(host: Host) -> Heal:
        setattr(host.engine, program, not getattr(host.engine, program))
        return lambda: setattr(host.engine, program, True)

    return plant


def fill_storage(host: Host) -> Heal:
    host.engine.storage = Path("/proc")  # a file system without any space
    return lambda: setattr(host.engine, "storage", None)


def change_env_file(change: Callable[[Path], object]) -> Callable[[Host], Heal]:
    def plant(host: Host) -> Heal:
        path = host.folder / "env"
        change(path)
        return lambda: path.write_text("A=2\n")

    return plant


def block_run_folder(host: Host) -> Heal:
    folder = host.state_dir / "run"
    folder.rmdir()
    folder.touch()
    return folder.unlink


def make_read_only(host: Host) -> Heal:
    mount(host.home, "-o", "remount,ro")
    return lambda: mount(host.home, "-o", "remount,rw")


def use_up_home(host: Host) -> Heal:
    crowd = use_up_inodes(host.home)
    return lambda: shutil.rmtree(crowd)


TROUBLES: dict[str, tuple[Callable[[Host], Heal], str]] = {
    "engine": (refuse_starts, "slowing down until a container starts: cannot start the contain"),
    "architecture": (take_away("executes"), "here: exec /usr/bin/agent: exec format error; use"),
    "storage": (fill_storage, "/proc has 0 B free and 1 MiB must stay free; free some space"),
    "env file": (change_env_file(lambda path: path.write_text("A\n")), "line 1 is not NAME=VALUE"),
    "no env file": (change_env_file(Path.unlink), "no such file or directory; put the file there"),
    "state folder": (block_run_folder, "state: File exists"),
    "read-only": (make_read_only, "home: read-only file system; check its owner, mode and disk"),
    "inodes": (use_up_home, "home has no inodes free, and each file needs one; free some space"),
}


@pytest.mark.parametrize(("plant", "sentence"), TROUBLES.values(), ids=TROUBLES)
async def test_trouble_of_the_host_costs_one_task_at_most_and_is_over_by_itself(
    host: Host, log: Log, plant: Callable[[Host], Heal], sentence: str
) -> None:
    (host.folder / "env").write_text("A=1\n")
    with small_disk(host.home, "nr_inodes=100"):
        async with host.runner(env_file=host.folder / "env"):
            await host.wait_for_calls(POLL)
            await host.clock.settle()
            heal = plant(host)
            for task_id in QUEUE:
                host.orchestrator.offer(task_id)
            await host.clock.advance(300)
            assert len(outcomes(host)) <= 1
            assert host.orchestrator.beats()[-1] == "error"
            assert any(sentence in line for line in log.messages)
            heal()
            await host.pass_time_until(lambda: outcomes(host).keys() == set(QUEUE))
            await host.pass_time_until(lambda: host.orchestrator.beats()[-1] == "idle", 1.0)
    assert sum(status == "error" for status in outcomes(host).values()) <= 1
    assert all(host.starts_of(task_id) <= 1 for task_id in QUEUE)


async def test_outage_ends_though_a_problem_of_the_host_keeps_it_from_polling(
    host: Host, log: Log
) -> None:
    async with host.runner():
        await host.wait_for_calls(POLL)
        host.orchestrator.is_down = True
        await host.pass_time_until(lambda: "Error polling for tasks: " in log.text)
        fill_storage(host)
        host.orchestrator.is_down = False
        await host.clock.advance(200)
    assert "the orchestrator responds again" in log.messages


@pytest.mark.parametrize("trouble", ["engine", "env file", "state folder"])
async def test_tasks_that_were_accepted_together_wait_for_the_host_that_fails_the_first(
    host: Host, log: Log, trouble: str
) -> None:
    (host.folder / "env").write_text("A=1\n")
    async with host.runner(env_file=host.folder / "env", max_tasks=3):
        await host.wait_for_calls(POLL)
        host.engine.shut("fetch_image")
        for task_id in QUEUE:
            host.orchestrator.offer(task_id)
        await host.pass_time_until(lambda: host.engine.waiting["fetch_image"] == 3)
        heal = TROUBLES[trouble][0](host)
        host.engine.open("fetch_image")
        await host.clock.advance(300)
        assert list(outcomes(host).values()) == ["error"]
        heal()
        await host.pass_time_until(lambda: outcomes(host).keys() == set(QUEUE))
    assert list(outcomes(host).values()).count("success") == len(QUEUE) - 1
    assert "a defect of the runner" not in log.text


async def test_image_whose_program_alone_cannot_be_executed_costs_one_task_until_it_is_replaced(
    host: Host,
) -> None:
    host.engine.executes, host.engine.executes_shell = False, True
    for task_id in QUEUE:
        host.orchestrator.offer(task_id)
    async with host.runner():
        await host.wait_for_end("t-0")
        await host.clock.advance(600)
        assert outcomes(host) == {"t-0": "error"}
        host.engine.executes, host.engine.image_id = True, "image-2"
        await host.pass_time_until(lambda: outcomes(host).keys() == set(QUEUE))
    assert list(outcomes(host).values()).count("success") == len(QUEUE) - 1


async def test_program_that_cannot_be_executed_is_no_failure_of_its_task(host: Host) -> None:
    host.engine.executes = False
    end = await host.finish_task()
    sentence = f"unstartable: cannot run the image {IMAGE} here: exec /usr/bin/agent: exec format"
    assert end["message"].startswith(sentence)


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
