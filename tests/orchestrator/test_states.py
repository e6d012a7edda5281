"""The table of transitions."""

from itertools import product

import pytest

from orchestrator.model import HELD, TRANSITIONS, TaskStatus


def test_table_has_every_status() -> None:
    assert set(TRANSITIONS) == set(TaskStatus)


@pytest.mark.parametrize(
    ("status", "following"),
    list(product([TaskStatus.SUCCESS, TaskStatus.ERROR, TaskStatus.CANCELLED], TaskStatus)),
)
def test_nothing_follows_an_end(status: TaskStatus, following: TaskStatus) -> None:
    assert status.is_final
    assert not status.may_become(following)


@pytest.mark.parametrize("status", [TaskStatus.PENDING, *HELD])
def test_what_has_not_ended_can_be_cancelled(status: TaskStatus) -> None:
    assert not status.is_final
    assert status.may_become(TaskStatus.CANCELLED)


def test_only_an_unstarted_task_goes_back_to_the_queue() -> None:
    before = {status for status in TaskStatus if status.may_become(TaskStatus.PENDING)}
    assert before == {TaskStatus.ASSIGNED}
