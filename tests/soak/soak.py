"""One soak: the schedule carried out, then calm, then the audit.

It begins with an empty host and ends when every task has ended, the runner has nothing in hand
and nothing to report, and no container is left; or at a deadline, which is a finding.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import partial
from subprocess import CalledProcessError
from typing import Any

from tests.faults.engine import Planned
from tests.harness.proxy import Chance
from tests.harness.runner_process import container_of
from tests.image import poison
from tests.soak.audit import Account, Fault, Finding, audit
from tests.soak.host import Host
from tests.soak.processes import RunnerWatch
from tests.soak.schedule import (
    NETWORK_FAULT_SHARE,
    NETWORK_FAULTS,
    PREPARED,
    EngineFault,
    Kind,
    Schedule,
    TaskPlan,
)
from tests.soak.upsets import Agenda, Upsets

TICK_S = 0.1
QUEUE = 16  # how many tasks are created ahead of those that have ended
QUIET_DEADLINE_S = 240.0
STALL_S = 300.0  # how long it may take until one more task has ended, before no more is waited for
SAY_EVERY_S = 15.0
ENGINE_TRIES = 5
LIFTED_AFTER_S = 20.0
"""How long after a task's end its container may still meet a fault, while it is removed."""


PREPARED_S = 3.0
"""How long a task may not start yet whose host is prepared for it."""


def _soon() -> str:
    return (datetime.now(timezone.utc) + timedelta(seconds=PREPARED_S)).isoformat()


@dataclass
class Record:
    """What was done to a task."""

    plan: TaskPlan
    task_id: str
    created_at: float
    planned: list[tuple[EngineFault, Planned]] = field(default_factory=list)
    ran_at: float | None = None
    is_struck: bool = False
    is_cancelled: bool = False
    is_removed: bool = False
    is_over: bool = False

    @property
    def is_due(self) -> bool:
        """Whether the moment has come at which it is cancelled, or its container removed."""
        after_s = self.plan.strikes_after_s
        since = self.created_at if self.plan.kind is Kind.CANCEL_EARLY else self.ran_at
        if self.is_struck or after_s is None or since is None:
            return False
        return time.monotonic() >= since + after_s

    @property
    def is_log_broken(self) -> bool:
        """Whether the engine failed as its log was read."""
        return any(fault.call == "logs" and planned.has_happened for fault, planned in self.planned)

    @property
    def is_refused(self) -> bool:
        """Whether the engine refused to make or to start its container."""
        return any(
            fault.keeps_from_starting and planned.has_happened for fault, planned in self.planned
        )


