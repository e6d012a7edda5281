"""What engines say of themselves and of containers, read; it is not taken on trust: see `Phase`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from runner.engine.base import SIGNALLED, Container, EngineFacts, Phase


def read_podman_facts(about: Mapping[str, Any]) -> EngineFacts:
    """Read what `podman info` says."""
    host = about["host"]
    return EngineFacts(
        version=about["version"]["Version"],
        is_rootless=bool(host["security"]["rootless"]),
        cgroup_manager=host["cgroupManager"],
        is_remote=bool(host.get("serviceIsRemote")),
        has_user_ids=_has_user_ids(host),
    )


def _has_user_ids(host: Mapping[str, Any]) -> bool:
    """Tell whether there is more in the map than the user: what /etc/subuid and subgid grant."""
    if not host["security"]["rootless"]:
        return True
    maps = host.get("idMappings") or {}
    return all(len(maps.get(kind) or ()) != 1 for kind in ("uidmap", "gidmap"))


def read_docker_facts(about: Mapping[str, Any], socket: str) -> EngineFacts:
    """Read what `docker info` says of the daemon behind the socket."""
    return EngineFacts(
        version=about["ServerVersion"],
        is_rootless=any("rootless" in option for option in about["SecurityOptions"] or ()),
        cgroup_manager=about["CgroupDriver"],
        is_remote=not socket.startswith("unix:"),
    )


def says_running(inspected: Mapping[str, Any]) -> bool:
    """Tell whether the engine says, in its `inspect`, that the container runs."""
    status = inspected["State"].get("Status")
    return bool(inspected["State"].get("Running")) or status in {"running", "paused", "stopping"}


def process_ids(inspected: Mapping[str, Any]) -> list[int]:
    """Give the ids that `inspect` names: the container's first process, then what watches it."""
    pids = (inspected["State"].get("Pid"), watcher_id(inspected))
    return [pid for pid in pids if pid]


def watcher_id(inspected: Mapping[str, Any]) -> int | None:
    """Give the id that `inspect` names of the process that watches the container."""
    watcher: int | None = inspected["State"].get("ConmonPid")
    return watcher


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


def read_container(inspected: Mapping[str, Any], *, has_processes: bool) -> Container:
    """Say what is true of a container, by the engine's `inspect` and a look for its processes."""
    state = inspected["State"]
    started_at = _moment(state.get("StartedAt"))
    finished_at = _moment(state.get("FinishedAt"))
    if says_running(inspected):
        phase = Phase.RUNNING if has_processes else Phase.VANISHED
    elif state.get("Status") in {"removing", "dead"} and state.get("ExitCode") in SIGNALLED:
        # `rm --force` has ended it, and says so for as long as the removal takes.
        phase = Phase.VANISHED
    elif finished_at is not None:
        # Not held against StartedAt: the clock may have been set back in between.
        phase = Phase.EXITED
    elif started_at is None and process_ids(inspected):
        # podman was killed before it wrote down that it had started it.
        phase = Phase.RUNNING if has_processes else Phase.VANISHED
    else:
        phase = Phase.CREATED if started_at is None else Phase.VANISHED
    return Container(
        container_id=inspected["Id"],
        name=inspected["Name"].removeprefix("/"),
        phase=phase,
        exit_code=int(state.get("ExitCode") or 0),
        out_of_memory=bool(state.get("OOMKilled")),
        started_at=started_at,
        finished_at=finished_at,
        labels=inspected.get("Config", {}).get("Labels") or {},
        variables=_variables(inspected.get("Config", {}).get("Env") or []),
    )


def _variables(lines: Sequence[str]) -> dict[str, str]:
    """Read NAME=VALUE lines; of a name that comes twice the last holds, as in the container."""
    return {name: text for name, _, text in (line.partition("=") for line in lines)}


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
