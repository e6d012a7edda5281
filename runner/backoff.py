"""How long to wait before trying again: full jitter, so that a fleet does not come back at once.

Source of the rule: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

import random

FIRST_S = 1.0
SHORTEST_S = 0.5
LONGEST_ASKED_S = 3600.0
CEILING_S = 60.0


def delay_s(attempts: int, *, ceiling_s: float = CEILING_S, at_least_s: float = 0.0) -> float:
    """Choose the wait in seconds after `attempts` failures (1 for the first).

    `at_least_s` is what the other side asked for (Retry-After); it is obeyed up to an hour and
    spread by a tenth.
    """
    widest = min(ceiling_s, FIRST_S * 2.0 ** min(attempts, 30))
    asked = min(at_least_s, LONGEST_ASKED_S)
    spread = random.uniform(SHORTEST_S, max(widest, SHORTEST_S))  # noqa: S311 - spreading load needs no secrecy
    if asked <= 0:
        return spread
    return max(asked * random.uniform(1.0, 1.1), spread)  # noqa: S311 - as above


def jittered_s(interval_s: float) -> float:
    """Spread a regular wait by a tenth to either side."""
    return interval_s * random.uniform(0.9, 1.1)  # noqa: S311 - as above
