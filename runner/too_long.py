"""A log that the orchestrator, or a proxy before it, refuses as too long: cut, and sent again."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import anyio.to_thread

from runner.api import Identity, Orchestrator
from runner.crush_log import shortened
from runner.errors import Refused

_SMALLER_BYTES = (5_000_000, 1_000_000)
"""Half of what a log may have; and what nginx lets through unless it is told otherwise."""
_TOO_LONG = 413


async def hand_in_log(
    orchestrator: Orchestrator, identity: Identity, body: Mapping[str, object]
) -> Mapping[str, object]:
    """Hand in what `log_body` gives, shorter where that must be; give the session that was taken.

    Raises:
        Refused: it is refused for another reason, or however short it is.
        Unavailable: as everywhere.
    """
    smaller = iter(_SMALLER_BYTES)
    while True:
        session = body["session"]
        if not isinstance(session, Mapping):
            raise TypeError("the journal has a log without a session")
        try:
            await orchestrator.hand_in(identity, "logs", body)
        except Refused as error:
            cut = None
            while error.status == _TOO_LONG and cut is None:
                limit_bytes = next(smaller, None)
                if limit_bytes is None:
                    raise
                cut = await anyio.to_thread.run_sync(partial(shortened, session, limit_bytes))
            if cut is None:
                raise
            body = {**body, "session": cut}
        else:
            return session
