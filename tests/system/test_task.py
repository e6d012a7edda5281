"""One task seen from all sides: by its container, on the host's disk, and at the orchestrator."""

import hashlib

from tests.harness.runner_process import RunnerProcess, container_of
from tests.system.recording import RecordingOrchestrator

CONTENTS = {"Quarterly Sales Q3.csv": b"a,b\n1,2\n", "Verkäufe für 東京.txt": "größer\n".encode()}
VARIABLES = ("ORCHESTRATOR_URL", "JOB_ID", "TASK_ID", "NODE_API_KEY", "TASK_FILES_DIR")


def test_container_is_given_its_variables_and_its_files_at_the_path_of_the_host_and_its_own(
    each_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    runner = each_runner
    # A locale in which most file names cannot be written.
    runner.environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    files = [orchestrator.upload(*file)["filename"] for file in CONTENTS.items()]
    prompt = "".join(f"[env {name}]" for name in VARIABLES) + "[wait-for go]"
    task_id = orchestrator.create_task(prompt, files=files)["id"]
    runner.set_options(name="J\udcfcrgen")  # of a terminal with Latin-1
    runner.start()
    runner.wait_for_start_of(task_id)
    variables = runner.engine.inspect(container_of(task_id))["Config"]["Env"]
    runner.let_go("go")
    assert orchestrator.end_of(task_id)["result"].splitlines()[1:] == [
        f"ORCHESTRATOR_URL={orchestrator.url}",
        f"JOB_ID={task_id}",
        f"TASK_ID={task_id}",
        "NODE_API_KEY=***",
        f"TASK_FILES_DIR=/workspace/Victoria/tasks/{task_id}/files",
    ]
    named = runner.rows("SELECT extensions FROM identities")[0]["extensions"].split()
    assert (runner.node_key in str(variables)) is ("task-key" not in named)

    assert [node["name"] for node in orchestrator.nodes()] == ["J\ufffdrgen"]
    folder = runner.task_folder(task_id)
    assert {path.name: path.read_bytes() for path in (folder / "files").iterdir()} == CONTENTS
    # The container has written down what is in TASK_FILES_DIR.
    lines = (folder / "result.txt").read_text().splitlines()
    for name, content in CONTENTS.items():
        assert f"file: {len(content)} {hashlib.sha256(content).hexdigest()} {name}" in lines
    for file in files:
        assert len(orchestrator.calls_of("GET", f"/files/{file}")) == 1


def test_authentication_is_by_the_token_once_and_then_by_the_key_that_was_assigned_and_stored(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    name = orchestrator.upload("data.csv", b"1,2\n")["filename"]
    task_id = orchestrator.create_task(files=[name])["id"]
    runner.start("--tag=env=production", "--capability=gpu")
    runner.wait_until_closed(task_id)
    orchestrator.wait_for_call("POST", "/nodes/heartbeat")

    (registration,) = orchestrator.calls_of("POST", "/register")
    assert registration.headers["x-registration-token"] == orchestrator.registration_token
    assert "x-api-key" not in registration.headers
    body = registration.json()
    assert set(body) == {"hostname", "name", "os_type", "capabilities", "tags"}
    described = (body["name"], body["capabilities"], body["tags"])
    assert described == ("system-test", ["gpu"], {"env": "production"})

    assert [node["id"] for node in orchestrator.nodes()] == [runner.node_id]

    agent = "victoria-runner/"
    calls = [call for call in orchestrator.calls if agent in call.headers["user-agent"]]
    later = [call for call in calls if call.path != "/register"]
    assert {call.headers["x-api-key"] for call in later} == {runner.node_key}
    assert not any("x-registration-token" in call.headers for call in later)
    assert {call.path.split("/")[1] for call in later} == {"nodes", "tasks", "files", "status"}


def test_artifacts_are_at_the_orchestrator_before_the_end(
    each_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    runner = each_runner
    task_id = orchestrator.create_task("[artifact result.csv 1,2]")["id"]
    runner.start()
    message = orchestrator.end_of(task_id)["result"]
    assert orchestrator.artifacts_of(task_id) == {"result.csv": b"1,2"}
    assert len(orchestrator.calls_of("PUT", f"/tasks/{task_id}/artifacts/result.csv")) == 1
    assert str(runner.task_folder(task_id) / "artifacts") not in message
