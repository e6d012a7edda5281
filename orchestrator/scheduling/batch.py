"""Batches of queries: one round trip to the database for all requests that arrive meanwhile.

A request runs its query at once if none is running. Requests that arrive while one runs are
collected and answered by the next one, so the more there are, the less each one costs. Only the
query runs in another thread, so nothing is locked.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from anyio import to_thread

Query = TypeVar("Query")
Result = TypeVar("Result")

_AT_ONCE = 500
"""The size of a batch: a statement has a limit on its parameters."""


class Batch(Generic[Query, Result]):
    """Runs `run_all` in a thread on a batch of queries; it returns one result each, in order.

    An error of `run_all` is raised to every caller of that batch.
    """

    def __init__(self, run_all: Callable[[Sequence[Query]], Sequence[Result]]) -> None:
        self._run_all = run_all
        self._queued: list[tuple[Query, asyncio.Future[Result]]] = []
        self._running: asyncio.Task[None] | None = None

    async def ask(self, query: Query) -> Result:
        """Return the result of one query, which begins to run after this call."""
        result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queued.append((query, result))
        if self._running is None:
            self._running = asyncio.create_task(self._run_until_empty())
        return await result

    async def _run_until_empty(self) -> None:
        try:
            while self._queued:
                batch, self._queued = self._queued[:_AT_ONCE], self._queued[_AT_ONCE:]
                await self._run(batch)
        finally:
            self._running = None

    async def _run(self, batch: list[tuple[Query, asyncio.Future[Result]]]) -> None:
        queries = [query for query, _ in batch]
        try:
            results = await to_thread.run_sync(self._run_all, queries)
        except Exception as error:  # noqa: BLE001 - it belongs to the callers
            for _, waiting in batch:
                # A caller that was cancelled wants none.
                if not waiting.done():
                    waiting.set_exception(error)
            return
        for (_, waiting), result in zip(batch, results, strict=True):
            if not waiting.done():
                waiting.set_result(result)
