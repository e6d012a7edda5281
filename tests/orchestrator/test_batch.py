"""Requests that come while a batch is under way are answered together by the next one."""

import threading
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import anyio
import pytest

from orchestrator.scheduling.batch import Batch
from tests.orchestrator.serving import DEADLINE_S, Json, RegisteredNode, RunningOrchestrator

pytestmark = pytest.mark.anyio


class Doubling:
    """Doubles numbers in batches, of which the first waits; cannot double zero."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.results: dict[int, int | None] = {}
        self.batch = Batch(self._double_all)
        self.begun, self.may_end = threading.Event(), threading.Event()

    def _double_all(self, numbers: Sequence[int]) -> list[int]:
        self.batches.append(list(numbers))
        self.begun.set()
        assert self.may_end.wait(DEADLINE_S)
        if 0 in numbers:
            raise ZeroDivisionError
        return [2 * number for number in numbers]

    async def double(self, number: int) -> None:
        try:
            self.results[number] = await self.batch.ask(number)
        except ZeroDivisionError:
            self.results[number] = None


@pytest.mark.parametrize(
    ("numbers", "results"),
    [([2, 3], {1: 2, 2: 4, 3: 6}), ([2, 0], {1: 2, 2: None, 0: None})],
    ids=["all succeed", "one batch fails"],
)
async def test_requests_go_together(numbers: list[int], results: dict[int, int | None]) -> None:
    doubling = Doubling()
    async with anyio.create_task_group() as group:
        group.start_soon(doubling.double, 1)
        assert await anyio.to_thread.run_sync(doubling.begun.wait, DEADLINE_S)
        with anyio.move_on_after(0.01):  # a caller that disconnects
            await doubling.batch.ask(7)
        for number in numbers:
            group.start_soon(doubling.double, number)
        await anyio.wait_all_tasks_blocked()
        doubling.may_end.set()
    assert (doubling.batches, doubling.results) == ([[1], [7, *numbers]], results)
    assert await doubling.batch.ask(5) == 10


@pytest.mark.both_databases
def test_heartbeats_at_once_each_get_their_own_response(orchestrator: RunningOrchestrator) -> None:
    nodes = [orchestrator.register(f"node-{number}") for number in range(20)]
    cancelled: dict[str, list[str]] = {node.id: [] for node in nodes}
    for node in nodes[::2]:
        cancelled[node.id] = [orchestrator.assign(node)]
        orchestrator.cancel(cancelled[node.id][0])
    held: dict[str, list[str]] = {node.id: [str(uuid.uuid4())] for node in nodes}
    # Together they have more tasks than one statement asks for.
    for node in nodes:
        held[node.id] += [f"{node.name}-{number}" for number in range(999)]

    def beat(node: RegisteredNode) -> Json:
        return node.beat("busy", current_task_id=held[node.id][0], task_ids=held[node.id])

    with ThreadPoolExecutor(len(nodes)) as pool:
        responses = list(pool.map(beat, nodes))
    for node, response in zip(nodes, responses, strict=True):
        assert (response["id"], response["current_task_id"]) == (node.id, held[node.id][0])
        assert response["cancelled_task_ids"] == cancelled[node.id]
