"""The runner is killed at every step of a task's life, and the task ends once all the same."""

import signal
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

import pytest

from tests.faults.engine import Act, When
from tests.faults.rig import Rig
from tests.harness.proxy import Fault, Kind
from tests.harness.runner_process import DEADLINE_S, container_of
from tests.orchestrator.serving import wait_for

COMMITS_OF_A_LIFE = 9
REGISTERED_TWICE = {"registration-unanswered", "before-commit-1"}
"""The key was not stored: the node registers once more."""


def check_killed(rig: Rig) -> None:
    code = rig.runner.exit_code()
    assert code == -signal.SIGKILL, f"it ended with {code}:\n{rig.runner.log}"


@dataclass(frozen=True)
class KillPoint:
    """A step, and how the runner is killed there."""

    name: str
    arm: Callable[[Rig], object]  # before the start
    kill: Callable[[Rig], None] = check_killed  # after the start, until the runner is dead
    prompt: str = "[print-line done]"
    output: str = "done\n"


def at_commit(commit: int, when: str) -> KillPoint:
    """Kill it when it is about to make a commit, or has just made it."""
    return KillPoint(f"{when}-commit-{commit}", lambda rig: rig.journal.kill(when, commit))


def at_call(call: str, when: When, needs: str = "", **options: str) -> KillPoint:
    def arm(rig: Rig) -> None:
        rig.runner.set_options(**options)
        rig.engine.plan(call, Act.KILL, when, needs=needs)

    return KillPoint(f"{when.value}-{call}", arm)


def at_request(name: str, method: str, path: str, fault: Fault) -> KillPoint:
    def kill(rig: Rig) -> None:
        wait_for(lambda: rig.proxy.counts[fault.kind.value], DEADLINE_S)
        if fault.kind is Kind.HOLD_ANSWER:
            wait_for(lambda: rig.proxy.requests(method, path)[-1].reached, DEADLINE_S)
        rig.runner.kill()
        rig.proxy.clear()

    return KillPoint(name, lambda rig: rig.proxy.plan(method, path, fault), kill)


def while_it_runs(name: str, *, ends_meanwhile: bool) -> KillPoint:
    def kill(rig: Rig) -> None:
        (task_id,) = rig.orchestrator.task_ids
        rig.runner.wait_for_start_of(task_id)
        rig.runner.kill()
        if ends_meanwhile:
            rig.runner.let_go("go")
            rig.runner.engine.run("wait", container_of(task_id))

    return KillPoint(name, lambda _: None, kill, "[wait-for go][print-line x]", "x\n")


def kill_and_finish(point: KillPoint, rig: Rig) -> str:
    """Kill the runner there, start it again, and check that nothing is lost and nothing doubled.

    Return the task's id.
    """
    name = rig.orchestrator.upload("note.txt", b"note")["filename"]
    task_id = rig.orchestrator.create_task(point.prompt, files=[name])["id"]
    point.arm(rig)
    rig.runner.start()
    point.kill(rig)
    stored = rig.runner.rows("SELECT node_id FROM identities")

    rig.runner.let_go("go")
    rig.runner.start()
    rig.check_ended_once(task_id)
    assert rig.orchestrator.output_of(task_id) == (point.output, True)
    assert all(row["node_id"] == rig.runner.node_id for row in stored)
    assert len(rig.orchestrator.nodes()) == (2 if point.name in REGISTERED_TWICE else 1)
    return str(task_id)


ASSIGNED = Fault(Kind.HOLD_ANSWER, answer_has=b"task_id")
ON_THE_WIRE = [
    at_request("registration-unanswered", "POST", "/register", Fault(Kind.HOLD_ANSWER)),
    at_request("assignment-unanswered", "GET", "/tasks/pending", ASSIGNED),
    at_request("during-files", "GET", "/files/*", Fault(Kind.HOLD_REQUEST)),
    *(
        at_request(f"{name}-{step}", "POST", "/status", Fault(kind, request_has=status))
        for name, status in (("claim", b'"running"'), ("report", b'"success"'))
        for step, kind in (("unasked", Kind.HOLD_REQUEST), ("unanswered", Kind.HOLD_ANSWER))
    ),
]
"""Steps of which the engine knows nothing."""
AT_COMMITS = [
    at_commit(number + 1, when)
    for number in range(COMMITS_OF_A_LIFE)
    for when in ("before", "after")
]
"""Steps of which the journal knows, from the identity that is stored to the task that is closed."""
AT_THE_ENGINE = [
    *(at_call("run", when) for when in When),
    while_it_runs("while-it-runs", ends_meanwhile=False),
    while_it_runs("while-it-runs-and-it-ends-meanwhile", ends_meanwhile=True),
    *(at_call("rm", when) for when in (When.BEFORE, When.AFTER)),
]
BESIDE_DOCKER = AT_COMMITS[4:10]
"""That it starts, runs and has ended: engines can differ in what there is at these."""
IN_TWO_STEPS = [
    *(at_call("create", when, memory="64m") for when in (When.BEFORE, When.AFTER)),
    *(at_call("start", when, memory="64m") for when in When),
]
"""How podman 4 starts a container with a memory limit."""


@pytest.mark.parametrize("point", [*ON_THE_WIRE, *AT_COMMITS], ids=attrgetter("name"))
def test_task_ends_once_when_the_runner_is_killed_on_the_wire_or_at_a_commit(
    point: KillPoint, rig: Rig
) -> None:
    kill_and_finish(point, rig)


@pytest.mark.parametrize("point", AT_THE_ENGINE, ids=attrgetter("name"))
def test_task_ends_once_when_the_runner_is_killed_at_the_engine(
    point: KillPoint, each_rig: Rig
) -> None:
    kill_and_finish(point, each_rig)


@pytest.mark.parametrize("point", BESIDE_DOCKER, ids=attrgetter("name"))
def test_task_ends_once_when_the_runner_is_killed_at_a_commit_beside_a_call_of_docker(
    point: KillPoint, docker_rig: Rig
) -> None:
    kill_and_finish(point, docker_rig)


@pytest.mark.parametrize("point", IN_TWO_STEPS, ids=attrgetter("name"))
def test_task_ends_once_when_the_runner_is_killed_at_a_start_in_two_steps(
    point: KillPoint, podman_rig: Rig
) -> None:
    kill_and_finish(point, podman_rig)


@pytest.mark.parametrize("when", [When.BEFORE, When.AFTER])
def test_task_ends_once_when_the_runner_is_killed_while_it_fetches_the_image(
    when: When, rig: Rig, image: str
) -> None:
    with rig.image_to_pull(image):
        rig.engine.plan("pull", Act.KILL, when)
        rig.refuse_pull(always=True)
        task_id = rig.orchestrator.create_task("[print-line done]")["id"]
        check_killed(rig)
        rig.runner.start()
        rig.check_ended_once(task_id)


def test_life_of_a_task_has_no_commit_at_which_the_runner_is_not_killed(rig: Rig) -> None:
    rig.check_ended_once(rig.start())
    assert rig.journal.commits == COMMITS_OF_A_LIFE
