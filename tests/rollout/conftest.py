"""The hosts that the scenarios share: made once, removed at the end."""

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from tests.rollout.molecule import run


def pytest_sessionstart() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session")
def scenario() -> Iterator[Callable[[str], None]]:
    """Yield the function that runs a scenario, on hosts that are ready.

    With VICTORIA_ROLLOUT_KEEP=1 they stay, for a look into them: podman exec -it vr-ubuntu bash
    """
    if "VICTORIA_ROLLOUT_UBUNTU_HOST" not in os.environ:
        pytest.fail("no hosts are named: run ./dev rollout", pytrace=False)
    run("destroy", "default")
    run("create", "default")
    yield lambda name: run("test", name, "--destroy=never")
    if os.environ.get("VICTORIA_ROLLOUT_KEEP") != "1":
        run("destroy", "default")
