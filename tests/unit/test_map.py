"""What the documents say of the code is true, and the code keeps to the map.

`ROWS` is the one table of who may import whom. docs/architecture.md shows it to people.
"""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatchcase
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from runner import cli, engine, errors, poll, register, states, tools
from runner.settings import DEFAULT_IMAGE

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
UNIT_OF_THE_ROLE = ROOT / "ansible/roles/victoria_runner/templates/victoria-runner.service.j2"
README = ROOT / "README.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
STATUS_REPORTER = ROOT / "docs" / "status-reporter.md"
DOCUMENTS = [
    README,
    ARCHITECTURE,
    STATUS_REPORTER,
    ROOT / "docs" / "orchestrator.md",
    ROOT / "docs" / "scaling.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
]

ROWS = (
    ("__main__",),
    ("cli",),
    ("app", "doctor", "cleanup", "options", "status_reporter"),
    ("poll", "heartbeat", "deliver", "strays", "forget", "state_folder"),
    ("task",),
    ("closing", "starting", "watching"),
    ("last_words", "preparing"),
    ("fitness", "hand"),
    ("parts", "ending", "reporting"),
    ("register", "job_session"),
    ("engine", "journal", "files", "crush"),
    ("engine_calls", "engine_contract", "outbox", "too_long"),
    ("program", "crush_log", "trace", "identities"),
    ("journal_file",),
    (
        "answer",
        "container",
        "folder",
        "task_folders",
        "inherited",
        "processes",
        "records",
        "crush_mark",
        "crush_message",
        "job",
    ),
    ("crush_database", "crush_parts"),
    ("api", "systemd", "workload"),
    ("assignment", "settings", "tools", "wire"),
    ("address", "limits"),
    ("errors",),
    ("backoff", "blanking", "bodies", "clock", "log", "marks", "states"),
)
"""The runner's modules from the top down: each imports only from rows below its own."""

DOORS = {
    "click": {"cli", "options"},
    "httpx": {"wire"},
    "mcp": {"status_reporter"},
    "sh": {"program"},
    "sqlite3": {
        "journal_file",
        "crush_database",
    },  # two databases: our own, and that of the container's agent
}
"""Which modules may use a library that leads out of the process; others may name its types."""

ROW_OF = {module: number for number, row in enumerate(ROWS) for module in row}
MODULES = sorted(path.stem for path in (ROOT / "runner").glob("*.py") if path.stem != "__init__")


def imports_of(path: Path, *, types_too: bool) -> set[str]:
    """Give the dotted names that a file imports anywhere in it."""
    return set(_imports_in(ast.parse(path.read_text(encoding="utf-8")), types_too=types_too))


def _imports_in(node: ast.AST, *, types_too: bool) -> Iterator[str]:
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not types_too:
        return
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        # Which of these are modules and which are names in one is not known here: both are given.
        yield str(node.module)
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    for child in ast.iter_child_nodes(node):
        yield from _imports_in(child, types_too=types_too)


def neighbours_of(path: Path) -> set[str]:
    """Give the modules of its own package that a file imports, types included."""
    package = path.parent.name
    modules = {other.stem for other in path.parent.glob("*.py")} - {"__init__"}
    found = imports_of(path, types_too=True)
    return {name for name in modules if f"{package}.{name}" in found}


def table_rows(document: Path, first_cell: str) -> list[list[str]]:
    """Give the cells of every table row whose first cell matches the pattern."""
    rows = []
    for line in document.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells and re.fullmatch(first_cell, cells[0]):
            rows.append(cells)
    return rows


