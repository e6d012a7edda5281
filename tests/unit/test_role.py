"""The Ansible role knows every option of the runner, and its README is made from its specs."""

import hashlib
import json
import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from jinja2.nativetypes import NativeEnvironment, NativeTemplate

from runner import cli
from runner.model import Task, TaskState
from runner.node import find_conflict
from runner.settings import Settings

ROLE = Path(__file__).resolve().parents[2] / "ansible" / "roles" / "victoria_runner"
INSTALL = ROLE.parents[2] / "docs" / "install.md"
BEGIN, END = "<!-- made from", "<!-- end -->"

# A service has no use for the first; the second is a secret, which has a file of its own.
NOT_IN_THE_ROLE = {"VICTORIA_RUNNER_ONCE", "VICTORIA_RUNNER_REGISTRATION_TOKEN"}
NOT_OF_THE_RUNNER = {"HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "REGISTRY_AUTH_FILE", "DOCKER_CONFIG"}


def text_of(name: str) -> str:
    return (ROLE / name).read_text(encoding="utf-8")


def read(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text_of(name)))


def specs() -> dict[str, dict[str, Any]]:
    return dict(read("meta/argument_specs.yml")["argument_specs"]["main"]["options"])


def variables() -> set[str]:
    return set(read("vars/main.yml")["__victoria_runner_variables"]) - NOT_OF_THE_RUNNER


def table() -> str:
    rows = ["| Variable | Type | Default | Meaning |", "| --- | --- | --- | --- |"]
    for name, spec in specs().items():
        default = spec.get("default")
        shown = default if isinstance(default, str) else json.dumps(default)
        shown = "" if default is None or default == "" else f"`{shown}`".replace("|", "\\|")
        kind = spec.get("type", "str")
        kind = {"raw": "list", "list": f"list of {spec.get('elements')}"}.get(kind, kind)
        rows.append(f"| `{name}` | {kind} | {shown} | {' '.join(spec['description'].split())} |")
    return "\n".join(rows)


def rendered(name: str, **values: object) -> str:
    jinja = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True, autoescape=False)  # noqa: S701 - no HTML
    jinja.filters["hash"] = lambda text, kind: hashlib.new(kind, text.encode()).hexdigest()
    return str(jinja.from_string(text_of(name)).render(**values))


def test_every_option_of_the_runner_can_be_set() -> None:
    options = {
        f"{cli.PREFIX}_{parameter.name}".upper()
        for parameter in cli.command.params
        if parameter.name not in {"version", "help"}
    }
    assert variables() == options - NOT_IN_THE_ROLE


def test_role_knows_the_refusal_of_another_orchestrator_or_engine_by_its_beginning() -> None:
    (beginning,) = re.findall(r"select\('match', '(.+)'\)", text_of("tasks/conflict.yml"))
    task = Task("t-1", TaskState.RUNNING, "https://old.example.com", None, 1.0, engine="podman")
    settings = Settings("https://new.example.com", "n", victoria_home=ROLE, state_dir=ROLE)
    for url, engine in (("https://new.example.com", "podman"), (task.orchestrator_url, "docker")):
        conflict = find_conflict([task], replace(settings, orchestrator_url=url), engine)
        assert conflict is not None
        assert conflict.startswith(beginning)


def defaults() -> str:
    """Return the defaults as they are, each with its description above it."""
    sections, text = re.split(r"(?m)^(?=## )", text_of("defaults/main.yml")), ""
    for section in sections[1:]:
        heading, *lines = section.splitlines()
        text += f"\n{heading}\n"
        for line in lines:
            name = line.partition(":")[0]
            if name in specs():
                meaning = " ".join(specs()[name]["description"].split())
                comment = textwrap.fill(
                    meaning,
                    110,
                    initial_indent="# ",
                    subsequent_indent="# ",
                    break_on_hyphens=False,
                )
                text += f"\n{comment}\n"
            if not line.startswith("#") and line:
                text += f"{line}\n"
    return sections[0].rstrip() + "\n" + text


def test_defaults_say_what_each_variable_means() -> None:
    text = defaults()
    assert text_of("defaults/main.yml") == text, f"it should be:\n{text}"


