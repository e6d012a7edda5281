"""How many calls a minute: one moment, up to which the calls so far are paid for, is all it keeps.

Each call moves that moment on by its share of a minute. It may lie at most a minute ahead, so a
minute's calls may come at once and after that as many as the rate gives.
"""

from datetime import datetime, timedelta

_MINUTE = timedelta(minutes=1)


def pay(
    paid_until: datetime | None, now: datetime, per_minute: int
) -> tuple[datetime, timedelta | None]:
    """Charge one call; give the new moment, and how long to wait if there is none to be had."""
    share = _MINUTE / per_minute
    after = max(paid_until or now, now) + share
    excess = after - now - _MINUTE
    # Shares are rounded to microseconds; that must not cost the last call of a minute.
    if excess > per_minute * timedelta.resolution:
        return paid_until or now, excess
    return after, None
