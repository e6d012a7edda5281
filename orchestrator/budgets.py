"""Budgets: what one caller may use, so that none can take the server away from the others.

An honest fleet never meets one with the defaults. Everything is counted in memory, each process for
itself; what is counted for too many keys is dropped, and those start again at nothing.
"""

import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

from orchestrator.errors import OutOfSpace, TooMany

DEFAULT_NODE_CALLS_PER_MINUTE = 3000
DEFAULT_TASK_STEPS = 1000
DEFAULT_TASK_LOG_BYTES = 100 * 1024**2
DEFAULT_TASK_OUTPUT_BYTES = 1024**3
DEFAULT_NODE_OUTPUT_BYTES = 10 * 1024**3
DEFAULT_NODE_ARTIFACT_BYTES = 100 * 1024**3
DEFAULT_KEY_PENDING_TASKS = 2000
DEFAULT_KEY_UPLOAD_BYTES = 50 * 1024**3

MAX_HELD_POLLS = 4
"""Of one node. A runner holds one; those that a proxy keeps open after a restart are the oldest."""
MAX_HISTORY_CHARS = 10_000_000
"""In the messages of one task, not counting its final report."""

MAX_STREAMS = 100
"""Of one kind, open with one key. Each looks at the database once a second."""

MAX_BYTES_IN_FLIGHT = 64 * 1024**2
"""Six logs, or a thousand reports."""
_LEAST_IN_FLIGHT = 64 * 1024

_REMEMBERED = 100_000
"""Keys of one allowance."""
_REMEMBERED_TASKS = 10_000


class Allowance:
    """An amount that each key may use within a time; what is used comes back steadily.

    Used in one thread, or where a lost update does no harm.
    """

    def __init__(self, amount: float, seconds: float, sentence: str) -> None:
        """Allow `amount` within `seconds`; a refusal has this sentence."""
        self._amount = amount
        self._seconds = seconds
        self._share_s = seconds / amount
        self._sentence = sentence
        self._paid_until: dict[str, float] = {}
        """Up to when the use so far is paid for; at most `seconds` ahead."""

    def charge(self, key: str, amount: float = 1) -> None:
        """Charge a use to a key. Raises TooMany if that is more than it has left.

        One that is larger than the whole amount is charged as that: it is not refused forever.
        """
        now = time.monotonic()
        paid_until = self._paid_until.get(key, now)
        after = max(now, paid_until) + min(amount, self._amount) * self._share_s
        excess_s = after - now - self._seconds
        # Sums of shares are not exact; that must not cost the last use.
        if excess_s > self._share_s / 2:
            raise TooMany(self._sentence, timedelta(seconds=excess_s))
        if len(self._paid_until) >= _REMEMBERED and key not in self._paid_until:
            self._paid_until.clear()
        self._paid_until[key] = after

    def __len__(self) -> int:
        """Return the number of keys that are remembered."""
        return len(self._paid_until)


class NodeCalls:
    """The calls that one node may make in a minute.

    Heartbeats and polls are counted apart from the rest, so that an agent that reports without end
    does not silence its node.
    """

    def __init__(self, per_minute: int) -> None:
        sentence = f"the node is limited to {per_minute} calls of a kind a minute"
        self.heartbeats = Allowance(per_minute, 60, sentence)
        self.polls = Allowance(per_minute, 60, sentence)
        self.others = Allowance(per_minute, 60, sentence)


class BodiesInFlight:
    """How many bytes of bodies each caller may be sending at once: they are held in memory.

    Used in the event loop's thread only.
    """

    def __init__(self, max_bytes: int = MAX_BYTES_IN_FLIGHT) -> None:
        self._max_bytes = max_bytes
        self._bytes: dict[str, int] = {}

    def hold(self, caller: str, size: int) -> AbstractContextManager[object]:
        """Count a body until the returned context ends. Raises TooMany."""
        # The call itself takes memory, and a thread, too.
        size = max(size, _LEAST_IN_FLIGHT)
        before = self._bytes.get(caller, 0)
        if before and before + size > self._max_bytes:
            raise TooMany(
                f"the key sends more than {self._max_bytes} bytes at once", timedelta(seconds=1)
            )
        self._bytes[caller] = before + size
        stack = ExitStack()
        stack.callback(self._release, caller, size)
        return stack

    def _release(self, caller: str, size: int) -> None:
        left = self._bytes.pop(caller) - size
        if left:
            self._bytes[caller] = left

    def __len__(self) -> int:
        """Return the number of callers that are sending."""
        return len(self._bytes)


