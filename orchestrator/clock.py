"""The time of day, always in UTC."""

from datetime import datetime, timezone


def utc_now() -> datetime:
    """Give the present moment as an aware datetime."""
    return datetime.now(timezone.utc)
