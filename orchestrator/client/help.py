"""Help texts that can be searched and copied."""

from __future__ import annotations

from collections.abc import Iterable

import click

_MIN_HELP_WIDTH = 78
"""So the longest word fits into its column: click cuts a longer one."""


class HelpFormatter(click.HelpFormatter):
    """Wraps at spaces only: a name cut at a hyphen can be neither found nor copied."""

    def __init__(
        self, indent_increment: int = 2, width: int | None = None, max_width: int | None = None
    ) -> None:
        super().__init__(indent_increment, width, max_width)
        self.width = max(self.width, _MIN_HELP_WIDTH)

    def write_dl(
        self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2
    ) -> None:
        """Write a list of terms and their texts."""
        unbreakable = [(term, text.replace("-", "\u2011")) for term, text in rows]
        super().write_dl(unbreakable, col_max, col_spacing)

    def write_text(self, text: str) -> None:
        """Write a paragraph."""
        super().write_text(text.replace("-", "\u2011"))

    def getvalue(self) -> str:
        """Return what has been written."""
        return super().getvalue().replace("\u2011", "-")


class Context(click.Context):
    """The context of a command whose help is written so."""

    formatter_class = HelpFormatter


def use_help(command: click.Command) -> click.Command:
    """Return the command; its help, and that of the commands below it, is written so."""
    command.context_class = Context
    if isinstance(command, click.Group):
        for below in command.commands.values():
            use_help(below)
    return command
