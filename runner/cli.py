"""The command line: one call for each command, and its end an exit code."""

from __future__ import annotations

import logging
import os
import sys
from functools import partial
from typing import Any, NoReturn

import anyio
import click

from runner import __version__
from runner.engine import NO_RUNTIME, find_engine
from runner.errors import EXIT_DEFECT, NoContainerRuntime, RunnerError
from runner.log import set_up_logging
from runner.options import TOKEN_OPTION, Options, positive, with_options

log = logging.getLogger(__name__)

PREFIX = "VICTORIA_RUNNER"
_TOKEN_VARIABLE = f"{PREFIX}_REGISTRATION_TOKEN"


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
    ctx.obj = Options(given)
    if ctx.invoked_subcommand is None:
        ctx.exit(_run(ctx.obj))


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


def _run(options: Options) -> int:
    from runner.app import run  # noqa: PLC0415 - doctor and cleanup need not load it
    from runner.systemd import Notifier  # noqa: PLC0415

    checked = options.settings()
    engine = find_engine(checked.container_runtime)
    return anyio.run(run, checked, engine, Notifier())


def main() -> NoReturn:
    """Run the command line and exit; whatever a user can cause ends in one sentence."""
    _hide_token()
    try:
        exit_code = command.main(standalone_mode=False)
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
