"""The long polls: nodes that wait for work, and the tasks that wake them.

All of it happens in the event loop's thread, so nothing is locked. A waiter is added before the
queue is looked at, so work that comes in between is not missed. A new task wakes the node that has
waited longest of those it may go to, not all of them: thousands may wait. A node that is woken and
does not take that very task, because it took a better one or has hung up, passes it to the next.

Most polls find nothing, and need not look: `may_have_work` knows the targets that were announced
since, and the nodes whose last look found nothing. It is wrong only in one direction: a look that
finds nothing removes the targets that have no task any more.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from orchestrator.budgets import MAX_HELD_POLLS
from orchestrator.model import NodeIdentity, Target, matches
from orchestrator.scheduling.index import Key, Keys

_MAX_TARGETS = 50_000
"""Targets that are remembered; with more, every node looks again."""
_MAX_ALIKE = 5_000
"""Of them, with one key: each poll that has it compares them all."""

_Conditions = tuple[str | None, str | None, tuple[tuple[str, str], ...]]


@dataclass(frozen=True)
class WorkAvailable:
    """A task that needs a node."""

    task_id: str
    target: Target


class Waiter:
    """One held poll, and the tasks for which it was woken."""

    __slots__ = ("_is_woken", "_sleep", "is_dismissed", "is_full", "keys", "node", "offers")

    def __init__(self, node: NodeIdentity) -> None:
        self.node = node
        self.offers: list[WorkAvailable] = []
        self.keys: list[Key] = []
        """The keys under which it is found."""
        self.is_dismissed = False
        """Whether its poll has to end, since its node holds newer ones."""
        self.is_full = False
        """Whether its node has so many unreported assignments that it gets no new work."""
        self._is_woken = False
        self._sleep: asyncio.Future[None] | None = None

    def settle(self, offered: list[WorkAvailable], taken_task_id: str | None) -> None:
        """Remove the tasks that a look at the queue has dealt with.

        If the look found no task, other nodes have all of those that were offered. If it found
        one, the others are left for the next waiter.
        """
        answered = [offer for offer in offered if taken_task_id in {None, offer.task_id}]
        self.offers = [offer for offer in self.offers if offer not in answered]

    def wake(self) -> None:
        """End the wait, or the next one if none is under way."""
        self._is_woken = True
        self._end_sleep()

    async def wait(self, timeout_s: float) -> None:
        """Wait until woken, at most `timeout_s` seconds."""
        if not self._is_woken:
            # An event and a timeout around it would be two more objects for each of thousands.
            loop = asyncio.get_running_loop()
            self._sleep = loop.create_future()
            alarm = loop.call_later(timeout_s, self._end_sleep)
            try:
                await self._sleep
            finally:
                alarm.cancel()
                self._sleep = None
        self._is_woken = False

    def _end_sleep(self) -> None:
        if self._sleep is not None and not self._sleep.done():
            self._sleep.set_result(None)


class Waiters:
    """All held polls, the longest first, and the targets of which there may be tasks."""

    def __init__(self) -> None:
        self._waiters: dict[Waiter, None] = {}
        self._by_key: defaultdict[Key, dict[Waiter, None]] = defaultdict(dict)
        self._targets: defaultdict[Key, dict[_Conditions, tuple[Target, int]]] = defaultdict(dict)
        """Announced targets by key, each with the time of its last announcement."""
        self._target_count = 0
        self._keys = Keys()
        self._keys_version = 0
        self._time = 0
        """Counts announcements."""
        self._reset_at = 0
        """When nodes last had to look again; what a look from before has found counts no more."""
        self._found_nothing: set[str] = set()
        """Nodes whose last look found nothing."""
        self.closed = False

    def __len__(self) -> int:
        """Return the number of held polls."""
        return len(self._waiters)

    @contextmanager
    def waiting(self, node: NodeIdentity) -> Iterator[Waiter]:
        """Hold a poll of the node while the block lasts; tasks that it leaves wake others.

        Of too many polls the oldest is dismissed: behind a proxy it may be one whose runner is
        gone, and the newest is the one that is read.
        """
        held = list(self._by_key.get(("id", node.id), ()))
        for oldest in held[: max(0, len(held) + 1 - MAX_HELD_POLLS)]:
            oldest.is_dismissed = True
            oldest.wake()
        waiter = Waiter(node)
        self._waiters[waiter] = None
        self._add(waiter)
        try:
            yield waiter
        finally:
            del self._waiters[waiter]
            self._remove(waiter)
            for offer in waiter.offers:
                self._wake_one(offer)

    def may_have_work(self, node: NodeIdentity) -> bool:
        """Return whether the queue may have a task for this node; False is certain."""
        if node.id not in self._found_nothing:
            return True
        return any(True for _ in self._targets_for(node))

    @property
    def now(self) -> int:
        """The time in announcements, for `note_empty`."""
        return self._time

    def note_empty(self, node: NodeIdentity, looked_at: int) -> None:
        """Note that a look which began at that time found no task for this node."""
        if looked_at < self._reset_at:
            return
        self._found_nothing.add(node.id)
        for key, conditions, announced_at in list(self._targets_for(node)):
            if announced_at <= looked_at:
                del self._targets[key][conditions]
                self._target_count -= 1
                if not self._targets[key]:
                    del self._targets[key]

    def wake(self, offer: WorkAvailable) -> bool:
        """Wake one node that the task may go to, if possible one that was not woken yet.

        Return whether there was such a one.
        """
        target = offer.target
        self._time += 1
        conditions = (target.node_id, target.node_name, tuple(sorted((target.tags or {}).items())))
        alike = self._targets[self._keys.of_target(target)]
        self._target_count += conditions not in alike
        alike[conditions] = (target, self._time)
        if self._target_count > _MAX_TARGETS or len(alike) > _MAX_ALIKE:
            self._targets.clear()
            self._target_count = 0
            self._found_nothing.clear()
            self._reset()
        return self._wake_one(offer)

    def wake_for(self, offer: WorkAvailable, count: int) -> None:
        """Wake a node for each of so many tasks with one target, as long as there are nodes."""
        for _ in range(count):
            if not self.wake(offer):
                return

    def forget(self, node_id: str) -> None:
        """Have a node look again: it was removed, or has registered again."""
        self._found_nothing.discard(node_id)
        self._reset()
        self.wake_node(node_id)

    def wake_node(self, node_id: str) -> None:
        """Wake the polls of a node."""
        for waiter in list(self._by_key.get(("id", node_id), ())):
            waiter.wake()

    def count(self, node_id: str) -> int:
        """Return the number of polls of a node."""
        return len(self._by_key.get(("id", node_id), ()))

    def set_full(self, waiter: Waiter, *, is_full: bool) -> None:
        """Pass tasks on to other nodes while this one gets no new work."""
        waiter.is_full = is_full
        if is_full:
            offers, waiter.offers = waiter.offers, []
            for offer in offers:
                self._wake_one(offer)

    def change(self, node: NodeIdentity) -> None:
        """Update a node's name and tags; tasks that woke it are offered again."""
        changed = list(self._by_key.get(("id", node.id), ()))
        offers = [offer for waiter in changed for offer in waiter.offers]
        for waiter in changed:
            self._remove(waiter)
            waiter.node, waiter.offers = node, []
            self._add(waiter)
        for offer in offers:
            self._wake_one(offer)

    def wake_all(self) -> None:
        """Have every node look again: announcements may have been missed."""
        self._found_nothing.clear()
        self._reset()
        for waiter in self._waiters:
            waiter.wake()

    def close(self) -> None:
        """Answer all held polls: the server shuts down."""
        self.closed = True
        for waiter in self._waiters:
            waiter.wake()

    def _targets_for(self, node: NodeIdentity) -> Iterator[tuple[Key, _Conditions, int]]:
        for key in self._keys.of_node(node):
            for conditions, (target, announced_at) in self._targets.get(key, {}).items():
                if matches(target, node):
                    yield key, conditions, announced_at

    def _reset(self) -> None:
        self._time += 1
        self._reset_at = self._time

    def _wake_one(self, offer: WorkAvailable) -> bool:
        key = self._keys.of_target(offer.target)
        if self._keys.version != self._keys_version:
            self._add_all_again()
        chosen = None
        for waiter in self._by_key.get(key, ()):
            if waiter.is_full or not matches(offer.target, waiter.node):
                continue
            if not waiter.offers:
                chosen = waiter
                break
            chosen = chosen or waiter
        if chosen is None:
            return False
        is_first = not chosen.offers
        chosen.offers.append(offer)
        chosen.wake()
        return is_first

    def _add_all_again(self) -> None:
        self._keys_version = self._keys.version
        self._by_key.clear()
        for waiter in self._waiters:
            self._add(waiter)

    def _add(self, waiter: Waiter) -> None:
        waiter.keys = list(self._keys.of_node(waiter.node))
        for key in waiter.keys:
            self._by_key[key][waiter] = None

    def _remove(self, waiter: Waiter) -> None:
        for key in waiter.keys:
            found = self._by_key[key]
            found.pop(waiter, None)
            if not found:
                del self._by_key[key]
