"""How long an agent waits for its answer, on a clock that jumps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import pytest

from runner.api.client import OrchestratorClient
from runner.reporter.reporter import Reporter
from tests.harness.loop import JUMPING
from tests.harness.server import json_response, nobody_listening, raw, serving, stalled
from tests.reporter.test_failures import job

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.harness.server import Answer

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, Mapping[str, Any]]:
    """Name the event loop that these tests use."""
    return JUMPING


@pytest.mark.usefixtures("crush")
@pytest.mark.parametrize(
    "response",
    [raw(), stalled(b""), json_response({}, 503), json_response({}, 503, {"Retry-After": "3600"})],
)
async def test_agent_has_its_answer_after_half_a_minute_at_most(
    home: Path, response: Answer
) -> None:
    async with serving() as server, OrchestratorClient(server.url) as orchestrator:
        server.answer(response)
        reporter = Reporter(job(server.url, home), orchestrator)
        began_s = anyio.current_time()
        answer = await reporter.finish("success", "12 sales", submit_logs=True)
        took_s = anyio.current_time() - began_s

    assert answer["sent"] is False
    assert took_s <= 31


async def test_orchestrator_that_is_away_is_reported(home: Path) -> None:
    with nobody_listening() as port:
        async with OrchestratorClient(f"http://127.0.0.1:{port}") as orchestrator:
            reporter = Reporter(job(orchestrator.url, home), orchestrator)
            answer = await reporter.report("running", None, 5)

    assert answer == {"sent": False, "error": "cannot report 'running': Connection refused"}
