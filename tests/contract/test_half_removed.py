"""A container that a killed `podman rm` has left half removed: its storage is gone."""

from __future__ import annotations

import io
import json
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


def _podman(environment: dict[str, str], *arguments: str, given: bytes = b"") -> None:
    subprocess.run(["podman", *arguments], env=environment, input=given, check=True, timeout=120)


def _remove_storage_of_all_containers(folder: Path) -> None:
    # podman 5 lists those of its own containers in a second file.
    for listed in folder.glob("graphroot/vfs-containers/*containers.json"):
        listed.write_text(json.dumps([]))


async def test_it_is_removed_and_then_there_is_none(
    environment: dict[str, str], tmp_path: Path
) -> None:
    empty = io.BytesIO()
    tarfile.open(fileobj=empty, mode="w").close()
    _podman(environment, "import", "-", "localhost/empty:1", given=empty.getvalue())
    _podman(environment, "create", "--name", NAME, "--label", "victoria-half=1", "empty:1", "x")
    _remove_storage_of_all_containers(tmp_path)
    engine = find_engine("podman", environment)
    assert await engine.labelled("victoria-half", "1") == [NAME]
    assert await engine.inspect(NAME) is None
    assert await engine.labelled("victoria-half", "1") == []
