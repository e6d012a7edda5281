"""The hosts that the scenarios share: made once for each inventory, removed at the end."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.rollout.molecule import run


def pytest_sessionstart() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session")
def scenario(request: pytest.FixtureRequest) -> Iterator[Callable[[str], None]]:
    """Yield the function that runs a scenario, on the hosts of an inventory, which are ready.

    With VICTORIA_ROLLOUT_KEEP=1 they stay, for a look into them: podman exec -it vr-ubuntu bash
    """
    if "VICTORIA_ROLLOUT_UBUNTU_HOST" not in os.environ:
        pytest.fail("no hosts are named: run ./dev rollout", pytrace=False)
    # Ansible appends to it.
    Path(os.environ["VICTORIA_ROLLOUT_FOLDER"], "plays.log").unlink(missing_ok=True)
    inventory = request.param
    is_clean = False

    def make_hosts(*, with_runner: bool) -> None:
        run("destroy", "default", inventory=inventory)
        run("create", "default", inventory=inventory)
        if with_runner:
            run("converge", "install", inventory=inventory)

    def run_scenario(name: str) -> None:
        nonlocal is_clean
        # What a scenario that failed has left would make the next ones fail.
        if not is_clean:
            make_hosts(with_runner=inventory == "hosts")
        is_clean = False
        run("test", name, "--destroy=never", inventory=inventory)
        is_clean = True

    make_hosts(with_runner=False)
    is_clean = True
    yield run_scenario
    if os.environ.get("VICTORIA_ROLLOUT_KEEP") != "1":
        run("destroy", "default", inventory=inventory)
