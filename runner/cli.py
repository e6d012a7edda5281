"""The command line: options, commands and exit codes."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import anyio
import click

from runner import __version__, settings
from runner.api.address import check_orchestrator_url
from runner.engine.cli import NO_RUNTIME, find_engine
from runner.errors import EXIT_DEFECT, NoContainerRuntime, RunnerError
from runner.log import set_up_logging
from runner.model import PullPolicy
from runner.redaction import Secret
from runner.settings import Settings, check_limits, check_run_args
from runner.timing import DEFAULT_TIMINGS, Timings

TOKEN_OPTION = "--registration-token"  # noqa: S105 - the option's name
log = logging.getLogger(__name__)
PREFIX = "VICTORIA_RUNNER"
_TOKEN_VARIABLE = f"{PREFIX}_REGISTRATION_TOKEN"


@dataclass(frozen=True)
class Options:
    """The command line as given, with defaults filled in, before anything is checked."""

    given: Mapping[str, Any]

    def settings(self, *, is_for_running: bool = True) -> Settings:
        """Check everything; a command beside running may do without URL, token and folders.

        Raises:
            ConfigurationError: the first thing that cannot be used.
            click.UsageError: something that is needed to run is missing.
        """
        given = self.given
        home = self._victoria_home(may_ask=is_for_running)
        state_dir = given["state_dir"] or settings.default_state_dir()
        url = given["orchestrator_url"] or ""
        if is_for_running and not url:
            raise click.UsageError(
                "Missing option '--orchestrator-url': say where the orchestrator is."
            )
        if url:
            url = check_orchestrator_url(url, allow_http=given["allow_http"])
        token = self._token()
        if is_for_running and not token:
            raise click.UsageError(
                "Missing option '--registration-token-file' (or '--registration-token'): "
                "registering needs it."
            )
        image = settings.check_image(given["container_image"], given["allow_image"])
        env_file = given["env_file"] and settings.check_env_file(given["env_file"])
        ca_file = given["ca_file"] and settings.check_readable(given["ca_file"], "--ca-file")
        tags = settings.check_tags(given["tag"])
        name = settings.check_name(given["name"] or settings.default_name())
        if is_for_running:
            home = settings.check_mountable(home, "--victoria-home")
            home = settings.make_folder(home, "--victoria-home")
            state_dir = settings.make_folder(state_dir, "--state-dir")
        return Settings(
            orchestrator_url=url,
            name=name,
            victoria_home=home,
            state_dir=state_dir,
            registration_token=token,
            poll_interval_s=given["poll_interval"],
            heartbeat_interval_s=given["heartbeat_interval"],
            container_image=image,
            env_file=env_file,
            container_runtime=given["container_runtime"],
            max_tasks=given["max_tasks"],
            tags=tags,
            capabilities=given["capability"],
            pull=PullPolicy(given["pull"]),
            limits=check_limits(given["memory"], given["cpus"], given["gpus"]),
            run_args=check_run_args(given["run_arg"]),
            ca_file=ca_file,
            min_free_disk=given["min_free_disk"],
            allow_images=given["allow_image"],
            once=given["once"],
        )

    def _victoria_home(self, *, may_ask: bool) -> Path:
        home = self.given["victoria_home"]
        if home is None and may_ask and sys.stdin.isatty():
            home = click.prompt(
                "Victoria home: the folder that tasks share with this host",
                default=settings.DEFAULT_VICTORIA_HOME,
                type=_PATH,
            )
        default = Path(settings.DEFAULT_VICTORIA_HOME)
        return settings.in_home(home or default, "--victoria-home")

    def _token(self) -> Secret:
        text, path = self.given["registration_token"], self.given["registration_token_file"]
        if text is not None and path is not None:
            raise click.UsageError(
                "'--registration-token' and '--registration-token-file' exclude each other: "
                "give one of them."
            )
        if path is not None:
            return settings.read_token_file(path)
        if text is not None:
            return settings.check_token(text, TOKEN_OPTION)
        return Secret("")


def _size(ctx: click.Context, param: click.Parameter, value: str) -> int:
    try:
        return settings.parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx=ctx, param=param) from error


def positive(ctx: click.Context, param: click.Parameter, value: float) -> float:
    """Give a number that is more than nothing and less than for ever, as a callback of click."""
    if not 0 < value < float("inf"):
        raise click.BadParameter("it must be more than 0.", ctx=ctx, param=param)
    return value


class _InHome(click.Path):
    """A path that may begin with ~, whichever way it was given: a variable has no shell."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if not os.fspath(value):
            # To pathlib nothing is the current folder, which nobody has meant.
            raise click.BadParameter("it is empty: give a path.", ctx=ctx, param=param)
        return settings.in_home(path, param.opts[-1] if param else "the path")


