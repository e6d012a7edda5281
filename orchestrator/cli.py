"""The command line, `victoria-orchestrator`: the server's commands and those for people.

Each is imported when it is called: the server's libraries take seconds to import, the client's do
not. Without a command, or with options only, it serves.
"""

import os
import sys
from typing import NoReturn

import click

from orchestrator import __version__
from orchestrator.client.lazy import LazyGroup
from orchestrator.client.root import COMMANDS

PROGRAM = "victoria-orchestrator"

_SERVER = {
    "serve": ("orchestrator.serve:main", "Run the server; the default without a command."),
    "check": ("orchestrator.serve:check", "Check an orchestrator against the contract."),
    "move-to-postgresql": ("orchestrator.serve:move", "Copy the SQLite database to PostgreSQL."),
}
_OPTIONS = ("--help", "--version")
_NOT_INSTALLED = 78
_INTERRUPTED = 130  # as a shell has it for SIGINT
_PIPE_CLOSED = 141  # and for SIGPIPE


@click.command(
    cls=LazyGroup,
    lazy={**_SERVER, **COMMANDS},
    context_settings={"max_content_width": 100},
)
@click.version_option(__version__, prog_name="orchestrator")
def command() -> None:
    """Run the reference orchestrator, or use one.

    The commands task, node, key, token, cleanup, stats and audit call an orchestrator. Its URL and
    key come from `login`, or from VICTORIA_ORCHESTRATOR_URL and VICTORIA_ORCHESTRATOR_API_KEY.
    """


def main(program: str = PROGRAM) -> NoReturn:
    """Run the command that the arguments name, and exit."""
    arguments = sys.argv[1:]
    is_completion = f"_{program.replace('-', '_').upper()}_COMPLETE" in os.environ
    if not is_completion and _is_for_server(arguments):
        _run_server(arguments, program)
    try:
        exit_code = command.main(arguments, prog_name=program, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        exit_code = error.exit_code
    except click.Abort:
        click.echo("Error: interrupted", err=True)
        exit_code = _INTERRUPTED
    except BrokenPipeError:
        # What reads the output has gone, as `head` does; the interpreter must not flush into it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        exit_code = _PIPE_CLOSED
    sys.exit(exit_code if isinstance(exit_code, int) else 0)


def _is_for_server(arguments: list[str]) -> bool:
    if not arguments:
        return True
    first = arguments[0]
    return first in _SERVER or (first.startswith("-") and first not in _OPTIONS)


def _run_server(arguments: list[str], program: str) -> NoReturn:
    try:
        from orchestrator.serve import run  # noqa: PLC0415 - takes seconds, so only where needed
    except ModuleNotFoundError as error:
        click.echo(
            f"Error: cannot run the server: the package {error.name} is not installed;"
            " install victoria-runner[orchestrator]",
            err=True,
        )
        sys.exit(_NOT_INSTALLED)
    if arguments[:1] == ["serve"]:
        run(arguments[1:], f"{program} serve")
    run(arguments, program)
