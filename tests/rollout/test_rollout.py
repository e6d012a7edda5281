"""Each scenario of molecule/ on an Ubuntu-shaped and a Fedora-shaped host, in this order.

CI leaves out the long ones; `./dev rollout --all` runs them, and so does the workflow in .github/.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytestmark = pytest.mark.timeout(1800)


def test_bare_hosts_become_verified_runners(scenario: Callable[[str], None]) -> None:
    scenario("install")


def test_restart_change_upgrade_and_going_back_interrupt_no_task(
    scenario: Callable[[str], None],
) -> None:
    scenario("upgrade")


@pytest.mark.long
def test_a_proxy_is_the_only_way_out_and_a_wrong_one_changes_nothing(
    scenario: Callable[[str], None],
) -> None:
    scenario("proxy")


def test_each_failure_says_its_cause_and_leaves_what_worked(
    scenario: Callable[[str], None],
) -> None:
    scenario("failures")


@pytest.mark.long
def test_uninstalling_leaves_nothing_and_installing_again_works_without_an_index(
    scenario: Callable[[str], None],
) -> None:
    scenario("uninstall")


def test_docker_runs_the_tasks_as_well(scenario: Callable[[str], None]) -> None:
    scenario("docker")
