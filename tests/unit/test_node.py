"""Which container runtime a state folder needs."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from runner.journal.journal import JOURNAL_NAME
from runner.node import runtime_to_use
from runner.redaction import Secret
from runner.settings import Settings

pytestmark = pytest.mark.anyio
JOURNALS = Path(__file__).parent / "journals"


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
async def test_auto_is_the_runtime_of_the_open_tasks(
    tmp_path: Path, journal: str | None, option: str, runtime: str
) -> None:
    if journal is not None:
        with closing(sqlite3.connect(tmp_path / JOURNAL_NAME)) as connection:
            connection.executescript((JOURNALS / f"{journal}.sql").read_text())
    settings = Settings(
        orchestrator_url="http://orchestrator.example",
        name="n",
        registration_token=Secret(""),
        victoria_home=tmp_path,
        state_dir=tmp_path,
        container_runtime=option,
    )

    assert await runtime_to_use(settings) == runtime
