"""The command line: options, commands and exit codes.

What cannot be parsed is an error of usage (exit code 2), what cannot be used one of configuration
(78). Which is which stays as it is: scripts and units rely on it.
"""

from __future__ import annotations

import locale
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import anyio
import click
from click.core import ParameterSource

from runner import __version__, settings
from runner.api.address import check_orchestrator_url
from runner.engine.cli import NO_RUNTIME, find_engine
from runner.env_file import check_env_file
from runner.errors import EXIT_DEFECT, NoContainerRuntime, RunnerError
from runner.log import is_journal, print_error, printable, set_up_logging
from runner.model import Hardening, HomeMode, Limits, PromptAs, PullPolicy
from runner.settings import Settings
from runner.timing import DEFAULT_TIMINGS, Timings

log = logging.getLogger(__name__)
PREFIX = "VICTORIA_RUNNER"
_TOKEN_OPTION = "--registration-token"  # noqa: S105 - the option's name
_TOKEN_VARIABLE = f"{PREFIX}_REGISTRATION_TOKEN"


# Types of options


class _Value(click.ParamType):  # type: ignore[type-arg] # a generic only since click 8.4
    """What `parse` makes of a text. Its ValueError is an error of usage."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


class _Path(click.Path):
    """A path that may begin with ~: in a variable no shell expands it."""

    def __init__(self, name: str, check: Callable[[Path], Any] = lambda path: path) -> None:
        super().__init__(path_type=Path)
        self.name = name
        self._check = check

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not os.fspath(value):
            # `Path("")` is the current directory, which is never what was meant.
            self.fail("it is empty: give a path.", param, ctx)
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        return self._check(settings.expand_home(path, param.opts[-1] if param else "the path"))


# Options


def _option(flag: str, kind: Any, text: str, /, **attributes: Any) -> Callable[..., Any]:
    return click.option(flag, type=kind, help=text, show_envvar=True, **attributes)


_SECONDS = _Value("seconds", settings.parse_positive)
_OPTIONS = [
    _option(
        "--name",
        _Value("name", lambda name: settings.check_name(_as_unicode(name or socket.gethostname()))),
        "Name of this node, for task targeting.",
        default=socket.gethostname,
        show_default="host name",
    ),
    _option("--orchestrator-url", str, "URL of the orchestrator. Required to run.", metavar="URL"),
    _option(
        _TOKEN_OPTION,
        _Value("token", partial(settings.parse_token, source=_TOKEN_OPTION)),
        "Token for registering with the orchestrator. Required to run, here or in a file.",
    ),
    _option(
        "--registration-token-file",
        _Path("file", settings.read_token_file),
        "File that holds the registration token.",
    ),
    _option(
        "--poll-interval",
        _SECONDS,
        "Polling interval when the orchestrator does not support long polling.",
        default=settings.DEFAULT_POLL_INTERVAL_S,
    ),
    _option(
        "--heartbeat-interval",
        _SECONDS,
        "Heartbeat interval; status changes are sent immediately.",
        show_default="15, or as the orchestrator asks",
    ),
    _option(
        "--container-image",
        _Value("image", settings.check_image),
        "Victoria Terminal container image.",
        default=settings.DEFAULT_IMAGE,
    ),
    _option(
        "--victoria-home",
        _Path("folder"),
        "Folder that tasks share with this host. A terminal prompts for it.",
        default=settings.DEFAULT_VICTORIA_HOME,
    ),
    _option(
        "--home",
        click.Choice([mode.value for mode in HomeMode]),
        "Share the Victoria home, or give each task a copy of its own.",
        default=HomeMode.SHARED.value,
    ),
    _option(
        "--env-file",
        _Path("file"),
        "Container variables: NAME=VALUE lines, quotes and comments as in a .env file.",
    ),
    _option(
        "--container-runtime",
        click.Choice(["auto", "podman", "docker"]),
        "Container engine; auto takes podman, else docker.",
        default="auto",
    ),
    _option(
        "--state-dir",
        _Path("folder"),
        "Folder of the journal; STATE_DIRECTORY (systemd) or XDG_STATE_HOME move the default.",
        default=settings.default_state_dir,
        show_default="~/.local/state/victoria-runner",
    ),
    _option(
        "--max-tasks",
        click.IntRange(1, 1000),
        "How many tasks may run at once.",
        default=1,
        metavar="NUMBER",
    ),
    _option("--tag", str, "Tag for targeting; repeatable.", multiple=True, metavar="KEY=VALUE"),
    _option(
        "--capability",
        str,
        "Capability announced at registration; repeatable.",
        multiple=True,
        metavar="NAME",
    ),
    _option(
        "--pull",
        click.Choice([policy.value for policy in PullPolicy]),
        "When to pull the image.",
        default=PullPolicy.NEWER.value,
    ),
    _option(
        "--memory",
        _Value("size", settings.check_memory),
        "Memory limit of a container, such as 8g.",
    ),
    _option(
        "--cpus", _Value("number", settings.check_cpus), "CPU limit of a container, such as 2.5."
    ),
    _option(
        "--gpus",
        _Value("gpus", settings.check_gpus),
        "GPUs that a container may use.",
        metavar="all|0,1",
    ),
    _option(
        "--run-arg",
        _Value("arg", settings.check_run_arg),
        "Extra argument for the engine's run command; repeatable.",
        multiple=True,
    ),
    _option(
        "--engine-env",
        _Value("name", settings.check_engine_env),
        "Variable that the engine inherits, such as one of a credential helper; repeatable.",
        multiple=True,
    ),
    _option(
        "--ca-file",
        _Path("file", settings.check_ca_file),
        "PEM file of an additional CA to trust.",
    ),
    _option(
        "--min-free-disk",
        _Value("size", settings.parse_size),
        "Stop taking tasks and writing files when less disk space would remain.",
        default="1G",
    ),
    _option(
        "--max-artifacts",
        click.IntRange(0, 100_000),
        "How many artifacts of a task are uploaded; 0 leaves them on this host.",
        default=settings.DEFAULT_MAX_ARTIFACTS,
        metavar="NUMBER",
    ),
    _option(
        "--max-artifact-size",
        _Value("size", settings.parse_size),
        "Do not upload artifacts that are larger.",
        default="1G",
    ),
    _option(
        "--allow-image",
        str,
        "Refuse images that match none of these patterns; repeatable.",
        multiple=True,
        metavar="GLOB",
    ),
    _option(
        "--hardening",
        click.Choice([level.value for level in Hardening]),
        "What a container may not do; engine leaves that to the engine.",
        default=Hardening.DEFAULT.value,
    ),
    _option(
        "--prompt-as",
        click.Choice([way.value for way in PromptAs]),
        "How a container gets its prompt; file keeps it out of ps, if the image supports it.",
        default=PromptAs.ARGUMENT.value,
    ),
    _option(
        "--trust-assignment-url",
        bool,
        "Let tasks report to another https address, if their assignment names one.",
        is_flag=True,
    ),
    _option("--allow-http", bool, "Allow plain HTTP to hosts other than this one.", is_flag=True),
    _option(
        "--require-task-key",
        bool,
        "Reject tasks for which the orchestrator sends no key of their own.",
        is_flag=True,
    ),
    _option("--once", bool, "Ask for work once, run it, and exit.", is_flag=True),
    _option(
        "--log-format",
        click.Choice(["text", "json"]),
        "Format of the log on standard error.",
        default="text",
    ),
    click.option(
        "-v", "--verbose", count=True, show_default=False, show_envvar=True, help="Log more."
    ),
]
_FIELDS_OF_SETTINGS = {
    "tag": "tags",
    "capability": "capabilities",
    "run_arg": "run_args",
    "allow_image": "allow_images",
    "poll_interval": "poll_interval_s",
    "heartbeat_interval": "heartbeat_interval_s",
}
"""Option to field, where their names differ."""


def _with_options(function: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def _settings(ctx: click.Context, *, to_run: bool) -> Settings:
    """Return the settings of this command line; only to run, URL, token and folders are needed.

    Raises:
        ConfigurationError: what was given cannot be used.
        click.UsageError: something required is missing, or given twice.
    """
    params = {
        _FIELDS_OF_SETTINGS.get(name, name): _as_unicode(value)
        for name, value in ctx.find_root().params.items()
    }
    del params["log_format"], params["verbose"]
    url, allow_http = params["orchestrator_url"] or "", params.pop("allow_http")
    token, token_in_file = params["registration_token"], params.pop("registration_token_file")
    if token and token_in_file:
        raise click.UsageError(
            "'--registration-token' and '--registration-token-file' exclude each other: "
            "give one of them."
        )
    if to_run and not url:
        raise click.UsageError(
            "Missing option '--orchestrator-url': say where the orchestrator is."
        )
    if to_run and not (token or token_in_file):
        raise click.UsageError(
            "Missing option '--registration-token-file' (or '--registration-token'): "
            "registering needs it."
        )
    params["orchestrator_url"] = url and check_orchestrator_url(url, allow_http=allow_http)
    params["registration_token"] = token or token_in_file or settings.NO_TOKEN
    params["pull"] = PullPolicy(params["pull"])
    params["hardening"] = Hardening(params["hardening"])
    params["prompt_as"] = PromptAs(params["prompt_as"])
    params["home"] = HomeMode(params["home"])
    params["tags"] = settings.parse_tags(params["tags"])
    params["capabilities"] = settings.check_capabilities(params["capabilities"])
    params["limits"] = Limits(params.pop("memory"), params.pop("cpus"), params.pop("gpus"))
    settings.check_image_policy(params["container_image"], params["allow_images"])
    if to_run:
        if params["env_file"] is not None:
            params["env_file"] = check_env_file(params["env_file"])
        home = settings.check_mountable(_victoria_home(ctx), "--victoria-home")
        params["victoria_home"] = settings.make_folder(home, "--victoria-home")
        params["state_dir"] = settings.make_folder(params["state_dir"], "--state-dir")
    return Settings(**params)


def _as_unicode(value: Any) -> Any:
    """Return an option's text, or each of several; what is not UTF-8 is decoded by the locale."""
    if isinstance(value, tuple):
        return tuple(map(_as_unicode, value))
    if not isinstance(value, str) or value.isascii():
        return value
    content = os.fsencode(value)
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content.decode(locale.nl_langinfo(locale.CODESET), errors="replace")


