"""A task moves along the table of transitions only, and every end has a reason and a status."""

from __future__ import annotations

import itertools

import pytest

from runner.model import (
    TRANSITIONS,
    EndReason,
    TaskState,
    TaskStatus,
    check_transition,
    state_diagram,
    status_body,
)

ALLOWED = [
    (TaskState.ACCEPTED, TaskState.STARTING),
    (TaskState.ACCEPTED, TaskState.ENDED),
    (TaskState.STARTING, TaskState.RUNNING),
    (TaskState.STARTING, TaskState.ENDED),
    (TaskState.RUNNING, TaskState.ENDED),
    (TaskState.ENDED, TaskState.CLOSED),
]


def test_task_moves_along_the_table_only() -> None:
    for before, after in itertools.product(TaskState, repeat=2):
        if (before, after) in ALLOWED:
            check_transition(before, after)
            continue
        with pytest.raises(ValueError, match=f"no way from {before.value} to {after.value}"):
            check_transition(before, after)


def test_every_state_leads_to_the_end() -> None:
    reached = {TaskState.CLOSED}
    for _ in TaskState:
        reached |= {state for state in TaskState if TRANSITIONS[state] & reached}

    assert reached == set(TaskState)


def test_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        TRANSITIONS[TaskState.CLOSED] = frozenset(TaskState)  # type: ignore[index] # the claim


def test_diagram_shows_the_table_and_nothing_else() -> None:
    assert state_diagram().splitlines() == [
        "stateDiagram-v2",
        "    [*] --> accepted",
        "    accepted --> starting",
        "    accepted --> ended",
        "    starting --> running",
        "    starting --> ended",
        "    running --> ended",
        "    ended --> closed",
        "    closed --> [*]",
    ]


def test_reasons_are_the_documented_ones_and_only_completed_is_a_success() -> None:
    assert {reason.value: reason.status for reason in EndReason} == {
        "completed": TaskStatus.SUCCESS,
        "failed": TaskStatus.ERROR,
        "timed_out": TaskStatus.ERROR,
        "cancelled": TaskStatus.ERROR,
        "out_of_memory": TaskStatus.ERROR,
        "rejected": TaskStatus.ERROR,
        "unstartable": TaskStatus.ERROR,
        "lost": TaskStatus.ERROR,
    }


def test_final_statuses_are_those_that_nothing_follows() -> None:
    assert [status.value for status in TaskStatus if status.is_final] == [
        "success",
        "error",
        "cancelled",
    ]


@pytest.mark.parametrize("status", TaskStatus)
def test_status_is_written_as_the_word_of_the_api(status: TaskStatus) -> None:
    body = status_body("t-1", status, None, 0)

    assert type(body["status"]) is str
    assert body["status"] == status.value == f"{status}"
