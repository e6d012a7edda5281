"""Which node a task may go to. The first rows are the seed's table of matches."""

import pytest

from orchestrator.model import NodeIdentity, Target, matches
from tests.orchestrator.serving import RunningOrchestrator

NAMES = [
    ("client-acme-*", "client-acme-prod-1", True),
    ("client-acme-*", "client-acme-dev-2", True),
    ("client-acme-*", "client-beta-prod-1", False),
    ("*-gpu-*", "client-acme-gpu-1", True),
    ("prod-*", "prod-server-1", True),
    ("prod-server-1", "prod-server-1", True),
    ("prod", "prod-server-1", False),
    ("server-1", "prod-server-1", False),
    ("*", "anything", True),
    ("Prod-*", "prod-server-1", False),
    ("", "prod-server-1", False),
    ("prod-?", "prod-1", False),
    ("prod-[1]", "prod-1", False),
    ("prod-[1]-*", "prod-[1]-a", True),
    ("prod.*", "prod-1", False),
    ("a*b", "a\nb", True),
]


@pytest.mark.parametrize(("pattern", "name", "expected"), NAMES)
def test_name_is_matched_as_a_wildcard(pattern: str, name: str, *, expected: bool) -> None:
    assert matches(Target(node_name=pattern), NodeIdentity("id", name, {})) is expected


@pytest.mark.parametrize(("pattern", "name", "expected"), NAMES[:5])
def test_task_goes_only_to_nodes_whose_name_matches(
    orchestrator: RunningOrchestrator, pattern: str, name: str, *, expected: bool
) -> None:
    orchestrator.create_task(target_node_name=pattern)
    assert (orchestrator.register(name).poll() is not None) is expected


NODE = NodeIdentity("node-1", "client-acme-prod-1", {"env": "production", "gpu": "yes"})


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (Target(), True),
        (Target(tags={}), True),
        (Target(node_id="node-1"), True),
        (Target(node_id="node-2"), False),
        (Target(node_id="node-*"), False),
        (Target(tags={"env": "production"}), True),
        (Target(tags={"env": "production", "gpu": "yes"}), True),
        (Target(tags={"env": "production", "gpu": "no"}), False),
        (Target(tags={"zone": "eu"}), False),
        (Target(node_name="client-acme-*", tags={"env": "production"}), True),
        (Target(node_name="client-beta-*", tags={"env": "production"}), False),
        (Target(node_name="client-acme-*", tags={"env": "test"}), False),
        (Target(node_id="node-2", node_name="client-acme-*"), False),
    ],
)
def test_every_condition_given_must_hold(target: Target, *, expected: bool) -> None:
    assert matches(target, NODE) is expected


def test_task_goes_to_the_node_with_its_tags(orchestrator: RunningOrchestrator) -> None:
    orchestrator.create_task(target_node_name="client-*", target_tags={"env": "production"})
    assert orchestrator.register("client-1", tags={"env": "test"}).poll() is None
    assert orchestrator.register("client-2", tags={"env": "production", "a": "b"}).poll()
