"""Who is called for a task, and who next when the one called does not take it."""

from contextlib import ExitStack

from orchestrator.model import NodeIdentity, Target
from orchestrator.scheduling.waiting import Waiter, Waiters, WorkAvailable


def _offer(task_id: str, node_name: str | None = None) -> WorkAvailable:
    return WorkAvailable(task_id, Target(node_name=node_name))


def _wait(waiters: Waiters, stack: ExitStack, name: str) -> Waiter:
    return stack.enter_context(waiters.waiting(NodeIdentity(name, name, {})))


def test_task_calls_the_one_who_has_waited_longest() -> None:
    waiters = Waiters()
    with ExitStack() as stack:
        first, second = (_wait(waiters, stack, name) for name in ("first", "second"))
        waiters.wake(_offer("task"))
        assert (first.offers, second.offers) == ([_offer("task")], [])


def test_next_task_calls_the_next_one() -> None:
    waiters = Waiters()
    with ExitStack() as stack:
        first, second = (_wait(waiters, stack, name) for name in ("first", "second"))
        waiters.wake(_offer("one"))
        waiters.wake(_offer("two"))
        waiters.wake(_offer("three"))
        assert first.offers == [_offer("one"), _offer("three")]
        assert second.offers == [_offer("two")]


def test_task_calls_only_whom_it_may_go_to() -> None:
    waiters = Waiters()
    with ExitStack() as stack:
        first, second = (_wait(waiters, stack, name) for name in ("first", "second"))
        waiters.wake(_offer("task", "second"))
        waiters.wake(_offer("other", "nobody"))
        assert (first.offers, second.offers) == ([], [_offer("task", "second")])


def test_call_goes_on_when_the_one_called_leaves() -> None:
    waiters = Waiters()
    with ExitStack() as stack:
        with ExitStack() as leaving:
            _wait(waiters, leaving, "first")
            second = _wait(waiters, stack, "second")
            waiters.wake(_offer("task"))
        assert second.offers == [_offer("task")]
        assert len(waiters) == 1


def test_call_goes_on_when_the_one_called_takes_another_task() -> None:
    waiters = Waiters()
    with ExitStack() as stack:
        with ExitStack() as leaving:
            first = _wait(waiters, leaving, "first")
            second = _wait(waiters, stack, "second")
            waiters.wake(_offer("task", "*"))
            first.settle(list(first.offers), "a-better-one")
        assert second.offers == [_offer("task", "*")]


def test_call_ends_when_its_task_is_taken() -> None:
    waiters = Waiters()
    with ExitStack() as stack:
        with ExitStack() as leaving:
            first = _wait(waiters, leaving, "first")
            second = _wait(waiters, stack, "second")
            waiters.wake(_offer("task"))
            first.settle(list(first.offers), "task")
        assert second.offers == []


def test_call_ends_when_nothing_is_found_but_later_ones_stay() -> None:
    waiters = Waiters()
    with ExitStack() as stack:
        only = _wait(waiters, stack, "only")
        waiters.wake(_offer("one"))
        offered = list(only.offers)
        waiters.wake(_offer("two"))
        only.settle(offered, None)
        assert only.offers == [_offer("two")]


def test_node_that_changes_hears_of_what_suits_it_now() -> None:
    waiters = Waiters()
    with ExitStack() as stack:
        waiter = _wait(waiters, stack, "first")
        waiters.change(NodeIdentity("first", "renamed", {}))
        waiters.wake(_offer("old", "first"))
        waiters.wake(_offer("new", "renamed"))
        assert waiter.offers == [_offer("new", "renamed")]


def test_calls_go_on_when_the_one_called_changes() -> None:
    waiters = Waiters()
    with ExitStack() as stack:
        first = _wait(waiters, stack, "one-a")
        waiters.wake(_offer("task", "one-*"))
        waiters.wake(_offer("any"))
        second = _wait(waiters, stack, "one-b")
        waiters.change(NodeIdentity("one-a", "two", {}))
        assert first.offers == [_offer("any")]
        assert second.offers == [_offer("task", "one-*")]
