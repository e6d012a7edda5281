"""The secret that keys of tasks and rotated keys of nodes are derived from: one row.

It is made when it is first needed. So it is in every backup, moves to PostgreSQL with the other
tables, and is the same for all processes.
"""

import secrets

from sqlalchemy.exc import IntegrityError

from orchestrator.db.database import Database
from orchestrator.db.tables import ServerSecret

_NAME = "derived-keys"


class SigningSecret:
    """The secret, read once by each process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.known: bytes | None = None
        """The secret, if this process has read it."""

    def load(self) -> bytes:
        """Return the secret; make it if there is none. In a thread, and in no transaction."""
        if self.known is None:
            with self._database.autocommit() as session:
                row = session.get(ServerSecret, _NAME)
            self.known = bytes.fromhex(self._make() if row is None else row.value)
        return self.known

    def _make(self) -> str:
        with self._database.writing() as session:
            if session.get(ServerSecret, _NAME) is None:
                try:
                    with session.begin_nested():
                        session.add(ServerSecret(name=_NAME, value=secrets.token_hex(32)))
                except IntegrityError:
                    # Another process was faster: its row is there by now.
                    pass
            return session.get_one(ServerSecret, _NAME).value
