"""What the tests of the whole system share; everything that is started is ended with its test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engines import Engine
from tests.harness.runner_process import RunnerProcess, process_on
from tests.system.recording import RecordingOrchestrator


@pytest.fixture
def orchestrator(tmp_path: Path) -> Iterator[RecordingOrchestrator]:
    """Serve an orchestrator that keeps a record of what it is asked."""
    with RecordingOrchestrator(tmp_path / "orchestrator") as running:
        yield running


@pytest.fixture
def prepare(
    image: str, tmp_path: Path, orchestrator: RecordingOrchestrator
) -> Iterator[Callable[[Engine, str], RunnerProcess]]:
    """Yield what prepares a runner on an engine, with folders of the name given."""
    prepared: list[RunnerProcess] = []

    def prepare(engine: Engine, name: str) -> RunnerProcess:
        prepared.append(process_on(engine, image, tmp_path / name, orchestrator))
        return prepared[-1]

    yield prepare
    for process in prepared:
        process.clean()


@pytest.fixture
def runner(engine: Engine, prepare: Callable[[Engine, str], RunnerProcess]) -> RunnerProcess:
    """Prepare a runner; the test runs once on each engine."""
    return prepare(engine, "runner")


@pytest.fixture
def any_runner(
    engines: list[Engine], prepare: Callable[[Engine, str], RunnerProcess]
) -> RunnerProcess:
    """Prepare a runner for what is the same on every engine."""
    return prepare(engines[0], "runner")
