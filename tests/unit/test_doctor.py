"""What a state folder means for the next start: doctor's report, and the runtime to use."""

import sqlite3
import tempfile
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from runner.doctor import examine
from runner.engine.inspect import read_podman_facts
from runner.errors import EXIT_CONFIGURATION
from runner.identity import IdentityFile
from runner.journal.journal import JOURNAL_NAME, open_journal
from runner.model import Identity, Registration
from runner.node import runtime_to_use
from runner.redaction import Secret
from runner.settings import Settings
from tests.harness.server import json_response, serving
from tests.unit.another_user import as_another_user

JOURNALS = Path(__file__).parent / "journals"
TMP = Path(tempfile.gettempdir())
URL = "http://orchestrator.example"
SETTINGS = Settings(URL, "n", victoria_home=TMP, state_dir=TMP, registration_token=Secret(""))


def doctor(*, as_json: bool = False, **changed: Any) -> tuple[int, list[str]]:  # noqa: ANN401 - any setting
    lines: list[str] = []
    settings = replace(SETTINGS, **changed)
    return anyio.run(partial(examine, settings, lines.append, as_json=as_json)), lines


def test_folder_that_may_not_be_entered_is_one_sentence() -> None:
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        closed = Path(made) / "closed"
        closed.mkdir(mode=0o000)
        with as_another_user():
            code, lines = doctor(state_dir=closed / "state", victoria_home=closed / "home")
        closed.chmod(0o700)

    assert code == EXIT_CONFIGURATION
    output = "\n".join(lines)
    journal = f"{closed}/state/journal.sqlite3: permission denied; run as"
    assert f"FAIL journal: cannot read {journal}" in output
    for option in ("--state-dir", "--victoria-home"):
        assert f"FAIL {option}: cannot write in {closed}: run as its owner" in output


def test_env_file_is_checked(tmp_path: Path) -> None:
    env_file = tmp_path / "env"
    env_file.write_text("A=1\nB='${HOME}' # so\n")
    _, lines = doctor(env_file=env_file)
    assert f"ok   --env-file: {env_file} sets 2 variables" in lines
    warning = f"warn --env-file: {env_file}: line 2: ${{HOME}} is not set above this line and"
    assert any(line.startswith(warning) for line in lines)
    env_file.write_text("A\n")
    code, lines = doctor(env_file=env_file)
    failure = f"FAIL --env-file: cannot use --env-file {env_file}: line 1 is not NAME=VALUE"
    assert code != 0
    assert any(line.startswith(failure) for line in lines)


