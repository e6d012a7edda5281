"""The runner is killed at every step of a task's life, and the task ends once all the same."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.faults.engine import Act, When
from tests.faults.rig import Rig
from tests.harness.proxy import Fault, Kind
from tests.harness.runner_process import DEADLINE_S, RunnerProcess, container_of
from tests.orchestrator.serving import wait_for

FINAL = b'"success"'
COMMITS_OF_A_LIFE = 8
RUNNING = b'"running"'

Kill = Callable[[Rig], None]


@dataclass(frozen=True)
class KillPoint:
    """A step, and how the runner is killed there."""

    name: str
    arm: Kill
    """Before the start."""
    await_death: Kill
    """After the start; returns when the runner is dead."""
    prompt: str = "[print-line done]"
    has_files: bool = False
    nodes: int = 1
    """How many nodes there are in the end: an identity that was not stored is one more."""


def _died(rig: Rig) -> None:
    code = rig.runner.exit_code()
    assert code == -signal.SIGKILL, f"it ended with {code}:\n{rig.runner.log}"


def at_commit(commit: int, when: str) -> KillPoint:
    """Kill it when it is about to make a commit, or has just made it."""

    def arm(rig: Rig) -> None:
        (rig.journal.kill_before if when == "before" else rig.journal.kill_after)(commit)

    is_identity_lost = commit == 1 and when == "before"
    return KillPoint(f"{when}-commit-{commit}", arm, _died, nodes=2 if is_identity_lost else 1)


def at_call(name: str, call: str, when: When) -> KillPoint:
    """Kill it at a call of the engine."""

    def arm(rig: Rig) -> None:
        rig.engine.plan(call, Act.KILL, when)

    return KillPoint(name, arm, _died)


def at_request(name: str, method: str, path: str, fault: Fault, **others: bool | int) -> KillPoint:
    """Kill it while it waits for an answer."""

    def kill(rig: Rig) -> None:
        wait_for(lambda: rig.proxy.counts[fault.kind.value], DEADLINE_S)
        if fault.kind.value == "hold-answer":
            wait_for(lambda: rig.proxy.requests(method, path)[-1].reached, DEADLINE_S)
        rig.runner.kill()
        rig.proxy.clear()

    def arm(rig: Rig) -> None:
        rig.proxy.plan(method, path, fault)

    return KillPoint(
        name, arm, kill, has_files=bool(others.get("files")), nodes=int(others.get("nodes", 1))
    )


def _kill_while_it_runs(rig: Rig) -> None:
    rig.runner.wait_for_start_of(rig.orchestrator.task_ids[0])
    rig.runner.kill()


def _kill_and_let_it_end(rig: Rig) -> None:
    _kill_while_it_runs(rig)
    rig.runner.let_go("go")
    rig.runner.engine.run("wait", container_of(rig.orchestrator.task_ids[0]))


def _no_preparation(_rig: Rig) -> None:
    pass


ON_THE_WIRE = [
    at_request("registration-unanswered", "POST", "/register", Fault(Kind.HOLD_ANSWER), nodes=2),
    at_request(
        "assignment-unanswered",
        "GET",
        "/tasks/pending",
        Fault(Kind.HOLD_ANSWER, answer_has=b"task_id"),
    ),
    at_request("during-files", "GET", "/files/*", Fault(Kind.HOLD_REQUEST), files=True),
    at_request("claim-unasked", "POST", "/status", Fault(Kind.HOLD_REQUEST, request_has=RUNNING)),
    at_request("claim-unanswered", "POST", "/status", Fault(Kind.HOLD_ANSWER, request_has=RUNNING)),
    at_request("report-unasked", "POST", "/status", Fault(Kind.HOLD_REQUEST, request_has=FINAL)),
    at_request("report-unanswered", "POST", "/status", Fault(Kind.HOLD_ANSWER, request_has=FINAL)),
]
"""Steps of which the engine knows nothing."""

AT_THE_ENGINE = [
    at_call("before-run", "run", When.BEFORE),
    at_call("during-run", "run", When.DURING),
    at_call("after-run", "run", When.AFTER),
    KillPoint(
        "while-it-runs", _no_preparation, _kill_while_it_runs, prompt="[wait-for go][print-line x]"
    ),
    KillPoint(
        "while-it-runs-and-it-ends-meanwhile",
        _no_preparation,
        _kill_and_let_it_end,
        prompt="[wait-for go][print-line x]",
    ),
    at_call("before-last-output", "logs", When.BEFORE),
    at_call("before-removal", "rm", When.BEFORE),
    at_call("after-removal", "rm", When.AFTER),
]


AT_COMMITS = [
    at_commit(commit, when)
    for commit in range(1, COMMITS_OF_A_LIFE + 1)
    for when in ("before", "after")
]
"""Steps of which the journal knows, from the identity that is stored to the task that is closed."""
BESIDE_THE_ENGINE = [
    at_commit(commit, when) for commit in (3, 4, 5) for when in ("before", "after")
]
"""That it starts, runs and has ended: engines can differ in what there is at these."""


@pytest.mark.parametrize("point", ON_THE_WIRE, ids=lambda point: point.name)
def test_task_ends_once_when_the_runner_is_killed_on_the_wire(
    point: KillPoint, any_rig: Rig
) -> None:
    kill_and_finish(point, any_rig)


@pytest.mark.parametrize("point", AT_THE_ENGINE, ids=lambda point: point.name)
def test_task_ends_once_when_the_runner_is_killed_at_the_engine(point: KillPoint, rig: Rig) -> None:
    kill_and_finish(point, rig)


@pytest.mark.parametrize("point", AT_COMMITS, ids=lambda point: point.name)
def test_task_ends_once_when_the_runner_is_killed_at_a_commit(
    point: KillPoint, any_rig: Rig
) -> None:
    kill_and_finish(point, any_rig)


@pytest.mark.parametrize("point", BESIDE_THE_ENGINE, ids=lambda point: point.name)
def test_task_ends_once_when_the_runner_is_killed_at_a_commit_beside_a_call_of_docker(
    point: KillPoint, docker_rig: Rig
) -> None:
    kill_and_finish(point, docker_rig)


def test_life_of_a_task_has_no_commit_at_which_the_runner_is_not_killed(any_rig: Rig) -> None:
    task_id = any_rig.orchestrator.create_task("[print-line done]")["id"]
    any_rig.runner.start()
    any_rig.check_ended_once(task_id)

    assert any_rig.journal.commits == COMMITS_OF_A_LIFE


def kill_and_finish(point: KillPoint, rig: Rig) -> None:
    """Kill the runner there, start it again, and check that nothing is lost and nothing doubled."""
    files = [rig.orchestrator.upload("note.txt", b"note")["filename"]] if point.has_files else []
    task_id = rig.orchestrator.create_task(point.prompt, files=files)["id"]
    point.arm(rig)
    rig.runner.start()
    point.await_death(rig)
    node_id = stored_node_id(rig.runner)

    rig.runner.let_go("go")
    rig.runner.start()
    rig.check_ended_once(task_id)
    assert node_id in {None, rig.runner.node_id}
    assert len(rig.orchestrator.nodes()) == point.nodes


@pytest.mark.parametrize("when", [When.BEFORE, When.AFTER])
def test_task_ends_once_when_the_runner_is_killed_while_it_fetches_the_image(
    when: When, any_rig: Rig, image: str
) -> None:
    rig = any_rig
    with rig.image_to_pull(image):
        rig.engine.plan("pull", Act.KILL, when)
        rig.refuse_pull(always=True)
        task_id = rig.orchestrator.create_task("[print-line done]")["id"]
        _died(rig)
        rig.runner.start()
        rig.check_ended_once(task_id)


@pytest.mark.parametrize(
    ("call", "when"),
    [
        ("create", When.BEFORE),
        ("create", When.AFTER),
        ("start", When.BEFORE),
        ("start", When.DURING),
        ("start", When.AFTER),
    ],
)
def test_task_ends_once_when_the_runner_is_killed_at_a_start_in_two_steps(
    call: str, when: When, podman_rig: Rig
) -> None:
    rig = podman_rig
    rig.runner.set_options(memory="64m")
    task_id = rig.orchestrator.create_task("[print-line done]")["id"]
    rig.engine.plan(call, Act.KILL, when)
    rig.runner.start()
    _died(rig)
    rig.runner.start()
    rig.check_ended_once(task_id)


def stored_node_id(runner: RunnerProcess) -> str | None:
    """Return the node's id in the journal, if there is one."""
    rows = runner.rows("SELECT node_id FROM identities")
    return str(rows[-1]["node_id"]) if rows else None