def test_specs_have_the_defaults_and_a_name_for_each_option() -> None:
    assert read("defaults/main.yml") == {
        name: spec.get("default") for name, spec in specs().items()
    }
    files = {f"VICTORIA_RUNNER_{name}_FILE" for name in ("ENV", "CA", "REGISTRATION_TOKEN")}
    assert {variable.lower() for variable in variables() - files} <= set(specs())


def test_readme_has_the_table_of_the_specs() -> None:
    text = text_of("README.md")
    shown = text[text.index(BEGIN) : text.index(END)].partition("\n")[2].strip()
    assert shown == table(), f"it should be:\n{table()}"


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


def test_admin_key_is_used_by_hidden_tasks_on_the_controller_alone() -> None:
    users = [
        task
        for path in sorted((ROLE / "tasks").glob("*.yml"))
        for task in yaml.safe_load(path.read_text(encoding="utf-8"))
        if "X-API-Key" in json.dumps(task)
    ]
    where = [
        (task["delegate_to"], task["become"], task["no_log"], task["vars"]["ansible_connection"])
        for task in users
    ]
    assert where == [("localhost", False, True, "local")] * 2


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


@pytest.mark.parametrize(
    ("account", "home", "is_ours"),
    [
        pytest.param("", "/home/victoria", False, id="none"),
        pytest.param("victoria:x:3000:3000::/srv/vic:/bin/sh", "/srv/vic", False, id="of-before"),
        pytest.param("victoria:x:1000:1000:MARK:/home/v:/bin/bash", "/home/v", True, id="ours"),
    ],
)
def test_account_that_was_there_before_keeps_its_home_and_stays(
    account: str, home: str, *, is_ours: bool
) -> None:
    expressions = read("vars/main.yml")
    mark = expressions["__victoria_runner_account_mark"]
    values: dict[str, Any] = {
        "victoria_runner_user": "victoria",
        "__victoria_runner_account_mark": mark,
        "__victoria_runner_seen": {"account": account.replace("MARK", mark)},
        "__victoria_runner_look": "defined",
    }
    jinja = NativeEnvironment()
    jinja.filters["split"] = str.split
    for name in ("account", "account_home", "is_account_ours"):
        template = jinja.from_string(expressions[f"__victoria_runner_{name}"])
        values[f"__victoria_runner_{name}"] = template.render(**values)
    assert values["__victoria_runner_account_home"] == home
    assert values["__victoria_runner_is_account_ours"] is is_ours
    del values["__victoria_runner_look"]
    unknown: Any = jinja.from_string(expressions["__victoria_runner_account"]).render(**values)
    assert unknown == [""]


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


def test_hashes_are_those_of_the_pinned_dependencies() -> None:
    root = ROLE.parents[2]
    pins = set(
        re.findall(r"^[\w.-]+==[\w.]+", (root / "constraints.txt").read_text(), re.MULTILINE)
    )
    text = (root / "requirements-runner.txt").read_text().replace("\\\n", "")
    entries = [line.split() for line in text.splitlines() if not line.startswith("#")]
    assert {entry[0] for entry in entries} <= pins
    assert all(re.search(r" --hash=sha256:[0-9a-f]{64}", " ".join(entry)) for entry in entries)
    project = (root / "pyproject.toml").read_text().partition("\ndependencies = [")[2]
    needed = re.findall(r'^ +"([\w-]+)', project.partition("\n]")[0], re.MULTILINE)
    assert set(needed) <= {entry[0].partition("==")[0] for entry in entries}


def fingerprint(place: Path) -> str:
    program = str(ROLE / "files" / "fingerprint.py")
    command = [sys.executable, program, str(place / "inside"), str(place / "pins")]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_fingerprint_is_that_of_the_content_wherever_it_lies(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        (folder / "inside").mkdir(parents=True)
        (folder / "inside" / "a.py").write_text("a = 1\n")
        (folder / "pins").write_text("httpx==0.28.1\n")
    (other / "inside" / "a.pyc").write_text("made anew by each Python")
    assert fingerprint(other) == fingerprint(one)
    (other / "inside" / "a.py").rename(other / "inside" / "b.py")
    assert fingerprint(other) != fingerprint(one)
    (other / "inside" / "b.py").rename(other / "inside" / "a.py")
    (other / "pins").write_text("httpx==0.28.0\n")
    assert fingerprint(other) != fingerprint(one)
