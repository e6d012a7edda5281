"""The engine hangs, dies, or loses a container: every task ends in a true state all the same."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.engines import Engine
from tests.faults.daemon import DockerDaemon
from tests.faults.engine import Act, When
from tests.faults.rig import Rig, rigged
from tests.harness.proxy import Fault
from tests.harness.runner_process import DEADLINE_S, container_of, containers, is_running
from tests.orchestrator.serving import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.system.recording import Json


def begin(rig: Rig, prompt: str, **fields: object) -> str:
    """Start the runner and a task; give its id when it runs."""
    task_id = str(rig.orchestrator.create_task(prompt, **fields)["id"])
    rig.runner.start()
    rig.runner.wait_for_start_of(task_id)
    return task_id


def begin_and_see(rig: Rig, prompt: str) -> str:
    """Start the runner and a task; give its id when the journal has it as running."""
    task_id = begin(rig, prompt)
    rig.runner.wait_for_log("task is running")
    return task_id


def end_of(rig: Rig, task_id: str, starts: int = 1) -> Json:
    """Wait for a task's end; see that it was told once and that no container is left."""
    rig.runner.wait_until_closed(task_id)
    assert container_of(task_id) not in containers(rig.runner.engine)
    assert rig.runner.starts_of(task_id) == starts
    (report,) = rig.orchestrator.reports_of(task_id, "success", "error")
    return report


def wait_for_beat(rig: Rig, status: str) -> None:
    """Wait for a heartbeat, from now on, with that word."""
    seen = len(rig.orchestrator.calls)

    def told() -> bool:
        beats = [call for call in rig.orchestrator.calls[seen:] if "heartbeat" in call.path]
        return any(beat.json()["status"] == status for beat in beats)

    try:
        wait_for(told, DEADLINE_S)
    except TimeoutError:
        raise AssertionError(f"no heartbeat says {status}:\n{rig.runner.log}") from None


# Containers


def test_container_removed_behind_our_back_is_lost(rig: Rig) -> None:
    # The engine ends it first, and takes a while to remove it on a busy machine.
    rig.set_timings(removal_grace_s=15.0)
    task_id = begin_and_see(rig, "[hang]")
    rig.runner.engine.run("rm", "--force", container_of(task_id))
    assert end_of(rig, task_id)["message"].startswith("lost: container is gone")


def test_container_removed_while_no_runner_lives_is_lost(rig: Rig) -> None:
    task_id = begin_and_see(rig, "[hang]")
    rig.runner.kill()
    rig.runner.engine.run("rm", "--force", container_of(task_id))
    rig.runner.start()
    assert end_of(rig, task_id)["message"].startswith("lost: container is gone")


def test_container_killed_with_its_watcher_is_lost(podman_rig: Rig) -> None:
    task_id = begin_and_see(podman_rig, "[hang]")
    state = podman_rig.runner.engine.inspect(container_of(task_id))["State"]
    for pid in (state["ConmonPid"], state["Pid"]):
        os.kill(pid, signal.SIGKILL)
    assert end_of(podman_rig, task_id)["message"].startswith("lost: container is gone")


def test_container_killed_with_its_watcher_while_no_runner_lives_is_lost(podman_rig: Rig) -> None:
    task_id = begin_and_see(podman_rig, "[hang]")
    podman_rig.runner.kill()
    state = podman_rig.runner.engine.inspect(container_of(task_id))["State"]
    for pid in (state["ConmonPid"], state["Pid"]):
        os.kill(pid, signal.SIGKILL)
    podman_rig.runner.start()
    assert end_of(podman_rig, task_id)["message"].startswith("lost: container is gone")


def test_want_of_memory_is_told_by_the_engines_flag(rig: Rig) -> None:
    rig.set_option("--memory", "48m")
    task_id = rig.orchestrator.create_task("[eat-memory 256]")["id"]
    rig.runner.start()
    assert end_of(rig, task_id)["message"].startswith("out_of_memory: the kernel ended it")