class Soak:
    """One run of a schedule on a host."""

    def __init__(
        self,
        host: Host,
        schedule: Schedule,
        say: Callable[[str], None],
        is_enough: Callable[[], bool],
    ) -> None:
        """Start nothing yet. As soon as it is enough, no more tasks are created."""
        self.records: list[Record] = []
        self.findings: list[Finding] = []
        self._host, self._schedule = host, schedule
        self._say, self._is_enough = say, is_enough
        self._are_all_created = False
        self._agenda = Agenda()
        self.watch = RunnerWatch(host.runner, schedule.seed)
        self.upsets = Upsets(schedule.upsets, host, self._agenda, self.watch)

    def run(self) -> None:
        """Carry the schedule out, wait until all is quiet, and audit."""
        chance = Chance(self._schedule.seed, NETWORK_FAULT_SHARE, NETWORK_FAULTS)
        self._host.proxy.by_chance(chance)
        ended, most_ended, stalls_at, says_at = 0, 0, time.monotonic() + STALL_S, 0.0
        while not (self._are_all_created and ended == len(self.records)):
            ended = self._tick()
            now = time.monotonic()
            if ended > most_ended:
                most_ended, stalls_at = ended, now + STALL_S
            if now >= says_at:
                says_at = now + SAY_EVERY_S
                faults, ends = self.upsets.hits.total(), self.watch.ends.total()
                progress = f"{ended} of {len(self._schedule.tasks)} tasks have ended"
                self._say(f"{progress}, {faults} faults, {ends} ends of the runner")
            if now > stalls_at:
                break
            time.sleep(TICK_S)
        self._come_to_rest()
        for what in self.watch.own_ends:
            self._find(Fault.RUNNER_ENDED, what)
        self.findings += audit(self._accounts())

    def _find(self, fault: Fault, what: str) -> None:
        self._say(f"{fault.value}: {what}")
        self.findings.append(Finding(fault, what))

    def _tick(self) -> int:
        """Do what is due; return how many tasks have ended."""
        self._agenda.do_what_is_due()
        self.watch.look()
        ended = self._look_at_tasks()
        if self._host.orchestrator.is_alive:
            for record in self.records:
                if record.is_due:
                    self._strike(record)
            self._create_tasks(ended)
        self.upsets.look(ended)
        return ended

    def _create_tasks(self, ended: int) -> None:
        self._are_all_created = self._are_all_created or self._is_enough()
        while not self._are_all_created and len(self.records) - ended < QUEUE:
            plan = self._schedule.tasks[len(self.records)]
            task_id = self._host.orchestrator.create_task(
                prompt=plan.prompt,
                timeout_seconds=plan.timeout_s,
                files=[name for name, _ in self._files_of(plan)],
                scheduled_for=_soon() if plan.kind in PREPARED else None,
            )
            record = Record(plan, task_id, time.monotonic())
            self._prepare(record)
            for fault in plan.faults:
                planned = self.upsets.break_call(fault, container_of(task_id))
                record.planned.append((fault, planned))
            self.records.append(record)
            self._are_all_created = len(self.records) == len(self._schedule.tasks)

    def _files_of(self, plan: TaskPlan) -> list[tuple[str, str]]:
        """Return the files that a task carries, as `Host` has them."""
        programs = [self._host.programs[plan.program]] if plan.program else []
        return [self._host.files[index] for index in plan.files] + programs

    def _prepare(self, record: Record) -> None:
        """Take the name of its container, or put something in the way of its folder."""
        if record.plan.kind is Kind.FOREIGN_NAME:
            self._host.take_name(container_of(record.task_id))
        elif record.plan.kind is Kind.POISONED:
            place, form = record.plan.in_the_way
            folder = self._host.runner.task_folder(record.task_id)
            with suppress(OSError):  # it runs already, or this user may not make that
                (folder.parent if not place else folder).mkdir(parents=True, exist_ok=True)
                poison.put(form, str(folder / place))

    def _look_at_tasks(self) -> int:
        """Note which tasks have started and ended; return how many have ended."""
        rows = self._host.orchestrator.rows(
            "SELECT id FROM tasks WHERE status IN ('success', 'error', 'cancelled')"
        )
        over = {row["id"] for row in rows}
        for record in self.records:
            if record.ran_at is None and self._host.runner.starts_of(record.task_id):
                record.ran_at = time.monotonic()
            if record.task_id in over and not record.is_over:
                record.is_over = True
                self._agenda.later(LIFTED_AFTER_S, partial(self.upsets.lift, record.planned))
        return len(over)

    def _strike(self, record: Record) -> None:
        """Cancel a task, or remove its container."""
        if record.plan.kind is not Kind.REMOVED:
            record.is_cancelled = self._host.orchestrator.cancel(record.task_id)
            record.is_struck = True
            return
        # podman refuses now and then what concerns a container that another process looks at.
        for _ in range(ENGINE_TRIES):
            with suppress(CalledProcessError):
                self._host.engine.run("rm", "--force", container_of(record.task_id))
                record.is_struck = record.is_removed = True
                return

    def _come_to_rest(self) -> None:
        """Begin no more faults, and wait until nothing is left to do."""
        self._are_all_created = True
        self.upsets.cease()
        until = time.monotonic() + QUIET_DEADLINE_S
        while left := self._left():
            if time.monotonic() > until:
                self._find(Fault.NOT_QUIET, "; ".join(left))
                return
            self._tick()
            time.sleep(TICK_S)

    def _left(self) -> list[str]:
        runner = self._host.runner
        left = [
            f"task {row['task_id']} is {row['state']} in the journal"
            for row in runner.rows("SELECT task_id, state FROM tasks WHERE state <> 'closed'")
        ]
        left += [
            f"a report of task {row['task_id']} waits, {row['parked'] or 'to be sent'}"
            for row in runner.rows("SELECT task_id, parked FROM outbox")
        ]
        if self._look_at_tasks() < len(self.records):
            left.append("tasks have not ended")
        if not runner.is_alive:
            left.append("the runner does not run")
        return left or sorted(self._host.containers())

    def _accounts(self) -> list[Account]:
        """Return what the witnesses say of each task."""
        rows = self._host.orchestrator.rows(
            "SELECT tasks.id, tasks.status, coalesce(error_message, result, '') AS message,"
            " (SELECT count(*) FROM status_history WHERE task_number = tasks.number"
            "  AND status_history.status IN ('success', 'error', 'cancelled')) AS final_steps"
            " FROM tasks"
        )
        stored = {row.pop("id"): row for row in rows}
        containers = self._host.containers()
        for name in sorted(containers - set(map(container_of, stored))):
            self._find(Fault.CONTAINER_LEFT, f"container {name} is of no task")
        return [
            Account(
                plan=record.plan,
                task_id=record.task_id,
                is_log_broken=record.is_log_broken,
                artifacts=self._host.orchestrator.artifacts_of(record.task_id),
                **self._output_of(record),
                starts=self._host.runner.starts_of(record.task_id),
                wrong_files=self._wrong_files(record),
                has_container=container_of(record.task_id) in containers,
                is_cancelled=record.is_cancelled,
                is_removed=record.is_removed,
                is_refused=record.is_refused,
                has_stranger=container_of(record.task_id) in self._host.strangers,
                is_stranger_harmed=self._is_stranger_harmed(record),
                **stored[record.task_id],
            )
            for record in self.records
        ]

    def _output_of(self, record: Record) -> dict[str, Any]:
        output, is_whole = self._host.orchestrator.output_of(record.task_id)
        return {"output": output, "is_output_whole": is_whole}

    def _is_stranger_harmed(self, record: Record) -> bool:
        name = container_of(record.task_id)
        before = self._host.strangers.get(name)
        return before is not None and self._host.state_of(name) != before

    def _wrong_files(self, record: Record) -> tuple[str, ...]:
        wanted = {line for _, line in self._files_of(record.plan)}
        result = self._host.runner.task_folder(record.task_id) / "result.txt"
        lines = result.read_text().splitlines() if result.exists() else []
        seen = {line for line in lines if line.startswith("file: ")}
        return tuple(sorted(wanted ^ seen))
