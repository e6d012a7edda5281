"""The audit finds what it is there for: each kind of wrong, planted in an account that is right."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.soak.audit import Account, Fault, audit
from tests.soak.schedule import Kind, TaskPlan

RIGHT = Account(
    plan=TaskPlan(number=7, kind=Kind.SUCCEED, prompt="do it"),
    task_id="the-task",
    status="success",
    message="completed: exit code 0 after 1 s",
)


def _of_kind(kind: Kind, **plan: int) -> Account:
    return replace(RIGHT, plan=replace(RIGHT.plan, kind=kind, **plan))  # type: ignore[arg-type]


def _ended(account: Account, message: str) -> Account:
    return replace(account, status="error", message=message)


def _faults(account: Account) -> list[Fault]:
    return [finding.fault for finding in audit([RIGHT, account, RIGHT])]


@pytest.mark.parametrize(
    "account",
    [
        RIGHT,
        _of_kind(Kind.CARRY_FILES),
        _ended(_of_kind(Kind.FAIL, exit_code=42), "failed: exit code 42 after 1 s\nits output"),
        _ended(_of_kind(Kind.FAIL, exit_code=42), "failed: exit code 42"),
        _ended(_of_kind(Kind.TIME_OUT), "timed_out: stopped after 2 s"),
        _ended(_of_kind(Kind.EAT_MEMORY), "out_of_memory: the kernel killed it"),
        replace(_of_kind(Kind.CANCEL_EARLY), status="cancelled", starts=0, is_cancelled=True),
        replace(_of_kind(Kind.CANCEL_RUNNING), status="cancelled", is_cancelled=True),
        # It had ended before the cancellation came.
        _of_kind(Kind.CANCEL_AT_END),
        replace(_ended(_of_kind(Kind.REMOVED), "lost: container is gone"), is_removed=True),
        replace(_ended(_of_kind(Kind.REMOVED), "failed: exit code 137"), is_removed=True),
        replace(_ended(RIGHT, "unstartable: cannot start"), starts=0, is_refused=True),
    ],
    ids=lambda account: f"{account.plan.kind.value}-{account.end}".replace(" ", "-"),
)
def test_what_is_right_is_not_found(account: Account) -> None:
    assert _faults(account) == []


@pytest.mark.parametrize("status", ["pending", "assigned", "running"])
def test_task_that_never_ended_is_lost(status: str) -> None:
    assert _faults(replace(RIGHT, status=status, final_steps=0)) == [Fault.LOST]


@pytest.mark.parametrize(
    "account", [RIGHT, _ended(_of_kind(Kind.TIME_OUT), "timed_out: stopped after 2 s")]
)
def test_task_that_ended_and_never_ran_is_lost(account: Account) -> None:
    assert _faults(replace(account, starts=0)) == [Fault.LOST]


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        (replace(RIGHT, starts=2), Fault.RUN_TWICE),
        (
            replace(_of_kind(Kind.CANCEL_RUNNING), status="cancelled", is_cancelled=True, starts=2),
            Fault.RUN_TWICE,
        ),
        (replace(RIGHT, final_steps=2), Fault.DOUBLED),
        (replace(RIGHT, has_container=True), Fault.CONTAINER_LEFT),
    ],
)
def test_what_is_double_or_left_is_found(wrong: Account, fault: Fault) -> None:
    assert _faults(wrong) == [fault]


@pytest.mark.parametrize(
    "account",
    [
        _ended(RIGHT, "lost: container is gone"),
        _ended(RIGHT, "unstartable: cannot start"),
        _of_kind(Kind.FAIL, exit_code=42),
        _ended(_of_kind(Kind.FAIL, exit_code=42), "failed: exit code 1 after 1 s"),
        _ended(_of_kind(Kind.FAIL, exit_code=4), "failed: exit code 42 after 1 s"),
        _ended(_of_kind(Kind.TIME_OUT), "failed: exit code 143"),
        _ended(_of_kind(Kind.EAT_MEMORY), "failed: exit code 137"),
        _of_kind(Kind.CANCEL_RUNNING),
        replace(RIGHT, is_cancelled=True),
        _ended(replace(_of_kind(Kind.CANCEL_EARLY), is_cancelled=True), "cancelled: stopped"),
        replace(RIGHT, status="cancelled"),
        replace(_ended(_of_kind(Kind.REMOVED), "failed: exit code 1"), is_removed=True),
        _ended(_of_kind(Kind.REMOVED), "lost: container is gone"),
        replace(RIGHT, wrong_files=("file: 1 abc one.bin",)),
    ],
    ids=lambda account: f"{account.plan.kind.value}-{account.end}".replace(" ", "-"),
)
def test_wrong_end_is_found(account: Account) -> None:
    assert _faults(account) == [Fault.WRONG_END]


def test_every_wrong_of_one_task_is_found() -> None:
    account = replace(RIGHT, status="running", starts=3, final_steps=2, has_container=True)
    assert set(_faults(account)) == {
        Fault.LOST,
        Fault.RUN_TWICE,
        Fault.DOUBLED,
        Fault.CONTAINER_LEFT,
    }
