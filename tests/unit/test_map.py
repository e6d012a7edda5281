"""The documents are true of the code. Layers and doors are held by import-linter."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import anyio
import click
import pytest

from runner import cli, errors, node
from runner.api.client import OrchestratorClient
from runner.engine.cli import NO_RUNTIME
from runner.loops import poll
from runner.model import EndReason, state_diagram
from runner.reporter.job import job_in
from runner.reporter.reporter import Reporter
from runner.reporter.server import server_for
from runner.settings import DEFAULT_IMAGE

ROOT = Path(__file__).resolve().parents[2]
UNIT_OF_THE_ROLE = ROOT / "ansible/roles/victoria_runner/templates/victoria-runner.service.j2"
ROLE_README = ROOT / "ansible/roles/victoria_runner/README.md"
DOCS = ROOT / "docs"
ARCHITECTURE = DOCS / "architecture.md"
INSTALL = DOCS / "install.md"
REFERENCE = DOCS / "reference.md"
STATUS_REPORTER = DOCS / "status-reporter.md"
TROUBLESHOOTING = DOCS / "troubleshooting.md"
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md")), ROLE_README]


def table_rows(document: Path, first_cell: str) -> list[list[str]]:
    """Return the cells of every table row whose first cell matches the pattern."""
    rows = []
    for line in document.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells and re.fullmatch(first_cell, cells[0]):
            rows.append(cells)
    return rows


def options(command: click.Command, name: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Yield a row of the reference's table for each option: itself, variable, default, meaning."""
    for option in command.params:
        if not isinstance(option, click.Option) or not option.expose_value:
            continue
        is_word = option.is_flag or option.count or isinstance(option.type, click.Choice)
        shown = "" if is_word else f" {option.make_metavar(click.Context(command))}"
        variable = "_".join(part for part in (cli.PREFIX, name, str(option.name)) if part).upper()
        meaning = option.help or ""
        if isinstance(option.type, click.Choice):
            meaning += f" One of {', '.join(option.type.choices)}."
        yield (
            f"`{name} {option.opts[-1]}{shown}`".replace("` ", "`").replace("|", r"\|"),
            f"`{variable}`",
            default_of(option),
            meaning,
        )
    if isinstance(command, click.Group):
        for below in command.commands.values():
            yield from options(below, str(below.name))


def default_of(option: click.Option) -> str:
    """Return the default of an option."""
    if isinstance(option.show_default, str):
        return option.show_default
    if option.is_flag or option.count:
        return "off"
    if "Required" in (option.help or ""):
        return "required"
    default = option.to_info_dict()["default"]
    return str(default) if default not in {None, ()} else "none"


# What docs/architecture.md shows


def test_architecture_shows_the_state_diagram_of_the_code() -> None:
    wanted = f"```mermaid\n{state_diagram()}\n```"
    assert wanted in ARCHITECTURE.read_text(encoding="utf-8"), f"it is now:\n\n{wanted}"


def test_architecture_names_what_is_there() -> None:
    """Code is named as `package/module.name`."""
    packages = {path.name.removesuffix(".py") for path in (ROOT / "runner").iterdir()}
    named = re.findall(
        r"`((?:[a-z_]+/)?[a-z_]+)\.([A-Za-z_]+)[`.]", ARCHITECTURE.read_text("utf-8")
    )
    missing = []
    for module, name in named:
        path = ROOT / "runner" / f"{module}.py"
        if module.partition("/")[0] in packages and not (
            path.exists() and re.search(rf"\b{name}\b", path.read_text(encoding="utf-8"))
        ):
            missing.append(f"{module}.{name}")
    assert len(named) > 20
    assert not missing


def test_architecture_names_every_reason_for_an_end() -> None:
    shown = {row[0].strip("`") for row in table_rows(ARCHITECTURE, r"`[a-z_]+`")}
    assert {reason.value for reason in EndReason} <= shown


# What docs/status-reporter.md shows


