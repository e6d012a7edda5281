"""The contract of a container engine: one suite for the fake one, podman and docker."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio
import pytest

from runner.engine.base import Phase
from runner.errors import EngineError, ImageMissing, NameInUse, NoSuchContainer
from runner.model import Limits, PullPolicy
from runner.timing import DEFAULT_TIMINGS
from tests.harness.until import DEADLINE_S, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.contract.conftest import Subject

pytestmark = pytest.mark.anyio

NOWHERE = "127.0.0.1:1/victoria-none:1"
HOME = "/workspace/Victoria"
COARSE_S = 0.1
"""How far the clock by which files are dated may be behind."""


async def test_engine_says_its_version(subject: Subject) -> None:
    facts = await subject.engine.facts()
    assert facts.version[0].isdigit()
    assert facts.cgroup_manager in {"systemd", "cgroupfs"}
    assert not facts.is_remote


# Running and ending


@pytest.mark.parametrize(("prompt", "exit_code"), [("nothing to do", 0), ("[fail 3]", 3)])
async def test_container_that_has_ended_has_exited_with_the_code_of_its_program(
    subject: Subject, tmp_path: Path, prompt: str, exit_code: int
) -> None:
    cid_file = tmp_path / "cid"
    container_id = await subject.start(prompt, volumes={tmp_path: HOME}, cid_file=cid_file)
    await subject.engine.wait(subject.name)
    container = await subject.look()
    assert (container.phase, container.exit_code) == (Phase.EXITED, exit_code)
    assert not container.out_of_memory
    assert container.name == subject.name
    assert cid_file.read_text() == container_id
    assert len(container_id) == 64
    starts = (tmp_path / "tasks" / "unnamed" / "starts.log").read_text()
    assert len(starts.splitlines()) == 1


async def test_moments_of_start_and_end_are_known(subject: Subject, tmp_path: Path) -> None:
    before_start = time.time()
    await subject.start("[wait-for go]", volumes={tmp_path: HOME})
    after_start = time.time()
    await anyio.sleep(3 * COARSE_S)  # so that the end cannot pass for the start
    before_end = time.time()
    (tmp_path / "go").touch()
    await subject.engine.wait(subject.name)
    container = await subject.look()
    assert container.started_at is not None
    assert container.finished_at is not None
    assert before_start - COARSE_S < container.started_at < after_start + COARSE_S
    assert before_end - COARSE_S < container.finished_at < time.time() + COARSE_S


async def test_ends_that_follow_each_other_closely_are_all_seen(subject: Subject) -> None:
    for _ in range(5):
        container = await subject.finish("[fail 4]")
        assert (container.phase, container.exit_code) == (Phase.EXITED, 4)
        await subject.engine.remove(subject.name)


async def test_running_container_is_running_with_its_labels_and_id(subject: Subject) -> None:
    container_id = await subject.start("[hang]", labels={"victoria.test": "a b=c"})
    container = await subject.look()
    assert container.phase is Phase.RUNNING
    assert container.container_id == container_id
    assert container.finished_at is None
    assert container.labels["victoria.test"] == "a b=c"


async def test_wait_is_certain_of_an_exit_that_has_come_before_it(subject: Subject) -> None:
    await subject.start("[print-line done]")
    with anyio.fail_after(DEADLINE_S):
        await subject.engine.wait(subject.name)
        assert await subject.engine.wait(subject.name)


async def test_wait_lasts_while_the_container_runs_and_is_certain_of_the_exit_then(
    subject: Subject, tmp_path: Path
) -> None:
    certain: list[bool] = []

    async def wait() -> None:
        certain.append(await subject.engine.wait(subject.name))

    await subject.start("[wait-for go]", volumes={tmp_path: HOME})
    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await subject.until_waited_for()
            await anyio.sleep(0.5)
            assert not certain
            (tmp_path / "go").touch()
    assert certain == [True]
    assert (await subject.look()).phase is Phase.EXITED


async def test_wait_that_is_cancelled_leaves_the_container_running(subject: Subject) -> None:
    await subject.start("[hang]")
    with anyio.move_on_after(0.5) as scope:
        await subject.engine.wait(subject.name)
    assert scope.cancelled_caught
    assert (await subject.look()).phase is Phase.RUNNING


async def test_wait_ends_when_the_container_is_removed_behind_our_back(subject: Subject) -> None:
    async def wait() -> None:
        with suppress(NoSuchContainer):
            await subject.engine.wait(subject.name)

    await subject.start("[hang]")
    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await subject.until_waited_for()
            await subject.engine.remove(subject.name)
    assert await subject.engine.inspect(subject.name) is None


async def test_engine_that_can_ends_a_container_after_its_time(subject: Subject) -> None:
    await subject.start("[ignore-term][hang]", timeout_s=1)
    if subject.engine.kind == "docker":
        await anyio.sleep(2)
        assert (await subject.look()).phase is Phase.RUNNING
        return
    with anyio.fail_after(DEADLINE_S):
        await subject.engine.wait(subject.name)
    container = await subject.look()
    assert container.phase is Phase.EXITED
    assert container.exit_code != 0


# What cannot be started


async def test_second_container_of_a_name_is_refused_and_the_first_goes_on(
    subject: Subject,
) -> None:
    container_id = await subject.start("[hang]")
    with pytest.raises(NameInUse):
        await subject.start("nothing to do")
    container = await subject.look()
    assert (container.container_id, container.phase) == (container_id, Phase.RUNNING)


async def test_missing_image_is_an_error_and_leaves_no_container(subject: Subject) -> None:
    with pytest.raises(ImageMissing, match="cannot find the image"):
        await subject.start("nothing to do", image=NOWHERE)
    assert await subject.engine.inspect(subject.name) is None


async def test_unknown_run_argument_is_an_error_in_the_engines_words(subject: Subject) -> None:
    with pytest.raises(EngineError, match="unknown flag: --nonsense"):
        await subject.start("nothing to do", run_args=("--nonsense",))
    assert await subject.engine.inspect(subject.name) is None


async def test_container_whose_program_is_missing_never_ran(subject: Subject) -> None:
    with pytest.raises(EngineError, match="no such file or directory"):
        await subject.start("x", run_args=("--network", "host", "--entrypoint", "/nowhere"))
    container = await subject.engine.inspect(subject.name)
    assert container is None or container.phase is Phase.CREATED
    await subject.engine.remove(subject.name)
    assert await subject.engine.inspect(subject.name) is None


@pytest.mark.parametrize("prompt", ["x" * (3 << 20), "before\0after"], ids=["3-MiB", "NUL"])
async def test_prompt_that_no_program_can_be_given_is_refused(
    subject: Subject, prompt: str
) -> None:
    with pytest.raises(EngineError, match="an argument"):
        await subject.start(prompt)
    assert await subject.engine.inspect(subject.name) is None


async def test_image_is_missing_where_it_cannot_or_must_not_be_fetched(subject: Subject) -> None:
    for policy in (PullPolicy.MISSING, PullPolicy.NEWER, PullPolicy.ALWAYS):
        with pytest.raises(ImageMissing, match="cannot fetch the image"):
            await subject.engine.fetch_image(NOWHERE, policy)
    with pytest.raises(ImageMissing):
        await subject.engine.fetch_image(NOWHERE, PullPolicy.NEVER)
    for policy in (PullPolicy.MISSING, PullPolicy.NEWER, PullPolicy.NEVER):
        await subject.engine.fetch_image(subject.image, policy)


# Ending and removing


async def test_stop_ends_a_container_that_heeds_it_at_once(subject: Subject) -> None:
    await subject.start("[print-line ready][hang]")
    await _is_ready(subject)
    started = time.monotonic()
    await subject.engine.stop(subject.name)
    assert time.monotonic() - started < DEFAULT_TIMINGS.stop_grace_s
    container = await subject.look()
    assert (container.phase, container.exit_code) == (Phase.EXITED, 143)


async def test_stop_kills_a_container_that_ignores_it(subject: Subject) -> None:
    await subject.start("[ignore-term][print-line ready][hang]")
    await _is_ready(subject)
    started = time.monotonic()
    with anyio.fail_after(DEADLINE_S):
        await subject.engine.stop(subject.name)
    assert subject.stop_grace_s - 1 < time.monotonic() - started
    container = await subject.look()
    assert (container.phase, container.exit_code) == (Phase.EXITED, 137)
    assert not container.out_of_memory


async def test_container_that_has_ended_is_not_changed_by_a_stop_and_removed(
    subject: Subject,
) -> None:
    await subject.finish("[fail 5]")
    await subject.engine.stop(subject.name)
    assert (await subject.look()).exit_code == 5
    await subject.engine.remove_stopped(subject.name)
    assert await subject.engine.inspect(subject.name) is None


async def test_running_container_is_removed_unless_only_stopped_ones_may_be(
    subject: Subject,
) -> None:
    await subject.start("[print-line ready][hang]")
    await _is_ready(subject)  # before that it heeds no signal, and podman gives it ten seconds
    with pytest.raises(EngineError):
        await subject.engine.remove_stopped(subject.name)
    assert (await subject.look()).phase is Phase.RUNNING
    await subject.engine.remove(subject.name)
    assert await subject.engine.inspect(subject.name) is None


async def test_missing_container_can_be_stopped_and_removed(subject: Subject) -> None:
    await subject.engine.stop(subject.name)
    await subject.engine.remove(subject.name)
    await subject.engine.remove_stopped(subject.name)


async def test_missing_container_cannot_be_waited_for_or_read(subject: Subject) -> None:
    assert await subject.engine.inspect(subject.name) is None
    with pytest.raises(NoSuchContainer):
        await subject.engine.wait(subject.name)
    with pytest.raises(NoSuchContainer):
        await subject.engine.last_output(subject.name, 1)


async def test_containers_are_listed_by_label_running_or_not(subject: Subject) -> None:
    mine = subject.name.rpartition("-")[2]
    await subject.start("[hang]", name=f"{subject.name}-a", labels={"victoria.test": mine})
    await subject.start("x", name=f"{subject.name}-b", labels={"victoria.test": mine})
    await subject.start("[hang]", name=f"{subject.name}-c", labels={"victoria.test": "else"})
    await subject.engine.wait(f"{subject.name}-b")
    names = await subject.engine.labelled("victoria.test", mine)
    assert sorted(names) == [f"{subject.name}-a", f"{subject.name}-b"]


# What goes in and what comes out


async def test_output_of_both_streams_is_kept_after_the_end(subject: Subject) -> None:
    await subject.finish("[print-line one][stderr two]")
    output = await subject.engine.last_output(subject.name, 50)
    assert sorted(output.splitlines()) == ["one", "two"]


async def test_only_as_many_last_lines_are_given_as_are_asked_for(subject: Subject) -> None:
    await subject.finish("[print-line one][print-line two][print-line three]")
    assert await subject.engine.last_output(subject.name, 2) == "two\nthree\n"


async def test_output_of_50_mb_is_bounded_and_its_end_is_kept(subject: Subject) -> None:
    await subject.finish("[print 50000000][print-line the-end]")
    output = await subject.engine.last_output(subject.name, 20)
    assert output.endswith("the-end\n")
    assert len(output) < 10_000
    assert len(await subject.engine.last_output(subject.name, 10_000_000)) <= 21 << 20


async def test_prompt_arrives_as_it_is(subject: Subject) -> None:
    prompt = "--help 'single' \"double\" $(id) `id` \\ ünï\nsecond line ; rm -rf /"
    await subject.finish(prompt)
    assert await subject.engine.last_output(subject.name, 50) == f"task: {prompt}\n"


async def test_variables_come_raw_from_files_that_may_go_then_and_the_later_file_wins(
    subject: Subject, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("BOTH=first\n# a comment\nRAW=\"quoted\" $HOME a#b 'c'\nEMPTY=\n")
    second.write_text("BOTH=second\n")
    prompt = "[sleep 0.5][env BOTH][env RAW][env EMPTY]"
    await subject.start(prompt, env_files=(first, second))
    for file in (first, second):
        file.unlink()
    container = await subject.look()
    assert container.variables["BOTH"] == "second"
    assert container.variables["RAW"] == "\"quoted\" $HOME a#b 'c'"
    assert "second" not in repr(container)
    await subject.engine.wait(subject.name)
    assert await subject.engine.last_output(subject.name, 50) == (
        "BOTH=second\nRAW=\"quoted\" $HOME a#b 'c'\nEMPTY=\n"
    )


async def test_folder_is_shared_with_the_container(subject: Subject, tmp_path: Path) -> None:
    note, go = tmp_path / "note", tmp_path / "go"
    await subject.start("[write note from-inside][wait-for go]", volumes={tmp_path: HOME})
    await until(note.exists)
    assert note.read_text() == "from-inside"
    go.touch()
    await subject.engine.wait(subject.name)
    assert (await subject.look()).exit_code == 0


async def test_end_for_want_of_memory_is_marked(subject: Subject) -> None:
    container = await subject.finish("[eat-memory 200]", limits=Limits(memory="32m"))
    assert (container.phase, container.exit_code) == (Phase.EXITED, 137)
    assert container.out_of_memory


async def test_container_with_a_memory_limit_is_a_container_like_any(
    subject: Subject, tmp_path: Path
) -> None:
    limits, cid_file = Limits(memory="64m"), tmp_path / "cid"
    container_id = await subject.start("[fail 3]", limits=limits, cid_file=cid_file)
    assert cid_file.read_text() == container_id
    with pytest.raises(NameInUse):
        await subject.start("nothing to do", limits=limits)
    await subject.engine.wait(subject.name)
    container = await subject.look()
    assert (container.phase, container.exit_code) == (Phase.EXITED, 3)
    assert not container.out_of_memory


async def _is_ready(subject: Subject) -> None:
    with anyio.fail_after(DEADLINE_S):
        while "ready" not in await subject.engine.last_output(subject.name, 1):  # noqa: ASYNC110 - its output has no event
            await anyio.sleep(0.05)
