"""Which nodes a target may match, found without comparing it with each of them.

A target has one key; a node has several. A target can match a node only if the target's key is
among the node's, so what has another key need not be compared.
"""

from collections.abc import Iterator

from orchestrator.model import NodeIdentity, Target

Key = tuple[str, ...]

_MAX_LENGTHS = 8
"""Of prefixes and of suffixes: each is one more key for every node."""

ANY: Key = ("any",)
"""The key of a target that no other key describes: it has to be compared with every node."""


class Keys:
    """The keys of targets and nodes.

    A name's pattern is found by the text before its first `*`, or else by the text after the last.
    A node has a key for its name's first and last characters in every length that a pattern had
    so far, up to a limit; `version` changes with the first pattern of a new length.
    """

    def __init__(self) -> None:
        self.version = 0
        self._lengths: dict[str, set[int]] = {"prefix": set(), "suffix": set()}

    def of_target(self, target: Target) -> Key:
        """Return the key that every node has that this target matches."""
        if target.node_id is not None:
            return ("id", target.node_id)
        prefix, star, rest = (target.node_name or "*").partition("*")
        if not star:
            return ("name", prefix)
        if prefix:
            return self._affix("prefix", prefix)
        for key, value in sorted((target.tags or {}).items()):
            return ("tag", key, value)
        suffix = rest.rpartition("*")[2]
        return self._affix("suffix", suffix) if suffix else ANY

    def of_node(self, node: NodeIdentity) -> Iterator[Key]:
        """Yield the keys of all targets that may match this node."""
        yield ANY
        yield ("id", node.id)
        yield ("name", node.name)
        for pair in node.tags.items():
            yield ("tag", *pair)
        for length in self._lengths["prefix"]:
            yield ("prefix", node.name[:length])
        for length in self._lengths["suffix"]:
            yield ("suffix", node.name[-length:])

    def _affix(self, kind: str, text: str) -> Key:
        lengths = self._lengths[kind]
        if len(text) not in lengths and len(lengths) < _MAX_LENGTHS:
            lengths.add(len(text))
            self.version += 1
        known = max((length for length in lengths if length <= len(text)), default=0)
        if not known:
            return ANY
        return (kind, text[:known] if kind == "prefix" else text[-known:])
