"""A task moves along the table of transitions only, and every end has a reason and a status."""

from __future__ import annotations

import itertools

import pytest

from runner.model import EndReason, TaskState, TaskStatus, check_transition, status_body

ALLOWED = {
    (TaskState.ACCEPTED, TaskState.STARTING),
    (TaskState.ACCEPTED, TaskState.ENDED),
    (TaskState.STARTING, TaskState.RUNNING),
    (TaskState.STARTING, TaskState.ENDED),
    (TaskState.RUNNING, TaskState.ENDED),
    (TaskState.ENDED, TaskState.CLOSED),
}


def test_task_moves_along_the_table_only() -> None:
    for before, after in ALLOWED:
        check_transition(before, after)
    for before, after in {*itertools.product(TaskState, repeat=2)} - ALLOWED:
        with pytest.raises(ValueError, match=f"no way from {before.value} to {after.value}"):
            check_transition(before, after)


@pytest.mark.parametrize("reason", EndReason)
def test_only_a_completed_task_is_a_success(reason: EndReason) -> None:
    is_success = reason is EndReason.COMPLETED
    assert reason.status is (TaskStatus.SUCCESS if is_success else TaskStatus.ERROR)


def test_final_statuses_are_those_that_nothing_follows() -> None:
    final = {TaskStatus.SUCCESS, TaskStatus.ERROR, TaskStatus.CANCELLED}
    assert {status for status in TaskStatus if status.is_final} == final


@pytest.mark.parametrize("status", TaskStatus)
def test_status_is_written_as_the_word_of_the_api(status: TaskStatus) -> None:
    body = status_body("t-1", status, None, 0)
    assert type(body["status"]) is str
    assert body["status"] == status.value == f"{status}"
