"""What ends a command, with its exit code.

ClickException          2 for a mistake in the arguments (UsageError)
└── ClientError
    ├── Refused         4: the orchestrator refused the call, or does not have it
    │   └── Missing     what it is about is not there, or the orchestrator lacks the call
    ├── Unavailable     69: no response, or none of an orchestrator, or try again later
    ├── KeyRefused      77: the key may not do this
    │   └── KeyUnknown      nor anything else: it is unknown or has expired
    └── Unconfigured    78: the URL, the key, a file or a package is missing or unusable
"""

from __future__ import annotations

import click

from orchestrator.client.text import one_line


class ClientError(click.ClickException):
    """Ends the command with one sentence, which cannot control a terminal."""

    def format_message(self) -> str:
        """Return the sentence: names in it may be an orchestrator's."""
        return one_line(self.message)


class Refused(ClientError):
    """The orchestrator refused the call."""

    exit_code = 4


class Missing(Refused):
    """The response is 404 or 405."""


class Unavailable(ClientError):
    """There is no response, or none of an orchestrator."""

    exit_code = 69


class KeyRefused(ClientError):
    """The key may not do this."""

    exit_code = 77


class KeyUnknown(KeyRefused):
    """The key is unknown, or has expired."""


class Unconfigured(ClientError):
    """The URL, the key, a file or a package is missing or unusable."""

    exit_code = 78