def test_exit_code_137_alone_is_no_want_of_memory(rig: Rig) -> None:
    rig.set_option("--memory", "48m")
    task_id = rig.orchestrator.create_task("[fail 137]")["id"]
    rig.runner.start()
    assert end_of(rig, task_id)["message"].startswith("failed: exit code 137")


# An engine that does not answer


ANSWER_S = 10.0
"""Long enough for an engine that does answer, on a busy machine."""
START_S = 20.0


def shorten_deadlines(rig: Rig) -> None:
    """Have what is answered at once given up soon."""
    rig.set_timings(
        engine_timeout_s=ANSWER_S,
        stop_grace_s=1,
        kill_grace_s=0.5,
    )


def test_task_is_unknown_while_inspect_hangs_and_then_ends_truly(any_rig: Rig) -> None:
    rig = any_rig
    shorten_deadlines(rig)
    task_id = begin(rig, "[wait-for go]")
    hang = rig.engine.plan("inspect", Act.HANG, always=True)
    rig.runner.let_go("go")
    rig.runner.wait_for_log(f"task {task_id} is unknown until {rig.runner.engine.name} answers")
    assert f"no answer within {ANSWER_S:g} s" in rig.runner.log
    wait_for_beat(rig, "error")
    assert rig.orchestrator.reports_of(task_id, "success", "error") == []
    hang.lift()
    rig.check_ended_once(task_id)
    wait_for_beat(rig, "idle")


def test_task_is_unknown_to_a_new_runner_while_inspect_hangs(any_rig: Rig) -> None:
    rig = any_rig
    shorten_deadlines(rig)
    task_id = begin(rig, "[wait-for go]")
    rig.runner.kill()
    hang = rig.engine.plan("inspect", Act.HANG, always=True)
    rig.runner.start()
    wait_for_beat(rig, "error")
    assert rig.orchestrator.reports_of(task_id, "success", "error") == []
    hang.lift()
    rig.runner.let_go("go")
    rig.check_ended_once(task_id)


def test_task_starts_once_when_run_hangs_before_it_has_done_anything(any_rig: Rig) -> None:
    start_although_run_hangs(any_rig, When.BEFORE)


def test_task_starts_once_when_run_hangs_after_it_has_done_everything(rig: Rig) -> None:
    start_although_run_hangs(rig, When.AFTER)


def start_although_run_hangs(rig: Rig, when: When) -> None:
    """Have the first start hang until its deadline, which leaves the real engine time to do it."""
    rig.set_timings(engine_run_timeout_s=START_S, kill_grace_s=0.5)
    hang = rig.engine.plan("run", Act.HANG, when)
    task_id = rig.orchestrator.create_task("[wait-for go]")["id"]
    rig.runner.start()
    hang.wait()
    # Where it starts once more, that is what ends the error.
    again = rig.engine.plan("run", Act.BLOCK)
    wait_for_beat(rig, "error")
    again.release()
    rig.runner.wait_for_start_of(task_id)
    rig.runner.let_go("go")
    rig.check_ended_once(task_id)
    assert f"no answer within {START_S:g} s" in rig.runner.log


def test_cancelled_task_goes_on_until_stop_hangs_no_more(any_rig: Rig) -> None:
    rig = any_rig
    shorten_deadlines(rig)
    task_id = begin(rig, "[hang]")
    hang = rig.engine.plan("stop", Act.HANG, always=True)
    rig.orchestrator.cancel(task_id)
    hang.wait()
    # The answer to the next look is what ends the error.
    look = rig.engine.plan("inspect", Act.BLOCK, always=True)
    wait_for_beat(rig, "error")
    assert is_running(rig.runner.engine, task_id)
    hang.lift()
    look.lift()
    look.release()
    assert end_of(rig, task_id)["message"].startswith("cancelled: ")