def _victoria_home(ctx: click.Context) -> Path:
    """Return the Victoria home; ask for it on a terminal when it was not given."""
    home = ctx.params["victoria_home"]
    is_given = ctx.get_parameter_source("victoria_home") is not ParameterSource.DEFAULT
    if not is_given and sys.stdin.isatty():
        home = click.prompt(
            "Victoria home: the folder that tasks share with this host",
            default=settings.DEFAULT_VICTORIA_HOME,
            type=_Path("folder"),
        )
    return Path(home)


# Commands


_MIN_HELP_WIDTH = 78
"""So the longest word fits into its column: click cuts a longer one."""


class _HelpFormatter(click.HelpFormatter):
    """Wraps at spaces only: a name cut at a hyphen can be neither found nor copied."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.width = max(self.width, _MIN_HELP_WIDTH)

    def write_dl(self, rows: Iterable[tuple[str, str]], *args: Any, **kwargs: Any) -> None:
        unbreakable = [(term, text.replace("-", "\u2011")) for term, text in rows]
        super().write_dl(unbreakable, *args, **kwargs)

    def write_text(self, text: str) -> None:
        super().write_text(text.replace("-", "\u2011"))

    def getvalue(self) -> str:
        return super().getvalue().replace("\u2011", "-")


class _Context(click.Context):
    formatter_class = _HelpFormatter


@click.group(
    invoke_without_command=True,
    context_settings={
        "auto_envvar_prefix": PREFIX,
        "show_default": True,
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    },
)
@_with_options
@click.version_option(__version__, prog_name="victoria-runner", allow_from_autoenv=False)
@click.pass_context
def command(ctx: click.Context, /, *, log_format: str, verbose: int, **_: Any) -> None:
    """Run tasks from an orchestrator in containers on this host.

    Without a command it runs until a signal ends it: TERM leaves running containers to the next
    runner, INT (Ctrl-C) waits for them, a second INT stops them, USR1 waits and exits.

    Options go before the command. An option overrides its variable. Separate several values in a
    variable, such as VICTORIA_RUNNER_TAG, with spaces.
    """
    set_up_logging(log_format, verbose)
    if ctx.invoked_subcommand is None:
        ctx.exit(_run(ctx))


@command.command()
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    show_envvar=True,
    help="Print the report as JSON, including tasks in the journal.",
)
@click.option(
    "--run",
    "runs",
    is_flag=True,
    show_envvar=True,
    help="Start a container as for a task, and print what it may do.",
)
@click.option(
    "--fetch",
    "fetches",
    is_flag=True,
    show_envvar=True,
    help="Fetch the image as for a task.",
)
@click.pass_context
def doctor(ctx: click.Context, /, *, as_json: bool, runs: bool, fetches: bool) -> None:
    """Check everything that a task needs. Exit code 0: tasks can run here."""
    from runner.doctor import examine  # noqa: PLC0415 - running need not load it

    checked = _settings(ctx, to_run=False)
    how = {"as_json": as_json, "runs": runs, "fetches": fetches}
    ctx.exit(anyio.run(partial(examine, checked, click.echo, **how)))


@command.command()
@_option(
    "--older-than",
    _Value("days", settings.parse_positive),
    "Remove the folders of tasks that finished this long ago.",
    default=7,
)
@_option("--dry-run", bool, "Only print what would be removed.", is_flag=True)
@click.pass_context
def cleanup(ctx: click.Context, /, *, older_than: float, dry_run: bool) -> None:
    """Remove old images, and finished tasks' containers and folders. A runner may be active."""
    from runner.cleanup import Scope, clean_up  # noqa: PLC0415 - running need not load it

    checked = _settings(ctx, to_run=False)
    ctx.exit(anyio.run(clean_up, checked, Scope(older_than, dry_run), click.echo))


