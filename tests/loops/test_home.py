"""Which home a task has, and what happens when the Victoria home is in no state for tasks."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.model import HomeMode
from runner.timing import file_stamp
from runner.workspace.home import home_of_task
from tests.fakes.crush import Crush
from tests.harness.host import Host, container_of
from tests.harness.orchestrator import LOGS, POLL
from tests.loops.steps import Log, outcomes

pytestmark = pytest.mark.anyio

INSIDE = "/workspace/Victoria"
QUEUE = tuple(f"t-{number}" for number in range(20))


def too_large(home: Path) -> Path:
    """Put a file into the home with which it is too large for a copy; return it."""
    with (home / "large").open("wb") as file:
        file.truncate(100_000_001)
    return home / "large"


@pytest.mark.parametrize("mode", HomeMode)
async def test_container_sees_of_tasks_its_own_folder_alone_with_its_files_read_only(
    host: Host, mode: HomeMode
) -> None:
    host.orchestrator.files["a"] = b"1,2,3\n"
    await host.finish_task("do it", {"files": ["a"]}, home=mode)
    spec = host.engine.specs[container_of("t-1")]
    own = host.home / "tasks" / "t-1"
    home = host.home if mode is HomeMode.SHARED else host.home / "tasks" / ".homes" / "t-1"
    assert spec.volumes == {home: INSIDE, own: f"{INSIDE}/tasks/t-1"}
    assert spec.read_only == {own / "files": f"{INSIDE}/tasks/t-1/files"}
    assert spec.covered == (f"{INSIDE}/tasks",)
    assert (own / "files" / "a").read_bytes() == b"1,2,3\n"
    assert home_of_task(host.home, "t-1") == home


async def test_folder_is_made_for_a_task_without_files_too(host: Host) -> None:
    await host.finish_task()
    spec = host.engine.specs[container_of("t-1")]
    assert host.home / "tasks" / "t-1" in spec.volumes
    assert not spec.read_only


@pytest.mark.parametrize(
    ("began", "goes_on"),
    [(HomeMode.TASK, HomeMode.SHARED), (HomeMode.SHARED, HomeMode.TASK)],
    ids=["own home", "shared home"],
)
async def test_task_keeps_the_home_that_it_was_given_though_the_next_runner_has_another_mode(
    host: Host, began: HomeMode, goes_on: HomeMode
) -> None:
    prompt = "Count the sales [wait-for go]"
    async with host.running_task(prompt, home=began):
        home = home_of_task(host.home, "t-1")
        assert (home == host.home) == (began is HomeMode.SHARED)
    crush = Crush(home / ".crush" / "crush.db", now=int(host.clock.wall_s()))
    crush.begin("s1", prompt=prompt)
    crush.close()
    async with host.runner(home=goes_on):
        (home / "go").touch()
        await host.wait_for_end()
    assert [call.body["session"]["id"] for call in host.orchestrator.called(LOGS)] == ["s1"]


@pytest.mark.parametrize(
    ("name", "plant"), [("tasks", Path.touch), (".crush", os.mkfifo)], ids=["tasks", ".crush"]
)
async def test_obstacle_in_the_home_costs_no_task_of_the_queue(
    host: Host, log: Log, name: str, plant: Callable[[Path], object]
) -> None:
    plant(host.home / name)
    for task_id in QUEUE:
        host.orchestrator.offer(task_id)
    async with host.runner():
        for task_id in QUEUE:
            assert (await host.wait_for_end(task_id))["status"] == "success"
    assert log.text.count(f"{name}: it is not a folder; it was moved aside as {name}.") == 1


def plant_immovable(host: Host) -> Callable[[], object]:
    """Have folders where the obstacle would be moved to for a while; return what heals it."""
    (host.home / ".crush").touch()
    for later_s in range(1000):
        stamp = file_stamp(host.clock.wall_s() + later_s)
        (host.home / f".crush.{stamp}.unusable").mkdir()
    return (host.home / ".crush").unlink


def plant_large(host: Host) -> Callable[[], object]:
    return too_large(host.home).unlink


PROBLEMS: dict[str, tuple[Callable[[Host], Callable[[], object]], dict[str, Any], str]] = {
    "immovable": (plant_immovable, {}, ".crush: it is not a folder, and it cannot be moved aside"),
    "too large": (plant_large, {"home": HomeMode.TASK}, "it has more than 100 MB beside tasks/"),
}


@pytest.mark.parametrize(("plant", "settings", "sentence"), PROBLEMS.values(), ids=PROBLEMS)
async def test_home_that_cannot_be_used_is_the_hosts_problem_until_it_can(
    host: Host,
    log: Log,
    plant: Callable[[Host], Callable[[], object]],
    settings: dict[str, Any],
    sentence: str,
) -> None:
    heal = plant(host)
    for task_id in QUEUE:
        host.orchestrator.offer(task_id)
    async with host.runner(**settings):
        await host.wait_for_beat("error")
        await host.clock.advance(300)
        assert not host.orchestrator.count(POLL)
        heal()
        await host.pass_time_until(lambda: len(outcomes(host)) == len(QUEUE))
    assert set(outcomes(host).values()) == {"success"}
    assert sum(sentence in line for line in log.messages) == 1


async def test_home_that_grows_too_large_costs_one_task_and_not_the_queue(host: Host) -> None:
    host.orchestrator.holds = True
    async with host.runner(home=HomeMode.TASK):
        await host.wait_for_calls(POLL)
        large = too_large(host.home)
        for task_id in QUEUE[:5]:
            host.orchestrator.offer(task_id)
        end = await host.wait_for_end("t-0")
        assert end["message"].startswith(f"unstartable: cannot copy {host.home} for a task: it has")
        await host.clock.advance(600)
        assert set(outcomes(host)) == {"t-0"}
        large.unlink()
        await host.pass_time_until(lambda: len(outcomes(host)) == 5)
    assert list(outcomes(host).values()).count("success") == 4
