"""What the role writes: the unit, the command for operators, rules of networks, and secrets."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2.nativetypes import NativeEnvironment

from tests.unit.role import ROLE, load, read, rendered, text_of, write_program

facts = load("library/victoria_runner_facts.py")
INSTALL = ROLE.parents[2] / "docs" / "install.md"


def test_unit_of_the_role_is_the_unit_that_is_installed_by_hand() -> None:
    by_hand = INSTALL.read_text(encoding="utf-8")
    template = text_of("templates/victoria-runner.service.j2").splitlines()
    unit = by_hand[by_hand.index("[Unit]") : by_hand.index("WantedBy=multi-user.target")]
    # These carry numbers and folders, which the role fills in.
    filled_in = ("User=", "EnvironmentFile=", "ExecStart=")
    lines = [line for line in unit.splitlines() if not line.startswith(filled_in)]
    assert [line for line in lines if line not in template and "1000" not in line] == []


def test_command_of_the_role_is_the_command_that_is_installed_by_hand() -> None:
    by_the_role = rendered(
        "templates/victoria-runner.j2",
        victoria_runner_user="victoria",
        __victoria_runner_uid=1000,
        __victoria_runner_is_rootless=True,
        __victoria_runner_env_file="/etc/victoria-runner/runner.env",
        __victoria_runner_current="CURRENT",
    )
    script = by_the_role.replace("CURRENT/venv/bin", "/opt/victoria-runner/bin")
    command = script[script.index("exec ") :].strip()
    assert f"#!/bin/sh\n{command}\n" in INSTALL.read_text(encoding="utf-8")


NETWORKS = {
    "__victoria_runner_blocked": ["169.254.0.0/16", "fd00:ec2::254"],
    "__victoria_runner_reachable": ["169.254.7.1"],
    "__victoria_runner_uid": "1001",
    "__victoria_runner_seen": {"subordinate_ids": ["524288-589823"]},
}


def test_blocked_networks_are_refused_to_the_accounts_processes_or_on_dockers_bridge() -> None:
    podman = rendered("templates/networks.nft.j2", __victoria_runner_is_rootless=True, **NETWORKS)
    docker = rendered("templates/networks.nft.j2", __victoria_runner_is_rootless=False, **NETWORKS)
    assert "meta skuid { 1001, 524288-589823 } jump destinations" in podman
    assert "docker0" not in podman
    assert "skuid" not in docker
    assert docker.count('iifname "docker0" jump destinations') == len(["forward", "input"])
    for rules in (podman, docker):
        order = [line.strip() for line in rules.splitlines() if re.search("daddr|dport", line)]
        assert order == [
            "meta l4proto { tcp, udp } th dport 53 accept",
            "ip daddr 169.254.7.1 accept",
            "ip daddr 169.254.0.0/16 reject",
            "ip6 daddr fd00:ec2::254 reject",
        ]


def test_loaded_rules_are_known_by_a_name_that_changes_with_them(tmp_path: Path) -> None:
    """A play that was killed after it had written them leaves others loaded."""
    template = "templates/networks.nft.j2"
    one = rendered(template, __victoria_runner_is_rootless=True, **NETWORKS)
    other = {**NETWORKS, "__victoria_runner_blocked": ["10.0.0.0/8"]}
    two = rendered(template, __victoria_runner_is_rootless=True, **other)
    names = []
    for rules in (one, two):
        nft = write_program(tmp_path, "nft", f"cat <<'END'\n{rules}\nEND")
        names.append(facts.loaded_rules(str(nft)))
        assert f"chain {names[-1]} {{" in rules
    assert names[0] != names[1]
    nothing = write_program(tmp_path, "nft", "echo 'No such file or directory' >&2; exit 1")
    assert facts.loaded_rules(str(nothing)) == ""
    (task,) = [task for task in yaml.safe_load(text_of("tasks/networks.yml")) if "vars" in task]
    assert "__victoria_runner_seen.loaded_rules" in str(task["vars"])
    assert task["ansible.builtin.systemd_service"]["daemon_reload"] is True


def test_changed_rules_replace_the_loaded_ones_in_one_step() -> None:
    """A restart of the unit would unload them first, while tasks run."""
    unit = rendered(
        "templates/victoria-runner-networks.service.j2", __victoria_runner_networks_file="/x.nft"
    )
    assert "ExecReload=/usr/sbin/nft --file /x.nft\n" in unit
    assert "'started' if __victoria_runner_are_rules_loaded else 'reloaded'" in text_of(
        "tasks/networks.yml"
    )
    assert 'systemctl("reload-or-restart", unit_file.name)' in text_of(
        "library/victoria_runner_release.py"
    )


def test_unit_of_blocked_networks_is_removed_last() -> None:
    """The next run after a killed removal looks for it alone."""
    tasks = yaml.safe_load(text_of("tasks/open_networks.yml"))
    (files,) = [task["loop"] for task in tasks if "loop" in task]
    assert files[-1] == "{{ __victoria_runner_networks_unit_file }}"


@pytest.mark.parametrize("networks", [["169.254.0.0/16"], []], ids=["blocked", "none-blocked"])
def test_service_starts_with_the_rules_of_blocked_networks_or_not_at_all(
    networks: list[str],
) -> None:
    unit = rendered(
        "templates/victoria-runner.service.j2",
        __victoria_runner_blocked=networks,
        __victoria_runner_networks_file="/etc/networks.nft",
        __victoria_runner_networks_unit="networks.service",
    )
    loading = [line for line in unit.splitlines() if "networks" in line]
    after = ["Wants=networks.service", "After=networks.service"]
    before = ["ExecStartPre=+/usr/sbin/nft --file /etc/networks.nft"]
    assert loading == ([*after, *before] if networks else [])


def test_runner_that_is_still_draining_restarts_when_the_drain_is_taken_back() -> None:
    """It takes no task again by itself; with long tasks its host would be idle for hours."""
    register = "__victoria_runner_drain_taken_back"
    assert register in text_of("tasks/configure.yml")
    service = yaml.safe_load(text_of("tasks/service.yml"))[0]["block"][0]
    assert f"{register} is changed" in service["vars"]["__victoria_runner_is_outdated"]
    assert register in text_of("tasks/forecast.yml")


def secret_variables(proxy: str, engine_env: dict[str, str]) -> dict[str, str]:
    expressions = read("vars/main.yml")
    values: dict[str, Any] = {
        "victoria_runner_proxy": proxy,
        "victoria_runner_engine_env": engine_env,
    }
    jinja = NativeEnvironment()
    jinja.filters["combine"] = lambda *parts: {key: part[key] for part in parts for key in part}
    for name in ("has_secret_proxy", "secret_variables"):
        template = jinja.from_string(expressions[f"__victoria_runner_{name}"].strip())
        values[f"__victoria_runner_{name}"] = template.render(**values)
    return dict(values["__victoria_runner_secret_variables"])


def test_secrets_are_in_a_file_of_their_own() -> None:
    proxy = "http://me:word@proxy:3128"
    both = {"HTTPS_PROXY": proxy, "HTTP_PROXY": proxy}
    assert secret_variables(proxy, {"KEY": "k"}) == {**both, "KEY": "k"}
    assert secret_variables("http://proxy:3128", {}) == {}
    written = read("vars/main.yml")["__victoria_runner_variables"]
    assert [name for name, text in written.items() if "registration_token }}" in text] == []
    shown = [
        task for task in tasks("configure.yml") if task.get("register", "").endswith("written")
    ]
    assert ["no_log" in task for task in shown if "runner.env.j2" in json.dumps(task)] == [False]
    hidden = [
        task["no_log"] for task in shown if "secret" in task["name"] or "token" in task["name"]
    ]
    assert hidden == ["{{ victoria_runner_hide_secrets | bool }}"] * 2


def tasks(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load(text_of(f"tasks/{name}")))


UNIT = {
    "victoria_runner_ca": "/ca.pem",
    "__victoria_runner_ca_file": "/etc/x/ca.pem",
    "__victoria_runner_env_file": "/etc/x/runner.env",
    "__victoria_runner_token_file": "/etc/x/registration-token",
    "__victoria_runner_secrets_file": "/etc/x/secrets.env",
}


def test_service_keeps_copies_of_what_it_has_read_and_the_name_of_its_unit() -> None:
    with_all = rendered(
        "templates/victoria-runner.service.j2",
        **UNIT,
        __victoria_runner_secret_variables={"KEY": "k"},
    )
    copies = re.findall(r"^LoadCredential=(.+):(.+)$", with_all, re.MULTILINE)
    read_files = re.findall(r"^EnvironmentFile=(.+)$", with_all, re.MULTILINE)
    names = ["runner.env", "registration-token", "secrets.env", "ca.pem"]
    assert copies == [(name, f"/etc/x/{name}") for name in names]
    assert set(read_files) <= {path for _, path in copies}
    assert "--registration-token-file=%d/registration-token --ca-file=%d/ca.pem" in with_all
    without = rendered("templates/victoria-runner.service.j2", **UNIT)
    assert "secrets.env" not in without
    hashes = [
        re.findall(r"^SetCredential=unit:(.{40})$", unit, re.MULTILINE)
        for unit in (with_all, without)
    ]
    assert hashes[0] != hashes[1]
    assert [len(each) for each in hashes] == [1, 1]
