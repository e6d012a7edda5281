"""The Ansible role knows every option of the runner, and its README is made from its specs."""

import json
import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from runner import cli
from runner.model import Task, TaskState
from runner.node import find_conflict
from runner.settings import Settings
from tests.unit.role import ROLE, read, text_of

BEGIN, END = "<!-- made from", "<!-- end -->"

# A service has no use for the first; the second is a secret, which has a file of its own.
NOT_IN_THE_ROLE = {"VICTORIA_RUNNER_ONCE", "VICTORIA_RUNNER_REGISTRATION_TOKEN"}
NOT_OF_THE_RUNNER = {"HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "REGISTRY_AUTH_FILE", "DOCKER_CONFIG"}


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
