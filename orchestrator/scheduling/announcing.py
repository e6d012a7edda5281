"""Announces what long polls and caches must know, in every process that serves the fleet.

An announcement is part of the transaction that makes the change: it goes out on commit, and never
on rollback. With SQLite there is one process, which tells its own listener. With PostgreSQL it goes
through the database (NOTIFY) to the listener of each process.
"""

import asyncio
import json
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import anyio
import psycopg
from anyio import to_thread
from sqlalchemy import event, func, select
from sqlalchemy.orm import Session

from orchestrator.db.database import Database
from orchestrator.db.tables import Task
from orchestrator.model import Target
from orchestrator.scheduling.waiting import WorkAvailable

_CHANNEL = "victoria_work"  # as in LISTEN below, which takes no parameter
_LONGEST_PAYLOAD = 7900
"""PostgreSQL takes less than 8000 bytes."""
_CONNECT_WITHIN_S = 5
_CONNECT_AGAIN_S = 1.0
_LISTEN = "listen"

log = logging.getLogger(__name__)


class Listener(Protocol):
    """What announcements are passed to, in the event loop's thread."""

    def work_available(self, work: WorkAvailable) -> None:
        """Take in that a task needs a node."""
        ...

    def node_changed(self, node_id: str) -> None:
        """Take in that a node was removed or has registered again."""
        ...

    def start_over(self) -> None:
        """Forget what announcements would have changed: some may have been missed."""
        ...


class Announcer(Protocol):
    """The way from a transaction to the listeners."""

    is_shared: bool
    """Whether other processes announce too, so that what they did is heard a moment later."""

    def announce(self, session: Session, work: WorkAvailable) -> None:
        """Announce, after the commit, a task that needs a node."""
        ...

    def announce_node(self, session: Session, node_id: str) -> None:
        """Announce, after the commit, that a node was removed or has registered again."""
        ...

    async def listen(self) -> None:
        """Pass announcements on to the listener, until cancelled."""
        ...


class WithinProcess:
    """Calls the listener of this process."""

    is_shared = False

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._loop: asyncio.AbstractEventLoop | None = None

    def announce(self, session: Session, work: WorkAvailable) -> None:
        """Call it in the event loop's thread."""
        self._on_commit(session, partial(self._listener.work_available, work))

    def announce_node(self, session: Session, node_id: str) -> None:
        """Call it in the event loop's thread."""
        self._on_commit(session, partial(self._listener.node_changed, node_id))

    async def listen(self) -> None:
        """Remember the event loop; there is nothing to pass on."""
        self._loop = asyncio.get_running_loop()

    def _on_commit(self, session: Session, tell: Callable[[], None]) -> None:
        def after_commit(_: Session) -> None:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(tell)

        event.listen(session, "after_commit", after_commit, once=True)


class ThroughPostgresql:
    """Calls the listener of every process that is connected to the database."""

    is_shared = True

    def __init__(self, database: Database, listener: Listener) -> None:
        if database.url is None:
            raise TypeError("the database is not PostgreSQL")
        url = database.url.set(drivername="postgresql")
        self._address = url.render_as_string(hide_password=False)
        self._database = database
        self._listener = listener

    def announce(self, session: Session, work: WorkAvailable) -> None:
        """Notify all processes on commit."""
        target = work.target
        tags = None if target.tags is None else dict(target.tags)
        payload = json.dumps([work.task_id, target.node_id, target.node_name, tags])
        if len(payload) > _LONGEST_PAYLOAD:
            payload = json.dumps([work.task_id])
        session.execute(select(func.pg_notify(_CHANNEL, payload)))

    def announce_node(self, session: Session, node_id: str) -> None:
        """Notify all processes on commit."""
        session.execute(select(func.pg_notify(_CHANNEL, json.dumps(node_id))))

    async def listen(self) -> None:
        """Listen; reconnect for as long as it takes."""
        while True:
            try:
                await self._listen_once()
            except psycopg.OperationalError as error:
                event = f"cannot listen for new work, retrying: {str(error).strip()}"
                self._database.outage.note(_LISTEN, event, _CONNECT_AGAIN_S)
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
            # What was announced while nobody listened is found by looking.
            self._listener.start_over()
            self._database.outage.end(_LISTEN)
            async for notice in connection.notifies():
                await self._pass_on(json.loads(notice.payload))
        finally:
            with anyio.CancelScope(shield=True):
                await connection.close()

    async def _pass_on(self, payload: str | list[Any]) -> None:
        if isinstance(payload, str):
            self._listener.node_changed(payload)
            return
        task_id, *conditions = payload
        target: Target | None = Target(*conditions)
        if not conditions:
            target = await to_thread.run_sync(self._load, task_id)
        if target is not None:
            self._listener.work_available(WorkAvailable(task_id, target))

    def _load(self, task_id: str) -> Target | None:
        with self._database.reading() as session:
            task = session.scalars(select(Task).where(Task.id == task_id)).one_or_none()
            return None if task is None else task.target
