"""Full disks, damaged journals and runners in each other's way: no task is lost by them."""

from __future__ import annotations

import re
import signal
import sqlite3
import subprocess
import uuid
from typing import TYPE_CHECKING

import pytest

from tests.faults.test_engine_faults import begin, end_of, wait_for_beat
from tests.harness.runner_process import (
    DEADLINE_S,
    RunnerProcess,
    container_of,
    containers,
)
from tests.orchestrator.serving import wait_for
from tools.dev.shell import as_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.faults.rig import Rig

MIB = 1 << 20
NO_SPACE = "no new task is taken: "
WHAT_TO_DO = "2 MiB are to stay free; free some space there or lower --min-free-disk"


@pytest.fixture
def mount() -> Iterator[Callable[[Path], Path]]:
    """Give what makes a folder a disk of its own, of 8 MiB."""
    mounted: list[Path] = []

    def mount(folder: Path) -> Path:
        folder.mkdir(mode=0o700, parents=True)
        command = as_root(["mount", "-t", "tmpfs", "-o", "size=8m,mode=777", "tmpfs", str(folder)])
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.fail(f"cannot mount a tmpfs, which needs root: {done.stderr}", pytrace=False)
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        # Lazily: a container may hold it for a moment yet.
        subprocess.run(as_root(["umount", "--lazy", str(folder)]), check=True)


def fill(folder: Path) -> Path:
    """Leave no room at all; give the file that takes it."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filler


# Full disks


@pytest.mark.parametrize("which", ["state", "home"])
def test_no_work_is_taken_while_a_disk_is_full_and_then_it_is(
    which: str, any_rig: Rig, mount: Callable[[Path], Path]
) -> None:
    rig = any_rig
    folder = mount(rig.runner.folder / which)
    rig.set_option("--min-free-disk", "2M")
    rig.runner.start()
    wait_for_beat(rig, "idle")
    filler = fill(folder)
    task_id = rig.orchestrator.create_task("[print-line done]")["id"]
    rig.runner.wait_for_log(f"{NO_SPACE}{folder} has 0 MiB free and {WHAT_TO_DO}")
    wait_for_beat(rig, "error")
    assert rig.runner.starts_of(task_id) == 0
    filler.unlink()
    rig.check_ended_once(task_id)
    wait_for_beat(rig, "idle")


@pytest.mark.parametrize("which", ["state", "home"])
def test_running_task_is_not_lost_while_a_disk_is_full(
    which: str, rig: Rig, mount: Callable[[Path], Path]
) -> None:
    folder = mount(rig.runner.folder / which)
    rig.set_option("--min-free-disk", "2M")
    task_id = begin(rig, "[wait-for go]")
    filler = fill(folder)
    rig.runner.let_go("go")  # an empty file needs no room
    if which == "home":
        message = end_of(rig, task_id)["message"]
        assert message.startswith("failed: exit code 1")
        assert "No space left on device" in message
        return
    rig.runner.wait_for_log("database or disk is full; free some space there")
    wait_for_beat(rig, "error")
    filler.unlink()
    rig.check_ended_once(task_id)


def test_runner_that_starts_on_a_full_disk_keeps_its_journal_and_its_task(
    any_rig: Rig, mount: Callable[[Path], Path]
) -> None:
    rig = any_rig
    folder = mount(rig.runner.state_dir)
    task_id = begin(rig, "[wait-for go]")
    rig.runner.kill()
    filler = fill(folder)
    rig.runner.start()
    rig.runner.wait_for_log("task is adopted")
    rig.runner.let_go("go")
    rig.runner.wait_for_log("database or disk is full; free some space there")
    wait_for_beat(rig, "error")
    filler.unlink()
    rig.check_ended_once(task_id)
    assert set_aside(rig.runner) == []


def test_first_start_on_a_full_disk_ends_with_a_sentence_and_the_next_works(
    any_rig: Rig, mount: Callable[[Path], Path]
) -> None:
    rig = any_rig
    filler = fill(mount(rig.runner.state_dir))
    answer = rig.runner.run("--once")
    assert answer.exit_code == 75, answer.log
    assert answer.log.startswith("victoria-runner: cannot use the state folder")
    assert answer.log.endswith(
        "no space left on device; run as its owner, on a disk with free space\n"
    )
    filler.unlink()
    assert rig.runner.run("--once").exit_code == 0


# Journals that cannot be used


def damage(journal: Path) -> None:
    """Write over the beginning of the file, where SQLite cannot mend it from its log."""
    connection = sqlite3.connect(journal)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()
    with journal.open("r+b") as file:
        file.write(b"no journal any more " * 100)


def make_newer(journal: Path) -> None:
    """Have the journal come from a later version."""
    connection = sqlite3.connect(journal)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


def cut(journal: Path) -> None:
    """Lose half of the file, and what was not yet brought into it."""
    for ending in ("-wal", "-shm"):
        journal.with_name(journal.name + ending).unlink(missing_ok=True)
    with journal.open("r+b") as file:
        file.truncate(journal.stat().st_size // 2)


def journal_of(runner: RunnerProcess) -> Path:
    """Give the journal's path."""
    return runner.state_dir / "journal.sqlite3"