def options(command: click.Command, name: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Give a row of the README's table for each option: itself, variable, default, meaning."""
    for option in command.params:
        if not isinstance(option, click.Option) or not option.expose_value:
            continue
        shown = option.metavar and not option.is_flag and f" {option.metavar}"
        variable = "_".join(part for part in (cli.PREFIX, name, str(option.name)) if part).upper()
        meaning, _, default = (option.help or "").partition("[default: ")
        meaning = meaning.strip()
        if isinstance(option.type, click.Choice):
            meaning += f" One of {', '.join(option.type.choices)}."
        row = (
            f"`{name} {option.opts[-1]}{shown or ''}`".replace("` ", "`").replace("|", r"\|"),
            f"`{variable}`",
            default.rstrip("]") or default_of(option),
            meaning,
        )
        yield row
    if isinstance(command, click.Group):
        for below in command.commands.values():
            yield from options(below, str(below.name))


def default_of(option: click.Option) -> str:
    """Say what holds when an option is not given."""
    if isinstance(option.show_default, str):
        return option.show_default
    if option.is_flag or option.count:
        return "off"
    if "Required" in (option.help or ""):
        return "required"
    default = option.to_info_dict()["default"]
    return str(default) if default not in {None, ()} else "none"


# The import rules


def test_every_module_has_one_place_on_the_map() -> None:
    placed = [module for row in ROWS for module in row]
    missing = set(MODULES) - set(placed)
    assert not missing, f"give {missing} a row, here and in docs/architecture.md"
    assert len(placed) == len(set(placed))


@pytest.mark.parametrize("module", MODULES)
def test_imports_lead_downward_only(module: str) -> None:
    upward = {
        other
        for other in neighbours_of(ROOT / "runner" / f"{module}.py")
        if ROW_OF[other] <= ROW_OF[module]
    }
    assert not upward, f"runner/{module}.py may not import {', '.join(sorted(upward))}"


@pytest.mark.parametrize(
    ("package", "other"), [("runner", "orchestrator"), ("orchestrator", "runner")]
)
def test_runner_and_orchestrator_do_not_know_each_other(package: str, other: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        found = {name.partition(".")[0] for name in imports_of(path, types_too=True)}
        assert other not in found, f"{path.relative_to(ROOT)} imports {other}"


def test_orchestrator_has_no_import_cycle() -> None:
    paths = [path for path in (ROOT / "orchestrator").glob("*.py") if path.stem != "__init__"]
    # Raises CycleError, which names the cycle.
    TopologicalSorter({path.stem: neighbours_of(path) for path in paths}).prepare()


@pytest.mark.parametrize(("library", "doors"), DOORS.items())
def test_each_library_that_leads_out_has_its_door(library: str, doors: set[str]) -> None:
    users = {
        module
        for module in MODULES
        if library
        in {
            name.partition(".")[0]
            for name in imports_of(ROOT / "runner" / f"{module}.py", types_too=False)
        }
    }
    assert users
    assert users <= doors, f"{library} may be used in {', '.join(sorted(doors))} only"


# What docs/architecture.md shows


def test_architecture_shows_the_rows() -> None:
    shown = [re.findall(r"`(\w+)`", row[1]) for row in table_rows(ARCHITECTURE, r"\d+")]
    assert shown == [list(row) for row in ROWS]


def test_architecture_shows_the_state_diagram_of_the_code() -> None:
    wanted = f"```mermaid\n{states.state_diagram()}\n```"
    assert wanted in ARCHITECTURE.read_text(encoding="utf-8"), f"it is now:\n\n{wanted}"


def test_architecture_names_every_reason_for_an_end() -> None:
    shown = {row[0].strip("`") for row in table_rows(ARCHITECTURE, r"`[a-z_]+`")}
    assert {reason.value for reason in states.EndReason} <= shown


# What docs/status-reporter.md shows


def test_every_tool_is_shown_with_its_parameters() -> None:
    shown = {
        row[0].strip("`"): re.findall(r"`(\w+)`", row[1])
        for row in table_rows(STATUS_REPORTER, r"`(?:report|submit|get)_\w+`")
    }
    assert shown == {tool.name: list(tool.parameters) for tool in tools.TOOLS}


# What README.md shows


def test_readme_shows_every_option_as_the_command_line_has_it() -> None:
    wanted = sorted(options(cli.command))
    found = sorted(tuple(row) for row in table_rows(README, r"`(?:cleanup |doctor )?--.*"))
    lines = "\n".join(f"| {' | '.join(row)} |" for row in options(cli.command))
    assert found == wanted, f"the table of options is now:\n\n{lines}"


def test_readme_shows_every_exit_code() -> None:
    wanted = {code for name, code in vars(errors).items() if name.startswith("EXIT_")}
    assert {int(row[0]) for row in table_rows(README, r"\d+")} == wanted


def test_units_are_not_restarted_where_a_restart_mends_nothing() -> None:
    codes = (errors.EXIT_USAGE, errors.EXIT_REGISTRATION_REFUSED, errors.EXIT_CONFIGURATION)
    wanted = f"RestartPreventExitStatus={' '.join(map(str, codes))}"
    for unit in (README, UNIT_OF_THE_ROLE):
        assert wanted in unit.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    "sentence",
    [
        f"RuntimeError: {engine.NO_RUNTIME}",
        register.INVALID_TOKEN,
        register.DISABLED,
        "Error polling for tasks: Connection refused",
    ],
)
def test_readme_explains_the_sentences_that_people_will_search_for(sentence: str) -> None:
    assert f"```\n{sentence}\n```" in README.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("source", "literal"), [(cli, "RuntimeError: "), (poll, "Error polling for tasks: %s")]
)
def test_code_says_the_sentences_word_for_word(source: object, literal: str) -> None:
    tree = ast.parse(Path(str(vars(source)["__file__"])).read_text(encoding="utf-8"))
    assert literal in {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}


def test_readme_shows_true_matches_of_wildcards() -> None:
    rows = table_rows(README, r"`[\w*-]+\*[\w*-]*`")
    assert len(rows) >= 5
    for pattern, name, answer in rows:
        matches = fnmatchcase(name.strip("`"), pattern.strip("`"))
        assert answer == ("yes" if matches else "no"), f"{pattern} and {name}"


# What all of them show


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_point_at_what_is_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", text)
    paths = re.findall(r"`((?:runner|orchestrator|tests|docs)/[\w/.]+)`", text)
    missing = [link for link in links if not (document.parent / link).exists()]
    missing += [path for path in paths if not (ROOT / path).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_no_image_but_the_default(document: Path) -> None:
    images = re.findall(
        r"(?<![\w./-])[\w-]+\.(?:io|com|org)/[\w-]+/[\w./:-]+", document.read_text("utf-8")
    )
    assert {image.strip(".:") for image in images} <= {DEFAULT_IMAGE}
