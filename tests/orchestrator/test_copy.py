"""The move from SQLite to PostgreSQL: everything or nothing, and never two servers on one truth."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from orchestrator.db.copy import COPIED_NAME, move_to_postgresql
from orchestrator.db.database import DATABASE_NAME, Database
from orchestrator.db.tables import Base
from orchestrator.errors import ConfigurationError
from orchestrator.settings import hold_alone
from tests.orchestrator.serving import RegisteredNode, RunningOrchestrator, ok, serve

REPOSITORY = Path(__file__).parents[2]


def _rows(data_dir: Path, url: str | None = None) -> dict[str, list[Any]]:
    with closing(Database(data_dir, url)) as database, database.reading() as session:
        return {
            table.name: [
                tuple(row) for row in session.execute(select(table).order_by(*table.primary_key))
            ]
            for table in Base.metadata.sorted_tables
        }


@contextmanager
def _used(data_dir: Path) -> Iterator[tuple[RunningOrchestrator, RegisteredNode]]:
    # With a row in every table.
    with serve(data_dir) as orchestrator:
        node = orchestrator.register("worker", tags={"a": "ö"})
        file = orchestrator.upload("name.txt", b"abc")
        ended = orchestrator.create_task(files=[file["filename"]])
        assert node.poll()
        node.report(ended["id"], "success", message="done", progress=100)
        session = {"id": "s", "messages": [{"text": "\0"}]}
        ok(node.http.post("/logs", json={"task_id": ended["id"], "session": session}))
        ok(orchestrator.admin.post("/keys", json={"name": "n", "description": "d"}))
        yield orchestrator, node


def test_server_goes_on_with_everything_that_it_had(tmp_path: Path, postgresql_url: str) -> None:
    with _used(tmp_path) as (orchestrator, node):
        first, second = orchestrator.create_task("first"), orchestrator.create_task("second")
        before = orchestrator.tasks()
    rows = _rows(tmp_path)
    assert all(rows.values())
    counts = move_to_postgresql(tmp_path, postgresql_url)
    assert counts == {name: len(of_table) for name, of_table in rows.items()}
    assert _rows(tmp_path, postgresql_url) == rows
    with serve(tmp_path, database_url=postgresql_url) as moved:
        assert moved.tasks() == before
        third = moved.create_task("third")
        there = RegisteredNode(node.id, node.name, node.api_key, moved.client(node.api_key))
        handed_out = [(there.poll() or {})["task_id"] for _ in range(3)]
    assert handed_out == [first["id"], second["id"], third["id"]]


def test_sqlite_database_is_put_aside_so_that_no_server_hands_out_its_tasks_again(
    tmp_path: Path, postgresql_url: str
) -> None:
    with _used(tmp_path):
        pass
    move_to_postgresql(tmp_path, postgresql_url)
    assert (tmp_path / COPIED_NAME).is_file()
    with serve(tmp_path) as by_mistake:
        assert by_mistake.tasks() == []


def test_target_with_rows_is_refused_and_nothing_changes(
    tmp_path: Path, postgresql_url: str
) -> None:
    with _used(tmp_path / "source"):
        pass
    with serve(tmp_path / "target", database_url=postgresql_url) as target:
        target.register()
    before = _rows(tmp_path / "target", postgresql_url)
    with pytest.raises(ConfigurationError, match="its table nodes has rows; use an empty one"):
        move_to_postgresql(tmp_path / "source", postgresql_url)
    assert _rows(tmp_path / "target", postgresql_url) == before
    assert (tmp_path / "source" / DATABASE_NAME).is_file()


def test_copy_that_fails_in_the_middle_leaves_both_as_they_were(
    tmp_path: Path, postgresql_url: str
) -> None:
    with _used(tmp_path) as (orchestrator, _):
        orchestrator.create_task("p")
    with closing(Database(tmp_path)) as database, database.writing() as session:
        session.connection().exec_driver_sql("UPDATE tasks SET prompt = 'a' || char(0)")
    with pytest.raises(ConfigurationError, match="nothing was copied"):
        move_to_postgresql(tmp_path, postgresql_url)
    assert not any(_rows(tmp_path, postgresql_url).values())
    assert (tmp_path / DATABASE_NAME).is_file()


def _command(data_dir: Path, url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", "move-to-postgresql", f"--data-dir={data_dir}"],
        cwd=REPOSITORY,
        env={"PATH": os.environ["PATH"], "VICTORIA_ORCHESTRATOR_DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_command_says_what_it_copied(tmp_path: Path, postgresql_url: str) -> None:
    with _used(tmp_path):
        pass
    done = _command(tmp_path, postgresql_url)
    assert (done.returncode, done.stderr) == (0, "")
    assert "tasks: 1\n" in done.stdout


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot copy {folder}/orchestrator.db: there is no such file"),
        ("", "cannot open database postgresql+psycopg://u:***@127.0.0.1:1/n: "),
    ],
)
def test_command_refuses_in_one_sentence(
    tmp_path: Path, content: str | None, sentence: str
) -> None:
    if content is not None:
        (tmp_path / DATABASE_NAME).write_text(content)
    done = _command(tmp_path, "postgresql://u:secret@127.0.0.1:1/n")
    assert done.returncode == 78
    assert done.stderr.startswith(f"Error: {sentence.format(folder=tmp_path)}")
    assert done.stderr.count("\n") == 1


def test_command_refuses_while_a_server_runs(tmp_path: Path) -> None:
    with hold_alone(tmp_path):
        done = _command(tmp_path, "postgresql://u@127.0.0.1:1/n")
    assert done.returncode == 78
    assert "another orchestrator is using it" in done.stderr
