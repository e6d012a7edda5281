"""What the tests of the loops share."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from tests.harness.clock import VirtualClock
from tests.harness.host import Host, hosting
from tests.harness.loop import HARNESS, Backend
from tests.harness.orchestrator import ScriptedOrchestrator, orchestrating

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
def anyio_backend() -> Backend:
    """Return the event loop that the runner uses."""
    return HARNESS


@pytest.fixture
def clock() -> VirtualClock:
    """Return the host's clock."""
    return VirtualClock()


@pytest.fixture
async def orchestrator(
    anyio_backend: str,  # noqa: ARG001 - asked for, so that it runs there
    clock: VirtualClock,
) -> AsyncIterator[ScriptedOrchestrator]:
    """Yield an orchestrator that behaves until a test has it do otherwise."""
    async with orchestrating(clock.uptime_s) as running:
        yield running


@pytest.fixture
async def host(
    tmp_path: Path, clock: VirtualClock, orchestrator: ScriptedOrchestrator
) -> AsyncIterator[Host]:
    """Yield a host without a runner."""
    async with hosting(tmp_path, clock, orchestrator) as made:
        yield made


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Keep the runner's log, all of it."""
    caplog.set_level(logging.DEBUG, logger="runner")
    return caplog
