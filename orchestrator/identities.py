"""Nodes by the hash of their keys, as they were found: they are not looked up for each call.

Only for calls that look at the node's row anyway, and refuse where it is gone. The name and tags
may be those from before the node registered again, in another process as well: a request for work
compares them with the row and keeps what the row has.
"""

from orchestrator.targeting import NodeIdentity

_MOST = 50_000


class Identities:
    """What this process has seen. It holds no key, only hashes of them."""

    def __init__(self) -> None:
        self._by_hash: dict[str, NodeIdentity] = {}

    def find(self, hash_of_key: str) -> NodeIdentity | None:
        """Give the node of this key, if it has called before."""
        return self._by_hash.get(hash_of_key)

    def keep(self, hash_of_key: str, node: NodeIdentity) -> None:
        """Remember a node whose key was good just now, in place of what was known of it."""
        if len(self._by_hash) >= _MOST:
            self._by_hash.clear()
        self._by_hash[hash_of_key] = node

    def forget_all(self) -> None:
        """Look everyone up again: a node was removed."""
        self._by_hash.clear()
