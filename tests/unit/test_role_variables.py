"""The role takes its variables as operators type them, and names the ones that it cannot take."""

import importlib.util
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jinja2
import pytest
import yaml
from jinja2 import nodes
from jinja2.nativetypes import NativeEnvironment

from tests.unit.role import ROLE, read
from tests.unit.test_role import specs

PLAYBOOKS = ROLE.parents[1] / "playbooks"
CONDITIONS = {"when", "that", "until", "failed_when", "changed_when"}
KINDS = {name: spec.get("type", "str") for name, spec in specs().items()}
# What makes a value of the type out of text.
CONVERSIONS = {
    "bool": {"bool"},
    "int": {"int", "string", "default"},
    "float": {"float", "string", "default"},
    "list": {"flatten"},
}
AS_TEXT: dict[str, tuple[object, object]] = {
    "victoria_runner_require_task_key": (False, "false"),
    "victoria_runner_trust_assignment_url": (True, "yes"),
    "victoria_runner_allow_http": (False, "no"),
    "victoria_runner_verbose": (0, "0"),
    "victoria_runner_max_tasks": (3, "3"),
    "victoria_runner_poll_interval": (2.5, "2.5"),
    "victoria_runner_capability": (["gpu"], "gpu"),
    "victoria_runner_allow_image": (["ghcr.io/acme/*"], "ghcr.io/acme/*"),
    "victoria_runner_run_arg": (["--mount=type=tmpfs,dst=/x"], "--mount=type=tmpfs,dst=/x"),
    "victoria_runner_subid_start": (1000, "1000"),
    "victoria_runner_subid_count": (100, "100"),
    "victoria_runner_blocked_networks": (["10.0.0.0/8"], "10.0.0.0/8"),
    "victoria_runner_reachable_networks": ([], ""),
}


