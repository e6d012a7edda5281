"""What the tests of faults share; everything that is started is ended with its test."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.engines import ADVICE, Engine
from tests.faults.rig import Rig, RigOn, rigged


@pytest.fixture
def rig_on(engines: list[Engine], image: str, tmp_path: Path) -> Iterator[RigOn]:
    """Yield what makes a host with every instrument, on an engine."""
    with ExitStack() as stack:

        def rig_on(engine: Engine) -> Rig:
            if engine not in engines:
                pytest.fail(f"cannot test on {engine.name}: {ADVICE}", pytrace=False)
            return stack.enter_context(rigged(tmp_path, engine, image))

        yield rig_on


@pytest.fixture
def each_rig(rig_on: RigOn, engine: Engine) -> Rig:
    return rig_on(engine)


@pytest.fixture
def rig(rig_on: RigOn, engines: list[Engine]) -> Rig:
    return rig_on(engines[0])


@pytest.fixture
def podman_rig(rig_on: RigOn) -> Rig:
    return rig_on(Engine("podman"))


@pytest.fixture
def docker_rig(rig_on: RigOn) -> Rig:
    return rig_on(Engine("docker"))