def set_aside(runner: RunnerProcess) -> list[str]:
    """Name the journals that were set aside."""
    return [path.name for path in runner.state_dir.glob("journal.sqlite3.*.unusable")]


@pytest.mark.parametrize("spoil", [damage, make_newer])
def test_running_task_is_adopted_from_its_container_when_the_journal_cannot_be_used(
    spoil: Callable[[Path], None], rig: Rig
) -> None:
    task_id = begin(rig, "[wait-for go]")
    rig.runner.kill()
    spoil(journal_of(rig.runner))
    rig.runner.start()
    rig.runner.wait_for_log("task is adopted from its container")
    assert "it was set aside as journal.sqlite3." in rig.runner.log
    assert " ERROR cannot use the journal" in rig.runner.log or "cannot open" in rig.runner.log
    (aside,) = set_aside(rig.runner)
    assert re.fullmatch(r"journal\.sqlite3\.\d{8}T\d{6}Z\.unusable", aside)
    rig.runner.let_go("go")
    rig.check_ended_once(task_id)
    # The key came from the container, and with it the node is what it was.
    assert len(rig.orchestrator.nodes()) == 1


def test_journal_that_is_cut_short_is_set_aside_or_mended_and_nothing_is_lost(
    any_rig: Rig,
) -> None:
    task_id = begin(any_rig, "[wait-for go]")
    any_rig.runner.send(signal.SIGTERM)
    assert any_rig.runner.exit_code() == 0
    cut(journal_of(any_rig.runner))
    any_rig.runner.start()
    any_rig.runner.let_go("go")
    any_rig.check_ended_once(task_id)
    assert set_aside(any_rig.runner)


def test_task_that_ended_before_its_journal_was_set_aside_is_told_truly(rig: Rig) -> None:
    task_id = begin(rig, "[wait-for go][print-line the last word][fail 7]")
    rig.runner.kill()
    rig.runner.let_go("go")
    rig.runner.engine.run("wait", container_of(task_id))
    damage(journal_of(rig.runner))
    rig.runner.start()
    rig.runner.wait_for_log("task is adopted from its container")
    message = end_of(rig, task_id)["message"]
    assert message.startswith("failed: exit code 7")
    assert message.endswith("the last word")


def test_adopted_task_keeps_its_time_limit(rig: Rig) -> None:
    # So long that the runner is killed before.
    task_id = begin(rig, "[hang]", timeout_seconds=20)
    deadlines = "SELECT deadline_uptime_s FROM tasks"
    (before,) = rig.runner.rows(deadlines)
    rig.runner.kill()
    damage(journal_of(rig.runner))
    rig.runner.start()
    rig.runner.wait_for_log("task is adopted from its container")
    # What passed until then is not given to it again; the engine's clock is as good as ours.
    (after,) = rig.runner.rows(deadlines)
    assert after["deadline_uptime_s"] < before["deadline_uptime_s"] + 0.1
    said = re.match(r"timed_out: stopped after (\d+) s", end_of(rig, task_id)["message"])
    assert said is not None
    assert int(said[1]) >= 20


@pytest.mark.parametrize("commit", [1, 2])  # the identity is stored, the task adopted
@pytest.mark.parametrize("when", ["before", "after"])
def test_task_is_adopted_once_when_the_runner_is_killed_as_it_writes_that_down(
    commit: int, when: str, any_rig: Rig
) -> None:
    rig = any_rig
    task_id = begin(rig, "[wait-for go]")
    rig.runner.kill()
    damage(journal_of(rig.runner))
    (rig.journal.kill_before if when == "before" else rig.journal.kill_after)(commit)
    rig.runner.start()
    assert rig.runner.exit_code() == -signal.SIGKILL
    rig.runner.start()
    rig.runner.let_go("go")
    rig.check_ended_once(task_id)
    assert len(set_aside(rig.runner)) == 1


