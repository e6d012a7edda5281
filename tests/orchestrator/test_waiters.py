"""Who is called for a task, and who next when the one called does not take it."""

from contextlib import ExitStack

from orchestrator.targeting import NodeIdentity, Target
from orchestrator.waiters import Bell, Call, Waiters


def _call(task_id: str, node_name: str | None = None) -> Call:
    return Call(task_id, Target(node_name=node_name))


def _wait(waiters: Waiters, stack: ExitStack, name: str) -> Bell:
    return stack.enter_context(waiters.waiting(NodeIdentity(name, name, {})))


def test_task_calls_the_one_who_has_waited_longest() -> None:
    waiters = Waiters()
    with ExitStack() as stack:
        first, second = (_wait(waiters, stack, name) for name in ("first", "second"))
        waiters.wake(_call("task"))
        assert (first.calls, second.calls) == ([_call("task")], [])


def test_next_task_calls_the_next_one() -> None:
    waiters = Waiters()
    with ExitStack() as stack:
        first, second = (_wait(waiters, stack, name) for name in ("first", "second"))
        waiters.wake(_call("one"))
        waiters.wake(_call("two"))
        waiters.wake(_call("three"))
        assert first.calls == [_call("one"), _call("three")]
        assert second.calls == [_call("two")]


def test_task_calls_only_whom_it_may_go_to() -> None:
    waiters = Waiters()
    with ExitStack() as stack:
        first, second = (_wait(waiters, stack, name) for name in ("first", "second"))
        waiters.wake(_call("task", "second"))
        waiters.wake(_call("other", "nobody"))
        assert (first.calls, second.calls) == ([], [_call("task", "second")])


def test_call_goes_on_when_the_one_called_leaves() -> None:
    waiters = Waiters()
    with ExitStack() as stack:
        with ExitStack() as leaving:
            _wait(waiters, leaving, "first")
            second = _wait(waiters, stack, "second")
            waiters.wake(_call("task"))
        assert second.calls == [_call("task")]
        assert len(waiters) == 1


def test_call_goes_on_when_the_one_called_takes_another_task() -> None:
    waiters = Waiters()
    with ExitStack() as stack:
        with ExitStack() as leaving:
            first = _wait(waiters, leaving, "first")
            second = _wait(waiters, stack, "second")
            waiters.wake(_call("task", "*"))
            first.settle(list(first.calls), "a-better-one")
        assert second.calls == [_call("task", "*")]


def test_call_ends_when_its_task_is_taken() -> None:
    waiters = Waiters()
    with ExitStack() as stack:
        with ExitStack() as leaving:
            first = _wait(waiters, leaving, "first")
            second = _wait(waiters, stack, "second")
            waiters.wake(_call("task"))
            first.settle(list(first.calls), "task")
        assert second.calls == []


def test_call_ends_when_nothing_is_found_but_later_ones_stay() -> None:
    waiters = Waiters()
    with ExitStack() as stack:
        only = _wait(waiters, stack, "only")
        waiters.wake(_call("one"))
        heard = list(only.calls)
        waiters.wake(_call("two"))
        only.settle(heard, None)
        assert only.calls == [_call("two")]


def test_node_that_changes_hears_of_what_suits_it_now() -> None:
    waiters = Waiters()
    with ExitStack() as stack:
        bell = _wait(waiters, stack, "first")
        waiters.change(NodeIdentity("first", "renamed", {}))
        waiters.wake(_call("old", "first"))
        waiters.wake(_call("new", "renamed"))
        assert bell.calls == [_call("new", "renamed")]


def test_calls_go_on_when_the_one_called_changes() -> None:
    waiters = Waiters()
    with ExitStack() as stack:
        first = _wait(waiters, stack, "one-a")
        waiters.wake(_call("task", "one-*"))
        waiters.wake(_call("any"))
        second = _wait(waiters, stack, "one-b")
        waiters.change(NodeIdentity("one-a", "two", {}))
        assert first.calls == [_call("any")]
        assert second.calls == [_call("task", "one-*")]
