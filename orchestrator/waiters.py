"""The nodes that wait for work right now, each with a bell; each new task rings for one of them.

All of it happens in the event loop's thread, so nothing is locked. A bell is hung before the queue
is looked at, so work that comes in between is not missed. A task calls the node that has waited
longest of those it may go to, not all of them: thousands may wait. Whoever is called and does not
take that very task, since it took a better one or has hung up, leaves the call to the next.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from orchestrator.targeting import NodeIdentity, Target, matches


@dataclass(frozen=True)
class Call:
    """A task that looks for a node."""

    task_id: str
    target: Target


class Bell:
    """Ends one node's wait, and remembers for which tasks it rang."""

    def __init__(self, node: NodeIdentity) -> None:
        self.node = node
        self.calls: list[Call] = []
        self._event = asyncio.Event()

    def settle(self, heard: list[Call], taken_task_id: str | None) -> None:
        """Forget the calls that a look at the queue has answered.

        If the look gave nothing, then all tasks that had called are in other hands. If it gave a
        task, then that one's call is answered, and the others are left for the next to wait.
        """
        answered = [call for call in heard if taken_task_id in {None, call.task_id}]
        self.calls = [call for call in self.calls if call not in answered]

    def ring(self) -> None:
        """End the wait, or the next one if none goes on."""
        self._event.set()

    async def wait(self, timeout_s: float) -> None:
        """Wait until the bell rings, at most so long."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._event.wait(), timeout_s)
        self._event.clear()


class Waiters:
    """Who waits for work, the longest first."""

    def __init__(self) -> None:
        self._bells: dict[Bell, None] = {}
        self.closed = False

    def __len__(self) -> int:
        """How many wait."""
        return len(self._bells)

    @contextmanager
    def waiting(self, node: NodeIdentity) -> Iterator[Bell]:
        """Hang a bell for the node for as long as the block lasts; what it leaves goes on."""
        bell = Bell(node)
        self._bells[bell] = None
        try:
            yield bell
        finally:
            del self._bells[bell]
            for call in bell.calls:
                self.wake(call)

    def wake(self, call: Call) -> None:
        """Ring for one node that the task may go to, an uncalled one if there is any."""
        suitable = (bell for bell in self._bells if matches(call.target, bell.node))
        first = next(suitable, None)
        if first is None:
            return
        chosen = first if not first.calls else next((b for b in suitable if not b.calls), first)
        chosen.calls.append(call)
        chosen.ring()

    def change(self, node: NodeIdentity) -> None:
        """Update a node's name and tags; the calls that it heard are made once more."""
        changed = [bell for bell in self._bells if bell.node.id == node.id]
        calls = [call for bell in changed for call in bell.calls]
        for bell in changed:
            bell.node, bell.calls = node, []
        for call in calls:
            self.wake(call)

    def wake_all(self) -> None:
        """Ring for everyone."""
        for bell in self._bells:
            bell.ring()

    def close(self) -> None:
        """Send everyone home: the server stops."""
        self.closed = True
        self.wake_all()
