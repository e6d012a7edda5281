"""What the tests of the whole system share; everything that is started is ended with its test."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.engines import Engine
from tests.harness.runner_process import RunnerProcess, process_on
from tests.system.recording import RecordingOrchestrator

Prepare = Callable[..., RunnerProcess]
"""Prepares a runner on an engine; its folder's name and its image can be named."""


@pytest.fixture
def orchestrator(tmp_path: Path) -> Iterator[RecordingOrchestrator]:
    with RecordingOrchestrator(tmp_path / "orchestrator") as running:
        yield running


@pytest.fixture
def prepare(image: str, tmp_path: Path, orchestrator: RecordingOrchestrator) -> Iterator[Prepare]:
    """Yield what prepares runners."""
    with ExitStack() as stack:

        def prepare(engine: Engine, name: str = "runner", image: str = image) -> RunnerProcess:
            process = process_on(engine, image, tmp_path / name, orchestrator)
            stack.callback(process.clean)
            return process

        yield prepare


@pytest.fixture
def each_runner(engine: Engine, prepare: Prepare) -> RunnerProcess:
    return prepare(engine)


@pytest.fixture
def runner(engines: list[Engine], prepare: Prepare) -> RunnerProcess:
    return prepare(engines[0])
