"""What the runner has in hand, and what troubles it: read by the loops, changed by the tasks."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import anyio

from runner.clock import Clock
from runner.errors import JournalError
from runner.log import fields

log = logging.getLogger(__name__)

_WRITE_AGAIN_S = 5.0
_START_AGAIN_S = 5.0
_LONGEST_START_AGAIN_S = 300.0
_DROPPED_FOR_S = 10.0
START = "start"
"""The trouble that containers cannot be started here."""

T = TypeVar("T")


class Changes:
    """A counter that can be waited on: no change is missed between looking and waiting."""

    def __init__(self) -> None:
        self.count = 0
        self._next = anyio.Event()

    def notify(self) -> None:
        """Count a change and wake whoever waits for one."""
        self.count += 1
        self._next.set()
        self._next = anyio.Event()

    async def after(self, count: int) -> None:
        """Return as soon as more than `count` changes have been counted."""
        while self.count <= count:
            await self._next.wait()

    async def after_or(self, count: int, seconds: float, clock: Clock) -> None:
        """Return as soon as `after` would, or when so many seconds have passed."""
        async with anyio.create_task_group() as group:
            group.start_soon(_cancel_after, seconds, clock, group.cancel_scope)
            await self.after(count)
            group.cancel_scope.cancel()


async def _cancel_after(seconds: float, clock: Clock, scope: anyio.CancelScope) -> None:
    await clock.sleep(seconds)
    scope.cancel()


class Cancellable(Protocol):
    """A task in hand, as far as the workload knows it."""

    def cancel(self, who: str) -> None:
        """Have it stopped; `who` is named in its final message."""


class Workload:
    """The tasks in hand, the slots that they occupy, and the troubles that keep new ones away."""

    def __init__(self, max_tasks: int) -> None:
        self.changes = Changes()
        """Of what heartbeats and systemd are told."""
        self._slots = Changes()
        self._max_tasks = max_tasks
        self._tasks: dict[str, Cancellable] = {}
        self._with_slot: set[str] = set()
        self._about_to_leave: set[str] = set()
        self._troubles: dict[str, str] = {}
        self._dropped_at_s: dict[str, float] = {}
        self._refused_starts = 0
        self.next_start_at_s = 0.0
        """The uptime in seconds before which no container is started after refusals."""

    @property
    def task_ids(self) -> tuple[str, ...]:
        """Give the ids of the tasks in hand, oldest first."""
        return tuple(self._tasks)

    @property
    def status(self) -> str:
        """Give the word for a heartbeat: idle, busy or error."""
        if self._troubles:
            return "error"
        return "busy" if self._tasks else "idle"

    @property
    def troubles(self) -> dict[str, str]:
        """Give what is wrong: a sentence by the name of each trouble."""
        return dict(self._troubles)

    def add(self, task_id: str, task: Cancellable, *, has_slot: bool) -> None:
        """Take a task in hand; one that may run already has a slot, another waits for its own."""
        self._tasks[task_id] = task
        if has_slot:
            self._with_slot.add(task_id)
        self._notify()

    def release(self, task_id: str) -> None:
        """Let go of the task, and free its slot; that may have been done before."""
        self._with_slot.discard(task_id)
        self._about_to_leave.discard(task_id)
        if self._tasks.pop(task_id, None) is not None:
            self._notify()

    def expect_release(self, task_id: str) -> None:
        """Note that a slot is about to be freed, so that the next task may be asked for."""
        if task_id in self._with_slot:
            self._about_to_leave.add(task_id)
            self._slots.notify()

    def free_slot(self, task_id: str) -> None:
        """Free the slot of a task whose container is over, while its end is looked at."""
        self.expect_release(task_id)
        self._with_slot.discard(task_id)
        self._slots.notify()

    def keep_slot(self, task_id: str) -> None:
        """Note that a task in hand needs its slot, whatever was expected."""
        self._with_slot.add(task_id)
        if task_id in self._about_to_leave:
            self._about_to_leave.discard(task_id)
            self._slots.notify()

    def cancel(self, task_id: str, who: str) -> None:
        """Have a task stopped, if it is in hand."""
        task = self._tasks.get(task_id)
        if task is not None:
            task.cancel(who)

    def set_trouble(self, name: str, sentence: str) -> None:
        """Note what is wrong and log it, once until it changes."""
        before = self._troubles.get(name)
        self._troubles[name] = sentence
        if before is None:
            log.error(sentence)
            self.changes.notify()

    def clear_trouble(self, name: str) -> None:
        """Note that it is over."""
        if self._troubles.pop(name, None) is not None:
            log.info("trouble is over", extra=fields(trouble=name))
            self.changes.notify()

    def note_refused_start(self, sentence: str, uptime_s: float) -> None:
        """Note that a container could not be started for what the next would meet as well.

        Each time in a row doubles the wait before the next task: a broken host does not eat up
        the queue.
        """
        self._refused_starts += 1
        doubled_s = _START_AGAIN_S * 2.0 ** min(self._refused_starts - 1, 30)
        self.next_start_at_s = uptime_s + min(doubled_s, _LONGEST_START_AGAIN_S)
        self.set_trouble(START, f"few new tasks are taken until a container starts: {sentence}")

    def note_dropped(self, task_id: str, uptime_s: float) -> None:
        """Note that a task was dropped, for the orchestrator did not want it to begin."""
        self._dropped_at_s[task_id] = uptime_s

    def was_just_dropped(self, task_id: str, uptime_s: float) -> bool:
        """Say whether a task was dropped a moment ago: taken at once it would be so again."""
        self._dropped_at_s = {
            dropped: at_s
            for dropped, at_s in self._dropped_at_s.items()
            if uptime_s - at_s < _DROPPED_FOR_S
        }
        return task_id in self._dropped_at_s

    def note_start(self) -> None:
        """Note that containers do start here."""
        self._refused_starts = 0
        self.next_start_at_s = 0.0
        self.clear_trouble(START)

    async def wait_for_room(self) -> None:
        """Return as soon as one more task may be asked for: a slot is free, or is about to be."""
        while len(self._tasks) - self._count_leaving() >= self._max_tasks:
            await self._slots.after(self._slots.count)

    async def wait_for_slot(self, task_id: str) -> None:
        """Return as soon as the task has a slot of its own."""
        while task_id not in self._with_slot:
            if len(self._with_slot) < self._max_tasks:
                self._with_slot.add(task_id)
            else:
                await self._slots.after(self._slots.count)

    def _count_leaving(self) -> int:
        """Count no more than there are slots: an engine that tells no ends is given no more."""
        return min(len(self._about_to_leave), self._max_tasks)

    def _notify(self) -> None:
        self.changes.notify()
        self._slots.notify()


async def written(write: Callable[[], Awaitable[T]], workload: Workload, clock: Clock) -> T:
    """Write to the journal, however long the disk is full: what happened must not be forgotten."""
    while True:
        try:
            done = await write()
        except JournalError as error:
            workload.set_trouble("journal", str(error))
            await clock.sleep(_WRITE_AGAIN_S)
        else:
            workload.clear_trouble("journal")
            return done