@command.group()
def outbox() -> None:
    """List reports that are not delivered; retry or drop parked ones."""


_JSON = click.option("--json", "as_json", is_flag=True, show_envvar=True, help="Print JSON.")
_IDS = click.argument("ids", nargs=-1, metavar="[ID]...")


@outbox.command(name="list")
@_JSON
@click.pass_context
def outbox_list(ctx: click.Context, /, *, as_json: bool) -> None:
    """List the reports in the outbox: waiting, or parked with the reason."""
    from runner.outbox import list_reports  # noqa: PLC0415 - running need not load it

    checked = _settings(ctx, to_run=False)
    ctx.exit(anyio.run(partial(list_reports, checked, click.echo, as_json=as_json)))


@outbox.command(name="retry")
@_IDS
@_JSON
@click.pass_context
def outbox_retry(ctx: click.Context, /, *, ids: tuple[str, ...], as_json: bool) -> None:
    """Send parked reports again: all, or those of these ids or tasks."""
    from runner.outbox import retry_reports  # noqa: PLC0415 - running need not load it

    checked = _settings(ctx, to_run=False)
    ctx.exit(anyio.run(partial(retry_reports, checked, ids, click.echo, as_json=as_json)))


@outbox.command(name="drop")
@_IDS
@click.option(
    "--all", "all_parked", is_flag=True, show_envvar=True, help="Drop all parked reports."
)
@_JSON
@click.pass_context
def outbox_drop(
    ctx: click.Context, /, *, ids: tuple[str, ...], all_parked: bool, as_json: bool
) -> None:
    """Delete parked reports: those of these ids or tasks. A terminal asks if none is given."""
    from runner.outbox import describe, drop_reports, parked_and_waiting  # noqa: PLC0415 - as above

    checked = _settings(ctx, to_run=False)
    if not ids and not all_parked:
        if as_json or not sys.stdin.isatty():
            raise click.UsageError("Missing the ids of the reports: give them, or '--all'.", ctx)
        parked = [
            entry for entry in anyio.run(parked_and_waiting, checked) if entry.parked is not None
        ]
        if not parked:
            click.echo("no parked reports")
            return
        for entry in parked:
            click.echo(describe(entry))
        click.confirm("Drop them?", abort=True)
        # Not those that are parked meanwhile, which nobody has seen.
        ids = tuple(str(entry.row) for entry in parked)
    ctx.exit(anyio.run(partial(drop_reports, checked, ids, click.echo, as_json=as_json)))