def test_every_tool_is_shown_with_its_parameters(tmp_path: Path) -> None:
    url = "http://127.0.0.1:1"
    job = job_in({"ORCHESTRATOR_URL": url, "JOB_ID": "t-1", "VICTORIA_HOME": str(tmp_path)})
    server = server_for(Reporter(job, OrchestratorClient(url)))
    parameters = {
        tool.name: list(tool.input_schema["properties"]) for tool in anyio.run(server.list_tools)
    }
    shown = {
        row[0].strip("`"): re.findall(r"`(\w+)`", row[1])
        for row in table_rows(STATUS_REPORTER, r"`(?:report|submit|get)_\w+`")
    }
    assert shown == parameters


# What docs/reference.md, docs/install.md and docs/troubleshooting.md show


def test_reference_shows_every_option_as_the_command_line_has_it() -> None:
    wanted = sorted(options(cli.command))
    found = sorted(tuple(row) for row in table_rows(REFERENCE, r"`(?:cleanup |doctor )?--.*"))
    lines = "\n".join(f"| {' | '.join(row)} |" for row in options(cli.command))
    assert found == wanted, f"the table of options is now:\n\n{lines}"


def test_reference_shows_every_exit_code() -> None:
    wanted = {code for name, code in vars(errors).items() if name.startswith("EXIT_")}
    assert {int(row[0]) for row in table_rows(REFERENCE, r"\d+")} == wanted


def test_units_are_not_restarted_where_a_restart_mends_nothing() -> None:
    codes = (errors.EXIT_USAGE, errors.EXIT_REGISTRATION_REFUSED, errors.EXIT_CONFIGURATION)
    wanted = f"RestartPreventExitStatus={' '.join(map(str, codes))}"
    for unit in (INSTALL, UNIT_OF_THE_ROLE):
        assert wanted in unit.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    "sentence",
    [
        f"RuntimeError: {NO_RUNTIME}",
        node.INVALID_TOKEN,
        node.DISABLED,
        "Error polling for tasks: Connection refused",
    ],
)
def test_troubleshooting_explains_the_sentences_that_people_will_search_for(sentence: str) -> None:
    assert f"```\n{sentence}\n```" in TROUBLESHOOTING.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("source", "literal"), [(cli, "RuntimeError: "), (poll, "Error polling for tasks: %s")]
)
def test_code_says_the_sentences_word_for_word(source: object, literal: str) -> None:
    tree = ast.parse(Path(str(vars(source)["__file__"])).read_text(encoding="utf-8"))
    assert literal in {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}


def test_reference_shows_true_matches_of_wildcards() -> None:
    rows = table_rows(REFERENCE, r"`[\w*-]+\*[\w*-]*`")
    assert len(rows) >= 5
    for pattern, name, answer in rows:
        matches = fnmatchcase(name.strip("`"), pattern.strip("`"))
        assert answer == ("yes" if matches else "no"), f"{pattern} and {name}"


# What all of them show


def name_of(document: Path) -> str:
    """Return the document's path in the checkout."""
    return document.relative_to(ROOT).as_posix()


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", document.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_documents_point_at_what_is_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]+))?\)", text)
    paths = re.findall(r"`((?:runner|orchestrator|tests|docs)/[\w/.]+)`", text)
    missing = [path for path in paths if not (ROOT / path).exists()]
    for link, anchor in links:
        target = document.parent / link if link else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(f"{link}#{anchor}")
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_documents_install_nothing_from_an_index_that_does_not_have_it(document: Path) -> None:
    """Until there is a release, what pip installs is a checkout or a wheel, by its path."""
    text = document.read_text(encoding="utf-8")
    assert re.findall(r"pip\d? install (?:-\S+ )*'?victoria[-_]runner(?!\S*\.whl)", text) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_documents_name_no_image_but_the_default(document: Path) -> None:
    images = re.findall(
        r"(?<![\w./-])[\w-]+\.(?:io|com|org)/[\w-]+/[\w./:-]+", document.read_text("utf-8")
    )
    assert {image.strip(".:") for image in images} <= {DEFAULT_IMAGE}
