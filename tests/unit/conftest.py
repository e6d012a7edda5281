"""What the unit tests share."""

from collections.abc import AsyncIterator
from pathlib import Path

import hypothesis
import pytest

from runner.api.client import OrchestratorClient
from runner.model import Identity
from runner.redaction import Secret
from tests.harness.server import ScriptedServer, serving

# On a busy machine an example takes as long as it takes; pytest's own timeout ends what hangs.
hypothesis.settings.register_profile(
    "unit",
    hypothesis.settings(),
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("unit")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def server(anyio_backend: str) -> AsyncIterator[ScriptedServer]:  # noqa: ARG001 - asked for, so that it runs there
    async with serving() as running:
        yield running


@pytest.fixture
async def orchestrator(server: ScriptedServer) -> AsyncIterator[OrchestratorClient]:
    async with OrchestratorClient(server.url) as client:
        yield client


@pytest.fixture
def identity() -> Identity:
    return Identity("6f1c2a34-0000-4000-8000-0123456789ab", Secret("node-key-1234"))


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder for programs that are found before the host's own."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder
