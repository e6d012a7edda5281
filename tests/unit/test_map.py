"""What documents, --help and drawings show is true. Layers and doors are held by import-linter."""

import inspect
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import anyio
import click
import pytest
from click.testing import CliRunner

from runner import cli, errors, node
from runner.api.client import OrchestratorClient
from runner.engine.cli import NO_RUNTIME
from runner.loops import poll
from runner.model import EndReason, state_diagram
from runner.reporter.job import job_in
from runner.reporter.reporter import Reporter
from runner.reporter.server import server_for
from runner.settings import DEFAULT_IMAGE
from tests.orchestrator.program import cut_words
from tests.system.test_attacks import COMMON

ROOT = Path(__file__).resolve().parents[2]
ROLE = ROOT / "ansible/roles/victoria_runner"
DOCS = ROOT / "docs"
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md")), ROLE / "README.md"]
each_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda document: document.relative_to(ROOT).as_posix()
)


def text_of(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def table_rows(document: str, first_cell: str) -> list[list[str]]:
    """Return the cells of every table row whose first cell matches the pattern."""
    rows = []
    for line in text_of(document).splitlines():
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
        variable = "_".join([cli.PREFIX, *name.split(), str(option.name)]).upper()
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
            yield from options(below, f"{name} {below.name}".strip())


def default_of(option: click.Option) -> str:
    if isinstance(option.show_default, str):
        return option.show_default
    if option.is_flag or option.count:
        return "off"
    if "Required" in (option.help or ""):
        return "required"
    default = option.to_info_dict()["default"]
    return str(default) if default not in {None, ()} else "none"


def drawn_tree() -> dict[str, str]:
    parents, above = {}, {0: "RunnerError"}
    for line in (errors.__doc__ or "").splitlines():
        branch = max(line.find("├── "), line.find("└── "))
        if branch >= 0:
            depth, name = branch // 4, line[branch + 4 :].split()[0]
            parents[name] = above[depth - 1]
            above[depth] = name
    return parents


def test_drawing_is_the_tree_of_classes() -> None:
    assert drawn_tree() == {
        name: cls.__bases__[0].__name__
        for name, cls in vars(errors).items()
        if inspect.isclass(cls) and issubclass(cls, Exception) and cls is not errors.RunnerError
    }


def test_exit_codes_are_those_of_sysexits() -> None:
    passing = (errors.StateFolderInUse, errors.JournalError, errors.WireError, errors.EngineError)
    assert {kind.exit_code for kind in (errors.TryAgain, *passing)} == {75}
    assert errors.RunnerError.exit_code == 1
    assert errors.NoContainerRuntime.exit_code == 69
    assert errors.RegistrationRefused.exit_code == 77
    assert errors.ConfigurationError.exit_code == 78


@pytest.mark.parametrize("width", [40, 80, 97])
def test_help_cuts_no_word(width: int) -> None:
    assert cut_words(cli.command, width) == []


@pytest.mark.parametrize("width", [80, 200])
def test_help_cuts_no_image_name_and_shows_every_default_in_one_form(width: int) -> None:
    shown = CliRunner().invoke(cli.command, ["--help"], env={"COLUMNS": str(width)})
    assert shown.exit_code == 0
    assert DEFAULT_IMAGE in shown.output
    assert "..." not in shown.output.partition("Options:")[2]
    text = " ".join(shown.output.split())
    assert "[default" not in text
    assert "~/.local/state/victoria-runner" in shown.output
    for default in ("(host name)", "~/Victoria", "30", "1G"):
        assert f"default: {default}]" in text


# What docs/architecture.md and docs/status-reporter.md show


def test_architecture_shows_the_states_and_reasons_of_the_code() -> None:
    expected = f"```mermaid\n{state_diagram()}\n```"
    assert expected in text_of("architecture.md"), f"it is now:\n\n{expected}"
    shown = {row[0].strip("`") for row in table_rows("architecture.md", r"`[a-z_]+`")}
    assert {reason.value for reason in EndReason} <= shown


def test_architecture_names_what_is_there() -> None:
    """Code is named as `package/module.name`."""
    packages = {path.name.removesuffix(".py") for path in (ROOT / "runner").iterdir()}
    named = re.findall(r"`((?:[a-z_]+/)?[a-z_]+)\.([A-Za-z_]+)[`.]", text_of("architecture.md"))
    missing = []
    for module, name in named:
        path = ROOT / "runner" / f"{module}.py"
        if module.partition("/")[0] in packages and not (
            path.exists() and re.search(rf"\b{name}\b", path.read_text(encoding="utf-8"))
        ):
            missing.append(f"{module}.{name}")
    assert len(named) > 20
    assert not missing


def test_every_tool_is_shown_with_its_parameters(tmp_path: Path) -> None:
    url = "http://127.0.0.1:1"
    job = job_in({"ORCHESTRATOR_URL": url, "JOB_ID": "t-1", "VICTORIA_HOME": str(tmp_path)})
    tools = anyio.run(server_for(Reporter(job, OrchestratorClient(url))).list_tools)
    assert {
        row[0].strip("`"): re.findall(r"`(\w+)`", row[1])
        for row in table_rows("status-reporter.md", r"`(?:report|submit|get)_\w+`")
    } == {tool.name: list(tool.input_schema["properties"]) for tool in tools}


# What docs/reference.md, docs/install.md and docs/troubleshooting.md show


def test_reference_shows_every_option_as_the_command_line_has_it() -> None:
    shown = [tuple(row) for row in table_rows("reference.md", r"`(?:[a-z ]+ )?--.*")]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in options(cli.command))
    assert sorted(shown) == sorted(options(cli.command)), f"the table is now:\n\n{lines}"


