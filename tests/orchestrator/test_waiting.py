"""`Prefer: wait=N`: which waiting node is offered a task, and when its request is answered."""

from contextlib import ExitStack

import httpx
import pytest
from fastapi import FastAPI

from orchestrator.model import NodeIdentity, Target
from orchestrator.routes.assignments import preferred_wait_s
from orchestrator.scheduling.waiting import Waiters, WorkAvailable
from orchestrator.services import services_of
from tests.orchestrator.serving import Poller, RunningOrchestrator, wait_for

FIRST, SECOND = NodeIdentity("1", "one-a", {}), NodeIdentity("2", "one-b", {})


def _offer(task_id: str, node_name: str | None = None) -> WorkAvailable:
    return WorkAvailable(task_id, Target(node_name=node_name))


def test_each_task_is_offered_to_the_next_waiter_that_it_is_for() -> None:
    waiters, offers = Waiters(), [_offer("x"), _offer("y"), _offer("z")]
    for_second, for_nobody = _offer("task", SECOND.name), _offer("task", "nobody")
    with waiters.waiting(FIRST) as first, waiters.waiting(SECOND) as second:
        for offer in (*offers, for_second, for_nobody):
            waiters.wake(offer)
        assert first.offers == [offers[0], offers[2]]
        assert second.offers == [offers[1], for_second]


@pytest.mark.parametrize("taken", ["another task", "the task"])
def test_task_is_offered_to_the_next_waiter_unless_the_first_takes_it(taken: str) -> None:
    waiters, offer = Waiters(), _offer("the task")
    with ExitStack() as leaving:
        first = leaving.enter_context(waiters.waiting(FIRST))
        with waiters.waiting(SECOND) as second:
            waiters.wake(offer)
            first.settle(list(first.offers), taken)
            leaving.close()
            assert (second.offers, len(waiters)) == ([] if taken == "the task" else [offer], 1)


def test_task_passes_by_a_node_that_gets_no_new_work() -> None:
    waiters, offers = Waiters(), [_offer("x"), _offer("y"), _offer("z")]
    with waiters.waiting(FIRST) as full, waiters.waiting(SECOND) as other:
        waiters.wake(offers[0])
        waiters.set_full(full, is_full=True)
        waiters.wake(offers[1])
        assert (full.offers, other.offers) == ([], offers[:2])
        waiters.set_full(full, is_full=False)
        waiters.wake(offers[2])
        assert full.offers == offers[2:]


def test_offer_ends_when_there_is_no_task_and_later_offers_stay() -> None:
    waiters = Waiters()
    with waiters.waiting(FIRST) as only:
        waiters.wake(_offer("one"))
        offers = list(only.offers)
        waiters.wake(_offer("two"))
        only.settle(offers, None)
        assert only.offers == [_offer("two")]


def test_node_that_changes_is_offered_what_is_for_it_now_and_others_the_rest() -> None:
    waiters = Waiters()
    both, any_node, new = _offer("both", "one-*"), _offer("any"), _offer("new", "renamed")
    with waiters.waiting(FIRST) as changed:
        for offer in (both, any_node):
            waiters.wake(offer)
        with waiters.waiting(SECOND) as second:
            waiters.change(NodeIdentity(FIRST.id, "renamed", {}))
            for offer in (new, _offer("old", FIRST.name)):
                waiters.wake(offer)
            assert (changed.offers, second.offers) == ([any_node, new], [both])


@pytest.mark.parametrize(("preference", "applied"), [("wait=1", "wait=1"), ("wait=long", None)])
def test_response_names_the_preference_that_was_applied(
    shared: RunningOrchestrator, preference: str, applied: str | None
) -> None:
    response = shared.register().http.get("/tasks/pending", headers={"Prefer": preference})
    assert (response.text, response.headers.get("Preference-Applied")) == ("null", applied)


@pytest.mark.parametrize(
    ("preferences", "expected"),
    [
        ([], 0),
        (["WAIT = 25"], 25),
        (['wait="25"'], 25),
        (["respond-async", "respond-sync, wait=10; strict, wait=20"], 10),
        (["wait=61"], 60),
        (["wait=99999999999999"], 0),
        (["wait=-1"], 0),
        (["wait"], 0),
        (["waiting=5"], 0),
        (["wait=\u0665"], 0),
    ],
)
def test_preference_is_read_by_rfc_7240(preferences: list[str], expected: int) -> None:
    assert preferred_wait_s(preferences) == expected


def test_node_that_disconnected_takes_no_task(orchestrator: RunningOrchestrator) -> None:
    node = orchestrator.register()
    impatient = orchestrator.client(node.api_key)
    impatient.timeout = 0.3
    with pytest.raises(httpx.ReadTimeout):
        impatient.get("/tasks/pending", headers={"Prefer": "wait=60"})
    task_id = orchestrator.create_task()["id"]
    wait_for(lambda: orchestrator.waiting_count == 0)
    assert orchestrator.task(task_id)["status"] == "pending"
    assert node.poll_id() == task_id


def test_server_that_stops_answers_held_requests(orchestrator: RunningOrchestrator) -> None:
    poller = Poller(orchestrator, orchestrator.register())
    orchestrator.stop()
    assert poller.task_id() is None


def test_application_without_services_is_refused() -> None:
    app = FastAPI()
    app.state.services = None
    with pytest.raises(TypeError, match="not made by create_app"):
        services_of(app)
