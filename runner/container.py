"""What a container is to the runner, and how the engines' own accounts of it are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any

from runner.settings import Limits


class Phase(str, Enum):
    """What is true of a container, once the engine's word has been held against the facts."""

    CREATED = "created"
    """It never ran."""
    RUNNING = "running"
    """Its processes are there."""
    EXITED = "exited"
    """It ended, and the engine wrote down when."""
    VANISHED = "vanished"
    """Its processes are gone and nobody saw how it ended, whatever the engine says."""


@dataclass(frozen=True)
class Container:
    """A container as it stands; moments are seconds since the epoch."""

    container_id: str
    name: str
    phase: Phase
    exit_code: int
    out_of_memory: bool
    started_at: float | None
    finished_at: float | None
    labels: Mapping[str, str]


@dataclass(frozen=True)
class ContainerSpec:
    """What a container is to be started with."""

    name: str
    image: str
    arguments: tuple[str, ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    env_files: tuple[Path, ...] = ()
    volumes: Mapping[Path, str] = field(default_factory=dict)
    timeout_s: float | None = None
    """After so long the engine itself ends the container, if it knows how to (podman)."""
    limits: Limits = Limits()
    run_args: tuple[str, ...] = ()
    cid_file: Path | None = None
    """Where the engine writes the container's id before it starts it; must not exist."""


@dataclass(frozen=True)
class EngineFacts:
    """What the engine says of itself."""

    version: str
    is_rootless: bool
    cgroup_manager: str
    is_remote: bool = False
    """Its containers' process ids are not this host's."""


def claims_to_run(told: Mapping[str, Any]) -> bool:
    return bool(told["State"].get("Running")) or told["State"].get("Status") in {
        "running",
        "paused",
        "stopping",
    }


def just_started(container_id: str, name: str, now: float) -> Container:
    """Give a container as it is in the moment in which the engine says that it runs."""
    return Container(
        container_id=container_id,
        name=name,
        phase=Phase.RUNNING,
        exit_code=0,
        out_of_memory=False,
        started_at=now,
        finished_at=None,
        labels={},
    )


def read_container(told: Mapping[str, Any], *, has_processes: bool) -> Container:
    state = told["State"]
    started_at = _moment(state.get("StartedAt"))
    finished_at = _moment(state.get("FinishedAt"))
    if claims_to_run(told):
        phase = Phase.RUNNING if has_processes else Phase.VANISHED
    elif finished_at is not None:
        phase = Phase.EXITED
    else:
        phase = Phase.CREATED if started_at is None else Phase.VANISHED
    return Container(
        container_id=told["Id"],
        name=told["Name"].removeprefix("/"),
        phase=phase,
        exit_code=int(state.get("ExitCode") or 0),
        out_of_memory=bool(state.get("OOMKilled")),
        started_at=started_at,
        finished_at=finished_at,
        labels=told.get("Config", {}).get("Labels") or {},
    )


def _moment(text: str | None) -> float | None:
    """Read an engine's time; the year 1 is how both say that it has not happened."""
    if not text or text.startswith("0001-"):
        return None
    # Nanoseconds are more than datetime takes; offsets come as Z or +01:00.
    head, _, tail = text.partition(".")
    zone = tail.lstrip("0123456789") if tail else ""
    moment = datetime.fromisoformat((head + zone).replace("Z", "+00:00"))
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    digits = tail[: len(tail) - len(zone)] if tail else ""
    return moment.timestamp() + (float(f"0.{digits}") if digits else 0.0)