def mistakes(given: dict[str, object], roles: tuple[str, ...] = ("victoria_runner",)) -> list[str]:
    path = ROLE / "filter_plugins" / "variables.py"
    spec = importlib.util.spec_from_file_location("variables", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result: list[str] = module.FilterModule().filters()["victoria_runner_mistakes"](
        given, specs(), roles
    )
    return result


def tasks_of(content: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for task in content:
        yield task
        for part in ("pre_tasks", "tasks", "post_tasks", "block", "rescue", "always"):
            yield from tasks_of(task.get(part, []))


def expressions(value: object, *, is_condition: bool = False) -> Iterator[str]:
    """Yield every template of a YAML file."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from expressions(inner, is_condition=key in CONDITIONS)
    elif isinstance(value, list):
        for inner in value:
            yield from expressions(inner, is_condition=is_condition)
    elif isinstance(value, str):
        yield f"{{{{ {value} }}}}" if is_condition else value


def templates() -> Iterator[tuple[str, str]]:
    """Yield every template of the role and of the playbooks, with the name of its file."""
    paths = [*ROLE.glob("tasks/*.yml"), *ROLE.glob("vars/*.yml"), *PLAYBOOKS.glob("*.yml")]
    for path in sorted(paths):
        for text in expressions(yaml.safe_load(path.read_text(encoding="utf-8"))):
            yield path.name, text
    for path in sorted(ROLE.glob("templates/*.j2")):
        yield path.name, path.read_text(encoding="utf-8")


def raw_uses(text: str) -> list[str]:
    """Return the variables that a template uses as if they could not be text."""
    raw: list[str] = []

    def visit(node: nodes.Node, parents: tuple[nodes.Node, ...]) -> None:
        if isinstance(node, nodes.Name) and KINDS.get(node.name) in CONVERSIONS:
            filters = {parent.name for parent in parents if isinstance(parent, nodes.Filter)}
            # Numbers may be written as they are.
            is_shown = isinstance(parents[-1], nodes.Output | nodes.List)
            is_number = KINDS[node.name] in {"int", "float"}
            if not filters & CONVERSIONS[KINDS[node.name]] and not (is_number and is_shown):
                raw.append(node.name)
        # A filter converts what it is called on, and not its arguments.
        for child in node.iter_child_nodes():
            visit(child, (*parents, node))

    with warnings.catch_warnings():
        # Of a backslash in a pattern, which Python's own texts should not have.
        warnings.simplefilter("ignore", DeprecationWarning)
        visit(jinja2.Environment(autoescape=True).parse(text), ())
    return raw


@pytest.mark.parametrize(
    ("text", "raw"),
    [
        ("{{ victoria_runner_purge }}", ["victoria_runner_purge"]),
        ("{{ 1 if victoria_runner_purge else 2 }}", ["victoria_runner_purge"]),
        ("{{ victoria_runner_purge | bool }}", []),
        ("{{ victoria_runner_max_tasks }}", []),
        ("{{ victoria_runner_max_tasks + 1 }}", ["victoria_runner_max_tasks"]),
        ("{{ victoria_runner_max_tasks | int + 1 }}", []),
        ("{{ victoria_runner_capability + [] }}", ["victoria_runner_capability"]),
        ("{{ [victoria_runner_capability] | flatten }}", []),
    ],
)
def test_a_raw_use_is_seen(text: str, raw: list[str]) -> None:
    assert raw_uses(text) == raw


def test_no_expression_relies_on_the_type_of_a_variable() -> None:
    raw = [(file, name) for file, text in templates() for name in raw_uses(text)]
    assert raw == []


def rendered(values: dict[str, object]) -> dict[str, Any]:
    """Return the variables of the runner, and what the role makes of lists and numbers."""
    jinja = NativeEnvironment()
    jinja.filters["bool"] = lambda value: str(value).lower() in {"true", "yes", "1"}
    jinja.filters["flatten"] = lambda items: [
        inner for item in items for inner in (item if isinstance(item, list) else [item])
    ]
    known: dict[str, Any] = {name: spec.get("default") or "" for name, spec in specs().items()}
    known |= {"victoria_runner_tag": {}, "victoria_runner_engine_env": {}, **values}
    known |= {"__victoria_runner_container_env_file": "", "__victoria_runner_ca_file": ""}
    variables = read("vars/main.yml")
    made_of = ("capabilities", "allowed_images", "run_args", "blocked", "reachable", "subids")
    for name in made_of:
        expression = variables[f"__victoria_runner_{name}"].strip()
        known[f"__victoria_runner_{name}"] = jinja.from_string(expression).render(known)
    return {name: known[f"__victoria_runner_{name}"] for name in made_of} | {
        name: jinja.from_string(expression.strip()).render(known)
        for name, expression in variables["__victoria_runner_variables"].items()
    }


def test_text_has_the_effect_of_the_value_that_it_spells() -> None:
    typed = rendered({name: value for name, (value, _) in AS_TEXT.items()})
    text = rendered({name: value for name, (_, value) in AS_TEXT.items()})
    assert {name: str(value) for name, value in text.items()} == {
        name: str(value) for name, value in typed.items()
    }
    assert mistakes({name: value for name, (_, value) in AS_TEXT.items()}) == []


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("max_task", 3, "the role has no such variable; the nearest is victoria_runner_max_tasks"),
        ("tags", {}, "the role has no such variable; the nearest is victoria_runner_tag"),
        ("purge", "maybe", "it is not a boolean; write true or false"),
        ("max_tasks", "many", "it is not a whole number; write one"),
        ("max_tasks", "2.5", "it is not a whole number; write one"),
        ("max_tasks", [2], "it is not a whole number; write one"),
        ("poll_interval", "2 s", "it is not a number; write one"),
        ("capability", "gpu,big", "it is not a list, nor one value; write a list, on the"),
        ("allow_image", '["a:*"]', "it is not a list, nor one value; write a list"),
        ("capability", {"gpu": 1}, "it is not a list, nor one value; write a list"),
        ("tag", "client=acme", "it is not a mapping; write a mapping, on the command line -e"),
        ("tag", ["client"], "it is not a mapping; write a mapping"),
        ("memory", ["8g"], "it is not text; write text"),
        ("ca", None, "it is null; leave it out to have its default"),
    ],
)  # fmt: skip
def test_a_variable_that_the_role_cannot_use_is_named(
    name: str, value: object, sentence: str
) -> None:
    (mistake,) = mistakes({f"victoria_runner_{name}": value, "victoria_runner_user": "agent"})
    assert mistake.startswith(f"cannot use victoria_runner_{name}: {sentence}")


def test_a_sentence_on_a_variable_does_not_show_its_value() -> None:
    secrets = {"victoria_runner_container_environment": "KEY=hello-from-the-vault"}
    assert "vault" not in str(mistakes({**secrets}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tasks", None),
        ("max_tasks", "3"),
        ("purge", "True"),
        ("cpus", 2),
        ("batches", "25%"),
        ("capability", "gpu"),
        ("run_arg", "--mount=type=tmpfs,dst=/x"),
    ],
)
def test_a_variable_that_the_role_can_use_is_not_named(name: str, value: object) -> None:
    assert mistakes({f"victoria_runner_{name}": value}) == []


FOLDERS = {
    "prefix": "/opt/victoria-runner",
    "config_dir": "/etc/victoria-runner",
    "state_dir": "/var/lib/victoria-runner",
    "home": "/home/victoria",
    "victoria_home": "/home/victoria/Victoria",
}


@pytest.mark.parametrize(
    ("folders", "shared"),
    [
        ({}, []),
        ({"prefix": "/srv/runners/one", "state_dir": "/data/victoria/"}, []),
        ({"prefix": "/opt"}, ["/opt"]),
        ({"prefix": "/"}, ["/"]),
        ({"state_dir": "/var/lib/"}, ["/var/lib/"]),
        ({"state_dir": "/var//lib"}, ["/var//lib"]),
        ({"config_dir": "/etc/systemd"}, ["/etc/systemd"]),
        ({"prefix": "/usr/local"}, ["/usr/local"]),
        ({"prefix": "/usr/local/lib"}, ["/usr/local/lib"]),
        ({"state_dir": "state"}, ["state"]),
        ({"state_dir": "/srv/x/../.."}, ["/srv/x/../.."]),
    ],
    ids=str,
)
def test_folder_that_others_use_is_refused_because_a_removal_deletes_it(
    folders: dict[str, str], shared: list[str]
) -> None:
    tasks = yaml.safe_load((ROLE / "tasks" / "variables.yml").read_text(encoding="utf-8"))
    (check,) = [task for task in tasks if "ansible.builtin.assert" in task]
    variables = yaml.safe_load((ROLE / "vars" / "main.yml").read_text(encoding="utf-8"))
    values = {**FOLDERS, **folders}
    result: dict[str, Any] = {f"victoria_runner_{name}": value for name, value in values.items()}
    jinja = NativeEnvironment()
    jinja.tests["match"] = lambda text, pattern: re.match(pattern, text) is not None
    folders_of = {"__victoria_runner_folders": variables["__victoria_runner_folders"]}
    for name, expression in {**folders_of, **check["vars"]}.items():
        result[name] = jinja.from_string(expression.strip()).render(**result)
    assert result["__victoria_runner_shared"] == shared


@pytest.mark.parametrize(
    ("folders", "homes"),
    [
        ({"state_dir": "/home/victoria"}, ["/home/victoria"]),
        ({"state_dir": "/home/victoria/state"}, []),
        ({"state_dir": "/data/vic", "victoria_home": "/data/vic/Victoria"}, ["/data/vic"]),
    ],
)
def test_home_is_refused_as_a_folder_of_the_runner(
    folders: dict[str, str], homes: list[str]
) -> None:
    variables = yaml.safe_load((ROLE / "vars" / "main.yml").read_text(encoding="utf-8"))
    values = {f"victoria_runner_{name}": value for name, value in {**FOLDERS, **folders}.items()}
    jinja = NativeEnvironment()
    jinja.filters["dirname"] = os.path.dirname
    used, refused = (
        jinja.from_string(variables[f"__victoria_runner_{name}"].strip()).render(**values)
        for name in ("folders", "homes")
    )
    assert [folder for folder in used if folder in refused] == homes
    preflight = (ROLE / "tasks" / "preflight.yml").read_text(encoding="utf-8")
    assert "__victoria_runner_folders | select('in', __victoria_runner_homes)" in preflight


@pytest.mark.parametrize(
    ("state_dir", "is_ours", "is_refused"),
    [
        pytest.param("", False, False, id="new"),
        pytest.param("victoria:victoria 700", True, False, id="of-a-runner"),
        pytest.param("root:root 755", False, True, id="of-others"),
    ],
)
def test_state_folder_with_files_of_others_is_refused_and_left(
    state_dir: str, *, is_ours: bool, is_refused: bool
) -> None:
    """Otherwise it would belong to the runner's account, with mode 700."""
    tasks = yaml.safe_load((ROLE / "tasks" / "preflight.yml").read_text(encoding="utf-8"))
    (expression,) = [
        each
        for task in tasks
        for each in task.get("vars", {}).get("__victoria_runner_checked", [])
        if "__victoria_runner_seen.is_state_dir_ours" in each
    ]
    fault = jinja2.Environment(autoescape=True).from_string(expression.strip())
    sentence = fault.render(
        victoria_runner_state_dir="/srv/state",
        __victoria_runner_is_another=False,
        __victoria_runner_seen={"state_dir": state_dir, "is_state_dir_ours": is_ours},
    )
    assert ("cannot use victoria_runner_state_dir /srv/state: " in sentence) is is_refused
    assert bool(sentence) is is_refused


def test_variables_of_a_role_whose_name_begins_alike_are_its_own() -> None:
    given: dict[str, object] = {"victoria_runner_alerts_port": 9000}
    assert mistakes(given, ("victoria_runner", "victoria_runner_alerts")) == []
    assert len(mistakes(given)) == 1


@pytest.mark.parametrize(
    ("batches", "no_sizes"),
    [
        pytest.param(value, no_sizes, id=str(value))
        for value, no_sizes in (
            ([], []),
            (None, []),
            (5, []),
            ("50%", []),
            ([1, "25%"], []),
            ("1,5", ["1,5"]),
            (0, ["0"]),
            ([1, "x%"], ["x%"]),
            ({"first": 1}, ["{'first': 1}"]),
        )
    ],
)
def test_batches_that_ansible_cannot_read_are_named(batches: object, no_sizes: list[str]) -> None:
    """It prints a traceback for a text, and takes every host at once for a zero."""
    checks = yaml.safe_load((ROLE / "tasks" / "batches.yml").read_text(encoding="utf-8"))
    (expression,) = [
        task["vars"]["__victoria_runner_no_sizes"]
        for task in checks
        if "__victoria_runner_no_sizes" in task.get("vars", {})
    ]
    jinja = NativeEnvironment()
    jinja.tests["match"] = lambda text, pattern: re.match(pattern, text) is not None
    jinja.filters["flatten"] = flatten
    found = jinja.from_string(expression.strip() + "\n").render(__victoria_runner_choices=[batches])
    assert list(found) == no_sizes


def flatten(values: list[Any]) -> list[Any]:
    """Return what Ansible's filter of this name does."""
    inner = [value if isinstance(value, list) else [value] for value in values]
    return [value for part in inner for value in part if value is not None]


def test_names_and_types_are_checked_before_anything_else() -> None:
    first, then = yaml.safe_load((ROLE / "tasks" / "main.yml").read_text(encoding="utf-8"))
    assert first["ansible.builtin.import_tasks"] == "variables.yml"
    assert first["tags"] == ["always"]
    assert then["become"] is True


def test_what_runs_on_the_controller_never_becomes_root() -> None:
    """A group of the inventory may set ansible_become, which is above the keyword become."""
    tasks = [
        (path.name, task)
        for path in ROLE.glob("tasks/*.yml")
        for task in tasks_of(yaml.safe_load(path.read_text(encoding="utf-8")))
        if task.get("delegate_to") == "localhost"
    ]
    assert {name for name, _ in tasks} == {"gone.yml", "install.yml", "unregister.yml"}
    as_root = [name for name, task in tasks if task["vars"].get("ansible_become") is not False]
    assert as_root == []


def test_no_two_tasks_share_a_name() -> None:
    names = Counter(
        task["name"]
        for path in ROLE.glob("tasks/*.yml")
        for task in tasks_of(yaml.safe_load(path.read_text(encoding="utf-8")))
    )
    assert [name for name, times in names.items() if times > 1] == []


def test_no_task_that_runs_once_sets_variables() -> None:
    # ansible-core 2.21 then has one dictionary for all hosts of the batch: from there on, each host
    # has the facts and the results of the one that was last.
    paths = [*ROLE.glob("tasks/*.yml"), *(ROLE.parents[1] / "playbooks").glob("*.yml")]
    wrong = [
        task["name"]
        for path in paths
        for task in tasks_of(yaml.safe_load(path.read_text(encoding="utf-8")))
        if task.get("run_once") and {"register", "ansible.builtin.set_fact"} & set(task)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("distribution", "version", "outcome"),
    [
        ("Debian", "12", "installs"),
        ("Debian", "11", "refuses"),
        ("Debian", "n/a", "installs"),
        ("Debian", "forky/sid", "installs"),
        ("Ubuntu", "24.04", "installs"),
        ("Ubuntu", "20.04", "refuses"),
        ("Ubuntu", "n/a", "refuses"),
        ("Arch", "n/a", "refuses"),
    ],
)
def test_debian_without_a_version_is_newer_than_every_one_with_it(
    distribution: str, version: str, outcome: str
) -> None:
    check = next(
        task
        for task in yaml.safe_load((ROLE / "tasks" / "supported.yml").read_text(encoding="utf-8"))
        if "distribution" in task["name"]
    )
    jinja = NativeEnvironment()
    jinja.tests["match"] = lambda text, pattern: re.match(pattern, text) is not None
    jinja.tests["version"] = lambda one, other, _: (
        [int(part) for part in one.split(".")] >= [int(part) for part in other.split(".")]
    )
    facts = {"distribution": distribution, "distribution_version": version}
    expression = check["vars"].pop("__victoria_runner_is_distribution_supported")
    is_supported = jinja.from_string(expression).render(ansible_facts=facts, **check["vars"])
    assert outcome == ("installs" if is_supported else "refuses")
