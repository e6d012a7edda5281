"""The audit: what three independent witnesses say of each task, held against what it was to do.

The witnesses are the orchestrator's database, the start marks that containers leave in the
Victoria home, and the engine's list. The runner's own reports are not among them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from runner.tasks.output import UNREADABLE
from tests.soak.schedule import Kind, TaskPlan

_FINAL = frozenset({"success", "error", "cancelled"})
_NEVER_RAN = frozenset({"cancelled", "unstartable", "rejected"})


class Fault(str, Enum):
    """What must not happen, ever; each is a row of the table."""

    LOST = "lost"  # never final; or final without ever having run, although it should have
    RUN_TWICE = "run twice"  # more than one start mark
    DOUBLED = "final reports doubled"  # more than one final step in the orchestrator's history
    CONTAINER_LEFT = "containers left"
    STRANGER_HARMED = "strangers harmed"  # a container of a task's name that somebody else made
    WRONG_OUTPUT = "wrong output"  # not, byte by byte, what the task printed
    WRONG_ARTIFACTS = "wrong artifacts"  # not those that the task made
    WRONG_END = "wrong end reasons"  # another than what the task was to come to: `allowed_ends`
    RUNNER_ENDED = "runner ended by itself"
    NOT_QUIET = "not quiet at the end"  # it has a task or a report long after the last fault


@dataclass(frozen=True)
class Finding:
    """One thing that must not be."""

    fault: Fault
    what: str


@dataclass(frozen=True)
class Account:
    """What the witnesses say of one task, and what was done to it."""

    plan: TaskPlan
    task_id: str
    status: str  # at the orchestrator
    message: str = ""
    final_steps: int = 1  # how many final ones its history has
    starts: int = 1  # its start marks
    wrong_files: tuple[str, ...] = ()  # that it carried, or its container saw, but not both
    output: str | None = None  # at the orchestrator; None stands for all that it was to print
    is_output_whole: bool = True  # the orchestrator was told that this is all of it
    is_log_broken: bool = False  # the engine failed as its log was read
    artifacts: dict[str, bytes] | None = None  # at the orchestrator; None likewise
    has_container: bool = False
    is_cancelled: bool = False  # the orchestrator took a cancellation for it before its end
    is_removed: bool = False  # its container was removed behind the runner's back
    is_refused: bool = False  # the engine refused to make or to start its container
    has_stranger: bool = False  # its container's name was taken by somebody else's
    is_stranger_harmed: bool = False  # which does not run any more, or not as it was

    @property
    def ran_to_its_end(self) -> bool:
        return self.status == "success" or self.end == f"failed: exit code {self.plan.exit_code}"

    @property
    def has_wrong_output(self) -> bool:
        """Whether there is anything but what it printed, or too little where it ran to its end."""
        if self.output is None:
            return False
        printed, output = self.plan.output, self.output
        if self.ran_to_its_end and not self.is_log_broken:
            return output != printed or not self.is_output_whole
        return not printed.startswith(output.removesuffix(UNREADABLE))

    @property
    def has_wrong_artifacts(self) -> bool:
        if self.artifacts is None:
            return False
        made, artifacts = self.plan.artifacts, self.artifacts
        return not artifacts.items() <= made.items() or (self.ran_to_its_end and artifacts != made)

    @property
    def end(self) -> str:
        """The reason of its end, with the exit code where it failed by itself."""
        if self.status != "error":
            known = {"success": "completed", "cancelled": "cancelled"}
            return known.get(self.status, f"none, it is {self.status}")
        reason = self.message.partition(":")[0]
        if reason == "cancelled":
            return "cancelled, but not at the orchestrator"
        return " ".join(self.message.split()[:4]) if reason == "failed" else reason


def allowed_ends(account: Account) -> set[str]:
    """Return the ends that are right for a task; there is one, but for the cases named here."""
    # The orchestrator took the cancellation, and the first final status wins.
    if account.is_cancelled:
        return {"cancelled"}
    ends = {
        Kind.FAIL: {f"failed: exit code {account.plan.exit_code}"},
        Kind.TIME_OUT: {"timed_out"},
        Kind.TIME_OUT_STUBBORN: {"timed_out"},
        Kind.EAT_MEMORY: {"out_of_memory"},
        # These hang: only a cancellation can end them.
        Kind.CANCEL_RUNNING: {"cancelled"},
        Kind.CANCEL_STUBBORN: {"cancelled"},
        # It hangs until its container is removed. The engine ends it before it removes it: an
        # inspection in between shows that it was ended by a signal, and that is true by then.
        Kind.REMOVED: {"lost", "failed: exit code 137", "failed: exit code 143"},
    }.get(account.plan.kind, {"completed"})
    if account.has_stranger:
        ends = {"unstartable"}
    if account.plan.kind is Kind.REMOVED and not account.is_removed:
        ends = set()
    # If the runner lives to hear it, that is the end; if not, the next one tries again.
    return ends | {"unstartable"} if account.is_refused else ends


def audit(accounts: list[Account]) -> list[Finding]:
    return [
        Finding(fault, f"task {one.plan.number} ({one.plan.kind.value}) {one.task_id}: {what}")
        for one in accounts
        for fault, what in _wrong(one)
    ]


def _wrong(account: Account) -> Iterator[tuple[Fault, str]]:
    allowed = allowed_ends(account)
    if account.status not in _FINAL:
        yield Fault.LOST, f"it never ended, it is {account.status}"
    elif account.starts == 0 and account.end not in _NEVER_RAN:
        yield Fault.LOST, f"it ended as {account.end} and never ran"
    if account.starts > 1:
        yield Fault.RUN_TWICE, f"it has {account.starts} start marks"
    if account.final_steps > 1:
        yield Fault.DOUBLED, f"its history has {account.final_steps} final steps"
    yield from _wrong_results(account)
    if account.has_container:
        yield Fault.CONTAINER_LEFT, "its container is there"
    if account.is_stranger_harmed:
        yield Fault.STRANGER_HARMED, "the container that had its name before it"
    if account.status in _FINAL and account.end not in allowed:
        wanted, message = " or ".join(sorted(allowed)), account.message[:200]
        yield Fault.WRONG_END, f"it is to end as {wanted}, and did so as: {message!r}"
    if account.wrong_files and account.status == "success":
        yield Fault.WRONG_END, f"it succeeded with other files: {', '.join(account.wrong_files)}"


def _wrong_results(account: Account) -> Iterator[tuple[Fault, str]]:
    plan, message = account.plan, account.message[-300:]
    if account.has_wrong_output:
        output = account.output or ""
        shown = f"{len(output)} of {len(plan.output)} characters, the last of them {output[-80:]!r}"
        yield Fault.WRONG_OUTPUT, f"{shown}; its message: {message!r}"
    if account.has_wrong_artifacts:
        shown = f"{sorted(account.artifacts or {})} of {sorted(plan.artifacts)}"
        yield Fault.WRONG_ARTIFACTS, f"{shown}; its message: {message!r}"
