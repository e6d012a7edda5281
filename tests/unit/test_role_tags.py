"""Phases of the role have tags; what is as wanted is left out."""

import re
from typing import Any

import yaml

from tests.unit.role import read, text_of


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