@pytest.mark.parametrize("name", ["tasks", ".crush"])
def test_obstacle_in_the_home_is_found_and_left_in_place(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    _, lines = doctor(victoria_home=tmp_path)
    sentence = f"cannot use {tmp_path / name}: it is not a folder; the runner moves it aside before"
    assert any(line.startswith(f"FAIL --victoria-home: {sentence}") for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("is_rootless", "granted", "has_user_ids"),
    [(True, 1, False), (True, 2, True), (False, 0, True)],
    ids=["none granted", "granted", "as root"],
)
def test_podman_without_user_ids_is_recognised(
    *, is_rootless: bool, granted: int, has_user_ids: bool
) -> None:
    map_ = [{"container_id": 0, "host_id": 1000, "size": 1}] * granted or None
    host = {"security": {"rootless": is_rootless}, "idMappings": {"uidmap": map_, "gidmap": map_}}
    about = {"version": {"Version": "5.0.0"}, "host": {**host, "cgroupManager": "systemd"}}
    assert read_podman_facts(about).has_user_ids is has_user_ids


@pytest.mark.parametrize(
    ("is_rootless", "controllers", "can_limit_processes"),
    [(True, ["memory"], False), (True, ["memory", "pids"], True), (False, [], True)],
    ids=["not delegated", "delegated", "as root"],
)
def test_podman_that_cannot_limit_processes_is_recognised(
    *, is_rootless: bool, controllers: list[str], can_limit_processes: bool
) -> None:
    host = {"security": {"rootless": is_rootless}, "cgroupControllers": controllers}
    about = {"version": {"Version": "5.0.0"}, "host": {**host, "cgroupManager": "systemd"}}
    assert read_podman_facts(about).can_limit_processes is can_limit_processes


def test_text_of_an_orchestrator_controls_no_terminal_and_forges_no_line() -> None:
    lines: list[str] = []

    async def examine_hostile() -> None:
        async with serving() as server:
            server.answer(json_response({"version": "1\x1b]0;title\x07\nok   forged: line\u202e"}))
            settings = replace(SETTINGS, orchestrator_url=server.url)
            await examine(settings, lines.append, as_json=False)

    anyio.run(examine_hostile)
    assert any("ok   forged" in line for line in lines)
    assert [line for line in lines if not line.isprintable() or line.startswith("ok   f")] == []


def write_journal(state_dir: Path, name: str) -> None:
    with closing(sqlite3.connect(state_dir / JOURNAL_NAME)) as journal:
        journal.executescript((JOURNALS / f"{name}.sql").read_text())


def test_open_tasks_and_the_node_are_shown_without_its_key(tmp_path: Path) -> None:
    write_journal(tmp_path, "ordinary")
    for url in (URL, ""):
        _, lines = doctor(state_dir=tmp_path, orchestrator_url=url)
        assert lines[0] == "ok   journal: 4 open tasks"
    code, lines = doctor(state_dir=tmp_path, orchestrator_url="https://other.example")
    assert code == EXIT_CONFIGURATION
    assert lines[0].startswith("FAIL journal: cannot use --orchestrator-url https://other.exam")
    _, (report,) = doctor(as_json=True, state_dir=tmp_path)
    assert '"node_id": "node-1"' in report
    assert "node-key-1" not in report


KNOWN = Registration(Identity("node-1", Secret("node-key-1")), None)
NO_KEYS = "the orchestrator has no keys for tasks (extension task-key)"


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")


@pytest.mark.usefixtures("no_engine")
def test_identity_file_is_checked_and_its_key_is_not_shown(tmp_path: Path) -> None:
    def line() -> str:
        _, lines = doctor(state_dir=tmp_path)
        (found,) = (line for line in lines if " identity file: " in line)
        return found

    assert line().startswith("ok   identity file: none yet")
    file = IdentityFile(tmp_path)
    file.store(URL, KNOWN)
    assert line() == f"ok   identity file: {file.path} can be read by its owner only"
    file.path.chmod(0o640)
    assert line().startswith(f"FAIL identity file: {file.path} has a key in it, and others may")
    file.path.write_text("node-key-1")
    damaged = "it is damaged; restart the runner, which writes it again"
    assert line() == f"FAIL identity file: cannot read {file.path}: {damaged}"


@pytest.mark.usefixtures("no_engine")
@pytest.mark.parametrize(
    ("extensions", "is_required", "line"),
    [
        ("task-key pace", True, "ok   task keys: each task has a key of its own"),
        ("pace", False, f"ok   task keys: {NO_KEYS}: containers get this node's key"),
        ("pace", True, f"FAIL task keys: {NO_KEYS}: every task is rejected"),
    ],
    ids=["extension", "no extension", "required"],
)
def test_orchestrator_without_keys_for_tasks_is_a_hint_unless_they_are_required(
    tmp_path: Path, extensions: str, line: str, *, is_required: bool
) -> None:
    journal, _ = open_journal(tmp_path, "now")
    registration = replace(KNOWN, extensions=frozenset(extensions.split()))
    anyio.run(journal.store_registration, registration, URL, 1.0)
    journal.close_file()
    _, lines = doctor(state_dir=tmp_path, require_task_key=is_required)
    assert any(shown.startswith(line) for shown in lines), lines


@pytest.mark.parametrize(
    ("journal", "option", "runtime"),
    [
        ("elsewhere", "auto", "docker"),
        ("ordinary", "auto", "podman"),
        ("ordinary", "docker", "docker"),
        (None, "auto", "auto"),
    ],
    ids=["tasks on docker", "tasks on podman", "named by the operator", "no journal"],
)
def test_auto_is_the_open_tasks_runtime(
    tmp_path: Path, journal: str | None, option: str, runtime: str
) -> None:
    if journal is not None:
        write_journal(tmp_path, journal)
    settings = replace(SETTINGS, state_dir=tmp_path, container_runtime=option)
    assert anyio.run(runtime_to_use, settings) == runtime
