"""Steps that the tests of several loops share."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import pytest

from runner.engine.base import LABEL_RUNNER, LABEL_TASK, ContainerSpec
from runner.journal.journal import open_journal
from runner.model import Assignment, EndReason, Identity, Outcome, Registration, Report, TaskState
from runner.node import node_description
from runner.redaction import Secret
from runner.state_dir import known_runner_id, prepare_state_dir
from runner.tasks.outcome import final_report
from runner.workspace.download import CONTAINER_HOME
from tests.harness.host import IMAGE, Host, container_of
from tests.harness.orchestrator import FINAL, LOGS, POLL, STATUS

Log: TypeAlias = pytest.LogCaptureFixture
FAILED = Outcome(EndReason.FAILED, "failed: exit code 9", 9)


async def begin_and_leave(host: Host, prompt: str = "[wait-for go]", **assigned: object) -> None:
    """Run a runner until it has started the task t-1; its container runs on."""
    async with host.running_task(prompt, assigned):
        pass


async def register(host: Host) -> None:
    """Run a runner until it asks for work; its identity stays."""
    async with host.runner():
        await host.wait_for_calls(POLL)


async def finish_another(host: Host, task_id: str = "t-2") -> None:
    """Offer a good task to the runner at its next poll, and check that it succeeds."""
    await host.clock.settle()
    host.orchestrator.offer(task_id)
    await host.clock.advance(34)
    assert (await host.wait_for_end(task_id))["status"] == "success"


async def start_container(
    host: Host,
    name: str,
    prompt: str = "[wait-for go]",
    **fields: Any,  # noqa: ANN401 - fields of ContainerSpec
) -> None:
    """Start a container as an earlier runner did; `fields` are more of its specification."""
    arguments = ("--accept-license", "--task", prompt)
    spec = {"volumes": {host.home: CONTAINER_HOME}, "labels": labels_of(host), **fields}
    await host.engine.run(ContainerSpec(name, IMAGE, arguments, **spec))


async def note_container(host: Host, task_id: str) -> str:
    """Note in the journal, if the task ran, which container is its own; return the id."""
    container = await host.engine.inspect(container_of(task_id))
    assert container is not None
    named = f"task_id = '{task_id}' AND container_id IS NOT NULL"
    host.change(f"UPDATE tasks SET container_id = '{container.container_id}' WHERE {named}")  # noqa: S608 - our own text
    return container.container_id


def labels_of(host: Host, task_id: str = "t-1") -> dict[str, str]:
    """Return the labels by which a container is this host's runner's, and this task's."""
    return {LABEL_TASK: task_id, LABEL_RUNNER: str(known_runner_id(host.state_dir))}


def report_paths(host: Host) -> list[str]:
    """Return the paths of the reports that were sent, in their order."""
    paths = [call.request.target for call in host.orchestrator.calls]
    return [path for path in paths if path in {LOGS, STATUS}]


async def leave_task(
    host: Host,
    state: TaskState = TaskState.ENDED,
    *,
    other_boot: bool = False,
    log: Mapping[str, object] | None = None,
) -> None:
    """Write the journal of a runner that had come so far with t-1, with its log if it has ended."""
    settings = host.settings()
    prepare_state_dir(host.state_dir)
    journal, _ = open_journal(host.state_dir, "now")
    identity = Identity("node-1", Secret("node-key-1"))
    host.orchestrator.keys.add("node-key-1")
    now = host.clock.wall_s()
    try:
        registration = Registration(identity, node_description(settings))
        await journal.store_registration(registration, settings.orchestrator_url, now)
        assignment = Assignment("t-1", "[print-line well]", settings.orchestrator_url, 60)
        await journal.accept(assignment, identity, now)
        if state is not TaskState.ACCEPTED:
            boot_id = "boot-0" if other_boot else host.clock.boot_id
            await journal.start("t-1", boot_id, host.engine.kind)
        if state in {TaskState.RUNNING, TaskState.ENDED}:
            await journal.run("t-1", "c0ffee", now, host.clock.uptime_s() + 60)
        if state is TaskState.ENDED:
            body = {"job_id": "t-1", "task_id": "t-1", "session": log}
            reports = [] if log is None else [Report("logs", body)]
            await journal.end("t-1", FAILED, [*reports, final_report("t-1", FAILED, now)], now)
    finally:
        journal.close_file()


def outcomes(host: Host) -> dict[str, str]:
    reports = [report for report in host.orchestrator.taken if report["status"] in FINAL]
    return {report["task_id"]: report["status"] for report in reports}
