"""The runner from READY to its exit code, and the watchdog beside it."""

import errno
import fcntl
import logging
import os
import resource
import signal
import socket
import uuid
from functools import partial
from itertools import pairwise
from pathlib import Path

import anyio
import pytest

from runner.daemon import run
from runner.errors import JournalError, StateFolderInUse, TryAgain
from runner.journal.journal import open_journal
from runner.loops.housekeeping import prune_closed_tasks
from runner.state_dir import lock_state_dir, prepare_state_dir
from runner.systemd import Notifier, Watchdog, feed_watchdog
from runner.timing import Timings
from tests.harness.clock import VirtualClock
from tests.harness.host import HeardNotifier, Host, Run
from tests.harness.orchestrator import BEAT, REGISTER, STATUS
from tests.harness.server import Answer, http, json_response, stalled
from tests.harness.until import until
from tests.loops.steps import Log, register

pytestmark = pytest.mark.anyio

# One runner


async def test_second_runner_on_a_state_folder_is_refused_with_a_sentence(host: Host) -> None:
    async with host.runner() as first:
        await until(lambda: first.is_ready)
        with pytest.raises(StateFolderInUse) as caught:
            await run(host.settings(), host.engine, Notifier({}), host.clock)
        assert not first.over.is_set()
    assert caught.value.exit_code == 75
    assert str(caught.value) == (
        f"cannot use the state folder {host.state_dir}: another runner is using it; "
        "stop that one, or give this one a --state-dir of its own"
    )


