"""The packages that the role installs are those that the host's distribution has."""

import re
from typing import Any

import pytest
import yaml
from jinja2.nativetypes import NativeEnvironment, NativeTemplate

from tests.unit.role import ROLE, read, text_of

FEDORA = ROLE.parents[2] / "tools" / "dev" / "hosts" / "shape-fedora"


def is_version(version: str, other: str, operator: str) -> bool:
    assert operator == ">="
    return [*map(int, version.split("."))] >= [*map(int, other.split("."))]


def to_install(family: str, release: str, podman: str, runtime: str = "podman") -> list[str]:
    """Return what the role's variables choose for a host."""
    jinja = NativeEnvironment()
    jinja.tests["version"] = is_version
    expressions = read("vars/main.yml")
    values: dict[str, Any] = {
        **read(f"vars/{family}.yml"),
        "ansible_facts": {"distribution_release": release},
        "__victoria_runner_is_rootless": runtime == "podman",
        "__victoria_runner_seen": {
            "has_docker": False,
            "has_podman_of_others": False,
            "podman": podman,
        },
        "victoria_runner_container_runtime": runtime,
        "__victoria_runner_blocked": [],
    }
    for name in ("is_podman_5", "wanted", "not_wanted", "to_install"):
        template = jinja.from_string(expressions[f"__victoria_runner_{name}"].strip())
        values[f"__victoria_runner_{name}"] = template.render(**values)
    return list(values["__victoria_runner_to_install"])


@pytest.mark.parametrize(
    ("family", "release", "podman", "networks"),
    [
        pytest.param("Debian", "bookworm", "", ["passt", "slirp4netns"], id="debian-12"),
        pytest.param("Debian", "bookworm", "4.3.1", ["passt", "slirp4netns"], id="debian-12-again"),
        pytest.param("Debian", "bookworm", "5.8.6", ["passt"], id="podman-from-elsewhere"),
        pytest.param("Debian", "trixie", "", ["passt"], id="debian-13"),
        pytest.param("Debian", "trixie", "4.3.1", ["passt", "slirp4netns"], id="podman-held-back"),
        pytest.param("Debian", "sid", "", ["passt"], id="debian-of-later"),
        pytest.param("Debian", "noble", "", ["passt", "slirp4netns"], id="ubuntu-24.04"),
        pytest.param("Debian", "resolute", "", ["passt"], id="ubuntu-26.04"),
        pytest.param("RedHat", "", "", ["passt"], id="fedora"),
        pytest.param("RedHat", "", "5.8.6", ["passt"], id="fedora-again"),
    ],
)
def test_network_of_containers_is_that_of_the_podman_that_the_host_has(
    family: str, release: str, podman: str, networks: list[str]
) -> None:
    chosen = to_install(family, release, podman)
    assert [name for name in chosen if name in {"passt", "slirp4netns"}] == networks


def test_every_package_for_fedora_is_in_the_repository_that_stands_in_for_its_own() -> None:
    names = re.search(r"for name in (.+?); do", FEDORA.read_text().replace("\\\n", ""))
    assert names is not None
    repository = set(names[1].split())
    client = read("vars/RedHat.yml")["__victoria_runner_docker_client"]
    for runtime in ("podman", "docker"):
        assert {*to_install("RedHat", "", "", runtime), client} <= repository
    assert "slirp4netns" not in repository


def test_apt_removes_no_package_to_install_another() -> None:
    text = (ROLE / "tasks" / "packages.yml").read_text(encoding="utf-8")
    installing = text.count("ansible.builtin.apt:\n")
    assert installing == text.count("fail_on_autoremove: true") > 0


ALL_OF_PODMAN = ["python3-venv", "podman", "crun", "uidmap"]


@pytest.mark.parametrize(
    ("runtime", "fact", "missing", "installed"),
    [
        pytest.param("docker", "has_docker", "docker.io", [], id="docker-is-there"),
        pytest.param("docker", "has_docker", "python3-venv", ["python3-venv"], id="without-venv"),
        pytest.param("docker", "", "docker.io", ["python3-venv", "docker.io"], id="no-docker"),
        pytest.param("podman", "has_docker", "podman", ALL_OF_PODMAN, id="podman-beside-it"),
        pytest.param("podman", "has_podman_of_others", "podman crun", [], id="podman-is-there"),
        pytest.param(
            *("podman", "has_podman_of_others", "podman uidmap", ["python3-venv", "uidmap"]),
            id="podman-without-what-is-not-its-own",
        ),
    ],
)
def test_nothing_is_installed_over_an_engine_that_is_there(
    runtime: str, fact: str, missing: str, installed: list[str]
) -> None:
    expressions = read("vars/main.yml")
    values: dict[str, Any] = {
        "__victoria_runner_packages": {
            "common": ["python3-venv"],
            "podman": ["podman", "crun", "uidmap"],
            "docker": ["docker.io"],
        },
        "__victoria_runner_is_rootless": runtime == "podman",
        "__victoria_runner_is_podman_5": True,
        "__victoria_runner_seen": {fact: True, "missing": missing.split()},
        "victoria_runner_container_runtime": runtime,
        "__victoria_runner_blocked": [],
    }
    for name in ("wanted", "not_wanted", "to_install", "is_package_missing"):
        template = NativeTemplate(expressions[f"__victoria_runner_{name}"].strip())
        values[f"__victoria_runner_{name}"] = template.render(**values)
    chosen = values["__victoria_runner_to_install"]
    assert (chosen if values["__victoria_runner_is_package_missing"] else []) == installed


NAMES = {"24.04": "noble", "26.04": "resolute", "12": "bookworm", "13": "trixie"}


def documented() -> dict[str, list[str]]:
    """Return the distributions of the table of hosts, with the versions that the role takes."""
    text = (ROLE.parents[2] / "docs" / "fleet.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| (Debian|Ubuntu|Fedora) ([\d.]+)(?: to (\d+))? \| (.+)", text, re.MULTILINE
    )
    found: dict[str, list[str]] = {}
    for name, first, last, rest in rows:
        versions = map(str, range(int(first), int(last) + 1)) if last else [first]
        if "the role refuses it" not in rest:
            found.setdefault(name, []).extend(NAMES.get(version, version) for version in versions)
    return found


def test_platforms_are_those_of_the_table_of_hosts_and_of_the_check() -> None:
    platforms = {
        platform["name"]: platform["versions"]
        for platform in read("meta/main.yml")["galaxy_info"]["platforms"]
    }
    assert platforms == {name: sorted(versions) for name, versions in documented().items()}
    (check,) = [task for task in yaml.safe_load(text_of("tasks/supported.yml")) if "vars" in task]
    oldest = check["vars"]["__victoria_runner_distributions"]
    assert {name: NAMES.get(version, version) for name, version in oldest.items()} == {
        name: versions[0] for name, versions in platforms.items()
    }
