"""Requests that come while a batch is under way are answered together by the next one."""

import threading
import uuid
from collections.abc import Sequence

import anyio
import pytest

from orchestrator.scheduling.batch import Batch
from tests.orchestrator.serving import DEADLINE_S, RunningOrchestrator

pytestmark = pytest.mark.anyio


class Doubling:
    """Doubles numbers, in batches that the test lets begin and end; cannot double zero."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.results: dict[int, int] = {}
        self.failed: set[int] = set()
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)
        self.batch = Batch(self._double_all)

    def _double_all(self, numbers: Sequence[int]) -> list[int]:
        self.batches.append(list(numbers))
        self.begun.release()
        assert self.may_end.acquire(timeout=DEADLINE_S)
        if 0 in numbers:
            raise ZeroDivisionError
        return [2 * number for number in numbers]

    async def double(self, number: int) -> None:
        """Wait for the result, or for the failure."""
        try:
            self.results[number] = await self.batch.ask(number)
        except ZeroDivisionError:
            self.failed.add(number)

    async def double_after_one(self, *numbers: int, impatient: int | None = None) -> None:
        """Ask for these while 1 is under way; the impatient caller disconnects first."""
        async with anyio.create_task_group() as group:
            group.start_soon(self.double, 1)
            assert await anyio.to_thread.run_sync(lambda: self.begun.acquire(timeout=DEADLINE_S))
            if impatient is not None:
                with anyio.move_on_after(0.01):
                    await self.batch.ask(impatient)
            for number in numbers:
                group.start_soon(self.double, number)
            await anyio.wait_all_tasks_blocked()
            self.may_end.release(2)


async def test_requests_during_a_batch_go_together_in_the_next() -> None:
    doubling = Doubling()
    await doubling.double_after_one(2, 3, 4)
    assert doubling.batches == [[1], [2, 3, 4]]
    assert doubling.results == {1: 2, 2: 4, 3: 6, 4: 8}


async def test_failure_is_that_of_its_batch_alone() -> None:
    doubling = Doubling()
    await doubling.double_after_one(2, 0)
    assert (doubling.failed, doubling.results) == ({0, 2}, {1: 2})
    doubling.may_end.release()
    assert await doubling.batch.ask(5) == 10


async def test_caller_that_disconnects_takes_no_result_from_the_others() -> None:
    doubling = Doubling()
    await doubling.double_after_one(3, impatient=2)
    assert doubling.batches == [[1], [2, 3]]
    assert doubling.results == {1: 2, 3: 6}


@pytest.mark.both_databases
async def test_heartbeats_at_the_same_time_are_each_answered_as_their_own(
    orchestrator: RunningOrchestrator,
) -> None:
    nodes = [orchestrator.register(f"node-{number}") for number in range(20)]
    cancelled: dict[str, list[str]] = {node.id: [] for node in nodes}
    for node in nodes[::2]:
        cancelled[node.id] = [orchestrator.assign(node)]
        orchestrator.cancel(cancelled[node.id][0])
    task_ids = [str(uuid.uuid4()) for _ in nodes]
    responses: dict[int, dict[str, object]] = {}

    def beat(index: int) -> None:
        responses[index] = nodes[index].beat("busy", current_task_id=task_ids[index])

    async with anyio.create_task_group() as group:
        for index in range(len(nodes)):
            group.start_soon(anyio.to_thread.run_sync, beat, index)
    for index, node in enumerate(nodes):
        response = responses[index]
        assert (response["id"], response["current_task_id"]) == (node.id, task_ids[index])
        assert response["cancelled_task_ids"] == cancelled[node.id]


@pytest.mark.both_databases
async def test_heartbeat_with_any_number_of_tasks_spoils_no_other(
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
            large: dict[str, object] = {"node_id": greedy.id, "status": "busy", "task_ids": many}
            group.start_soon(anyio.to_thread.run_sync, beat, large)
            for _ in range(5):
                small: dict[str, object] = {"node_id": other.id, "status": "idle"}
                group.start_soon(anyio.to_thread.run_sync, beat, small)
    assert codes == [200] * 18
