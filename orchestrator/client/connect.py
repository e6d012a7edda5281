"""The orchestrator that a command calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from orchestrator.client.access import Access, load_access

if TYPE_CHECKING:
    from orchestrator.client.api import Api


def connect(access: Access | None = None) -> Api:
    """Return the orchestrator of the environment or of the login file, until the command ends.

    Raises Unconfigured.
    """
    # httpx takes a third of a second to import: help and completion are faster without.
    from orchestrator.client.api import Api  # noqa: PLC0415

    api = Api(access or load_access())
    click.get_current_context().call_on_close(api.http.close)
    return api
