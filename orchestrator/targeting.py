"""Whether a task is meant for a node: every condition that the task gives must hold."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Target:
    """Whom a task is for; a condition that is None does not restrict."""

    node_id: str | None = None
    node_name: str | None = None
    tags: Mapping[str, str] | None = None


@dataclass(frozen=True)
class NodeIdentity:
    """What targeting looks at in a node; as it was when the node last registered."""

    id: str
    name: str
    tags: Mapping[str, str]


def matches(target: Target, node: NodeIdentity) -> bool:
    """Say whether a task with this target may go to this node."""
    if target.node_id is not None and target.node_id != node.id:
        return False
    if target.node_name is not None and not name_matches(target.node_name, node.name):
        return False
    return all(node.tags.get(key) == wanted for key, wanted in (target.tags or {}).items())


def name_matches(pattern: str, name: str) -> bool:
    """Match the whole name, case and all; `*` stands for any run of characters, nothing else does.

    fnmatch also gives `?` and `[` a meaning. They are neutralised: a node name may hold them.
    """
    return fnmatchcase(name, pattern.replace("[", "[[]").replace("?", "[?]"))


def lies_within(pattern: str, allowed: Iterable[str]) -> bool:
    """Say whether whatever a pattern matches is matched by one of those that are allowed.

    It is if that one matches the pattern itself, whose `*` is a character like any other then.
    """
    return any(name_matches(one, pattern) for one in allowed)
