"""How long an agent is kept waiting, on a clock that jumps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import pytest

from runner.api.client import OrchestratorClient
from runner.reporter.reporter import Reporter
from tests.harness.loop import JUMPING
from tests.harness.server import json_response, raw, serving, stalled
from tests.reporter.test_failures import job

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.fakes.crush import Crush
    from tests.harness.server import Answer

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, Mapping[str, Any]]:
    """Name the event loop that these tests use."""
    return JUMPING


@pytest.mark.parametrize(
    "said",
    [raw(), stalled(b""), json_response({}, 503), json_response({}, 503, {"Retry-After": "3600"})],
)
async def test_agent_has_its_answer_after_half_a_minute_at_most(
    home: Path, crush: Crush, said: Answer
) -> None:
    async with serving() as server, OrchestratorClient(server.url) as orchestrator:
        server.answer(said)
        reporter = Reporter(job(server.url, home), orchestrator)
        began_s = anyio.current_time()
        answer = await reporter.finish("success", "12 sales", submit_logs=True)
        took_s = anyio.current_time() - began_s

    assert answer["sent"] is False
    assert took_s <= 31
    crush.close()
