"""What the tests of faults share; everything that is started is ended with its test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.engines import ADVICE, Engine
from tests.faults.rig import Rig, RigOn, rigged


@pytest.fixture
def rig_on(image: str, tmp_path: Path) -> Iterator[RigOn]:
    """Yield what makes a host with every instrument, on an engine."""
    with ExitStack() as stack:
        yield lambda engine: stack.enter_context(rigged(tmp_path, engine, image))


@pytest.fixture
def rig(rig_on: RigOn, engine: Engine) -> Rig:
    """Make a host; the test runs once on each engine."""
    return rig_on(engine)


@pytest.fixture
def any_rig(rig_on: RigOn, engines: list[Engine]) -> Rig:
    """Make a host for what is the same on every engine."""
    return rig_on(engines[0])


@pytest.fixture
def podman_rig(rig_on: RigOn, engines: list[Engine]) -> Rig:
    """Make a host for what only podman does."""
    return rig_on(_named("podman", engines))


@pytest.fixture
def docker_rig(rig_on: RigOn, engines: list[Engine]) -> Rig:
    """Make a host for what only docker does."""
    return rig_on(_named("docker", engines))


def _named(name: str, engines: list[Engine]) -> Engine:
    if Engine(name) not in engines:
        pytest.fail(f"cannot test on {name}: {ADVICE}", pytrace=False)
    return Engine(name)
