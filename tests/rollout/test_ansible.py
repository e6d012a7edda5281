"""The role and its playbooks, by the oldest supported Ansible and the newest; needs no host."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.rollout.molecule import ROOT

PLAYBOOKS = sorted((ROOT / "ansible" / "playbooks").glob("*.yml"))
ROLE = ROOT / "ansible" / "roles" / "victoria_runner"
TIMEOUT_S = 120


@pytest.fixture(params=["oldest", "newest"])
def programs(request: pytest.FixtureRequest) -> str:
    """Return the folder of an Ansible's programs with a slash, or nothing for that on the PATH."""
    if request.param == "newest":
        return ""
    folder = os.environ.get("VICTORIA_ROLLOUT_OLDEST_ANSIBLE")
    if folder is None:
        pytest.fail("no oldest Ansible is named: run ./dev rollout", pytrace=False)
    return f"{folder}/"


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program of Ansible in the checkout, as an operator does."""
    env = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    return subprocess.run(
        [program, *arguments],
        check=False,
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def test_oldest_is_the_version_that_the_role_promises() -> None:
    meta = yaml.safe_load((ROLE / "meta" / "main.yml").read_text())
    pins = (ROOT / "constraints-ansible-oldest.txt").read_text().splitlines()
    assert f"ansible-core=={meta['galaxy_info']['min_ansible_version']}.0" in pins


def test_syntax_of_every_playbook_is_right(programs: str) -> None:
    inventory = "--inventory=ansible/inventories/example"
    done = run(f"{programs}ansible-playbook", "--syntax-check", inventory, *map(str, PLAYBOOKS))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("playbook: ") == len(PLAYBOOKS)


def test_specs_document_every_variable(programs: str) -> None:
    done = run(f"{programs}ansible-doc", "--type=role", "--json", "victoria_runner")
    assert done.returncode == 0, done.stderr
    specs = yaml.safe_load((ROLE / "meta" / "argument_specs.yml").read_text())["argument_specs"]
    documented = json.loads(done.stdout)["victoria_runner"]["entry_points"]
    assert documented["main"]["options"].keys() == specs["main"]["options"].keys()


def test_values_are_checked_before_anything_of_the_host_is_known(
    programs: str, tmp_path: Path
) -> None:
    variables = {
        "ansible_connection": "local",
        "ansible_become": False,
        "victoria_runner_orchestrator_url": "https://orchestrator.example.com",
        "victoria_runner_registration_token": "two\nlines",
        "victoria_runner_allow_image": "two images",
    }
    hosts = {"victoria_runners": {"hosts": {"one": variables}}}
    (tmp_path / "hosts.json").write_text(json.dumps(hosts))
    playbook = str(ROOT / "ansible" / "playbooks" / "site.yml")
    done = run(f"{programs}ansible-playbook", "--check", f"--inventory={tmp_path}", playbook)
    assert "cannot write victoria_runner_registration_token: " in done.stdout
    assert "cannot use two images: spaces separate" in done.stdout
    assert "is undefined" not in done.stdout


def test_wrong_value_is_refused_by_the_specs(programs: str) -> None:
    arguments = ["--module-name=include_role", "--args=name=victoria_runner", "localhost"]
    wrong = "--extra-vars=victoria_runner_state=installed"
    done = run(f"{programs}ansible", "--connection=local", wrong, *arguments)
    assert done.returncode != 0
    assert "value of victoria_runner_state must be one of: present, absent" in done.stdout
