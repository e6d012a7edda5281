"""What doctor reports where it may not look."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio
import pytest

from runner.doctor import examine
from runner.engine.inspect import read_podman_facts
from runner.errors import EXIT_CONFIGURATION
from runner.redaction import Secret
from runner.settings import Settings
from tests.unit.another_user import as_another_user

SOMEWHERE = Path(tempfile.gettempdir())


@pytest.fixture
def closed() -> Iterator[Path]:
    """Yield a folder that only root may enter."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "closed"
        folder.mkdir(mode=0o000)
        Path(made).chmod(0o755)
        yield folder
        folder.chmod(0o700)


def examined(settings: Settings) -> tuple[int, list[str]]:
    """Run the doctor as another user; return its exit code and lines."""
    lines: list[str] = []
    with as_another_user():
        code = anyio.run(partial(examine, settings, lines.append, as_json=False))
    return code, lines


def test_state_folder_that_may_not_be_entered_is_one_sentence(closed: Path) -> None:
    code, lines = examined(settings_with(state_dir=closed / "state"))

    assert code == EXIT_CONFIGURATION
    journal = f"FAIL journal: cannot read {closed}/state/journal.sqlite3: permission denied; run as"
    assert any(line.startswith(journal) for line in lines)
    assert f"FAIL --state-dir: cannot write in {closed}: run as its owner" in "\n".join(lines)


def test_home_that_may_not_be_made_is_one_sentence(closed: Path, tmp_path: Path) -> None:
    _, lines = examined(settings_with(victoria_home=closed / "home", state_dir=tmp_path))

    assert f"FAIL --victoria-home: cannot write in {closed}: run as its owner" in "\n".join(lines)


@pytest.mark.parametrize(
    ("is_rootless", "granted", "has_user_ids"),
    [(True, 1, False), (True, 2, True), (False, 0, True)],
    ids=["none granted", "granted", "as root"],
)
def test_rootless_podman_without_user_ids_is_recognised(
    is_rootless: bool,  # noqa: FBT001 - pytest passes it
    granted: int,
    has_user_ids: bool,  # noqa: FBT001 - pytest passes it
) -> None:
    map_ = [{"container_id": 0, "host_id": 1000, "size": 1}] * granted or None
    about = {
        "version": {"Version": "5.0.0"},
        "host": {
            "security": {"rootless": is_rootless},
            "cgroupManager": "systemd",
            "idMappings": {"uidmap": map_, "gidmap": map_},
        },
    }

    assert read_podman_facts(about).has_user_ids is has_user_ids


@pytest.mark.parametrize("url", ["https://other.example", "http://orchestrator.example", ""])
def test_unfinished_tasks_of_another_orchestrator_are_one_sentence(
    tmp_path: Path, url: str
) -> None:
    dump = Path(__file__).parent / "journals" / "ordinary.sql"
    with closing(sqlite3.connect(tmp_path / "journal.sqlite3")) as journal:
        journal.executescript(dump.read_text())
    settings = replace(settings_with(state_dir=tmp_path), orchestrator_url=url)
    lines: list[str] = []
    code = anyio.run(partial(examine, settings, lines.append, as_json=False))

    if url == "https://other.example":
        assert code == EXIT_CONFIGURATION
        assert lines[0].startswith("FAIL journal: cannot use --orchestrator-url https://other.exam")
    else:
        assert lines[0] == "ok   journal: 4 open tasks"


def test_journal_of_a_registered_node_is_told_as_json_without_its_key(tmp_path: Path) -> None:
    dump = Path(__file__).parent / "journals" / "ordinary.sql"
    with closing(sqlite3.connect(tmp_path / "journal.sqlite3")) as journal:
        journal.executescript(dump.read_text())
    url = "http://orchestrator.example"
    settings = replace(settings_with(state_dir=tmp_path), orchestrator_url=url)
    lines: list[str] = []
    anyio.run(partial(examine, settings, lines.append, as_json=True))

    report = json.loads(lines[0])
    assert report["node_id"] == "node-1"
    assert [task["state"] for task in report["tasks"]] == [
        "accepted",
        "starting",
        "running",
        "ended",
    ]
    assert "node-key-1" not in lines[0]
    (registration,) = [check for check in report["checks"] if check["what"] == "registration"]
    assert registration["sentence"] == (
        "registered as node-1, under another name, other tags or other capabilities than these"
    )


def settings_with(*, state_dir: Path, victoria_home: Path = SOMEWHERE) -> Settings:
    """Return settings without an orchestrator."""
    return Settings(
        orchestrator_url="",
        name="n",
        registration_token=Secret(""),
        victoria_home=victoria_home,
        state_dir=state_dir,
    )
