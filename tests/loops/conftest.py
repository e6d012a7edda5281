"""What the tests of the loops share."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.harness.clock import VirtualClock
from tests.harness.host import Host, hosting
from tests.harness.loop import HARNESS, Backend
from tests.harness.orchestrator import orchestrating


@pytest.fixture
def anyio_backend() -> Backend:
    return HARNESS


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
async def host(tmp_path: Path, clock: VirtualClock, anyio_backend: Backend) -> AsyncIterator[Host]:  # noqa: ARG001 - asked for, so that it runs there
    """Yield a host without a runner, whose orchestrator behaves until a test changes that."""
    async with (
        orchestrating(clock.uptime_s) as orchestrator,
        hosting(tmp_path, clock, orchestrator) as made,
    ):
        yield made


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, logger="runner")
    return caplog
