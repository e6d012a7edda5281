"""A container that a killed `podman rm` has left half removed: its storage is gone."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.engine.cli import find_engine
from tests.engines import ADVICE

pytestmark = pytest.mark.anyio

NAME = "victoria-half-removed"


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Return the environment of a podman with a storage of its own, removed afterwards."""
    if "podman" not in os.environ.get("VICTORIA_TEST_ENGINES", "").split(","):
        pytest.fail(f"cannot test on podman: {ADVICE}", pytrace=False)
    folders = {name: tmp_path / name for name in ("graphroot", "runroot")}
    settings = "".join(f'{name} = "{folder}"\n' for name, folder in folders.items())
    (tmp_path / "storage.conf").write_text(f'[storage]\ndriver = "vfs"\n{settings}')
    variables = {**os.environ, "CONTAINERS_STORAGE_CONF": str(tmp_path / "storage.conf")}
    yield variables
    shutil.rmtree(folders["graphroot"], ignore_errors=True)


async def test_it_is_removed_and_then_there_is_none(
    environment: dict[str, str], tmp_path: Path
) -> None:
    def podman(*arguments: str, stdin: bytes = b"") -> None:
        command = ["podman", *arguments]
        subprocess.run(command, env=environment, input=stdin, check=True, timeout=120)

    empty = io.BytesIO()
    tarfile.open(fileobj=empty, mode="w").close()
    podman("import", "-", "localhost/empty:1", stdin=empty.getvalue())
    podman("create", "--name", NAME, "--label", "victoria-half=1", "empty:1", "x")
    # podman 5 lists those of its own containers in a second file.
    for storage_list in tmp_path.glob("graphroot/vfs-containers/*containers.json"):  # noqa: ASYNC240 - nothing else runs
        storage_list.write_text("[]")
    engine = find_engine("podman", environment)
    assert await engine.labelled("victoria-half", "1") == [NAME]
    assert await engine.inspect(NAME) is None
    assert await engine.labelled("victoria-half", "1") == []
