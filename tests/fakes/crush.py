"""Crush as far as its database shows it: sessions and messages, written while others read."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

DURING = 1_700_000_010

SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (
    id TEXT PRIMARY KEY, parent_session_id TEXT, title TEXT NOT NULL,
    message_count INTEGER NOT NULL DEFAULT 0, prompt_tokens INTEGER NOT NULL DEFAULT 0,
    completion_tokens INTEGER NOT NULL DEFAULT 0, cost REAL NOT NULL DEFAULT 0.0,
    updated_at INTEGER NOT NULL, created_at INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS messages (
    id TEXT PRIMARY KEY, session_id TEXT NOT NULL, role TEXT NOT NULL,
    parts TEXT NOT NULL DEFAULT '[]', model TEXT, created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL, finished_at INTEGER, provider TEXT,
    FOREIGN KEY (session_id) REFERENCES sessions (id) ON DELETE CASCADE);
CREATE INDEX IF NOT EXISTS idx_messages_session_id ON messages (session_id);
"""


class Crush:
    """What Crush does to its database, as far as it matters here."""

    def __init__(
        self, path: Path, schema: str = SCHEMA, *, now: int = DURING, prefix: str = "m"
    ) -> None:
        """Open the database; `now` is the time of everything that has no time of its own.

        `prefix` stands before the numbers that are the messages' ids.
        """
        path.parent.mkdir(exist_ok=True)
        self.now = now
        self.prefix = prefix
        self.path = path
        self.connection = sqlite3.connect(path, timeout=30, isolation_level=None)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.executescript(schema)
        self._count = 0

    def begin(
        self,
        session_id: str,
        at: int | None = None,
        *,
        parent: str | None = None,
        prompt: str = "",
    ) -> None:
        """Make a session, with the user's message if there is a prompt."""
        at = self.now if at is None else at
        self.connection.execute(
            "INSERT INTO sessions VALUES (?, ?, 'A title', 2, 1200, 340, 0.25, ?, ?)",
            (session_id, parent, at + 5, at),
        )
        if prompt:
            self.say(session_id, text(prompt), role="user", at=at)

    def say(
        self, session_id: str, parts: object, *, role: str = "assistant", at: int | None = None
    ) -> None:
        """Add a message; parts that are text or bytes go in as they are."""
        at = self.now if at is None else at
        self._count += 1
        stored = parts if isinstance(parts, str | bytes | None) else json.dumps(parts)
        self.connection.execute(
            "INSERT INTO messages VALUES (?, ?, ?, ?, 'a-model', ?, ?, ?, 'a-provider')",
            (f"{self.prefix}{self._count}", session_id, role, stored, at, at, at + 1),
        )

    def close(self) -> None:
        """Close the database as Crush does when it ends."""
        self.connection.close()


def text(content: str) -> list[object]:
    """Return the parts of a message with this text."""
    return [{"type": "text", "data": {"text": content}}]