for _command in (command, *command.commands.values(), *outbox.commands.values()):
    _command.context_class = _Context


def _run(ctx: click.Context) -> int:
    from runner.daemon import run  # noqa: PLC0415 - doctor and cleanup need not load it
    from runner.node import runtime_to_use  # noqa: PLC0415

    checked = _settings(ctx, to_run=True)
    timings: Timings = ctx.obj
    runtime = anyio.run(runtime_to_use, checked)
    engine = find_engine(runtime, timings=timings, inherited=checked.engine_env)
    return anyio.run(partial(run, checked, engine, timings=timings))


def main(timings: Timings = DEFAULT_TIMINGS) -> NoReturn:
    """Run the command line and exit; whatever a user can cause ends in one sentence."""
    _restart_if_needed()
    set_up_logging("text", 0)
    try:
        exit_code = command.main(standalone_mode=False, obj=timings)
    except click.ClickException as error:
        if is_journal(sys.stderr):  # as one entry
            print_error(f"Error: {error.format_message()}")
        else:
            error.show()
        exit_code = error.exit_code
    except click.Abort:
        exit_code = 130
    except NoContainerRuntime as error:
        print_error(f"RuntimeError: {NO_RUNTIME}")
        exit_code = error.exit_code
    except RunnerError as error:
        print_error(f"victoria-runner: {printable(str(error))}")
        exit_code = error.exit_code
    except Exception:
        log.exception("a defect of the runner")
        exit_code = EXIT_DEFECT
    sys.exit(exit_code or 0)


def _restart_if_needed() -> None:
    """Restart with a token that is an argument in the environment, and in Python's UTF-8 mode.

    `ps` shows arguments to everybody. In a locale of another encoding, a file whose name it lacks
    could not be written, and the others would have names that the container does not find.
    """
    arguments = iter(sys.orig_argv[1:])
    other_arguments: list[str] = []
    token = None
    for argument in arguments:
        if argument == _TOKEN_OPTION:
            token = next(arguments, None)
        elif argument.startswith(f"{_TOKEN_OPTION}="):
            token = argument.partition("=")[2]
        else:
            other_arguments.append(argument)
    is_utf8 = sys.getfilesystemencoding() == "utf-8"
    if token is None and is_utf8:
        return
    if token is not None:
        os.environ[_TOKEN_VARIABLE] = token
    mode = [] if is_utf8 else ["-X", "utf8"]
    os.execv(sys.executable, [sys.executable, *mode, *other_arguments])  # noqa: S606 - our own command line
