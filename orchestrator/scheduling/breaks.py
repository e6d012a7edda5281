"""Long polls that broke off: the first sign of a node that has died.

It is news only about one node: when a proxy restarts, the polls of all nodes break, and each comes
back. A node that stops cleanly says so in a heartbeat.
"""

from collections import deque
from collections.abc import Callable

_BACK_WITHIN_S = 15.0
"""A runner polls again, or sends a heartbeat, within this."""
_TOGETHER_S = 5.0
_PROXY_SHARE = 0.1
"""If more of all polls break within `_TOGETHER_S`, it is a proxy or the network."""


class Breaks:
    """The nodes whose poll broke off and that have not called since."""

    def __init__(self, held_polls: Callable[[], int]) -> None:
        self._held_polls = held_polls
        self._broken_at: dict[str, float] = {}
        self._lately: deque[float] = deque()

    def note(self, node_id: str, now_s: float) -> None:
        """Note that the poll of a node broke off."""
        self._broken_at.pop(node_id, None)
        self._broken_at[node_id] = now_s
        self._lately.append(now_s)
        while now_s - self._lately[0] > _TOGETHER_S:
            self._lately.popleft()
        polls = self._held_polls() + len(self._lately)
        if len(self._lately) > _PROXY_SHARE * polls:
            for one, at_s in list(self._broken_at.items()):
                if now_s - at_s <= _TOGETHER_S:
                    del self._broken_at[one]

    def note_call(self, node_id: str) -> None:
        """Note that a node has called."""
        self._broken_at.pop(node_id, None)

    def silent(self, now_s: float) -> list[str]:
        """Return the nodes that did not come back in time, each once."""
        silent = [one for one, at_s in self._broken_at.items() if now_s - at_s > _BACK_WITHIN_S]
        for node_id in silent:
            del self._broken_at[node_id]
        return silent
