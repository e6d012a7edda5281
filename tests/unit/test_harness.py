"""The harness's clock moves when everything is at rest, and not before."""

import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import anyio.to_thread
import pytest

from tests.harness.clock import VirtualClock
from tests.harness.loop import HARNESS, JUMPING, Backend
from tests.harness.server import http, serving

pytestmark = pytest.mark.anyio
WORK_S = 0.3


@pytest.fixture
def anyio_backend() -> Backend:
    return HARNESS


COMMAND = [sys.executable, "-c", f"import time; time.sleep({WORK_S})"]
in_thread = partial(anyio.to_thread.run_sync, time.sleep, WORK_S)


async def over_a_socket() -> None:
    """Send more than a socket's buffers hold, and back."""
    async with serving() as server:
        server.answer(http(200, bytes(8 << 20)))
        async with await anyio.connect_tcp("127.0.0.1", server.port) as stream:
            await stream.send(b"GET / HTTP/1.1\r\n\r\n")
            async for _ in stream:
                pass


WORK: dict[str, Callable[[], Awaitable[object]]] = {
    "thread under a limiter": lambda: in_thread(limiter=anyio.CapacityLimiter(1)),
    "child of a thread": lambda: anyio.to_thread.run_sync(subprocess.check_call, COMMAND),
    "socket": over_a_socket,
}


@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
async def test_time_stands_still_during_work(work: Callable[[], Awaitable[object]]) -> None:
    clock, moments = VirtualClock(), list[float]()
    began_s = clock.awake_s()

    async def worker() -> None:
        await clock.sleep(1)
        await work()
        moments.append(clock.awake_s())

    async with anyio.create_task_group() as group:
        group.start_soon(worker)
        await clock.advance(3600)
        assert moments == [began_s + 1]


async def test_crash_of_the_runner_is_raised_where_the_test_waits() -> None:
    clock = VirtualClock()
    clock.fail(RuntimeError("it crashed"))
    with pytest.raises(RuntimeError, match="it crashed"):
        await clock.settle()


@pytest.mark.parametrize("anyio_backend", [JUMPING], ids=["jumping"])
async def test_on_a_jumping_loop_waits_take_no_time_and_work_is_waited_for() -> None:
    began_s, real_began_s = anyio.current_time(), time.monotonic()
    async with anyio.create_task_group() as group:
        group.start_soon(in_thread)
        for _ in range(10):
            await anyio.sleep(30)
    assert anyio.current_time() - began_s == pytest.approx(300)
    assert WORK_S <= time.monotonic() - real_began_s < 30