def test_adopted_task_takes_the_slot_and_the_next_waits_for_it(any_rig: Rig) -> None:
    rig = any_rig
    task_id = begin(rig, "[wait-for go]")
    rig.runner.kill()
    damage(journal_of(rig.runner))
    later = rig.orchestrator.create_task("[print-line done]")["id"]
    rig.runner.start()
    rig.runner.wait_for_log("task is adopted from its container")
    wait_for_beat(rig, "busy")
    assert rig.orchestrator.task(later)["status"] == "pending"
    rig.runner.let_go("go")
    rig.check_ended_once(task_id)
    rig.check_ended_once(later)


def test_end_of_an_adopted_task_that_nobody_wants_to_hear_of_is_parked(any_rig: Rig) -> None:
    rig = any_rig
    task_id = begin(rig, "[wait-for go]")
    rig.runner.kill()
    damage(journal_of(rig.runner))
    assert rig.orchestrator.admin.delete(f"/nodes/{rig.orchestrator.nodes()[0]['id']}").is_success
    rig.runner.start()
    rig.runner.wait_for_log("task is adopted from its container")
    rig.runner.let_go("go")
    rig.runner.wait_for_log("the orchestrator refuses a report; it is parked: HTTP 403")
    rig.runner.wait_until_closed(task_id)
    assert container_of(task_id) not in containers(rig.runner.engine)
    assert rig.orchestrator.task(task_id)["error_message"].startswith("lost: its node was removed")
    # One registration for the refused key, and work goes on.
    rig.check_ended_once(rig.orchestrator.create_task("[print-line done]")["id"])
    assert len(rig.orchestrator.calls_of("POST", "/register")) == 2


def test_container_that_never_ran_and_is_not_known_is_left_alone(any_rig: Rig, image: str) -> None:
    rig = any_rig
    task_id = begin(rig, "[wait-for go]")
    rig.runner.kill()
    damage(journal_of(rig.runner))
    labels = rig.runner.engine.inspect(container_of(task_id))["Config"]["Labels"]
    rig.runner.engine.run("rm", "--force", container_of(task_id))
    options = [f"--label={name}={text}" for name, text in labels.items()]
    rig.runner.engine.run("create", "--name", container_of(task_id), *options, image, "x")
    rig.runner.start()
    rig.runner.wait_for_log("containers of this runner that its journal does not know")
    assert container_of(task_id) in containers(rig.runner.engine)
    assert rig.runner.state_of(task_id) is None


@pytest.mark.parametrize("left", [b"", bytes(37), b"\xff\xfe", b"half of an i"])
def test_runner_id_that_a_power_cut_has_spoilt_is_made_anew(left: bytes, any_rig: Rig) -> None:
    any_rig.runner.state_dir.mkdir(mode=0o700)
    (any_rig.runner.state_dir / "runner-id").write_bytes(left)
    answer = any_rig.runner.run("--once")
    assert answer.exit_code == 0, answer.log
    assert uuid.UUID((any_rig.runner.state_dir / "runner-id").read_text().strip())


# Two runners


def test_second_runner_on_a_state_folder_refuses_and_the_first_works_on(any_rig: Rig) -> None:
    rig = any_rig
    task_id = begin(rig, "[wait-for go]")
    answer = rig.runner.run()
    assert answer.exit_code == 75
    assert answer.log.endswith(
        f"victoria-runner: cannot use the state folder {rig.runner.state_dir}: another runner is "
        "using it; stop that one, or give this one a --state-dir of its own\n"
    )
    rig.runner.let_go("go")
    rig.check_ended_once(task_id)
    wait_for(lambda: len(rig.orchestrator.nodes()) == 1, DEADLINE_S)


# One orchestrator


def test_other_orchestrator_is_refused_until_the_command_of_the_refusal_has_drained_this_one(
    rig: Rig,
) -> None:
    task_id = begin(rig, "[wait-for go]")
    rig.runner.kill()
    other = ("--orchestrator-url", "http://127.0.0.1:9")
    answer = rig.runner.run(*other)
    assert answer.exit_code == 78, answer.log
    assert answer.log.startswith(
        "victoria-runner: cannot use --orchestrator-url http://127.0.0.1:9"
    )
    rig.runner.let_go("go")
    command = answer.log.split("`")[1].split()
    answer = rig.runner.run(*command)
    assert answer.exit_code == 0, answer.log
    rig.check_ended_once(task_id)
    # Nobody listens there: that it tries to register is enough.
    answer = rig.runner.run(*other, "--once")
    assert (answer.exit_code, "cannot register: Connection refused" in answer.log) == (75, True)