_PATH = _InHome(path_type=Path)


_option = partial(click.option, show_envvar=True)


_OPTIONS = [
    _option("--name", help="Name of this node, for task targeting.  [default: host name]"),
    _option("--orchestrator-url", help="URL of the orchestrator. Required to run."),
    _option(
        "--registration-token",
        help="Token for registering with the orchestrator. Required to run, this way or by file.",
    ),
    _option(
        "--registration-token-file", type=_PATH, help="File that holds the registration token."
    ),
    _option(
        "--poll-interval",
        type=float,
        default=settings.DEFAULT_POLL_INTERVAL_S,
        callback=positive,
        metavar="SECONDS",
        help="How often to ask for work, when the request is not held.  [default: 30]",
    ),
    _option(
        "--heartbeat-interval",
        type=float,
        default=settings.DEFAULT_HEARTBEAT_INTERVAL_S,
        callback=positive,
        metavar="SECONDS",
        help="How often to say that this node lives; a new status is told at once.  [default: 15]",
    ),
    _option(
        "--container-image",
        default=settings.DEFAULT_IMAGE,
        show_default=True,
        help="Victoria Terminal container image.",
    ),
    _option(
        "--victoria-home",
        type=_PATH,
        metavar="FOLDER",
        help="Folder that tasks share with this host; asked for on a terminal."
        f"  [default: {settings.DEFAULT_VICTORIA_HOME}]",
    ),
    _option("--env-file", type=_PATH, help="File of NAME=VALUE lines for the container."),
    _option(
        "--container-runtime",
        type=click.Choice(["auto", "podman", "docker"]),
        default="auto",
        show_default=True,
        help="Container engine; auto takes podman, else docker.",
    ),
    _option(
        "--state-dir",
        type=_PATH,
        help="Folder of the journal.  [default: STATE_DIRECTORY, else the XDG state folder]",
    ),
    _option(
        "--max-tasks",
        type=click.IntRange(min=1, max=1000),
        default=1,
        show_default=True,
        help="How many tasks may run at once.",
    ),
    _option(
        "--tag", multiple=True, metavar="KEY=VALUE", help="Tag for targeting; may be repeated."
    ),
    _option(
        "--capability", multiple=True, metavar="NAME", help="Told at registration; repeatable."
    ),
    _option(
        "--pull",
        type=click.Choice([policy.value for policy in PullPolicy]),
        default=PullPolicy.NEWER.value,
        show_default=True,
        help="When to fetch the image.",
    ),
    _option("--memory", metavar="SIZE", help="Memory limit of a container, such as 8g."),
    _option("--cpus", metavar="NUMBER", help="CPU limit of a container, such as 2.5."),
    _option("--gpus", metavar="all|0,1", help="GPUs that a container may use."),
    _option(
        "--run-arg", multiple=True, metavar="ARG", help="Handed to the engine's run; repeatable."
    ),
    _option("--ca-file", type=_PATH, help="PEM file of a private CA to trust as well."),
    _option(
        "--min-free-disk",
        metavar="SIZE",
        default=str(settings.DEFAULT_MIN_FREE_DISK),
        callback=_size,
        help="Take no task and write no file when less would stay free.  [default: 1G]",
    ),
    _option(
        "--allow-image", multiple=True, metavar="GLOB", help="Run only such images; repeatable."
    ),
    _option("--allow-http", is_flag=True, help="Allow plain http to other hosts than this one."),
    _option("--once", is_flag=True, help="Ask once, run what is given, and exit."),
    _option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="Form of the log on standard error.",
    ),
    _option("-v", "--verbose", count=True, help="Log more."),
]


