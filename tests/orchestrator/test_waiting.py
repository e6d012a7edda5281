"""`Prefer: wait=N`: which waiting node is offered a task, and when its request is answered."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from orchestrator.app import create_app
from orchestrator.model import NodeIdentity, Target
from orchestrator.routes.assignments import preferred_wait_s
from orchestrator.scheduling.waiting import Waiter, Waiters, WorkAvailable
from orchestrator.services import services_of
from orchestrator.settings import Settings
from tests.orchestrator.serving import (
    Poller,
    RegisteredNode,
    RunningOrchestrator,
    ok,
    refusal,
    wait_for,
)


class Queue:
    """Waiters by name."""

    def __init__(self, stack: ExitStack) -> None:
        self.waiters = Waiters()
        self._stack = stack
        self._leaving: dict[str, ExitStack] = {}

    def join(self, name: str) -> Waiter:
        """Add a waiter."""
        self._leaving[name] = self._stack.enter_context(ExitStack())
        waiting = self.waiters.waiting(NodeIdentity(name, name, {}))
        return self._leaving[name].enter_context(waiting)

    def leave(self, name: str) -> None:
        """Remove a waiter."""
        self._leaving[name].close()

    def wake(self, *task_ids: str, node_name: str | None = None) -> None:
        """Announce tasks."""
        for task_id in task_ids:
            self.waiters.wake(_offer(task_id, node_name))


@pytest.fixture
def queue() -> Iterator[Queue]:
    """Yield an empty queue."""
    with ExitStack() as stack:
        yield Queue(stack)


def _offer(task_id: str, node_name: str | None = None) -> WorkAvailable:
    return WorkAvailable(task_id, Target(node_name=node_name))


def test_each_task_is_offered_to_the_next_waiter(queue: Queue) -> None:
    first, second = queue.join("first"), queue.join("second")
    queue.wake("one", "two", "three")
    assert first.offers == [_offer("one"), _offer("three")]
    assert second.offers == [_offer("two")]


def test_task_is_offered_only_to_nodes_that_it_is_for(queue: Queue) -> None:
    first, second = queue.join("first"), queue.join("second")
    queue.wake("task", node_name="second")
    queue.wake("other", node_name="nobody")
    assert (first.offers, second.offers) == ([], [_offer("task", "second")])


@pytest.mark.parametrize("taken", ["no task", "another task", "the task"])
def test_task_is_offered_to_the_next_waiter_unless_the_first_takes_it(
    queue: Queue, taken: str
) -> None:
    first, second = queue.join("first"), queue.join("second")
    queue.wake("the task")
    if taken != "no task":
        first.settle(list(first.offers), taken)
    queue.leave("first")
    assert second.offers == ([] if taken == "the task" else [_offer("the task")])
    assert len(queue.waiters) == 1


def test_offer_ends_when_there_is_no_task_and_later_offers_stay(queue: Queue) -> None:
    only = queue.join("only")
    queue.wake("one")
    offered = list(only.offers)
    queue.wake("two")
    only.settle(offered, None)
    assert only.offers == [_offer("two")]


def test_node_that_changes_is_offered_what_is_for_it_now(queue: Queue) -> None:
    waiter = queue.join("first")
    queue.waiters.change(NodeIdentity("first", "renamed", {}))
    queue.wake("old", node_name="first")
    queue.wake("new", node_name="renamed")
    assert waiter.offers == [_offer("new", "renamed")]


def test_offers_go_to_the_next_waiter_when_the_first_changes(queue: Queue) -> None:
    first = queue.join("one-a")
    queue.wake("task", node_name="one-*")
    queue.wake("any")
    second = queue.join("one-b")
    queue.waiters.change(NodeIdentity("one-a", "two", {}))
    assert first.offers == [_offer("any")]
    assert second.offers == [_offer("task", "one-*")]


# Over HTTP


@pytest.mark.both_databases
def test_each_waiting_node_is_assigned_a_task_of_its_own(
    orchestrator: RunningOrchestrator,
) -> None:
    nodes = [orchestrator.register(f"node-{number}") for number in range(5)]
    poller = Poller(orchestrator, *nodes)
    created = {orchestrator.create_task()["id"] for _ in nodes}
    assert {poller.task_id(index) for index in range(len(nodes))} == created


@pytest.mark.both_databases
def test_task_for_another_node_does_not_end_the_wait(orchestrator: RunningOrchestrator) -> None:
    poller = Poller(orchestrator, orchestrator.register("left"), orchestrator.register("right"))
    right = orchestrator.create_task(target_node_name="right")["id"]
    assert poller.task_id(1) == right
    assert orchestrator.waiting_count == 1
    left = orchestrator.create_task(target_node_name="left")["id"]
    assert poller.task_id(0) == left


@pytest.mark.both_databases
@pytest.mark.settings(redelivery_after_s=0.3)
def test_waiting_node_is_offered_its_unreported_assignment_again(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id = orchestrator.assign(node)
    assert node.poll_id(wait_s=60) == task_id


@pytest.mark.parametrize(
    ("preference", "has_task", "applied"),
    [("wait=1", False, "wait=1"), ("wait=25", True, "wait=25"), ("wait=long", False, None)],
)
def test_response_names_the_preference_that_was_applied(
    orchestrator: RunningOrchestrator,
    node: RegisteredNode,
    preference: str,
    *,
    has_task: bool,
    applied: str | None,
) -> None:
    if has_task:
        orchestrator.create_task()
    response = node.http.get("/tasks/pending", headers={"Prefer": preference})
    assert (response.status_code, response.text != "null") == (200, has_task)
    assert response.headers.get("Preference-Applied") == applied
    assert orchestrator.waiting_count == 0


@pytest.mark.parametrize(
    ("preferences", "expected"),
    [
        ([], 0),
        ([""], 0),
        (["wait=25"], 25),
        (["WAIT = 25"], 25),
        (['wait="25"'], 25),
        (["respond-async, wait=10"], 10),
        (["respond-async", "wait=10"], 10),
        (["wait=10; strict, wait=20"], 10),
        (["wait=60"], 60),
        (["wait=61"], 60),
        (["wait=999999999"], 60),
        (["wait=99999999999999"], 0),
        (["wait=0"], 0),
        (["wait=-1"], 0),
        (["wait=1.5"], 0),
        (["wait"], 0),
        (["waiting=5"], 0),
        (["wait=\u0665"], 0),
    ],
)
def test_preference_is_read_by_rfc_7240(preferences: list[str], expected: int) -> None:
    assert preferred_wait_s(preferences) == expected


def test_node_that_disconnected_takes_no_task(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    impatient = orchestrator.client(node.api_key)
    impatient.timeout = 0.3
    with pytest.raises(httpx.ReadTimeout):
        impatient.get("/tasks/pending", headers={"Prefer": "wait=60"})
    task_id = orchestrator.create_task()["id"]
    wait_for(lambda: orchestrator.waiting_count == 0)
    assert orchestrator.task(task_id)["status"] == "pending"
    assert node.poll_id() == task_id


def test_request_of_a_removed_node_is_refused_while_it_is_held(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    poller = Poller(orchestrator, node)
    ok(orchestrator.admin.delete(f"/nodes/{node.id}"))
    assert refusal(poller.response())[0] == 401


def test_server_that_stops_answers_held_requests(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    poller = Poller(orchestrator, node)
    orchestrator.stop()
    assert poller.task_id() is None


def test_application_without_services_is_refused(tmp_path: Path) -> None:
    app = create_app(Settings(tmp_path, admin_key="a", registration_token="t"))  # noqa: S106
    services_of(app).database.close()
    app.state.services = None
    with pytest.raises(TypeError):
        services_of(app)
