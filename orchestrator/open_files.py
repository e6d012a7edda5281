"""How many connections the system lets us have open: each is a file to it."""

import logging
import resource

_FOR_OURSELVES = 100
"""Libraries, database, uploads."""
_CONNECTIONS_OF_A_NODE = 2
"""One waits for work, and the other is for all that is to be said meanwhile."""
_FEW = 2000

log = logging.getLogger(__name__)


def open_as_many_as_allowed() -> None:
    """Raise the limit of open files as far as we may; say so where that is not far."""
    _, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))
    if allowed == resource.RLIM_INFINITY or allowed >= _FEW:
        return
    log.warning(
        "at most %d nodes can be connected: this process may have %d files open. Raise the limit"
        " (LimitNOFILE= in its unit, or ulimit -Hn)",
        max(0, allowed - _FOR_OURSELVES) // _CONNECTIONS_OF_A_NODE,
        allowed,
    )
