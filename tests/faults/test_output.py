"""The runner is killed while it sends what a task prints and makes, which is there once anyway.

One point of each kind is in ./dev test; the others are long.
"""

from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter

import pytest

from tests.faults.engine import When
from tests.faults.rig import Rig
from tests.faults.test_kill_points import KillPoint, at_call, at_commit, at_request, kill_and_finish
from tests.harness.proxy import Fault, Kind

HELD = {"unasked": Kind.HOLD_REQUEST, "unanswered": Kind.HOLD_ANSWER}
WHOLE = [
    at_request(f"output-{step}", "POST", "/tasks/*/output", Fault(kind))
    for step, kind in HELD.items()
]
FIRST_LIVE_COMMIT = 5
"""After the identity is stored and the task accepted, about to start and running."""
LIVE = [
    replace(
        at_commit(commit, when), prompt="[print-line one][wait-for go][print-line two]", output=text
    )
    for text in ["one\ntwo\n"]
    for commit, when in (
        (FIRST_LIVE_COMMIT, "before"),
        (FIRST_LIVE_COMMIT, "after"),
        (FIRST_LIVE_COMMIT + 1, "before"),
        (FIRST_LIVE_COMMIT + 1, "after"),
    )
]
"""The chunk is written with the place in the log after it; then it is delivered."""
AT_THE_END = [at_call("logs", when, needs="--timestamps") for when in When]
"""Podman's log is a file that no call reads: there the commits before and after are the points."""
MADE = {"a.txt": b"one", "b.txt": b"two"}
ARTIFACTS = [
    replace(point, prompt="[artifact a.txt one][artifact b.txt two][print-line done]")
    for point in (
        *(
            at_request(f"artifact-{step}", "PUT", "/tasks/*/artifacts/*", Fault(kind))
            for step, kind in HELD.items()
        ),
        at_commit(8, "after"),  # the first one is done
        at_commit(10, "before"),  # all of them are
    )
]


def at_points(points: Sequence[KillPoint], short: str) -> pytest.MarkDecorator:
    """Have a test run at each point; at all but the one of this name it is a long one."""
    assert short in {point.name for point in points}
    return pytest.mark.parametrize(
        "point",
        [
            pytest.param(
                point, id=point.name, marks=[] if point.name == short else pytest.mark.long
            )
            for point in points
        ],
    )


def follow_closely(rig: Rig) -> None:
    """Have live output sent at once, whatever interval the orchestrator asks for."""
    rig.runner.set_timings(
        output_interval_s=0.2, shortest_output_interval_s=0.2, longest_output_interval_s=0.2
    )


@at_points(WHOLE, short="output-unanswered")
def test_chunk_is_repeated_to_the_byte_when_the_runner_is_killed_as_it_sends_it(
    point: KillPoint, rig: Rig
) -> None:
    rig.runner.set_timings(output_interval_s=600)  # it is one chunk, however slow the host is
    task_id = kill_and_finish(point, rig)
    path = f"/tasks/{task_id}/output"
    chunks = [call.json() for call in rig.orchestrator.calls_of("POST", path)]
    assert chunks
    assert all(chunk == {"offset": 0, "text": "done\n", "done": True} for chunk in chunks)


@at_points(LIVE, short="after-commit-5")
def test_output_is_whole_when_the_runner_is_killed_at_a_commit_of_live_output(
    point: KillPoint, rig: Rig
) -> None:
    follow_closely(rig)
    kill_and_finish(point, rig)


@at_points([*LIVE[1:2], *AT_THE_END], short="during-logs")
def test_output_is_whole_when_the_runner_is_killed_as_it_reads_the_log_of_docker(
    point: KillPoint, docker_rig: Rig
) -> None:
    if point in LIVE:
        follow_closely(docker_rig)
    kill_and_finish(point, docker_rig)


@at_points(ARTIFACTS, short="artifact-unanswered")
def test_artifacts_are_there_once_when_the_runner_is_killed_as_it_uploads_them(
    point: KillPoint, rig: Rig
) -> None:
    task_id = kill_and_finish(point, rig)
    assert rig.orchestrator.artifacts_of(task_id) == MADE


@pytest.mark.long
@pytest.mark.parametrize("point", ARTIFACTS[1:2], ids=attrgetter("name"))
def test_artifacts_are_there_once_when_the_runner_is_killed_beside_docker(
    point: KillPoint, docker_rig: Rig
) -> None:
    task_id = kill_and_finish(point, docker_rig)
    assert docker_rig.orchestrator.artifacts_of(task_id) == MADE
