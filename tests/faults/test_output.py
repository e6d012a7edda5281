"""The runner is killed while it sends a task's output, which is there once all the same."""

from operator import attrgetter

import pytest

from tests.faults.rig import Rig
from tests.faults.test_kill_points import KillPoint, at_request, kill_and_finish
from tests.harness.proxy import Fault, Kind

pytest.importorskip("orchestrator.routes.output")  # can go once the reference orchestrator has it

POINTS = [
    at_request(f"output-{step}", "POST", "/tasks/*/output", Fault(kind))
    for step, kind in (("unasked", Kind.HOLD_REQUEST), ("unanswered", Kind.HOLD_ANSWER))
]


@pytest.mark.parametrize("point", POINTS, ids=attrgetter("name"))
def test_chunk_is_repeated_to_the_byte_when_the_runner_is_killed_as_it_sends_it(
    point: KillPoint, rig: Rig
) -> None:
    kill_and_finish(point, rig)
    (task_id,) = rig.orchestrator.task_ids
    path = f"/tasks/{task_id}/output"
    chunks = [call.json() for call in rig.orchestrator.calls if call.path == path]
    assert chunks
    assert all(chunk == {"offset": 0, "text": "done\n", "done": True} for chunk in chunks)
