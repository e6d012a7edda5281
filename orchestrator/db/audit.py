"""The audit: every use of a key, and every change to one."""

from datetime import datetime, timedelta

from sqlalchemy import delete
from sqlalchemy.orm import Session

from orchestrator.db.tables import AuditEntry

KEPT_FOR = timedelta(days=365)

_LONGEST_DETAIL = 500


def record(  # noqa: PLR0913 - an entry's fields
    session: Session, now: datetime, *, key_id: str, action: str, detail: str, client: str
) -> AuditEntry:
    """Write and return one entry."""
    entry = AuditEntry(
        timestamp=now,
        key_id=key_id,
        action=action,
        detail=_printable(detail[:_LONGEST_DETAIL]),
        client=client,
    )
    session.add(entry)
    return entry


def _printable(text: str) -> str:
    # A path may have control characters, and the audit is read in terminals too.
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def prune(session: Session, now: datetime) -> None:
    """Delete entries older than `KEPT_FOR`."""
    session.execute(delete(AuditEntry).where(AuditEntry.timestamp < now - KEPT_FOR))
