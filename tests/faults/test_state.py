"""Full disks and journals that cannot be used: no task is lost by them."""

import signal
import sqlite3
from contextlib import closing

import pytest

from tests.faults.rig import Rig
from tests.harness.disk import fill, small_disk

FULL = "database or disk is full; free some space there"


@pytest.mark.parametrize("which", ["state", "home"])
def test_running_task_is_not_lost_while_a_disk_is_full_and_no_other_is_taken(
    which: str, rig: Rig
) -> None:
    folder = rig.runner.folder / which
    with small_disk(folder):
        rig.runner.set_options(min_free_disk="2M", max_tasks=2)
        task_id = rig.begin()
        filler = fill(folder)
        later = rig.orchestrator.create_task("[print-line done]")["id"]
        rig.runner.wait_for_log(f"no new task is taken: {folder} has ")
        rig.runner.wait_for_log(
            " free and 2 MiB must stay free; free some space there or lower --min-free-disk"
        )
        rig.wait_for_beat("error")
        assert rig.runner.starts_of(later) == 0
        rig.runner.let_go("go")  # an empty file needs no room
        if which == "home":
            message = rig.check_ended_once(task_id, "failed: exit code 1")
            assert "No space left on device" in message
            filler.unlink()
        else:
            rig.runner.wait_for_log(FULL)
            filler.unlink()
            rig.check_ended_once(task_id)
        rig.check_ended_once(later)
        rig.wait_for_beat("idle")


def test_runner_that_starts_on_a_full_disk_keeps_its_journal_and_its_task(rig: Rig) -> None:
    with small_disk(rig.runner.state_dir):
        task_id = rig.begin()
        rig.runner.kill()
        filler = fill(rig.runner.state_dir)
        rig.runner.start()
        rig.runner.wait_for_log("task is adopted")
        rig.runner.let_go("go")
        rig.runner.wait_for_log(FULL)
        rig.wait_for_beat("error")
        filler.unlink()
        rig.check_ended_once(task_id)
        assert set_aside(rig) == []


def set_aside(rig: Rig) -> list[str]:
    return [path.name for path in rig.runner.state_dir.glob("journal.sqlite3.*.unusable")]


@pytest.mark.parametrize("commit", [1, 2])  # the identity is stored, the task adopted
@pytest.mark.parametrize("when", ["before", "after"])
def test_task_is_adopted_once_from_its_container_though_the_runner_is_killed_as_it_stores_that(
    commit: int, when: str, each_rig: Rig
) -> None:
    rig = each_rig
    task_id = rig.begin()
    rig.runner.kill()
    journal = rig.runner.state_dir / "journal.sqlite3"
    with closing(sqlite3.connect(journal)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    with journal.open("r+b") as file:
        file.write(b"no journal any more " * 100)
    rig.journal.kill(when, commit)
    rig.runner.start()
    assert rig.runner.exit_code() == -signal.SIGKILL
    rig.runner.start()
    rig.runner.let_go("go")
    rig.check_ended_once(task_id)
    (aside,) = set_aside(rig)
    assert f"it was set aside as {aside}" in rig.runner.whole_log
    # The key came from the container, and with it the node is what it was.
    assert len(rig.orchestrator.nodes()) == 1