def with_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command every option of the runner, as a decorator."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@click.group(
    invoke_without_command=True,
    context_settings={
        "auto_envvar_prefix": PREFIX,
        "show_default": False,
        "help_option_names": ["-h", "--help"],
    },
)
@with_options
@click.version_option(__version__, prog_name="victoria-runner", allow_from_autoenv=False)
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> None:
    """Run tasks from an orchestrator in containers on this host.

    Without a command it runs until it is told to stop. TERM leaves running containers to the next
    runner, INT (Ctrl-C) waits for them, a second INT stops them, USR1 waits and exits.

    A variable with several values, such as VICTORIA_RUNNER_TAG, has blanks between them.
    """
    set_up_logging(given["log_format"], given["verbose"])
    timings: Timings = ctx.obj
    ctx.obj = Options(given)
    if ctx.invoked_subcommand is None:
        ctx.exit(_run(ctx.obj, timings))


@command.command()
@click.option("--json", "as_json", is_flag=True, help="Tell it as JSON, with the journal's tasks.")
@click.pass_context
def doctor(ctx: click.Context, /, *, as_json: bool) -> None:
    """Look at everything that a task needs; exit code 0 if tasks can run here."""
    from runner.doctor import examine  # noqa: PLC0415 - running need not load it

    checked = ctx.obj.settings(is_for_running=False)
    ctx.exit(anyio.run(partial(examine, checked, click.echo, as_json=as_json)))


@command.command()
@click.option(
    "--older-than",
    type=float,
    default=7,
    callback=positive,
    metavar="DAYS",
    help="Remove the folders of finished tasks not touched for so long.  [default: 7]",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.pass_context
def cleanup(ctx: click.Context, /, *, older_than: float, dry_run: bool) -> None:
    """Remove the containers and folders of finished tasks; a runner may be at work."""
    from runner.cleanup import Scope, clean_up  # noqa: PLC0415 - running need not load it

    checked = ctx.obj.settings(is_for_running=False)
    ctx.exit(anyio.run(clean_up, checked, Scope(older_than, dry_run), click.echo))


def _run(options: Options, timings: Timings) -> int:
    from runner.daemon import run  # noqa: PLC0415 - doctor and cleanup need not load it
    from runner.node import runtime_to_use  # noqa: PLC0415
    from runner.systemd import Notifier  # noqa: PLC0415

    checked = options.settings()
    engine = find_engine(anyio.run(runtime_to_use, checked), timings=timings)
    return anyio.run(partial(run, checked, engine, Notifier(), timings=timings))


def main(timings: Timings = DEFAULT_TIMINGS) -> NoReturn:
    """Run the command line and exit; whatever a user can cause ends in one sentence."""
    _hide_token()
    try:
        exit_code = command.main(standalone_mode=False, obj=timings)
    except click.ClickException as error:
        error.show()
        exit_code = error.exit_code
    except click.Abort:
        exit_code = 130
    except NoContainerRuntime as error:
        print(f"RuntimeError: {NO_RUNTIME}", file=sys.stderr)
        exit_code = error.exit_code
    except RunnerError as error:
        print(f"victoria-runner: {error}", file=sys.stderr)
        exit_code = error.exit_code
    except Exception:
        log.exception("a defect of the runner")
        exit_code = EXIT_DEFECT
    sys.exit(exit_code or 0)


def _hide_token() -> None:
    """Start over with the token in the environment, when it stands where `ps` shows it."""
    arguments = list(sys.orig_argv)
    kept: list[str] = []
    token = None
    while arguments:
        argument = arguments.pop(0)
        if argument == TOKEN_OPTION and arguments:
            token = arguments.pop(0)
        elif argument.startswith(f"{TOKEN_OPTION}="):
            token = argument.partition("=")[2]
        else:
            kept.append(argument)
    if token is None:
        return
    os.environ[_TOKEN_VARIABLE] = token
    os.execv(sys.executable, [sys.executable, *kept[1:]])  # noqa: S606 - our own command line
