"""What the tests of faults share; everything that is started is ended with its test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engines import ADVICE
from tests.faults.rig import Rig, rigged

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.engines import Engine


@pytest.fixture
def rig(engine: Engine, image: str, tmp_path: Path) -> Iterator[Rig]:
    """Yield a host with every instrument; the test runs once on each engine."""
    with rigged(tmp_path, engine, image) as made:
        yield made


@pytest.fixture
def any_rig(engines: list[Engine], image: str, tmp_path: Path) -> Iterator[Rig]:
    """Yield such a host for what is the same on every engine."""
    with rigged(tmp_path, engines[0], image) as made:
        yield made


@pytest.fixture
def podman_rig(engines: list[Engine], image: str, tmp_path: Path) -> Iterator[Rig]:
    """Yield such a host for what only podman does."""
    with rigged(tmp_path, _named(engines, "podman"), image) as made:
        yield made


@pytest.fixture
def docker_rig(engines: list[Engine], image: str, tmp_path: Path) -> Iterator[Rig]:
    """Yield such a host for what only docker does."""
    with rigged(tmp_path, _named(engines, "docker"), image) as made:
        yield made


def _named(engines: list[Engine], name: str) -> Engine:
    if name not in {engine.name for engine in engines}:
        pytest.fail(f"cannot test on {name}: {ADVICE}", pytrace=False)
    return next(engine for engine in engines if engine.name == name)
