"""One task seen from all sides: by its container, on the host's disk, and at the orchestrator."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.engines import Engine
from tests.harness.runner_process import RunnerProcess, container_of, process_on
from tests.system.recording import Json, RecordingOrchestrator

CONTENTS = {"Quarterly Sales Q3.csv": b"a,b\n1,2\n", "Verkäufe für 東京.txt": "größer\n".encode()}
VARIABLES = ("ORCHESTRATOR_URL", "JOB_ID", "TASK_ID", "NODE_API_KEY", "TASK_FILES_DIR")


@dataclass(frozen=True)
class Finished:
    """A finished task, and what is left of it."""

    runner: RunnerProcess
    orchestrator: RecordingOrchestrator
    task: Json
    contents: dict[str, bytes]
    """The files, by the orchestrator's names."""
    variables: list[str]
    """What the engine showed of the container's environment while it ran."""


@pytest.fixture(scope="module")
def finished(
    engine: Engine, image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Finished]:
    """Run one task with two files, for all tests here."""
    folder = tmp_path_factory.mktemp(engine.name)
    with RecordingOrchestrator(folder / "orchestrator") as orchestrator:
        runner = process_on(engine, image, folder / "runner", orchestrator)
        try:
            contents = {
                orchestrator.upload(name, content)["filename"]: content
                for name, content in CONTENTS.items()
            }
            prompt = "".join(f"[env {name}]" for name in VARIABLES) + "[wait-for go]"
            task_id = orchestrator.create_task(prompt, files=list(contents))["id"]
            runner.start("--tag=env=production", "--capability=gpu")
            runner.wait_for_start_of(task_id)
            variables = engine.inspect(container_of(task_id))["Config"]["Env"]
            runner.let_go("go")
            task = orchestrator.end_of(task_id)
            runner.wait_until_closed(task_id)
            yield Finished(runner, orchestrator, task, contents, variables)
        finally:
            runner.clean()


def test_container_is_given_its_variables(finished: Finished) -> None:
    task_id = finished.task["id"]
    assert finished.task["result"].splitlines()[1:] == [
        f"ORCHESTRATOR_URL={finished.orchestrator.url}",
        f"JOB_ID={task_id}",
        f"TASK_ID={task_id}",
        "NODE_API_KEY=***",
        f"TASK_FILES_DIR=/workspace/Victoria/tasks/{task_id}/files",
    ]
    assert f"NODE_API_KEY={finished.runner.node_key}" in finished.variables


def test_task_files_are_at_the_host_path_and_the_container_path(finished: Finished) -> None:
    folder = finished.runner.task_folder(finished.task["id"])
    files = {path.name: path.read_bytes() for path in (folder / "files").iterdir()}
    assert files == finished.contents
    # The container has written down what is in TASK_FILES_DIR.
    lines = (folder / "result.txt").read_text().splitlines()
    for name, content in files.items():
        assert f"file: {len(content)} {hashlib.sha256(content).hexdigest()} {name}" in lines
        assert len(finished.orchestrator.calls_of("GET", f"/files/{name}")) == 1


def test_authentication_step_1_registration_carries_the_token(finished: Finished) -> None:
    (call,) = finished.orchestrator.calls_of("POST", "/register")
    assert call.headers["x-registration-token"] == finished.orchestrator.registration_token
    assert "x-api-key" not in call.headers
    body = call.json()
    assert set(body) == {"hostname", "name", "os_type", "capabilities", "tags"}
    assert (body["name"], body["capabilities"]) == ("system-test", ["gpu"])
    assert body["tags"] == {"env": "production"}


def test_authentication_step_2_the_key_is_assigned_and_kept(finished: Finished) -> None:
    (node,) = finished.orchestrator.nodes()
    assert finished.runner.node_id == node["id"]


def test_authentication_step_3_every_other_call_carries_the_key(finished: Finished) -> None:
    agent = "victoria-runner/"
    calls = [call for call in finished.orchestrator.calls if agent in call.headers["user-agent"]]
    later = [call for call in calls if call.path != "/register"]
    assert {call.headers["x-api-key"] for call in later} == {finished.runner.node_key}
    assert not any("x-registration-token" in call.headers for call in later)
    assert {call.path.split("/")[1] for call in later} == {"nodes", "tasks", "files", "status"}
