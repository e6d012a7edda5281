"""The parts that a runner is put together from, as app.py hands them to the loops and tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from runner.api import Orchestrator
from runner.clock import Clock
from runner.engine_contract import Engine
from runner.journal import Journal
from runner.register import Node
from runner.settings import Settings
from runner.systemd import Pulse
from runner.workload import Changes, Workload


@dataclass(frozen=True)
class Parts:
    """One of each."""

    settings: Settings
    clock: Clock
    engine: Engine
    other_engine: Callable[[str], Engine]
    """Gives the engine of that kind, for what was started on it by an earlier runner."""
    orchestrator: Orchestrator
    journal: Journal
    node: Node
    workload: Workload
    outbox: Changes
    """Told of every letter that is put in, delivered or parked."""
    pulse: Pulse
    runner_id: str
    """Tells this runner's containers from those of another on the same engine."""
