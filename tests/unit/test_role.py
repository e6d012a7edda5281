"""The Ansible role knows every option of the runner, and its README is made from its specs."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import yaml

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


def test_every_option_of_the_runner_can_be_set() -> None:
    options = {
        f"{cli.PREFIX}_{parameter.name}".upper()
        for parameter in cli.command.params
        if parameter.name not in {"version", "help"}
    }
    assert variables() == options - NOT_IN_THE_ROLE


def test_removal_looks_for_the_journal_by_its_name() -> None:
    assert f'/{JOURNAL_NAME}"' in text_of("files/look.sh")


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
    template = jinja2.Template(text_of("templates/victoria-runner.j2"), trim_blocks=True)
    by_the_role = template.render(
        victoria_runner_user="victoria",
        __victoria_runner_uid=1000,
        __victoria_runner_is_rootless=True,
        __victoria_runner_env_file="/etc/victoria-runner/runner.env",
        __victoria_runner_current="CURRENT",
    )
    script = by_the_role.replace("CURRENT/venv/bin", "/opt/victoria-runner/bin")
    command = script[script.index("exec ") :].strip()
    assert f"#!/bin/sh\n{command}\n" in INSTALL.read_text(encoding="utf-8")


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
