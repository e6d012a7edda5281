"""The Ansible role knows every option of the runner, and its README is made from its specs."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from jinja2.nativetypes import NativeEnvironment, NativeTemplate

from runner import cli
from runner.journal.journal import JOURNAL_NAME
from runner.model import Task, TaskState
from runner.node import find_conflict
from runner.settings import Settings

ROLE = Path(__file__).resolve().parents[2] / "ansible" / "roles" / "victoria_runner"
INSTALL = ROLE.parents[2] / "docs" / "install.md"
BEGIN, END = "<!-- made from", "<!-- end -->"

# A service has no use for the first; the second is what the role writes the token into instead.
NOT_IN_THE_ROLE = {"VICTORIA_RUNNER_ONCE", "VICTORIA_RUNNER_REGISTRATION_TOKEN_FILE"}
NOT_OF_THE_RUNNER = {"HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"}


def text_of(name: str) -> str:
    return (ROLE / name).read_text(encoding="utf-8")


def read(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text_of(name)))


def specs() -> dict[str, dict[str, Any]]:
    return dict(read("meta/argument_specs.yml")["argument_specs"]["main"]["options"])


def variables() -> set[str]:
    return set(read("vars/main.yml")["__victoria_runner_variables"]) - NOT_OF_THE_RUNNER


def table() -> str:
    rows = ["| Variable | Default | Meaning |", "| --- | --- | --- |"]
    for name, spec in specs().items():
        default = spec.get("default")
        shown = default if isinstance(default, str) else json.dumps(default)
        shown = "" if default is None or default == "" else f"`{shown}`"
        rows.append(f"| `{name}` | {shown} | {' '.join(spec['description'].split())} |")
    return "\n".join(rows)


def rendered(name: str, **values: object) -> str:
    return str(jinja2.Template(text_of(name), trim_blocks=True).render(**values))


def test_every_option_of_the_runner_can_be_set() -> None:
    options = {
        f"{cli.PREFIX}_{parameter.name}".upper()
        for parameter in cli.command.params
        if parameter.name not in {"version", "help"}
    }
    assert variables() == options - NOT_IN_THE_ROLE


def test_removal_looks_for_the_journal_by_its_name() -> None:
    assert f'/{JOURNAL_NAME}"' in text_of("files/look.sh")


def test_role_knows_a_failed_start_by_the_name_of_its_task_but_a_refused_token_by_its_own() -> None:
    (name,) = re.findall(r"__victoria_runner_failed_task == '(.+)'", text_of("tasks/go_back.yml"))
    (start,) = yaml.safe_load(text_of("tasks/service.yml"))
    assert start["block"][-1]["name"] == start["rescue"][-1]["name"] == name
    before = [task.get("ansible.builtin.include_tasks") for task in start["rescue"][:-1]]
    assert before == ["health.yml", "token.yml"]


def test_role_knows_the_refusal_of_another_orchestrator_or_engine_by_its_beginning() -> None:
    (beginning,) = re.findall(r"select\('match', '(.+)'\)", text_of("tasks/conflict.yml"))
    task = Task("t-1", TaskState.RUNNING, "https://old.example.com", None, 1.0, engine="podman")
    settings = Settings("https://new.example.com", "n", victoria_home=ROLE, state_dir=ROLE)
    for url, engine in (("https://new.example.com", "podman"), (task.orchestrator_url, "docker")):
        conflict = find_conflict([task], replace(settings, orchestrator_url=url), engine)
        assert conflict is not None
        assert conflict.startswith(beginning)


def test_specs_have_the_defaults_and_a_name_for_each_option() -> None:
    assert read("defaults/main.yml") == {
        name: spec.get("default") for name, spec in specs().items()
    }
    files = {"VICTORIA_RUNNER_ENV_FILE", "VICTORIA_RUNNER_CA_FILE"}
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
        "__victoria_runner_seen": {fact: "yes", "missing": missing},
        "victoria_runner_container_runtime": runtime,
        "victoria_runner_blocked_networks": [],
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
    template = jinja.from_string(expressions["__victoria_runner_account"])
    values["before"] = template.render(**values)
    assert values["before"] == [""]


def test_apt_removes_no_package_to_install_another() -> None:
    installing = [
        task["ansible.builtin.apt"]
        for task in yaml.safe_load(text_of("tasks/packages.yml"))
        if "ansible.builtin.apt" in task
    ]
    assert [arguments["fail_on_autoremove"] for arguments in installing] == [True, True]


def run(command: list[str], programs: Path) -> str:
    path = {"PATH": f"{programs}:/usr/bin:/bin"}
    return subprocess.run(command, env=path, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("program", "answers"),
    [
        pytest.param("echo /var/lib/docker", "yes", id="daemon"),
        pytest.param("exit 1", "", id="no-daemon"),
        pytest.param("echo 'no field DockerRootDir' >&2; exit 125", "", id="podman-as-docker"),
    ],
)
def test_a_docker_is_one_whose_daemon_answers(tmp_path: Path, program: str, answers: str) -> None:
    docker = tmp_path / "docker"
    docker.write_text(f"#!/bin/sh\n{program}\n")
    docker.chmod(0o755)
    arguments = ["nobody", *[str(tmp_path / "none")] * 8, "apt"]
    stdout = run(["sh", str(ROLE / "files" / "look.sh"), *arguments], tmp_path)
    assert f"docker_answers={answers}" in stdout.splitlines()


def test_health_shows_the_last_line_of_the_log_as_it_is(tmp_path: Path) -> None:
    """The shell of Ubuntu expands a backslash in the argument of echo, and a traceback has many."""
    last = r'2026-11-29 ERROR a defect traceback="Traceback:\n  File x\r\n=" ==doctor=='
    (tmp_path / "line").write_text(last + "\n")
    for name, program in {
        "systemctl": "echo ActiveState=active",
        "journalctl": f"cat {tmp_path}/line",
        "doctor": "echo '{\"ok\": true}'",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / name).chmod(0o755)
    check = yaml.safe_load(text_of("tasks/health.yml"))[0]["ansible.builtin.command"]["argv"]
    stdout = run([*check[:4], "unit", str(tmp_path), str(tmp_path / "doctor"), "True"], tmp_path)
    jinja = NativeEnvironment()
    jinja.filters["split"] = str.split
    jinja.tests["search"] = lambda text, pattern: re.search(pattern, text) is not None
    expressions = read("vars/main.yml")
    values: dict[str, Any] = {"__victoria_runner_health": {"stdout": stdout.strip()}}
    for name in ("unit_says", "doctor_raw"):
        expression = expressions[f"__victoria_runner_{name}"].strip()
        values[name] = jinja.from_string(expression).render(**values)
    assert values["unit_says"]["LastLine"] == last
    assert values["unit_says"]["ActiveState"] == "active"
    assert values["doctor_raw"] == '{"ok": true}'


NETWORKS = {
    "victoria_runner_blocked_networks": ["169.254.0.0/16", "fd00:ec2::254"],
    "victoria_runner_reachable_networks": ["169.254.7.1"],
    "__victoria_runner_uid": "1001",
    "__victoria_runner_seen": {"subordinate_ids": ", 524288-589823"},
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
        victoria_runner_blocked_networks=networks,
        __victoria_runner_networks_file="/etc/networks.nft",
        __victoria_runner_networks_unit="networks.service",
    )
    loading = [line for line in unit.splitlines() if "networks" in line]
    after = ["Wants=networks.service", "After=networks.service"]
    before = ["ExecStartPre=+/usr/sbin/nft --file /etc/networks.nft"]
    assert loading == ([*after, *before] if networks else [])


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
