"""Heartbeats: kept in memory, written once a second, at a pace that the server sets."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone

import pytest
from sqlalchemy import Engine, event

from orchestrator.scheduling.breaks import Breaks
from orchestrator.scheduling.heartbeats import Pace, TasksByNode
from tests.orchestrator.serving import (
    Poller,
    RegisteredNode,
    RunningOrchestrator,
    ok,
    wait_for,
)


@contextmanager
def _statements() -> Iterator[list[str]]:
    """Collect the SQL of all databases of this process."""
    seen: list[str] = []

    def note(*arguments: object) -> None:
        seen.append(str(arguments[2]))

    event.listen(Engine, "before_cursor_execute", note)
    yield seen
    event.remove(Engine, "before_cursor_execute", note)


@pytest.mark.parametrize(
    ("timeout_s", "idle", "busy", "announced", "offline_after_s"),
    [
        (45, 0, 0, (15, 15), (45, 45)),
        (45, 1500, 0, (15, 15), (45, 45)),
        (45, 10_000, 0, (100, 15), (300, 45)),
        (45, 3000, 750, (60, 15), (180, 45)),
        (45, 1000, 10_000, (100, 15), (300, 45)),
        (45, 100_000, 0, (300, 15), (900, 45)),
        (180, 1000, 0, (60, 15), (180, 180)),
        (1, 10, 0, (5, 5), (1, 1)),
    ],
)
def test_nodes_without_a_task_share_what_the_others_leave(
    timeout_s: float,
    idle: int,
    busy: int,
    announced: tuple[int, int],
    offline_after_s: tuple[int, int],
) -> None:
    pace = Pace.for_fleet(timeout_s, idle, busy)
    tasks = (False, True)
    assert tuple(pace.announced_s(has_task=has_task) for has_task in tasks) == announced
    silence = [pace.offline_after(has_task=has_task).total_seconds() for has_task in tasks]
    assert tuple(silence) == pytest.approx(offline_after_s)


@pytest.mark.settings(sweep_every_s=3600)
def test_heartbeat_and_empty_poll_need_no_statement(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    node.beat()
    assert node.poll() is None
    with _statements() as seen:
        for status in ("idle", "busy"):
            assert node.beat(status)["status"] == status
        assert node.poll() is None
        assert node.poll(wait_s=1) is None
    assert seen == []
    # Those who ask are shown them, though none of them was due to be written.
    assert orchestrator.nodes()[0]["status"] == "busy"


def test_heartbeats_outlive_a_restart(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    at = node.beat("busy")["last_heartbeat"]
    orchestrator.restart()
    [shown] = orchestrator.nodes()
    assert (shown["status"], shown["last_heartbeat"]) == ("busy", at)


@pytest.mark.settings(heartbeat_timeout_s=45)
def test_node_is_offline_three_intervals_after_its_heartbeat(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    assert node.beat()["heartbeat_interval_seconds"] == 15
    orchestrator.silence(node, seconds=44)
    assert orchestrator.nodes()[0]["status"] == "idle"
    orchestrator.silence(node, seconds=46)
    assert orchestrator.nodes()[0]["status"] == "offline"
    assert node.beat("busy")["status"] == "busy"
    assert orchestrator.nodes()[0]["status"] == "busy"


@pytest.mark.both_databases
@pytest.mark.settings(sweep_every_s=0.1)
def test_removed_node_is_refused_and_a_cancelled_task_told_within_a_second(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id = orchestrator.assign(node, "running")
    orchestrator.cancel(task_id)
    wait_for(lambda: node.beat("busy", current_task_id=task_id)["cancelled_task_ids"] == [task_id])
    ok(orchestrator.admin.delete(f"/nodes/{node.id}"))
    beat = {"node_id": node.id, "status": "idle"}
    wait_for(lambda: node.http.post("/nodes/heartbeat", json=beat).status_code == 401)
    wait_for(lambda: node.http.get("/tasks/pending").status_code == 401)


def test_tasks_that_changed_while_they_were_read_stay_changed() -> None:
    tasks = TasksByNode()
    tasks.add("node", "before")
    tasks.begin_refresh()
    tasks.add("node", "added")
    tasks.remove("node", "removed")
    tasks.end_refresh([("node", "read"), ("node", "removed")])
    assert tasks.of("node") == ["read", "added"]
    tasks.begin_refresh()
    tasks.end_refresh([])
    assert tasks.of("node") == []


# A long poll that breaks off


def _breaks(count: int, held: int, apart_s: float) -> Breaks:
    breaks = Breaks(lambda: held)
    for number in range(count):
        breaks.note(f"node-{number}", number * apart_s)
    return breaks


def test_poll_that_breaks_off_is_news_after_a_while() -> None:
    breaks = _breaks(1, held=100, apart_s=1)
    assert breaks.silent(15) == []
    assert breaks.silent(16) == ["node-0"]
    assert breaks.silent(17) == []


def test_poll_that_breaks_off_is_no_news_if_the_node_calls() -> None:
    breaks = _breaks(2, held=100, apart_s=1)
    breaks.note_call("node-0")
    assert breaks.silent(60) == ["node-1"]


@pytest.mark.parametrize(("apart_s", "news"), [(0.01, 0), (10, 30)])
def test_polls_that_break_off_together_are_the_proxy(apart_s: float, news: int) -> None:
    assert len(_breaks(30, held=100, apart_s=apart_s).silent(1000)) == news


@pytest.mark.long
def test_node_whose_poll_breaks_off_is_offline_before_its_time(
    orchestrator: RunningOrchestrator,
) -> None:
    nodes = [orchestrator.register(f"node-{number}") for number in range(12)]
    for node in nodes:
        node.beat()
    Poller(orchestrator, *nodes[1:])
    dying = orchestrator.client(nodes[0].api_key)
    dying.timeout = 0.5
    with pytest.raises(Exception, match="timed out"):
        dying.get("/tasks/pending", headers={"Prefer": "wait=60"})
    began = datetime.now(timezone.utc)
    wait_for(lambda: [one["status"] for one in orchestrator.nodes()].count("offline") == 1)
    assert orchestrator.nodes()[0]["status"] == "offline"
    assert (datetime.now(timezone.utc) - began).total_seconds() > 5  # it had time to come back
    # It lives after all.
    assert nodes[0].poll() is None
    assert orchestrator.nodes()[0]["status"] == "idle"