def test_reference_shows_every_exit_code() -> None:
    expected = {code for name, code in vars(errors).items() if name.startswith("EXIT_")}
    assert {int(row[0]) for row in table_rows("reference.md", r"\d+")} == expected


@pytest.mark.parametrize(
    "unit", [DOCS / "install.md", ROLE / "templates/victoria-runner.service.j2"]
)
def test_unit_is_not_restarted_where_a_restart_mends_nothing(unit: Path) -> None:
    codes = (errors.EXIT_USAGE, errors.EXIT_REGISTRATION_REFUSED, errors.EXIT_CONFIGURATION)
    expected = f"RestartPreventExitStatus={' '.join(map(str, codes))}"
    assert expected in unit.read_text(encoding="utf-8").splitlines()


def test_troubleshooting_explains_the_sentences_that_people_will_search_for() -> None:
    text = text_of("troubleshooting.md")
    refused = "Error polling for tasks: Connection refused"
    for sentence in (f"RuntimeError: {NO_RUNTIME}", node.INVALID_TOKEN, node.DISABLED, refused):
        assert f"```\n{sentence}\n```" in text
    for source, literal in ((cli, "RuntimeError: "), (poll, "Error polling for tasks: {")):
        assert f'"{literal}' in Path(str(source.__file__)).read_text(encoding="utf-8")


def test_reference_shows_true_matches_of_wildcards() -> None:
    rows = table_rows("reference.md", r"`[\w*-]+\*[\w*-]*`")
    assert len(rows) >= 5
    for pattern, name, is_match in rows:
        matches = fnmatchcase(name.strip("`"), pattern.strip("`"))
        assert is_match == ("yes" if matches else "no"), f"{pattern} and {name}"


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", document.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    ("document", "begin", "end"),
    [("security.md", "## Attacks tried", "\n## "), ("field-reports.md", "# Field reports", "\0")],
)
def test_each_row_of_attacks_and_reports_names_tests_that_are_there(
    document: str, begin: str, end: str
) -> None:
    text = text_of(document).partition(begin)[2].partition(end)[0]
    rows = [line for line in text.splitlines() if re.match(r"\| (?!Attack |Report |---)", line)]
    assert rows
    for row in rows:
        names = re.findall(r"`([^`]+)`", row.rsplit(" | ", 1)[1])
        assert names, row
        for file, _, test in (name.partition("::") for name in names):
            path = ROOT / "tests" / file
            assert path.is_file(), f"{file} is not there: {row}"
            assert f"def {test}(" in path.read_text(encoding="utf-8"), f"no {test}: {row}"


def test_security_document_says_first_what_is_common_in_a_shared_home() -> None:
    first = text_of("security.md").split("\n\n")[1]
    assert all(f"`{path.split('/')[0]}`" in first for path in COMMON if path != "notes.txt")
    assert "everything outside of `tasks/`" in first


@each_document
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


@each_document
def test_documents_name_no_image_but_the_default_and_no_package_of_an_index(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    images = re.findall(r"(?<![\w./-])[\w-]+\.(?:io|com|org)/[\w-]+/[\w./:-]+", text)
    assert {image.strip(".:") for image in images} <= {DEFAULT_IMAGE}
    # Until there is a release, what pip installs is a checkout or a wheel, by its path.
    assert re.findall(r"pip\d? install (?:-\S+ )*'?victoria[-_]runner(?!\S*\.whl)", text) == []


@each_document
def test_commands_with_sudo_work_where_sudo_does_not_look_into_usr_local(document: Path) -> None:
    """So it is in Debian sid: the runner's command has its full path."""
    text = document.read_text(encoding="utf-8")
    assert not re.search(r"sudo (?:-\S+ )*victoria-runner\b", text)
