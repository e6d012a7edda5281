"""The move from SQLite to PostgreSQL: everything or nothing, and never two servers on one truth."""

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import select

from orchestrator.db.copy import COPIED_NAME, move_to_postgresql
from orchestrator.db.database import DATABASE_NAME, Database
from orchestrator.db.tables import Base
from orchestrator.errors import ConfigurationError
from orchestrator.serve import main
from orchestrator.settings import hold_alone
from tests.orchestrator.serving import RunningOrchestrator, serve

UNREACHABLE = "postgresql://u:secret@127.0.0.1:1/n"


def _rows(data_dir: Path, url: str | None = None) -> dict[str, list[Any]]:
    with closing(Database(data_dir, url)) as database, database.reading() as session:
        return {
            table.name: [
                tuple(row) for row in session.execute(select(table).order_by(*table.primary_key))
            ]
            for table in Base.metadata.sorted_tables
        }


@pytest.fixture
def source(orchestrator: RunningOrchestrator) -> Path:
    """Return the data folder of a stopped server with a row in every table."""
    node = orchestrator.register("worker", tags={"a": "ö"})
    file = orchestrator.upload("name.txt", b"abc")
    task_id = orchestrator.assign(node, files=[file["filename"]])
    node.report(task_id, "running")
    node.put_artifact(task_id, "a/ö.txt", b"made")
    node.report(task_id, "success", message="done", progress=100)
    chunk = {"offset": 0, "text": "printed\0"}
    node.http.post(f"/tasks/{task_id}/output", json=chunk).raise_for_status()
    node.send_log(task_id, {"id": "s", "messages": [{"text": "\0"}]})
    orchestrator.create_key()
    orchestrator.create_token()
    for prompt in ("first", "second"):
        orchestrator.create_task(prompt)
    orchestrator.stop()
    return orchestrator.settings.data_dir


def _move(data_dir: Path, url: str) -> Result:
    arguments = ["move-to-postgresql", f"--data-dir={data_dir}"]
    mask = os.umask(0o077)  # the command sets it for its whole process
    done = CliRunner().invoke(main, arguments, env={"VICTORIA_ORCHESTRATOR_DATABASE_URL": url})
    os.umask(mask)
    return done


def test_server_goes_on_with_everything_that_it_had(source: Path, postgresql_url: str) -> None:
    before = _rows(source)
    assert all(before.values())
    (source / DATABASE_NAME).chmod(0o644)  # as a copy by hand may be
    done = _move(source, postgresql_url)
    assert (done.exit_code, done.stderr) == (0, "")
    for name, copied in before.items():
        assert f"{name}: {len(copied)}\n" in done.stdout
    assert _rows(source, postgresql_url) == before
    with serve(source, database_url=postgresql_url) as moved:
        moved.create_task("third")
        [ended] = [task["id"] for task in moved.tasks() if task["status"] == "success"]
        assert moved.admin.get(f"/tasks/{ended}/artifacts/a/ö.txt").content == b"made"
        node = moved.register()
        prompts = [(node.poll() or {})["prompt"] for _ in range(3)]
    assert prompts == ["first", "second", "third"]
    # No server finds the tasks on SQLite again.
    assert (source / COPIED_NAME).stat().st_mode & 0o777 == 0o600
    with serve(source) as by_mistake:
        assert by_mistake.tasks() == []


def test_target_with_rows_is_left_alone(source: Path, tmp_path: Path, postgresql_url: str) -> None:
    with serve(tmp_path / "target", database_url=postgresql_url) as target:
        target.register()
    before = _rows(tmp_path, postgresql_url)
    with pytest.raises(ConfigurationError, match="its table nodes has rows; use an empty one"):
        move_to_postgresql(source, postgresql_url)
    assert _rows(tmp_path, postgresql_url) == before
    assert (source / DATABASE_NAME).is_file()


def test_copy_that_fails_changes_neither_database(source: Path, postgresql_url: str) -> None:
    with closing(Database(source)) as database, database.writing() as session:
        session.connection().exec_driver_sql("UPDATE tasks SET prompt = 'a' || char(0)")
    with pytest.raises(ConfigurationError, match="nothing was copied"):
        move_to_postgresql(source, postgresql_url)
    assert not any(_rows(source, postgresql_url).values())
    assert (source / DATABASE_NAME).is_file()


def test_command_refuses_in_one_sentence(tmp_path: Path) -> None:
    missing = _move(tmp_path, UNREACHABLE)
    (tmp_path / DATABASE_NAME).touch()
    unreachable = _move(tmp_path, UNREACHABLE)
    with hold_alone(tmp_path):
        held = _move(tmp_path, UNREACHABLE)
    for done, code, sentence in (
        (missing, 78, f"cannot copy {tmp_path / DATABASE_NAME}: there is no such file"),
        (unreachable, 75, "cannot open database postgresql://u:***@127.0.0.1:1/n: "),
        (held, 78, f"cannot use data folder {tmp_path}: another orchestrator is using it"),
    ):
        assert done.exit_code == code
        assert done.stderr.startswith(f"Error: {sentence}")
        assert done.stderr.count("\n") == 1
