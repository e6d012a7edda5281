"""Announces new work to the long polls, in every process that serves the fleet.

An announcement is part of the transaction that makes the work: it goes out on commit, and never on
rollback. With SQLite there is one process, which wakes its own waiters. With PostgreSQL it goes
through the database (NOTIFY), and each process wakes one of its waiters.
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
    """The way from a transaction to the waiters."""

    def announce(self, session: Session, work: WorkAvailable | None) -> None:
        """Wake one node that the task may go to, or all nodes for None, after the commit."""
        ...

    async def listen(self) -> None:
        """Pass announcements on to the waiters, until cancelled."""
        ...


class WithinProcess:
    """Wakes the waiters of this process."""

    def __init__(self, waiters: Waiters) -> None:
        self._waiters = waiters
        self._loop: asyncio.AbstractEventLoop | None = None

    def announce(self, session: Session, work: WorkAvailable | None) -> None:
        """Wake in the event loop's thread, where all waiters are."""

        def wake(_: Session) -> None:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(_wake, self._waiters, work)

        event.listen(session, "after_commit", wake, once=True)

    async def listen(self) -> None:
        """Remember the event loop; there is nothing to pass on."""
        self._loop = asyncio.get_running_loop()


class ThroughPostgresql:
    """Wakes the waiters of every process that is connected to the database."""

    def __init__(self, url: URL, waiters: Waiters) -> None:
        self._address = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._waiters = waiters

    def announce(self, session: Session, work: WorkAvailable | None) -> None:
        """Notify all processes on commit."""
        session.execute(select(func.pg_notify(_CHANNEL, _payload(work))))

    async def listen(self) -> None:
        """Listen; reconnect for as long as it takes."""
        while True:
            try:
                await self._listen_once()
            except psycopg.OperationalError as error:
                log.warning("cannot listen for new work, retrying: %s", str(error).strip())
            except Exception:
                # A defect here must not leave the long polls asleep for good.
                log.exception("listening for new work failed, retrying")
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
            # Work that was announced while nobody listened is found by looking.
            self._waiters.wake_all()
            async for notice in connection.notifies():
                _wake(self._waiters, _parse(notice.payload))
        finally:
            with anyio.CancelScope(shield=True):
                await connection.close()


def _wake(waiters: Waiters, work: WorkAvailable | None) -> None:
    if work is None:
        waiters.wake_all()
    else:
        waiters.wake(work)


def _payload(work: WorkAvailable | None) -> str:
    if work is None:
        return _EVERYONE
    target = work.target
    tags = None if target.tags is None else dict(target.tags)
    payload = json.dumps([work.task_id, target.node_id, target.node_name, tags])
    return payload if len(payload) <= _LONGEST_PAYLOAD else _EVERYONE


def _parse(payload: str) -> WorkAvailable | None:
    if payload == _EVERYONE:
        return None
    task_id, node_id, node_name, tags = json.loads(payload)
    return WorkAvailable(task_id, Target(node_id, node_name, tags))
