"""Waiting for a condition, with a deadline."""

from collections.abc import Callable

import anyio

DEADLINE_S = 90.0  # how long anything that must happen may take, on the slowest machine


async def until(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds; raise TimeoutError if it does not in time."""
    with anyio.fail_after(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - conditions on disks and in threads have no events
            await anyio.sleep(0.01)
