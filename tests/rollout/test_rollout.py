"""Each scenario of molecule/ on the hosts of its inventory, in this order.

The hosts are an Ubuntu-shaped and a Fedora-shaped one; of the last scenarios, those of debian.yml.
CI leaves out the long ones; `./dev rollout --all` runs them, and so does the workflow in .github/.
"""

from collections.abc import Callable

import pytest

LONG = pytest.mark.long
TABLE = [
    ("install", [], "bare-hosts-become-verified-runners"),
    ("upgrade", [], "restart-change-upgrade-and-going-back-interrupt-no-task"),
    ("interrupted", [LONG], "a-play-that-is-cut-off-anywhere-is-finished-by-the-next"),
    ("proxy", [LONG], "a-proxy-is-the-only-way-out-and-a-wrong-one-changes-nothing"),
    ("failures", [], "each-failure-shows-its-cause-and-leaves-what-worked"),
    ("networks", [LONG], "a-blocked-network-is-refused-to-containers-across-reload-and-reboot"),
    ("by-hand", [LONG], "a-runner-installed-by-hand-is-taken-over-with-its-task-and-its-node"),
    ("uninstall", [LONG], "uninstalling-leaves-nothing-and-installing-again-needs-no-index"),
    ("docker", [], "docker-runs-the-tasks-as-well"),
    ("docker-ce", [LONG], "a-docker-that-is-there-is-the-engine-and-nothing-replaces-it"),
]
DISTRIBUTIONS = [
    ("before", "the-release-before-is-upgraded-with-a-running-task-on-each-distribution"),
    ("oldest-ansible", "the-oldest-supported-ansible-installs-changes-and-removes"),
    ("dist-upgrade", "a-task-lives-through-an-upgrade-of-the-distribution"),
]
PARAMETERS = [
    *(pytest.param("hosts", name, marks=marks, id=claim) for name, marks, claim in TABLE),
    *(pytest.param("debian", name, marks=LONG, id=claim) for name, claim in DISTRIBUTIONS),
]


@pytest.mark.timeout(1800)
# The scope is for the hosts: without it they would be made anew for each scenario.
@pytest.mark.parametrize(("scenario", "name"), PARAMETERS, indirect=["scenario"], scope="session")
def test_scenario_shows_that(name: str, scenario: Callable[[str], None]) -> None:
    scenario(name)
