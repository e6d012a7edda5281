"""The two commands beside running, while a runner is at work."""

import os
import signal
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.engines import Engine, named_image
from tests.fakes.crush import Crush
from tests.harness.runner_process import RunnerProcess, is_running
from tests.system.conftest import Prepare
from tests.system.recording import RecordingOrchestrator

DAY_S = 24 * 3600
NOWHERE = "http://127.0.0.1:9"
FAR = "https://orchestrator.example.com"
PROXY = {"HTTPS_PROXY": "http://me:secret-of-the-proxy@127.0.0.1:9"}
BEHIND_PROXY = (
    f"FAIL orchestrator: {FAR} does not answer through the proxy 127.0.0.1:9: Connection refused; "
    "check the proxy, or name orchestrator.example.com in NO_PROXY"
)
IMAGE = "localhost/victoria-nowhere:1"
NO_REGISTRY = "127.0.0.1:9/victoria:1"


def test_doctor_reports_that_all_is_well_and_shows_the_running_task(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    assert "ok   registration: not registered yet" in runner.run("doctor").output.splitlines()
    task_id = orchestrator.create_task("a confidential prompt [wait-for go]")["id"]
    runner.start()
    runner.wait_for_start_of(task_id)

    done = runner.run("doctor", "--run")
    assert done.exit_code == 0, done.output
    for sentence in (
        f"ok   engine: {runner.engine.name} ",
        "ok   journal: 1 open tasks\n",
        "ok   registration token: the orchestrator does not refuse it; it is needed when",
        f"ok   orchestrator: {orchestrator.url} answers",
        f"     task {task_id}: running\n",
        "ok   container: one of ",
        "ok   container's processes: at most 4096\n",
        "ok   container's folders: home and own folder are writable; files, and other tasks, are",
        " cloud metadata: 169.254.169.254 ",
    ):
        assert sentence in done.output
    assert "warn container's orchestrator" not in done.output, "it is reached from inside"
    assert [path.name for path in (runner.home / "tasks").iterdir()] == [task_id]
    output = done.output + runner.run("doctor", "--json").output
    assert "confidential" not in output
    assert runner.node_key not in output


@pytest.mark.parametrize(
    ("options", "variables", "exit_code", "sentences"),
    [
        (
            {"orchestrator_url": FAR},
            {"PATH": "/nowhere", **PROXY},
            69,
            ["FAIL engine: No container runtime found. Install podman", BEHIND_PROXY],
        ),
        (
            {"orchestrator_url": NOWHERE, "min_free_disk": "1000T", "container_image": IMAGE},
            {},
            75,
            [
                f"FAIL orchestrator: {NOWHERE} does not answer: Connection refused",
                " free and 1000 TiB must stay free; free some space there or lower --min-free-disk",
                f"FAIL image: cannot find the image {IMAGE} on",
            ],
        ),
        (
            {
                "orchestrator_url": None,
                "registration_token_file": None,
                "container_image": NO_REGISTRY,
                "pull": "newer",
            },
            {},
            75,
            [
                "FAIL orchestrator: no --orchestrator-url",
                "FAIL registration token: no --registration-token-file",
                f"FAIL image: cannot find the image {NO_REGISTRY} in its registry: ",
            ],
        ),
        (
            {"registration_token_file": None},
            {"VICTORIA_RUNNER_REGISTRATION_TOKEN": "wrong"},
            77,
            ["FAIL registration token: the orchestrator refuses it: HTTP 401: "],
        ),
    ],
    ids=["no engine, dead proxy", "nothing is there", "nothing is given", "wrong token"],
)
def test_doctor_names_what_is_missing_in_a_sentence_without_a_secret(
    options: dict[str, str | None],
    variables: dict[str, str],
    exit_code: int,
    sentences: list[str],
    runner: RunnerProcess,
) -> None:
    runner.home.mkdir()
    runner.set_options(**options)
    done = runner.run("doctor", environment=variables)
    missing = [sentence for sentence in sentences if sentence not in done.output]
    assert (done.exit_code, missing) == (exit_code, []), done.output
    assert "secret-of-the-proxy" not in done.output


def test_cleanup_removes_what_finished_tasks_left_and_nothing_of_a_running_one(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    finished, running = (
        orchestrator.create_task(prompt)["id"] for prompt in ("[print-line done]", "[wait-for go]")
    )
    runner.start()
    runner.wait_until_closed(finished)
    runner.wait_for_start_of(running)
    tasks = runner.home / "tasks"
    unknown, young = tasks / "unknown-task", tasks / "young-task"
    for folder in (unknown, young):
        folder.mkdir()
    (runner.home / "other.txt").touch()
    week_ago = time.time() - 8 * DAY_S
    os.utime(unknown, (week_ago, week_ago))
    place = runner.task_folder(finished)
    set_times(place, 0.0)
    set_times(runner.task_folder(running), 0.0)

    assert runner.run("cleanup", "--dry-run").output == f"would remove {unknown} (0 MiB)\n"
    assert runner.run("cleanup", "--older-than=9").output.startswith("nothing to remove: ")
    assert unknown.is_dir()
    done = runner.run("cleanup")
    assert (done.exit_code, done.output) == (0, f"removed {unknown} (0 MiB)\n"), done.log
    assert young.is_dir()

    # The journal knows when the task ended, whatever times it gave to its files.
    set_times(place, 4e9)
    time.sleep(1)
    done = runner.run("cleanup", f"--older-than={0.5 / DAY_S}")
    assert (done.exit_code, f"removed {place} (0 MiB)\n" in done.output) == (0, True), done.log
    assert not place.exists()
    for path in (runner.task_folder(running), runner.home / "other.txt"):
        assert path.exists()
    assert is_running(runner.engine, running)


WITHOUT_RIGHTS = ("setpriv", "--inh-caps=-all", "--bounding-set=-all")
"""What makes root a user like others: it may not open what belongs to another one."""
GIVE_AWAY = "chown -R 4711 .crush tasks/*/private; chmod 700 .crush tasks/*/private"


def test_files_of_another_user_are_read_and_removed_by_the_engine(
    engines: list[Engine], prepare: Prepare, orchestrator: RecordingOrchestrator
) -> None:
    (docker,) = (engine for engine in engines if engine.name == "docker")
    runner = prepare(docker)
    if os.geteuid() == 0:
        runner.command = (*WITHOUT_RIGHTS, *runner.command)
    runner.home.mkdir()
    runner.home.chmod(0o777)
    task_id = orchestrator.create_task("Count the sales [wait-for go]")["id"]
    runner.start()
    runner.wait_for_start_of(task_id)
    with closing(Crush(runner.home / ".crush" / "crush.db", now=int(time.time()))) as crush:
        crush.begin("s1", prompt="Count the sales [wait-for go]")
        private, outside = runner.task_folder(task_id) / "private", runner.folder / "outside"
        for folder in (private, outside):
            folder.mkdir()
            (folder / "file").touch()
        (private / "out").symlink_to(outside)
        mounted = (f"--volume={runner.home}:/home", "--workdir=/home", "--user=0:0")
        image = named_image()
        docker.run("run", "--rm", "--entrypoint=sh", *mounted, image, "-c", GIVE_AWAY)
        runner.let_go("go")
        runner.wait_until_closed(task_id)
    assert orchestrator.log_of(task_id)["id"] == "s1"

    runner.send(signal.SIGTERM)
    runner.exit_code()
    done = runner.run("cleanup", f"--older-than={0.001 / DAY_S}")
    sentence = f"removed {runner.task_folder(task_id)} (at least 0 MiB)\n"
    assert (done.exit_code, done.output) == (0, sentence), done.log
    assert not runner.task_folder(task_id).exists()
    assert (outside / "file").exists()


def set_times(folder: Path, moment: float) -> None:
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (moment, moment))
