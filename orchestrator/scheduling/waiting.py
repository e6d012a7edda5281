"""The long polls: nodes that wait for work, and the tasks that wake them.

All of it happens in the event loop's thread, so nothing is locked. A waiter is added before the
queue is looked at, so work that comes in between is not missed. A new task wakes the node that has
waited longest of those it may go to, not all of them: thousands may wait. A node that is woken and
does not take that very task, because it took a better one or has hung up, passes it to the next.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from orchestrator.model import NodeIdentity, Target, matches


@dataclass(frozen=True)
class WorkAvailable:
    """A task that needs a node."""

    task_id: str
    target: Target


class Waiter:
    """One held poll, and the tasks for which it was woken."""

    def __init__(self, node: NodeIdentity) -> None:
        self.node = node
        self.offers: list[WorkAvailable] = []
        self._event = asyncio.Event()

    def settle(self, offered: list[WorkAvailable], taken_task_id: str | None) -> None:
        """Remove the tasks that a look at the queue has dealt with.

        If the look found no task, other nodes have all of those that were offered. If it found
        one, the others are left for the next waiter.
        """
        answered = [offer for offer in offered if taken_task_id in {None, offer.task_id}]
        self.offers = [offer for offer in self.offers if offer not in answered]

    def wake(self) -> None:
        """End the wait, or the next one if none is under way."""
        self._event.set()

    async def wait(self, timeout_s: float) -> None:
        """Wait until woken, at most `timeout_s` seconds."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._event.wait(), timeout_s)
        self._event.clear()


class Waiters:
    """All held polls, the longest first."""

    def __init__(self) -> None:
        self._waiters: dict[Waiter, None] = {}
        self.closed = False

    def __len__(self) -> int:
        """Return the number of held polls."""
        return len(self._waiters)

    @contextmanager
    def waiting(self, node: NodeIdentity) -> Iterator[Waiter]:
        """Hold a poll of the node while the block lasts; tasks that it leaves wake others."""
        waiter = Waiter(node)
        self._waiters[waiter] = None
        try:
            yield waiter
        finally:
            del self._waiters[waiter]
            for offer in waiter.offers:
                self.wake(offer)

    def wake(self, offer: WorkAvailable) -> None:
        """Wake one node that the task may go to, if possible one that was not woken yet."""
        suitable = (waiter for waiter in self._waiters if matches(offer.target, waiter.node))
        first = next(suitable, None)
        if first is None:
            return
        chosen = (
            first if not first.offers else next((one for one in suitable if not one.offers), first)
        )
        chosen.offers.append(offer)
        chosen.wake()

    def change(self, node: NodeIdentity) -> None:
        """Update a node's name and tags; tasks that woke it are offered again."""
        changed = [waiter for waiter in self._waiters if waiter.node.id == node.id]
        offers = [offer for waiter in changed for offer in waiter.offers]
        for waiter in changed:
            waiter.node, waiter.offers = node, []
        for offer in offers:
            self.wake(offer)

    def wake_all(self) -> None:
        """Wake all."""
        for waiter in self._waiters:
            waiter.wake()

    def close(self) -> None:
        """Answer all held polls: the server shuts down."""
        self.closed = True
        self.wake_all()
