"""One task seen from all sides: by its container, on the host's disk, and at the orchestrator."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

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
    names: dict[str, str]
    """The orchestrator's names of the files, by those that they were uploaded with."""
    inspected: dict[str, Any]
    """What the engine showed of the container while it ran."""
    output: list[str]
    """The lines that the container wrote, as the result shows them."""

    @property
    def task_id(self) -> str:
        """Its id."""
        return str(self.task["id"])


@pytest.fixture(scope="module")
def finished(
    engine: Engine, image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Finished]:
    """Run one task with two files, for all tests here."""
    folder = tmp_path_factory.mktemp(engine.name)
    with RecordingOrchestrator(folder / "orchestrator") as orchestrator:
        runner = process_on(engine, image, folder / "runner", orchestrator)
        try:
            names = {
                name: orchestrator.upload(name, content)["filename"]
                for name, content in CONTENTS.items()
            }
            shown = "".join(f"[env {name}]" for name in VARIABLES)
            task_id = orchestrator.create_task(
                f"{shown}[wait-for go]", files=list(names.values()), timeout_seconds=120
            )["id"]
            runner.start("--tag=env=production", "--capability=gpu")
            runner.wait_for_start_of(task_id)
            inspected = engine.inspect(container_of(task_id))
            runner.let_go("go")
            task = orchestrator.end_of(task_id)
            runner.wait_until_closed(task_id)
            output = task["result"].splitlines()[1:]
            yield Finished(runner, orchestrator, task, names, inspected, output)
        finally:
            runner.clean()


# What the container is given


def test_container_is_given_its_variables(finished: Finished) -> None:
    assert finished.output == [
        f"ORCHESTRATOR_URL={finished.orchestrator.url}",
        f"JOB_ID={finished.task_id}",
        f"TASK_ID={finished.task_id}",
        "NODE_API_KEY=***",
        f"TASK_FILES_DIR=/workspace/Victoria/tasks/{finished.task_id}/files",
    ]


def test_variable_node_api_key_opens_the_orchestrator(finished: Finished) -> None:
    pairs = (pair.split("=", 1) for pair in finished.inspected["Config"]["Env"])
    key = dict(pairs)["NODE_API_KEY"]
    body = {"node_id": finished.runner.node_id, "status": "idle"}
    response = finished.orchestrator.client(key).post("/nodes/heartbeat", json=body)
    assert response.status_code == 200
    assert key == finished.runner.node_key


def test_container_is_given_the_licence_and_the_prompt(finished: Finished) -> None:
    arguments = finished.inspected.get("Args") or []
    assert arguments[-3:] == ["--accept-license", "--task", finished.task["prompt"]]


def test_victoria_home_is_mounted_at_the_container_path(finished: Finished) -> None:
    mounts = {mount["Destination"]: mount["Source"] for mount in finished.inspected["Mounts"]}
    assert mounts["/workspace/Victoria"] == str(finished.runner.home)


def test_task_files_are_at_the_host_path_and_the_container_path(finished: Finished) -> None:
    folder = finished.runner.task_folder(finished.task_id)
    files = {path.name: path.read_bytes() for path in (folder / "files").iterdir()}
    assert files == {finished.names[name]: content for name, content in CONTENTS.items()}
    # The container has written down what is in TASK_FILES_DIR.
    lines = (folder / "result.txt").read_text().splitlines()
    for name, content in files.items():
        assert f"file: {len(content)} {hashlib.sha256(content).hexdigest()} {name}" in lines


# What the orchestrator is asked


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
    (row,) = finished.runner.rows("SELECT orchestrator_url FROM identities")
    assert row["orchestrator_url"] == finished.orchestrator.url


def test_authentication_step_3_every_other_call_carries_the_key(finished: Finished) -> None:
    key = finished.runner.node_key
    later = [
        call
        for call in finished.orchestrator.calls
        if call.headers["user-agent"].startswith("victoria-runner/") and call.path != "/register"
    ]
    assert {call.headers["x-api-key"] for call in later} == {key}
    assert not any("x-registration-token" in call.headers for call in later)
    assert {call.path.split("/")[1] for call in later} == {"nodes", "tasks", "files", "status"}


def test_heartbeats_request_for_work_and_downloads_are_as_documented(finished: Finished) -> None:
    calls = finished.orchestrator.calls_of("POST", "/nodes/heartbeat")
    ours = [
        call.json() for call in calls if call.headers["user-agent"].startswith("victoria-runner/")
    ]
    assert {beat["node_id"] for beat in ours} == {finished.runner.node_id}
    states = {(beat["status"], beat.get("current_task_id")) for beat in ours}
    assert {("idle", None), ("busy", finished.task_id)} <= states
    assert all("task_ids" not in beat for beat in ours)
    calls = finished.orchestrator.calls_of("GET", "/tasks/pending")
    assert {call.headers["prefer"] for call in calls} == {"wait=25"}
    for name in finished.names.values():
        assert len(finished.orchestrator.calls_of("GET", f"/files/{name}")) == 1


def test_reports_name_the_task_twice_and_are_of_its_start_and_its_end(finished: Finished) -> None:
    bodies = finished.orchestrator.reports_of(finished.task_id)
    assert [body["status"] for body in bodies] == ["running", "success"]
    assert bodies[-1]["progress"] == 100.0
    assert {(body["job_id"], body["task_id"]) for body in bodies} == {2 * (finished.task_id,)}
    moments = [datetime.fromisoformat(body["timestamp"]) for body in bodies]
    assert moments == sorted(moments)
    assert all(moment.tzinfo is not None for moment in moments)
