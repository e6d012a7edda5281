"""Which refused calls are written into the audit: of those that are alike, one a minute.

A key that was revoked, or that calls over its rate, may be in a program that calls without end. It
is to be seen in the audit, and is not to fill the database. Each process keeps its own count.
"""

import threading
from datetime import datetime, timedelta

_NOTED_EVERY = timedelta(minutes=1)
_REMEMBERED = 10_000
"""At most so many are kept; what was noted longest ago is forgotten first."""


class Denials:
    """Remembers what was noted lately."""

    def __init__(self) -> None:
        self._noted: dict[tuple[str, str], datetime] = {}
        self._lock = threading.Lock()

    def is_due(self, key_id: str, cause: str, now: datetime) -> bool:
        """Say whether a refusal of this key, for this cause, is to be noted; then it is."""
        alike = (key_id, cause)
        with self._lock:
            last = self._noted.get(alike)
            if last is not None and now - last < _NOTED_EVERY:
                return False
            self._noted.pop(alike, None)
            self._noted[alike] = now
            if len(self._noted) > _REMEMBERED:
                self._noted.pop(next(iter(self._noted)))
        return True
