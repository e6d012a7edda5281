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
from runner.journal.journal import JOURNAL_NAME
from runner.node import runtime_to_use
from runner.redaction import Secret
from runner.settings import Settings
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
