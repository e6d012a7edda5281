"""Tells waiting nodes of work, in every process that serves the fleet.

An announcement is part of the transaction that makes the work: it goes out when that is committed,
and never if it is not. With SQLite there is one process, and the bells are its own. With PostgreSQL
it goes through the database (NOTIFY), and each process rings one of its bells for it.
"""

import asyncio
import json
import logging
from typing import Protocol

import anyio
import psycopg
from sqlalchemy import event, func, select
from sqlalchemy.engine import URL
from sqlalchemy.orm import Session

from orchestrator.model import Target
from orchestrator.scheduling.waiting import Waiters, WorkAvailable

_CHANNEL = "victoria_work"  # as in LISTEN below, which takes no parameter
_EVERYONE = ""
_LONGEST_PAYLOAD = 7900
"""PostgreSQL takes less than 8000 bytes."""
_CONNECT_WITHIN_S = 5
_CONNECT_AGAIN_S = 1.0

log = logging.getLogger(__name__)


class Announcer(Protocol):
    """The way from a transaction to the bells."""

    def announce(self, session: Session, call: WorkAvailable | None) -> None:
        """Ring for one node that the task may go to, or for all nodes, after the commit."""
        ...

    async def listen(self) -> None:
        """Carry announcements to the bells, until cancelled."""
        ...


class WithinProcess:
    """Rings the bells of this process."""

    def __init__(self, waiters: Waiters) -> None:
        self._waiters = waiters
        self._loop: asyncio.AbstractEventLoop | None = None

    def announce(self, session: Session, call: WorkAvailable | None) -> None:
        """Ring in the event loop's thread, where all bells hang."""

        def ring(_: Session) -> None:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(_ring, self._waiters, call)

        event.listen(session, "after_commit", ring, once=True)

    async def listen(self) -> None:
        """Learn which event loop it is; there is nothing to carry."""
        self._loop = asyncio.get_running_loop()


class ThroughPostgresql:
    """Rings the bells of every process that is connected to the database."""

    def __init__(self, url: URL, waiters: Waiters) -> None:
        self._address = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._waiters = waiters

    def announce(self, session: Session, call: WorkAvailable | None) -> None:
        """Have the database tell all processes when it commits."""
        session.execute(select(func.pg_notify(_CHANNEL, _payload(call))))

    async def listen(self) -> None:
        """Wait for what others tell; connect again for as long as it takes."""
        while True:
            try:
                await self._listen_once()
            except psycopg.OperationalError as error:
                log.warning("cannot hear of new work, trying again: %s", str(error).strip())
            except Exception:
                # Whatever it is, nodes that wait would not hear of anything any more.
                log.exception("hearing of new work failed, trying again")
            await anyio.sleep(_CONNECT_AGAIN_S)

    async def _listen_once(self) -> None:
        # psycopg leaves a connection open that is cancelled while it is made or left.
        with anyio.CancelScope(shield=True):
            connection = await psycopg.AsyncConnection.connect(
                self._address,
                autocommit=True,
                connect_timeout=_CONNECT_WITHIN_S,
                keepalives_idle=30,
                application_name="victoria-orchestrator-listen",
            )
        try:
            await connection.execute("LISTEN victoria_work")
            # Whatever was told while nobody listened is found by looking.
            self._waiters.wake_all()
            async for notice in connection.notifies():
                _ring(self._waiters, _call(notice.payload))
        finally:
            with anyio.CancelScope(shield=True):
                await connection.close()


def _ring(waiters: Waiters, call: WorkAvailable | None) -> None:
    if call is None:
        waiters.wake_all()
    else:
        waiters.wake(call)


def _payload(call: WorkAvailable | None) -> str:
    if call is None:
        return _EVERYONE
    target = call.target
    tags = None if target.tags is None else dict(target.tags)
    payload = json.dumps([call.task_id, target.node_id, target.node_name, tags])
    return payload if len(payload) <= _LONGEST_PAYLOAD else _EVERYONE


def _call(payload: str) -> WorkAvailable | None:
    if payload == _EVERYONE:
        return None
    task_id, node_id, node_name, tags = json.loads(payload)
    return WorkAvailable(task_id, Target(node_id, node_name, tags))