def test_end_is_told_although_rm_hangs_and_the_container_goes_later(any_rig: Rig) -> None:
    rig = any_rig
    shorten_deadlines(rig)
    hang = rig.engine.plan("rm", Act.HANG, always=True)
    task_id = rig.orchestrator.create_task("[print-line done]")["id"]
    rig.runner.start()
    assert rig.orchestrator.end_of(task_id)["status"] == "success"
    rig.runner.wait_for_log(f"no answer within {ANSWER_S + 1:g} s")
    assert rig.runner.state_of(task_id) == "ended"
    hang.lift()
    rig.check_ended_once(task_id)


def test_no_work_is_taken_while_info_hangs_at_the_start(any_rig: Rig) -> None:
    rig = any_rig
    shorten_deadlines(rig)
    hangs = [rig.engine.plan(call, Act.HANG, always=True) for call in ("info", "ps")]
    task_id = rig.orchestrator.create_task("[print-line done]")["id"]
    rig.runner.start()
    wait_for_beat(rig, "error")
    hangs[0].wait()
    assert f"no answer within {ANSWER_S:g} s" in rig.runner.log
    for hang in hangs:
        hang.lift()
    rig.check_ended_once(task_id)


@pytest.mark.parametrize("call", ["logs", "image", "create", "start"])
def test_any_call_that_hangs_is_given_up_and_the_task_goes_on(call: str, podman_rig: Rig) -> None:
    rig = podman_rig
    shorten_deadlines(rig)
    rig.set_timings(engine_run_timeout_s=START_S)
    rig.set_option("--pull", "missing")
    rig.set_option("--memory", "64m")  # so that podman 4 starts it in two steps
    hang = rig.engine.plan(call, Act.HANG)
    task_id = rig.orchestrator.create_task("[print-line done]")["id"]
    rig.runner.start()
    rig.check_ended_once(task_id)
    assert hang.has_happened


def test_no_work_is_taken_while_pull_hangs(any_rig: Rig) -> None:
    rig = any_rig
    rig.set_timings(pull_timeout_s=3, kill_grace_s=0.5)
    rig.set_option("--pull", "always")
    rig.engine.plan("pull", Act.HANG, always=True)
    task_id = rig.orchestrator.create_task("[print-line done]")["id"]
    rig.runner.start()
    rig.runner.wait_for_log(f"cannot do {rig.runner.engine.name} pull: no answer within 3 s")
    wait_for_beat(rig, "error")
    assert rig.orchestrator.task(task_id)["status"] == "pending"
    rig.set_option("--pull", "never")
    rig.runner.kill()
    rig.runner.start()
    rig.check_ended_once(task_id)


def test_pull_for_a_task_that_hangs_is_given_up(any_rig: Rig, image: str) -> None:
    rig = any_rig
    # The refusal at the start has to come before.
    rig.set_timings(pull_timeout_s=ANSWER_S, kill_grace_s=0.5)
    with rig.image_to_pull(image):
        rig.engine.plan("pull", Act.HANG, always=True)
        task_id = rig.orchestrator.create_task("[print-line done]")["id"]
        message = end_of(rig, task_id, starts=0)["message"]
    name = rig.runner.engine.name
    assert message == f"unstartable: cannot do {name} pull: no answer within {ANSWER_S:g} s"


def test_end_is_seen_although_wait_hangs(rig: Rig) -> None:
    rig.set_timings(inspect_interval_s=2)
    # podman's is not asked: there the kernel says when a container's processes have ended.
    rig.engine.plan("wait", Act.HANG, always=True)
    task_id = begin(rig, "[wait-for go]")
    rig.runner.let_go("go")
    rig.check_ended_once(task_id)


# A daemon that goes away


