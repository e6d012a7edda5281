"""An event loop that knows when everything on it has come to rest, and whose time can be moved.

At rest means: no callback is ready, no byte waits to be read, no worker thread and no child process
is at work, and nothing has announced work by `works_while`. Sleeps, closed doors and connections
on which nobody sends are rest. So a thread that needs seconds for an fsync holds the loop's rest
back, however busy the machine is, and no test has to know how many coroutines sleep.
"""

import asyncio
import gc
import selectors
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import Any, TypeAlias

import anyio.to_thread

Backend: TypeAlias = tuple[str, Mapping[str, Any]]

LONGEST_JUMP_S = 60.0
"""What is farther away is a test's own deadline; a jumping loop does not jump there."""

_IN_THREAD = anyio.to_thread.run_sync.__code__
_MOST_AWAITS = 200
_AWAITED_BY = ("cr_await", "gi_yieldfrom", "ag_await")


class _Selector(selectors.DefaultSelector):
    """Calls `on_idle` when asyncio would wait; if that has made something ready, nothing waits."""

    def __init__(self, on_idle: Callable[[float | None], bool]) -> None:
        super().__init__()
        self._on_idle = on_idle

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        # asyncio passes 0 while callbacks are ready, and otherwise the time to its next timer.
        if timeout is not None and timeout <= 0:
            return super().select(timeout)
        ready = super().select(0)
        if ready or self._on_idle(timeout):
            return ready
        return super().select(timeout)


class HarnessLoop(asyncio.SelectorEventLoop):
    """See the head of this file."""

    def __init__(self, *, jumps: bool = False) -> None:
        """With `jumps`, sleeps of up to a minute end as soon as all else is at rest."""
        self._ahead_s = 0.0
        self._stands_at_s: float | None = None
        self._resting: list[asyncio.Future[None]] = []
        self._announced: list[Callable[[], bool]] = []
        self._started: set[Callable[[], bool]] = set()
        super().__init__(_Selector(self._on_idle))
        if jumps:
            self._stands_at_s = super().time()

    def time(self) -> float:
        """Return the seconds by which timers go; on a jumping loop jumps alone make them more."""
        now_s = super().time() if self._stands_at_s is None else self._stands_at_s
        return now_s + self._ahead_s

    def put_forward(self, seconds: float) -> None:
        self._ahead_s += seconds

    async def rest(self) -> None:
        rested = self.create_future()
        self._resting.append(rested)
        await rested

    def works_while(self, is_at_work: Callable[[], bool]) -> None:
        """Hold rest back while this returns true, for work that the loop cannot see.

        A callback on this loop must follow when it turns false.
        """
        self._announced.append(is_at_work)

    def _on_idle(self, timeout: float | None) -> bool:
        """Wake those who wait for rest, or jump; return whether anything was made ready."""
        may_jump = self._stands_at_s is not None and timeout is not None
        if not (self._resting or may_jump) or self._is_at_work():
            return False
        if self._resting:
            for rested in self._resting:
                if not rested.done():
                    rested.set_result(None)
            self._resting.clear()
            return True
        if timeout is None or timeout > LONGEST_JUMP_S:
            return False
        self.put_forward(timeout)
        return True

    def _is_at_work(self) -> bool:
        self._started = {is_at_work for is_at_work in self._started if is_at_work()}
        return (
            bool(self._started)
            or any(is_at_work() for is_at_work in self._announced)
            or any(_waits_for_thread(task) for task in asyncio.all_tasks(self))
        )

    def run_in_executor(  # type: ignore[override]
        self,
        executor: Executor | None,
        func: Callable[..., Any],
        *args: Any,  # noqa: ANN401 - as asyncio has it
    ) -> asyncio.Future[Any]:
        future = super().run_in_executor(executor, func, *args)
        self._started.add(lambda: not future.done())
        return future

    async def subprocess_exec(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as asyncio has it
        transport, protocol = await super().subprocess_exec(*args, **kwargs)
        self._started.add(lambda: transport.get_returncode() is None)
        return transport, protocol


def _waits_for_thread(task: asyncio.Task[Any]) -> bool:
    """Return whether what a task awaits, through all calls, is a function in a worker thread."""
    awaited: object = task.get_coro()
    for _ in range(_MOST_AWAITS):
        if awaited is None or getattr(awaited, "cr_code", None) is _IN_THREAD:
            break
        awaited = _awaited_by(awaited)
    return getattr(awaited, "cr_code", None) is _IN_THREAD


def _awaited_by(awaitable: object) -> object | None:
    for name in _AWAITED_BY:
        if hasattr(awaitable, name):
            return getattr(awaitable, name)  # type: ignore[no-any-return]
    # Iterators of asynchronous generators and of coroutines do not name what they drive.
    referents = gc.get_referents(awaitable)
    return next((one for one in referents if any(hasattr(one, name) for name in _AWAITED_BY)), None)


def running_loop() -> HarnessLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, HarnessLoop), "this test needs `anyio_backend` to be HARNESS or JUMPING"
    return loop


HARNESS: Backend = ("asyncio", {"loop_factory": HarnessLoop})
"""A backend for anyio's plugin: time is the machine's until a test moves it."""
JUMPING: Backend = ("asyncio", {"loop_factory": partial(HarnessLoop, jumps=True)})
"""A backend on which waiting takes no time."""
