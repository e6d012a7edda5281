"""A phase of the role runs alone by its tag, with what it needs; what is as wanted is left out."""

import os
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from tests.unit.role import ROLE, read, text_of

ROOT = ROLE.parents[2]
PROGRAMS = f"{ROOT / '.venv-rollout' / 'bin'}:{os.environ.get('PATH', os.defpath)}"
needs_ansible = pytest.mark.skipif(
    shutil.which("ansible-playbook", path=PROGRAMS) is None, reason="Ansible is not installed"
)
GATHERED = {
    "Check the names and types of the variables",
    "Ensure the facts of the host are known",
    "Check the state of the host",
}


def listed(playbook: str, *options: str) -> str:
    """Return what ansible-playbook lists of a playbook, with the path that leads to the role."""
    path = ROOT / "ansible" / "playbooks" / f"{playbook}.yml"
    command = ["ansible-playbook", "--inventory=localhost,", str(path), *options]
    result = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PATH": PROGRAMS, "ANSIBLE_NOCOLOR": "1"},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def documented() -> list[str]:
    """Return the tags that the README has."""
    table = text_of("README.md").partition("\n## Tags\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)


@needs_ansible
def test_tags_are_those_of_the_readme() -> None:
    (tags,) = re.findall(r"TASK TAGS: \[(.+)\]", listed("site", "--list-tags"))
    assert sorted(documented()) == sorted({*tags.split(", ")} - {"always", "never"})


@needs_ansible
@pytest.mark.parametrize("tag", ["preflight", "verify", "status"])
def test_run_of_one_tag_knows_the_host(tag: str) -> None:
    text = listed("site", "--list-tasks", f"--tags={tag}")
    names = set(re.findall(r"victoria_runner : (.+?)\s+TAGS", text))
    assert names > GATHERED
    assert not any("packages are installed" in name or "saved" in name for name in names)
    assert ("Check the service" in names) == (tag == "verify")


@needs_ansible
def test_run_that_changes_nothing_has_few_tasks() -> None:
    """Each task costs the controller some 50 ms of CPU for every host, also a skipped one."""
    assert listed("site", "--list-tasks").count("victoria_runner : ") <= 36


@needs_ansible
def test_upgrade_with_a_tag_knows_its_hosts() -> None:
    text = listed("upgrade", "--list-tasks", "--tags=release")
    assert {"Check that every host answers", "Ensure the batches are known"} <= {
        name.strip() for name in re.findall(r"(?m)^ +(?:victoria_runner : )?(.+?)\s+TAGS", text)
    }


def phases() -> list[dict[str, Any]]:
    return list(yaml.safe_load(text_of("tasks/present.yml")))


def test_only_a_play_that_configures_rolls_back() -> None:
    (guarded,) = [task for task in phases() if "rescue" in task and "configure" in task["tags"]]
    assert guarded["tags"] == ["configure"]
    (check,) = [task for task in guarded["block"] if task.get("tags") == ["verify"]]
    assert check["ansible.builtin.include_tasks"]["file"] == "verify.yml"
    assert [task for task in guarded["rescue"] if "tags" in task] == []


def test_included_tasks_have_the_tags_of_their_phase() -> None:
    including = [task for task in phases() if "ansible.builtin.include_tasks" in task]
    applied = [task["ansible.builtin.include_tasks"]["apply"]["tags"] for task in including]
    of_the_tasks = [[tag for tag in task["tags"] if tag != "never"] for task in including]
    assert applied == of_the_tasks


def test_whatever_configure_writes_is_looked_for_before_it_is_left_out() -> None:
    """The service is only verified if every condition of configure.yml holds already."""
    wanted = read("vars/main.yml")["__victoria_runner_is_as_wanted"]
    for task in yaml.safe_load(text_of("tasks/configure.yml")):
        conditions = task["when"] if isinstance(task["when"], list) else [task["when"]]
        names = set(re.findall(r"__victoria_runner_[\w.]+", " ".join(conditions)))
        of_files = {name for name in names if name.endswith("_file")}
        assert of_files or {name for name in names if name in wanted}, task["name"]
