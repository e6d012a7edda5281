"""Waiting nodes and announced tasks are found by index, exactly as comparing each would."""

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.model import NodeIdentity, Target, matches
from orchestrator.scheduling.index import ANY, Keys
from orchestrator.scheduling.waiting import Waiters, WorkAvailable

_NAMES = st.text("ab-", max_size=4)
_TAGS = st.dictionaries(st.sampled_from("xy"), st.sampled_from("12"), max_size=2)
_NODES = st.lists(
    st.builds(NodeIdentity, st.sampled_from(["1", "2", "3"]), _NAMES, _TAGS),
    max_size=5,
    unique_by=lambda node: node.id,
)
_TARGETS = st.builds(
    Target,
    st.none() | st.sampled_from(["1", "2"]),
    st.none() | st.text("ab-*", min_size=1, max_size=5),
    st.none() | _TAGS,
)


@given(_NODES, st.lists(_TARGETS, max_size=8))
def test_index_finds_what_comparing_each_finds(
    nodes: list[NodeIdentity], targets: list[Target]
) -> None:
    waiters = Waiters()
    with ExitStack() as stack:
        held = [stack.enter_context(waiters.waiting(node)) for node in nodes]
        for number, target in enumerate(targets):
            for waiter in held:
                waiter.offers.clear()
            waiters.wake(WorkAvailable(str(number), target))
            first = next((one for one in held if matches(target, one.node)), None)
            assert [one for one in held if one.offers] == ([] if first is None else [first])
    for node in nodes:
        waiters.note_empty(node, looked_at=0)
        expected = any(matches(target, node) for target in targets)
        assert waiters.may_have_work(node) == expected


@pytest.mark.parametrize(
    ("target", "key"),
    [
        (Target(), ANY),
        (Target("1", "a", {"x": "1"}), ("id", "1")),
        (Target(node_name="a?"), ("name", "a?")),
        (Target(node_name="gpu-*"), ("prefix", "gpu-")),
        (Target(node_name="*-eu"), ("suffix", "-eu")),
        (Target(node_name="*-eu", tags={"y": "2", "x": "1"}), ("tag", "x", "1")),
        (Target(node_name="*a*"), ANY),
    ],
)
def test_key_is_the_narrowest_condition(target: Target, key: tuple[str, ...]) -> None:
    assert Keys().of_target(target) == key


def test_number_of_keys_is_limited_whatever_patterns_there_are() -> None:
    keys, node = Keys(), NodeIdentity("1", "n" * 200, {})
    for length in range(1, 200):
        assert keys.of_target(Target(node_name="n" * length + "*")) in set(keys.of_node(node))
        keys.of_target(Target(node_name="*" + "n" * length))
    assert len(list(keys.of_node(node))) < 20


def test_node_looks_until_it_found_nothing_and_again_after_an_announcement() -> None:
    waiters, node, other = Waiters(), NodeIdentity("1", "a", {}), NodeIdentity("2", "b", {})
    assert waiters.may_have_work(node)
    waiters.wake(WorkAvailable("before", Target(node_name="a")))
    looked_at = waiters.now
    waiters.wake(WorkAvailable("meanwhile", Target(node_id="1")))
    for one in (node, other):
        waiters.note_empty(one, looked_at)
    assert waiters.may_have_work(node)
    assert not waiters.may_have_work(other)
    waiters.note_empty(node, waiters.now)
    assert not waiters.may_have_work(node)
    looked_at = waiters.now
    waiters.wake_all()
    # A look that began before knows nothing of what was missed.
    waiters.note_empty(node, looked_at)
    assert waiters.may_have_work(node)


def test_tasks_of_one_target_wake_as_many_nodes_as_there_are() -> None:
    waiters = Waiters()
    with ExitStack() as stack:
        nodes = [NodeIdentity(str(number), "a", {}) for number in range(4)]
        held = [stack.enter_context(waiters.waiting(node)) for node in nodes]
        waiters.wake_for(WorkAvailable("first", Target(node_name="a")), 3)
        assert [len(one.offers) for one in held] == [1, 1, 1, 0]
        waiters.wake_for(WorkAvailable("others", Target(node_name="b")), 10**9)
