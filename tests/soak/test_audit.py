"""The audit finds what it is there for: each kind of wrong, planted in an account that is right."""

from dataclasses import replace

import pytest

from runner.tasks.output import UNREADABLE
from tests.soak.audit import Account, Fault, audit
from tests.soak.schedule import Kind, TaskPlan

RIGHT = Account(
    plan=TaskPlan(number=7, kind=Kind.SUCCEED, prompt="do it"),
    task_id="the-task",
    status="success",
    message="completed: exit code 0 after 1 s",
)


def _of_kind(kind: Kind, exit_code: int = 0) -> Account:
    return replace(RIGHT, plan=replace(RIGHT.plan, kind=kind, exit_code=exit_code))


def _ended(account: Account, message: str) -> Account:
    return replace(account, status="error", message=message)


def _faults(account: Account) -> list[Fault]:
    return [finding.fault for finding in audit([RIGHT, account, RIGHT])]


def _name(account: object) -> str | None:
    if not isinstance(account, Account):
        return None
    return f"{account.plan.kind.value}-{account.end}".replace(" ", "-")


FAIL_42 = _of_kind(Kind.FAIL, exit_code=42)
TIMED_OUT = _ended(_of_kind(Kind.TIME_OUT), "timed_out: stopped after 2 s")
REMOVED = replace(_of_kind(Kind.REMOVED), is_removed=True)
EARLY = replace(_of_kind(Kind.CANCEL_EARLY), status="cancelled", is_cancelled=True)
STRANGER = replace(
    _ended(_of_kind(Kind.FOREIGN_NAME), "unstartable: taken"), has_stranger=True, starts=0
)
MADE = replace(
    RIGHT,
    plan=replace(RIGHT.plan, prompt="[artifact a b][print-line 12]"),
    output="12\n",
    artifacts={"a": b"b"},
)
CANCELLED = replace(_of_kind(Kind.CANCEL_RUNNING), status="cancelled", is_cancelled=True)


@pytest.mark.parametrize(
    "account",
    [
        RIGHT,
        _of_kind(Kind.CARRY_FILES),
        _ended(FAIL_42, "failed: exit code 42 after 1 s\nits output"),
        TIMED_OUT,
        _ended(_of_kind(Kind.EAT_MEMORY), "out_of_memory: the kernel killed it"),
        replace(EARLY, starts=0),
        CANCELLED,
        _of_kind(Kind.CANCEL_AT_END),  # it had ended before the cancellation came
        _ended(REMOVED, "lost: container is gone"),
        _ended(REMOVED, "failed: exit code 137"),
        replace(_ended(RIGHT, "unstartable: cannot start"), starts=0, is_refused=True),
        STRANGER,
        _of_kind(Kind.FOREIGN_NAME),  # its container was quicker
        MADE,
        replace(MADE, output="12" + UNREADABLE, is_log_broken=True),
        replace(MADE, status="cancelled", is_cancelled=True, output="", artifacts={}),
    ],
    ids=_name,
)
def test_account_that_is_right_has_no_finding(account: Account) -> None:
    assert _faults(account) == []


@pytest.mark.parametrize(
    ("account", "fault"),
    [
        (replace(RIGHT, status="running", final_steps=0), Fault.LOST),
        (replace(RIGHT, starts=0), Fault.LOST),
        (replace(TIMED_OUT, starts=0), Fault.LOST),
        (replace(CANCELLED, starts=2), Fault.RUN_TWICE),
        (replace(RIGHT, final_steps=2), Fault.DOUBLED),
        (replace(RIGHT, has_container=True), Fault.CONTAINER_LEFT),
        (_ended(RIGHT, "unstartable: cannot start"), Fault.WRONG_END),
        (FAIL_42, Fault.WRONG_END),
        (_ended(FAIL_42, "failed: exit code 1 after 1 s"), Fault.WRONG_END),
        (_ended(_of_kind(Kind.FAIL, 4), "failed: exit code 42 after 1 s"), Fault.WRONG_END),
        (_ended(_of_kind(Kind.TIME_OUT), "failed: exit code 143"), Fault.WRONG_END),
        (_ended(_of_kind(Kind.EAT_MEMORY), "failed: exit code 137"), Fault.WRONG_END),
        (_of_kind(Kind.CANCEL_RUNNING), Fault.WRONG_END),
        (replace(RIGHT, is_cancelled=True), Fault.WRONG_END),
        (_ended(EARLY, "cancelled: stopped"), Fault.WRONG_END),
        (replace(RIGHT, status="cancelled"), Fault.WRONG_END),
        (_ended(REMOVED, "failed: exit code 1"), Fault.WRONG_END),
        (_ended(_of_kind(Kind.REMOVED), "lost: container is gone"), Fault.WRONG_END),
        (replace(RIGHT, wrong_files=("file: 1 abc one.bin",)), Fault.WRONG_END),
        (replace(STRANGER, is_stranger_harmed=True), Fault.STRANGER_HARMED),
        (replace(_of_kind(Kind.FOREIGN_NAME), has_stranger=True), Fault.WRONG_END),
        (replace(MADE, output="1"), Fault.WRONG_OUTPUT),
        (replace(MADE, output="12\n12\n"), Fault.WRONG_OUTPUT),
        (replace(MADE, is_output_whole=False), Fault.WRONG_OUTPUT),
        (replace(TIMED_OUT, output="what it did not print"), Fault.WRONG_OUTPUT),
        (replace(MADE, artifacts={}), Fault.WRONG_ARTIFACTS),
        (replace(MADE, artifacts={"a": b"other"}), Fault.WRONG_ARTIFACTS),
        (replace(TIMED_OUT, artifacts={"a": b"b"}), Fault.WRONG_ARTIFACTS),
    ],
    ids=_name,
)
def test_account_with_one_thing_wrong_has_that_finding(account: Account, fault: Fault) -> None:
    assert _faults(account) == [fault]


def test_every_wrong_of_one_task_is_found() -> None:
    account = replace(RIGHT, status="running", starts=3, final_steps=2, has_container=True)
    wanted = {Fault.LOST, Fault.RUN_TWICE, Fault.DOUBLED, Fault.CONTAINER_LEFT}
    assert set(_faults(account)) == wanted