class HistoryBudget:
    """How many steps of a task are stored, and how much text in them."""

    def __init__(self, max_steps: int, max_chars: int = MAX_HISTORY_CHARS) -> None:
        self._max_steps = max_steps
        self._max_chars = max_chars
        self._used: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def take(self, task_id: str, message: str | None) -> bool:
        """Count one step; return whether the task may still store it."""
        with self._lock:
            steps, chars = self._used.pop(task_id, (0, 0))
            after = (steps + 1, chars + len(message or ""))
            is_within = after[0] <= self._max_steps and after[1] <= self._max_chars
            # The task that reported last is dropped last.
            self._used[task_id] = after if is_within else (steps, chars)
            if len(self._used) > _REMEMBERED_TASKS:
                del self._used[next(iter(self._used))]
        return is_within

    def forget(self, task_id: str) -> None:
        """Drop a task that has ended."""
        with self._lock:
            self._used.pop(task_id, None)


OUTPUT_INTERVAL_S, LONGEST_OUTPUT_INTERVAL_S = 5, 30
WATCHED_OUTPUT_INTERVAL_S = 2
OUTPUTS_PER_S = 40
"""Chunks of output that one process takes without asking nodes to send fewer. Each is one
transaction that waits for the disk.
"""
OUTPUT_WRITERS = 3
"""Chunks that one process stores at a time; the others wait without a thread."""
_OUTPUT_IS_SENT_FOR_S = 60.0
"""A task without a chunk for so long counts for nothing. More than the longest interval."""


class OutputPace:
    """How often nodes send new output, so that a process gets `OUTPUTS_PER_S` at most.

    The interval of a task that somebody watches is shorter by a fixed factor, also under load.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[str, float] = {}
        """By task, when its last chunk came; the oldest first."""
        self._lock = threading.Lock()

    def note(self, task_id: str, *, is_done: bool) -> None:
        """Count a chunk of a task."""
        now = self._clock()
        with self._lock:
            self._last.pop(task_id, None)
            if not is_done:
                self._last[task_id] = now
            while self._last:
                oldest = next(iter(self._last))
                if now - self._last[oldest] <= _OUTPUT_IS_SENT_FOR_S:
                    break
                del self._last[oldest]

    def interval_s(self, *, is_watched: bool) -> int:
        """Return how long a node waits before it sends more, in whole seconds."""
        stretched_s = len(self._last) / OUTPUTS_PER_S
        interval_s = min(max(OUTPUT_INTERVAL_S, stretched_s), LONGEST_OUTPUT_INTERVAL_S)
        if is_watched:
            interval_s *= WATCHED_OUTPUT_INTERVAL_S / OUTPUT_INTERVAL_S
        return math.ceil(interval_s)


class OpenStreams:
    """How many streams of events each key has open.

    Used in the event loop's thread only.
    """

    def __init__(self, what: str, limit: int = MAX_STREAMS) -> None:
        """Limit the streams of one kind; `what` names them in a refusal."""
        self._what = what
        self._limit = limit
        self._open: dict[str, int] = {}

    def check(self, key_id: str) -> None:
        """Raise TooMany if a key may open no further one."""
        if self._open.get(key_id, 0) >= self._limit:
            raise TooMany(
                f"the key has {self._limit} {self._what} open, as many as it may: close some",
                timedelta(seconds=5),
            )

    @contextmanager
    def hold(self, key_id: str) -> Iterator[None]:
        """Count a stream while the block lasts."""
        self._open[key_id] = self._open.get(key_id, 0) + 1
        try:
            yield
        finally:
            left = self._open.pop(key_id) - 1
            if left:
                self._open[key_id] = left

    def __len__(self) -> int:
        """Return the number of keys with an open stream."""
        return len(self._open)


_FREE_IS_KNOWN_FOR_S = 1.0


class DiskReserve:
    """Refuses what would grow the database once the disk is at its reserve.

    The reserve is for what must not be lost: final reports, heartbeats, claims. Pages of the
    database that are not in use count as free, so a cleanup helps at once.
    """

    def __init__(self, folder: Path | None, min_free_bytes: int, unused: Callable[[], int]) -> None:
        """Watch the disk of a folder; None if the database is elsewhere."""
        self._folder = folder
        self._min_free_bytes = min_free_bytes
        self._unused = unused
        self._looked_at = float("-inf")
        self._is_reached = False

    def check(self) -> None:
        """Raise OutOfSpace if the disk is at its reserve. In a thread: it may ask the database."""
        now = time.monotonic()
        if self._folder is not None and now - self._looked_at >= _FREE_IS_KNOWN_FOR_S:
            free = shutil.disk_usage(self._folder).free
            if free < self._min_free_bytes:
                free += self._unused()
            self._is_reached, self._looked_at = free < self._min_free_bytes, now
        if self._is_reached:
            raise OutOfSpace(
                f"the server's disk has less than {self._min_free_bytes} bytes free"
                " (--min-free-bytes): delete old tasks, or enlarge it"
            )
