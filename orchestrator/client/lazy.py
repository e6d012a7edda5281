"""Commands that are imported when they are called, so that help and completion are fast."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, cast

import click
from click.shell_completion import CompletionItem

from orchestrator.client.help import Context, use_help


class LazyGroup(click.Group):
    """A group whose commands are named by `MODULE:ATTRIBUTE`, each with its line of help."""

    context_class = Context

    def __init__(
        self,
        *args: Any,  # noqa: ANN401 - click's own
        lazy: Mapping[str, tuple[str, str]],
        **attributes: Any,  # noqa: ANN401 - click's own
    ) -> None:
        """Offer the commands of the mapping, by name."""
        super().__init__(*args, **attributes)
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names in their order."""
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Return the command, imported."""
        if cmd_name not in self._lazy:
            return None
        module, _, attribute = self._lazy[cmd_name][0].partition(":")
        return use_help(cast("click.Command", getattr(import_module(module), attribute)))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self._lazy.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the names that begin so, without importing the commands, and the options."""
        names = [
            CompletionItem(name, help=text)
            for name, (_, text) in self._lazy.items()
            if name.startswith(incomplete)
        ]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]