@pytest.fixture
def daemon(
    engines: list[Engine], image: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DockerDaemon]:
    """Give a docker daemon that may be ended, with the image in it."""
    folder = Path(tempfile.mkdtemp(prefix="vd-"))
    daemon = DockerDaemon(folder)
    try:
        daemon.start()
        daemon.load(image, engines[0])
        monkeypatch.setenv("DOCKER_HOST", daemon.host)
        yield daemon
    finally:
        daemon.remove()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_task_whose_daemon_is_restarted_is_unknown_and_then_told_truly(
    how: signal.Signals, daemon: DockerDaemon, image: str, tmp_path: Path
) -> None:
    with rigged(tmp_path, Engine("docker"), image) as rig:
        task_id = begin(rig, "[wait-for go]")
        daemon.end(how)
        wait_for_beat(rig, "error")
        assert rig.orchestrator.reports_of(task_id, "success", "error") == []
        daemon.start()
        report = end_of(rig, task_id)
        assert report["status"] == "error"
        assert report["message"].startswith("lost: ")

        # The runner itself has taken no harm.
        rig.check_ended_once(rig.orchestrator.create_task("[print-line done]")["id"])


# Cancelled at awkward moments


def test_task_cancelled_during_its_files_never_starts(any_rig: Rig) -> None:
    rig = any_rig
    rig.proxy.plan("GET", "/files/*", Fault.hold_request())
    name = rig.orchestrator.upload("note.txt", b"note")["filename"]
    task_id = rig.orchestrator.create_task("[hang]", files=[name])["id"]
    rig.runner.start()
    wait_for(lambda: rig.proxy.counts["hold-request"], DEADLINE_S)
    rig.orchestrator.cancel(task_id)
    assert end_of(rig, task_id, starts=0)["message"] == "cancelled: before it started"


def test_task_cancelled_while_its_claim_is_held_never_starts(any_rig: Rig) -> None:
    rig = any_rig
    rig.proxy.plan("POST", "/status", Fault.hold_answer())
    task_id = rig.orchestrator.create_task("[hang]")["id"]
    rig.runner.start()
    wait_for(lambda: rig.proxy.counts["hold-answer"], DEADLINE_S)
    rig.orchestrator.cancel(task_id)
    assert end_of(rig, task_id, starts=0)["message"] == "cancelled: before it started"


def test_task_cancelled_during_the_pull_never_starts(any_rig: Rig, image: str) -> None:
    rig = any_rig
    with rig.image_to_pull(image):
        pull = rig.engine.plan("pull", Act.BLOCK)
        task_id = rig.orchestrator.create_task("[hang]")["id"]
        pull.wait()
        rig.orchestrator.cancel(task_id)
        assert end_of(rig, task_id, starts=0)["message"] == "cancelled: before it started"


def test_task_cancelled_before_the_engine_has_made_its_container_never_starts(any_rig: Rig) -> None:
    rig = any_rig
    rig.set_timings(engine_start_grace_s=1)
    run = rig.engine.plan("run", Act.BLOCK)
    task_id = rig.orchestrator.create_task("[hang]")["id"]
    rig.runner.start()
    run.wait()
    rig.orchestrator.cancel(task_id)
    assert end_of(rig, task_id, starts=0)["message"] == "cancelled: before it started"


def test_task_cancelled_before_the_engine_has_told_of_its_start_is_stopped(rig: Rig) -> None:
    rig.set_timings(engine_start_grace_s=1, kill_grace_s=0.5)
    run = rig.engine.plan("run", Act.BLOCK, When.AFTER)
    task_id = rig.orchestrator.create_task("[hang]")["id"]
    rig.runner.start()
    run.wait()
    wait_for(lambda: rig.runner.starts_of(task_id), DEADLINE_S)
    rig.orchestrator.cancel(task_id)
    assert end_of(rig, task_id)["message"].startswith("cancelled: stopped after")


def test_task_cancelled_at_the_moment_of_its_end_keeps_its_own_end(rig: Rig) -> None:
    task_id = begin(rig, "[wait-for go]")
    look = rig.engine.plan("inspect", Act.BLOCK)
    rig.runner.let_go("go")
    rig.runner.engine.run("wait", container_of(task_id))
    look.wait()
    rig.orchestrator.cancel(task_id)
    rig.runner.wait_for_log("task is cancelled")
    look.release()
    assert end_of(rig, task_id)["message"].startswith("completed: ")
    assert rig.orchestrator.task(task_id)["status"] == "cancelled"
