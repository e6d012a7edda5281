"""`Prefer: wait=N`: the request is held until work comes, and not longer than asked for."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.app import create_app
from orchestrator.routes.assignments import preferred_wait_s
from orchestrator.services import services_of
from orchestrator.settings import Settings
from tests.orchestrator.serving import (
    DEADLINE_S,
    Json,
    RegisteredNode,
    RunningOrchestrator,
    ok,
    refusal,
    serve,
    wait_for,
)


class Poller:
    """Polls with patience in a thread of its own."""

    def __init__(self, orchestrator: RunningOrchestrator, *nodes: RegisteredNode) -> None:
        self._pool = ThreadPoolExecutor(max_workers=len(nodes))
        self.answers: list[Future[Json | None]] = [
            self._pool.submit(node.poll, 60) for node in nodes
        ]
        wait_for(lambda: orchestrator.waiting_count == len(nodes))

    def answer(self, index: int = 0) -> Json | None:
        """Give what the poll was answered."""
        return self.answers[index].result(DEADLINE_S)


def test_created_task_ends_the_wait(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    poller = Poller(orchestrator, node)
    task = orchestrator.create_task()
    answer = poller.answer()
    assert answer is not None
    assert answer["task_id"] == task["id"]


def test_each_waiting_node_gets_a_task_of_its_own(orchestrator: RunningOrchestrator) -> None:
    nodes = [orchestrator.register(f"node-{number}") for number in range(5)]
    poller = Poller(orchestrator, *nodes)
    created = {orchestrator.create_task()["id"] for _ in nodes}
    answers = [poller.answer(index) for index in range(len(nodes))]
    assert {answer["task_id"] for answer in answers if answer} == created


def test_task_for_another_node_does_not_end_the_wait(orchestrator: RunningOrchestrator) -> None:
    left, right = orchestrator.register("left"), orchestrator.register("right")
    poller = Poller(orchestrator, left, right)
    orchestrator.create_task(target_node_name="right")
    assert poller.answer(1) is not None
    assert orchestrator.waiting_count == 1
    orchestrator.create_task(target_node_name="left")
    assert poller.answer(0) is not None


def test_waiting_node_gets_its_unreported_assignment_again(
    tmp_path: Path, database_url: str | None
) -> None:
    with serve(tmp_path, database_url=database_url, redelivery_after_s=0.3) as orchestrator:
        node = orchestrator.register()
        first = orchestrator.create_task()
        node.poll()
        answer = node.poll(wait_s=60)
    assert answer is not None
    assert answer["task_id"] == first["id"]


def test_wait_ends_with_null_and_says_how_long_it_was(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    response = node.http.get("/tasks/pending", headers={"Prefer": "wait=1"})
    assert (response.status_code, response.text) == (200, "null")
    assert response.headers["Preference-Applied"] == "wait=1"
    assert orchestrator.waiting_count == 0


def test_work_at_hand_is_answered_at_once_and_says_the_preference_holds(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    orchestrator.create_task()
    response = node.http.get("/tasks/pending", headers={"Prefer": "wait=25"})
    assert response.headers["Preference-Applied"] == "wait=25"
    assert ok(response)


def test_unread_preference_does_not_hold(node: RegisteredNode) -> None:
    response = node.http.get("/tasks/pending", headers={"Prefer": "wait=long"})
    assert "Preference-Applied" not in response.headers
    assert response.text == "null"


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
def test_preference_is_read_as_rfc_7240_says(preferences: list[str], expected: int) -> None:
    assert preferred_wait_s(preferences) == expected


def test_node_that_hung_up_takes_no_task(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    impatient = orchestrator.client(node.api_key)
    impatient.timeout = 0.3
    with pytest.raises(Exception, match="timed out"):
        impatient.get("/tasks/pending", headers={"Prefer": "wait=60"})
    task = orchestrator.create_task()
    wait_for(lambda: orchestrator.waiting_count == 0)
    assert orchestrator.task(task["id"])["status"] == "pending"
    assert node.poll() is not None


def test_removed_node_waits_no_longer(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    with ThreadPoolExecutor(max_workers=1) as pool:
        held = pool.submit(node.http.get, "/tasks/pending", headers={"Prefer": "wait=60"})
        wait_for(lambda: orchestrator.waiting_count == 1)
        ok(orchestrator.admin.delete(f"/nodes/{node.id}"))
        assert refusal(held.result(DEADLINE_S))[0] == 401


def test_stopping_server_answers_who_waits(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    poller = Poller(orchestrator, node)
    orchestrator.stop()
    assert poller.answer() is None


def test_parts_of_a_foreign_application_are_refused(tmp_path: Path) -> None:
    app = create_app(Settings(tmp_path, admin_key="a", registration_token="t"))  # noqa: S106
    services_of(app).database.close()
    app.state.services = None
    with pytest.raises(TypeError):
        services_of(app)
