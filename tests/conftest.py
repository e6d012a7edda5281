"""What every test may ask for. A missing engine fails the tests that need it, never skips them."""

import contextlib
import functools
import inspect
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from tests.engines import (
    Engine,
    NoEngineError,
    check_answering,
    named_engines,
    named_image,
    names_for_tests,
)

COROUTINE_DEADLINE_S = 540
REMOVAL_TIMEOUT_S = 60
LOOK_AGAIN_S = 0.2
CONTAINERS_BEFORE = pytest.StashKey["dict[tuple[str, str], str]"]()


def pytest_itemcollected(item: pytest.Item) -> None:
    """End a coroutine that hangs by its own means, with its fixtures torn down.

    pytest's own timeout comes later: it kills the process, and a signal would leave the loop stuck.
    """
    if not (isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj)):
        return
    test = item.obj

    @functools.wraps(test)
    async def run(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - whatever the test asks for
        with anyio.fail_after(COROUTINE_DEADLINE_S):
            await test(*args, **kwargs)

    item.obj = run


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that asks for ``engine`` once on each engine named in the environment."""
    if "engine" in metafunc.fixturenames:
        metafunc.parametrize("engine", names_for_tests(), indirect=True, scope="session")


@pytest.fixture(scope="session")
def engines() -> list[Engine]:
    """Return all engines named in the environment; each of them answers."""
    try:
        named = named_engines()
        for engine in named:
            check_answering(engine)
    except NoEngineError as error:
        pytest.fail(str(error), pytrace=False)
    return named


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest, engines: list[Engine]) -> Engine:
    return next(engine for engine in engines if engine.name == request.param)


@pytest.fixture(scope="session")
def image() -> str:
    """Return the name of the stand-in image, which is the same in every engine."""
    try:
        return named_image()
    except NoEngineError as error:
        pytest.fail(str(error), pytrace=False)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Note which containers of ours are there before any test; workers leave that to their head."""
    if not hasattr(session.config, "workerinput"):
        session.config.stash[CONTAINERS_BEFORE] = _containers()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Fail the session when a container of ours that was not there before is there at its end."""
    yield
    if hasattr(session.config, "workerinput"):
        return
    before = session.config.stash.get(CONTAINERS_BEFORE, {})
    deadline = time.monotonic() + REMOVAL_TIMEOUT_S
    while left := {one: name for one, name in _containers().items() if one not in before}:
        if time.monotonic() > deadline:
            names = ", ".join(f"{engine} {name}" for (engine, _), name in left.items())
            pytest.exit(f"containers are left behind: {names}", pytest.ExitCode.TESTS_FAILED)
        time.sleep(LOOK_AGAIN_S)


def _containers() -> dict[tuple[str, str], str]:
    """Return the name of each container of ours, by engine and id."""
    names = {}
    with contextlib.suppress(NoEngineError):  # the tests that need an engine fail by themselves
        for engine in named_engines():
            with contextlib.suppress(OSError, subprocess.SubprocessError):  # as above
                names.update(
                    {(engine.name, one): name for one, name in engine.containers().items()}
                )
    return names
