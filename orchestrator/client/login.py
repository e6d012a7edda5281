"""`login` stores the URL and a key; `completion` prints what a shell loads."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from orchestrator.client.access import (
    URL_VARIABLE,
    Access,
    check_key,
    check_url,
    store_login,
)
from orchestrator.client.connect import connect
from orchestrator.client.errors import KeyRefused, KeyUnknown, Unconfigured
from orchestrator.client.show import note

PROGRAM = "victoria-orchestrator"
_SHELLS = ("bash", "fish", "zsh")


@click.command()
@click.option(
    "--key-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File that holds the key, such as admin-key in the server's data folder.",
)
def login(key_file: Path | None) -> None:
    """Store an orchestrator's URL and a key, in a file that only you can read.

    Both are asked for on a terminal. Otherwise standard input has a line with each. The URL is not
    asked for if VICTORIA_ORCHESTRATOR_URL is set, nor the key with --key-file.
    """
    url = check_url(os.environ.get(URL_VARIABLE) or _ask("URL"))
    if key_file is None:
        key = _ask("API key", is_secret=True)
    else:
        try:
            key = key_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise Unconfigured(f"cannot read {key_file}: {error}; see its permissions") from error
    access = Access(url, check_key(key))
    _check_access(access)
    note(f"stored in {store_login(access)}")


def _ask(name: str, *, is_secret: bool = False) -> str:
    if sys.stdin.isatty():
        return str(click.prompt(name, hide_input=is_secret, err=True))
    line = sys.stdin.readline()
    if not line.strip():
        raise click.UsageError(f"{name} is missing on standard input")
    return line


def _check_access(access: Access) -> None:
    try:
        connect(access).call("log in", "GET", "/tasks", {"limit": 1})
    except KeyUnknown:
        raise
    except KeyRefused:
        return  # It may not list tasks, so it is a key.


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash: eval "$(victoria-orchestrator completion bash)" in ~/.bashrc
    zsh:  eval "$(victoria-orchestrator completion zsh)" in ~/.zshrc, after compinit
    fish: victoria-orchestrator completion fish | source in ~/.config/fish/config.fish
    """  # noqa: D301 - click's \b keeps the lines apart
    kind = get_completion_class(shell)
    if kind is None:
        raise Unconfigured(f"cannot complete in {shell}: click does not know it")
    variable = f"_{PROGRAM.replace('-', '_').upper()}_COMPLETE"
    script = kind(click.Command(PROGRAM), {}, PROGRAM, variable)
    click.echo(script.source())
