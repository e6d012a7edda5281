"""Run one soak from its seed to its table."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.soak.audit import Account, Fault, Finding, audit
from tests.soak.host import prepare
from tests.soak.schedule import Schedule, draw
from tests.soak.soak import Soak

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engines import Engine


PODMAN_5 = 5


@dataclass(frozen=True)
class Outcome:
    """What came of a soak."""

    schedule: Schedule
    engine: str
    accounts: list[Account]
    faults: Counter[str]
    """What really hit, by kind."""
    ends: Counter[str]
    findings: list[Finding]

    @property
    def is_clean(self) -> bool:
        """Whether nothing happened that must not."""
        return not self.findings

    def table(self, minutes: float) -> str:
        """Write it out for people."""
        kinds = Counter(account.plan.kind.value for account in self.accounts)
        counts = Counter(finding.fault for finding in self.findings)
        limit = "with" if self.schedule.has_memory_limit else "without"
        lines = [
            f"soak on {self.engine}, {limit} a memory limit, {minutes:.1f} minutes",
            *_rows("tasks", kinds),
            *_rows("faults that hit", self.faults),
            *_rows("ends of the runner", self.ends),
            *(f"{fault.value:<52}{counts[fault]:>6}" for fault in Fault),
            *(f"! {finding.fault.value}: {finding.what}" for finding in self.findings),
        ]
        return "\n".join(lines)


def _rows(title: str, counts: Counter[str]) -> list[str]:
    rows = [f"  {name:<50}{number:>6}" for name, number in sorted(counts.items())]
    return [f"{title:<52}{sum(counts.values()):>6}", *rows]


def run_soak(  # noqa: PLR0913, PLR0917 - its two callers set each
    seed: int,
    tasks: int,
    engine: Engine,
    image: str,
    folder: Path,
    say: Callable[[str], None],
    is_enough: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Carry out the schedule of a seed; end and remove everything that was started.

    From when it is enough no more tasks are made; those that were are audited all the same.
    """
    say(f"seed {seed}: {tasks} tasks on {engine.name}, in {folder}")
    version = engine.run("version", "--format", "{{.Client.Version}}")
    is_podman_4 = engine.name == "podman" and int(version.partition(".")[0]) < PODMAN_5
    schedule = draw(seed, tasks, knows_two_steps=is_podman_4)
    host = prepare(schedule, engine, image, folder)
    soak = Soak(host, schedule, say, is_enough)
    try:
        accounts = soak.run()
        findings = [*soak.findings, *audit(accounts)]
        return Outcome(schedule, engine.name, accounts, soak.faults, soak.ends, findings)
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"the soak cannot go on: {error}") from error
    finally:
        host.end([record.task_id for record in soak.records])
