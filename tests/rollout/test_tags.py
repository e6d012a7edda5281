"""A phase of the role runs alone by its tag, with what it needs; Ansible itself, without hosts."""

import re

import pytest

from tests.rollout.test_typed import ANSIBLE, checked

GATHERED = {
    "Check the names and types of the variables",
    "Ensure the facts of the host are known",
    "Check the state of the host",
}


def listed(playbook: str, *options: str) -> str:
    """Return what ansible-playbook lists of a playbook."""
    path = ANSIBLE / "playbooks" / f"{playbook}.yml"
    return checked("ansible-playbook", "--inventory=localhost,", path, *options)


def documented() -> list[str]:
    """Return the tags that the role's README has."""
    readme = (ANSIBLE / "roles" / "victoria_runner" / "README.md").read_text(encoding="utf-8")
    table = readme.partition("\n## Tags\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)


def test_tags_are_those_of_the_readme() -> None:
    (tags,) = re.findall(r"TASK TAGS: \[(.+)\]", listed("site", "--list-tags"))
    assert sorted(documented()) == sorted({*tags.split(", ")} - {"always", "never"})


@pytest.mark.parametrize("tag", ["preflight", "verify", "status"])
def test_run_of_one_tag_knows_the_host(tag: str) -> None:
    text = listed("site", "--list-tasks", f"--tags={tag}")
    names = set(re.findall(r"victoria_runner : (.+?)\s+TAGS", text))
    assert names > GATHERED
    assert not any("packages are installed" in name or "saved" in name for name in names)
    assert ("Check the service" in names) == (tag == "verify")


def test_upgrade_with_a_tag_knows_its_hosts() -> None:
    text = listed("upgrade", "--list-tasks", "--tags=release")
    assert {"Check that every host answers", "Ensure the batches are known"} <= {
        name.strip() for name in re.findall(r"(?m)^ +(?:victoria_runner : )?(.+?)\s+TAGS", text)
    }


def test_run_that_changes_nothing_has_few_tasks() -> None:
    """Each task costs the controller some 50 ms of CPU for every host, also a skipped one."""
    assert listed("site", "--list-tasks").count("victoria_runner : ") <= 45