def test_state_folder_on_a_full_disk_is_named_in_a_sentence(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(TryAgain, match=r"cannot use the state folder .*: file too large; run "):
            prepare_state_dir(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_file_system_without_locks_is_not_another_runner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    reason = "no locks available; give a --state-dir on a file system with locks"
    with (
        pytest.raises(TryAgain, match=f"^cannot lock the state folder {tmp_path}: {reason}"),
        lock_state_dir(tmp_path),
    ):
        pass


async def test_systemd_is_notified_of_readiness_work_problems_and_the_end(host: Host) -> None:
    problem = "STATUS=task t-1 is unknown until podman"
    async with host.running_task(once=True) as life:
        await host.clock.settle()
        host.engine.silent = True
        await host.clock.advance(31)
        await until(lambda: any(text.startswith(problem) for text in life.notifier.messages))
        host.engine.silent = False
        host.let_go()
        await host.clock.advance(6)
        assert await life.end() == 0

    messages = life.notifier.messages
    assert messages.index("READY=1") < messages.index("STATUS=1 of 1 tasks running")
    assert "STATUS=0 of 1 tasks running" in messages
    assert messages[-1] == "STOPPING=1"


@pytest.mark.parametrize(
    ("answer", "outage", "exit_code"),
    [
        (http(503), "HTTP 503", None),
        (json_response({"detail": "no"}, 404), "HTTP 404: no", None),
        (json_response({"detail": "no"}, 401), None, 77),
    ],
    ids=["away", "wrong address", "refused"],
)
async def test_start_is_over_once_it_is_clear_how_the_first_registration_goes(
    host: Host, answer: Answer, outage: str | None, exit_code: int | None
) -> None:
    host.orchestrator.always(REGISTER, answer)
    async with host.runner() as life:
        await until(lambda: life.is_ready or life.over.is_set())
        assert (life.is_ready, life.exit_code) == (outage is not None, exit_code)
        if outage is not None:
            await until(lambda: outage in status_line(life))
            assert "; 0 of 1 tasks running" in status_line(life)
            host.orchestrator.always(REGISTER, None)
            await host.pass_time_until(lambda: status_line(life) == "0 of 1 tasks running")


async def test_start_does_not_wait_long_for_an_orchestrator_that_says_nothing(host: Host) -> None:
    host.orchestrator.always(REGISTER, stalled(b""))
    async with host.runner() as life:
        await host.wait_for_calls(REGISTER)
        assert not life.is_ready
        await host.clock.advance(31)
        await until(lambda: life.is_ready)
        assert status_line(life) == "waiting to be registered; 0 of 1 tasks running"


async def test_status_line_has_an_outage_with_its_begin_and_the_drain(host: Host) -> None:
    async with host.running_task() as life:
        await host.clock.settle()
        assert life.notifier.messages.count("READY=1") == 1
        host.orchestrator.is_down = True
        await host.clock.advance(20)
        await until(lambda: "outage of the orchestrator since 20" in status_line(life))
        begun = status_line(life)
        await host.clock.advance(600)
        assert status_line(life) == begun
        host.orchestrator.is_down = False
        await host.pass_time_until(lambda: status_line(life) == "1 of 1 tasks running")
        os.kill(os.getpid(), signal.SIGUSR1)
        draining = "draining: no new task is taken; 1 of 1 tasks running"
        await until(lambda: status_line(life) == draining)


async def test_drain_during_an_outage_does_not_end_it(host: Host, log: Log) -> None:
    async with host.running_task(max_tasks=2) as life:
        await host.clock.settle()
        host.orchestrator.is_down = True
        await host.pass_time_until(lambda: "outage of the orch" in status_line(life))
        os.kill(os.getpid(), signal.SIGUSR1)
        await until(lambda: "draining: " in status_line(life))
        assert "outage of the orch" in status_line(life)
        assert "the orchestrator responds again" not in log.messages
        host.orchestrator.is_down = False
        await host.pass_time_until(lambda: "outage" not in status_line(life))


def status_line(life: Run) -> str:
    """Return the line that `systemctl status` shows."""
    lines = [text for text in life.notifier.messages if text.startswith("STATUS=")]
    return lines[-1].removeprefix("STATUS=") if lines else ""


async def test_journal_that_fails_at_the_start_ends_the_runner_with_a_sentence(host: Host) -> None:
    await register(host)
    host.change("ALTER TABLE identities RENAME COLUMN orchestrator_url TO url")

    with pytest.raises(JournalError, match=r"cannot open the journal .*: no such col"):
        await run(host.settings(), host.engine, Notifier({}), host.clock)


async def test_runner_starts_and_drains_on_a_full_disk_of_the_journal(host: Host, log: Log) -> None:
    later = http(503, headers={"Retry-After": "1800"})
    host.orchestrator.then(STATUS, json_response({"status": "running"}), later)
    host.orchestrator.offer("t-0")
    async with host.runner():
        await until(lambda: host.rows("SELECT * FROM outbox WHERE attempts = 1") != [])
    host.change(
        "CREATE TRIGGER full BEFORE UPDATE ON outbox WHEN old.task_id = 't-0'"
        " BEGIN SELECT raise(ABORT, 'database or disk is full'); END"
    )
    host.orchestrator.offer("t-1")
    async with host.runner(once=True) as life:
        await host.pass_time_until(life.over.is_set)
        assert await life.end() == 75
    assert [host.state_of(task_id) for task_id in ("t-0", "t-1")] == ["ended", "closed"]
    assert "reports wait in the journal for the next start" in log.text
    assert log.text.count("database or disk is full") == 2


async def test_drain_outlives_a_journal_that_is_long_unreadable(host: Host, log: Log) -> None:
    async with host.running_task(once=True) as life:
        await host.clock.settle()
        host.change("ALTER TABLE tasks RENAME TO tasks_away")
        host.let_go()
        await host.clock.advance(20 * 60)
        assert not life.over.is_set()
        host.change("ALTER TABLE tasks_away RENAME TO tasks")
        await host.pass_time_until(life.over.is_set)
        assert await life.end() == 0
    assert "cannot use the journal" in log.text
    assert len(host.orchestrator.ends("t-1")) == 1


async def test_log_names_the_node_at_the_start_and_the_reason_at_the_end(
    host: Host, log: Log
) -> None:
    for node_id in ("none yet", "node-1"):
        log.clear()
        async with host.runner(once=True) as life:
            assert await life.end() == 0
        first, last = log.records[0], log.records[-1]
        assert (first.message, vars(first)["fields"]["node_id"]) == ("starting", node_id)
        assert last.message == "exiting: --once, and the orchestrator has no task for this node"
        assert vars(last)["fields"] == {"exit_code": 0, "ran_s": 0}


async def test_each_interrupt_says_what_the_next_one_does(host: Host, log: Log) -> None:
    async with host.running_task("[hang]") as life:
        for words in ("; a second Ctrl-C stops them", "; a third Ctrl-C leaves them"):
            os.kill(os.getpid(), signal.SIGINT)
            await until(partial(lambda words: words in log.text, words))
        assert await life.end() == 0
    assert log.records[-1].message == "exiting: drained after SIGINT"


# The watchdog


async def test_watchdog_is_fed_three_times_as_often_as_it_asks_whatever_is_away(host: Host) -> None:
    async with host.running_task("[hang]", max_tasks=2, watchdog_s=60) as life:
        await host.clock.settle()
        host.orchestrator.is_down = True
        await host.clock.advance(1200)
        host.orchestrator.is_down = False
        host.engine.silent = True
        await host.clock.advance(1200)

    fed = life.notifier.fed_at_s
    assert len(fed) >= 120
    assert all(after - before == pytest.approx(20) for before, after in pairwise(fed))


async def test_poll_that_is_stuck_before_its_request_is_not_fed(host: Host, log: Log) -> None:
    host.engine.silent = True
    async with host.runner(watchdog_s=60) as life:
        await host.wait_for_beat("error")
        await host.clock.settle()
        host.engine.shut("facts")
        await host.pass_time_until(lambda: host.engine.waiting["facts"] > 0, step_s=1)
        await host.clock.advance(300)
        fed = len(life.notifier.fed_at_s)
        await host.clock.advance(120)
    assert len(life.notifier.fed_at_s) == fed
    assert stuck_loops(log) == ["poll"]


async def test_loop_that_is_stuck_is_not_fed_and_named(clock: VirtualClock, log: Log) -> None:
    notifier, watchdog = HeardNotifier(clock, 30), Watchdog(clock)
    watchdog.expect("poll", next_within_s=25)
    watchdog.expect("deliver", next_within_s=1000)
    async with anyio.create_task_group() as group:
        group.start_soon(feed_watchdog, notifier, watchdog, clock, Timings())
        await clock.advance(100)
        assert len(notifier.fed_at_s) == 3, "at 0, 10 and 20 s"
        watchdog.expect("poll", next_within_s=25)
        await clock.advance(10)
        assert len(notifier.fed_at_s) == 4
        await clock.advance(500)
        group.cancel_scope.cancel()
    assert stuck_loops(log) == ["poll", "poll"], "once each time, not at each check"


def stuck_loops(log: Log) -> list[str]:
    stuck = [record for record in log.records if record.message == "a loop is stuck"]
    return [vars(record)["fields"]["loops"] for record in stuck]


async def test_time_in_which_the_host_was_suspended_is_held_against_no_loop(host: Host) -> None:
    async with host.runner(watchdog_s=60) as life:
        await host.wait_for_calls(BEAT)
        await host.clock.advance(10)
        host.clock.suspend(8 * 3600)
        fed = len(life.notifier.fed_at_s)
        await host.clock.advance(41)
    assert len(life.notifier.fed_at_s) == fed + 2


# Pruning


async def test_tasks_closed_a_month_ago_are_pruned_day_by_day(host: Host) -> None:
    await host.finish_task()
    journal, _ = open_journal(host.state_dir, "now")
    async with host.parts(journal) as parts, anyio.create_task_group() as group:
        group.start_soon(prune_closed_tasks, parts)
        await host.clock.advance(29 * 86_400)
        assert host.state_of("t-1") == "closed"
        await host.clock.advance(2 * 86_400)
        assert host.state_of("t-1") is None
        group.cancel_scope.cancel()
    journal.close_file()


async def test_tasks_that_cannot_be_pruned_do_not_stop_the_runner(host: Host, log: Log) -> None:
    await host.finish_task()
    host.change("UPDATE tasks SET closed_at = 1")
    host.change(
        "CREATE TRIGGER stubborn BEFORE DELETE ON tasks BEGIN SELECT raise(ABORT, 'no'); END"
    )
    host.orchestrator.offer("t-2")
    async with host.runner():
        await host.wait_for_end("t-2")
    assert "cannot prune closed tasks" in log.text


# Notifications to systemd


def test_notifier_sends_its_messages_to_an_abstract_address_and_hides_it() -> None:
    address = f"@victoria-{uuid.uuid4().hex}"
    environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3000000", "HOME": "/x"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0", 1))
        notifier = Notifier(environment)
        notifier.notify("READY=1")
        assert manager.recv(100) == b"READY=1"
    assert notifier.watchdog_s == 3
    assert environment == {"HOME": "/x"}, "no child inherits it"


def test_watchdog_of_another_process_is_not_ours() -> None:
    assert Notifier({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}).watchdog_s is None


def test_manager_that_is_gone_is_not_a_failure(log: Log) -> None:
    Notifier({"NOTIFY_SOCKET": f"@victoria-{uuid.uuid4().hex}"}).notify("READY=1")
    assert "cannot notify systemd" in log.text
    assert all(record.levelno == logging.DEBUG for record in log.records)
