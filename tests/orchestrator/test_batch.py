"""Questions that come while a trip is under way are answered together by the next one."""

import threading
from collections.abc import Sequence

import anyio
import pytest

from orchestrator.scheduling.batch import Batch
from tests.orchestrator.serving import DEADLINE_S, RunningOrchestrator, ok

pytestmark = pytest.mark.anyio


class Database:
    """Doubles what it is asked, on trips that the test lets begin and end."""

    def __init__(self) -> None:
        self.trips: list[list[int]] = []
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)

    def answer_all(self, questions: Sequence[int]) -> list[int]:
        """Wait until the trip may end; zero is what it cannot answer."""
        self.trips.append(list(questions))
        self.begun.release()
        assert self.may_end.acquire(timeout=DEADLINE_S)
        if 0 in questions:
            raise ZeroDivisionError
        return [2 * question for question in questions]

    async def begins(self) -> None:
        """Wait until a trip has begun."""
        assert await anyio.to_thread.run_sync(lambda: self.begun.acquire(timeout=DEADLINE_S))


async def test_questions_during_a_trip_go_together_on_the_next() -> None:
    database = Database()
    batch = Batch(database.answer_all)
    answers: dict[int, int] = {}

    async def ask(question: int) -> None:
        answers[question] = await batch.ask(question)

    async with anyio.create_task_group() as group:
        group.start_soon(ask, 1)
        await database.begins()
        for question in (2, 3, 4):
            group.start_soon(ask, question)
        await anyio.wait_all_tasks_blocked()
        database.may_end.release(2)
    assert database.trips == [[1], [2, 3, 4]]
    assert answers == {1: 2, 2: 4, 3: 6, 4: 8}


async def test_failure_is_everyones_of_that_trip_and_nobody_elses() -> None:
    database = Database()
    batch = Batch(database.answer_all)
    failed: list[int] = []

    async def ask(question: int) -> None:
        try:
            await batch.ask(question)
        except ZeroDivisionError:
            failed.append(question)

    async with anyio.create_task_group() as group:
        group.start_soon(ask, 1)
        await database.begins()
        for question in (2, 0):
            group.start_soon(ask, question)
        await anyio.wait_all_tasks_blocked()
        database.may_end.release(2)
    database.may_end.release()
    assert sorted(failed) == [0, 2]
    assert await batch.ask(5) == 10


async def test_one_who_hangs_up_takes_no_answer_from_the_others() -> None:
    database = Database()
    batch = Batch(database.answer_all)
    answers: list[int] = []

    async def ask() -> None:
        answers.append(await batch.ask(3))

    async with anyio.create_task_group() as group:
        group.start_soon(batch.ask, 1)
        await database.begins()
        with anyio.move_on_after(0.01):
            await batch.ask(2)
        group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        database.may_end.release(2)
    assert database.trips == [[1], [2, 3]]
    assert answers == [6]


async def test_heartbeats_at_the_same_time_are_each_answered_as_their_own(
    orchestrator: RunningOrchestrator,
) -> None:
    nodes = [orchestrator.register(f"node-{number}") for number in range(20)]
    cancelled: dict[str, list[str]] = {node.id: [] for node in nodes}
    for node in nodes[::2]:
        task = orchestrator.create_task(target_node_id=node.id)
        node.poll()
        ok(orchestrator.admin.delete(f"/tasks/{task['id']}"))
        cancelled[node.id].append(task["id"])
    answers: dict[str, dict[str, object]] = {}

    def beat(index: int) -> None:
        node = nodes[index]
        answers[node.id] = node.beat("busy", current_task_id=f"held by {index}")

    async with anyio.create_task_group() as group:
        for index in range(len(nodes)):
            group.start_soon(anyio.to_thread.run_sync, beat, index)
    for index, node in enumerate(nodes):
        answer = answers[node.id]
        assert (answer["id"], answer["current_task_id"]) == (node.id, f"held by {index}")
        assert answer["cancelled_task_ids"] == cancelled[node.id]


async def test_node_that_says_it_holds_any_number_of_tasks_spoils_no_others_heartbeat(
    orchestrator: RunningOrchestrator,
) -> None:
    greedy, other = orchestrator.register("greedy"), orchestrator.register("other")
    many = [f"t-{number}" for number in range(70_000)]  # PostgreSQL takes 65,535 parameters
    codes: list[int] = []

    def beat(body: dict[str, object]) -> None:
        node = greedy if "task_ids" in body else other
        codes.append(node.http.post("/nodes/heartbeat", json=body).status_code)

    async with anyio.create_task_group() as group:
        for _ in range(3):
            told: dict[str, object] = {"node_id": greedy.id, "status": "busy", "task_ids": many}
            group.start_soon(anyio.to_thread.run_sync, beat, told)
            for _ in range(5):
                heard: dict[str, object] = {"node_id": other.id, "status": "idle"}
                group.start_soon(anyio.to_thread.run_sync, beat, heard)
    assert codes == [200] * 18
