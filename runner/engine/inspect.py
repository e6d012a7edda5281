"""The output of `info` and `inspect`, parsed; it is not taken on trust: see `Phase`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from runner.engine.base import SIGNALLED, Container, EngineFacts, Phase


def read_podman_facts(about: Mapping[str, Any]) -> EngineFacts:
    """Parse the output of `podman info`."""
    host = about["host"]
    is_remote = bool(host.get("serviceIsRemote"))
    return EngineFacts(
        version=about["version"]["Version"],
        is_rootless=bool(host["security"]["rootless"]),
        cgroup_manager=host["cgroupManager"],
        is_remote=is_remote,
        storage=None if is_remote else _folder(about.get("store", {}).get("graphRoot")),
        architecture=str(host.get("arch") or ""),
        has_user_ids=_has_user_ids(host),
        can_limit_processes="pids" in (host.get("cgroupControllers") or ())
        or not host["security"]["rootless"],
    )


def _has_user_ids(host: Mapping[str, Any]) -> bool:
    """Return whether the user has subordinate ids (/etc/subuid, /etc/subgid) beside its own."""
    if not host["security"]["rootless"]:
        return True
    maps = host.get("idMappings") or {}
    return all(len(maps.get(kind) or ()) != 1 for kind in ("uidmap", "gidmap"))


def read_docker_facts(about: Mapping[str, Any], socket: str) -> EngineFacts:
    """Parse the output of `docker info` of the daemon behind the socket."""
    is_remote = not socket.startswith("unix:")
    return EngineFacts(
        version=about["ServerVersion"],
        is_rootless=any("rootless" in option for option in about["SecurityOptions"] or ()),
        cgroup_manager=about["CgroupDriver"],
        is_remote=is_remote,
        storage=None if is_remote else _folder(about.get("DockerRootDir")),
        architecture=str(about.get("Architecture") or ""),
    )


def _folder(path: str | None) -> Path | None:
    return Path(path) if path else None


def is_podman(about: Mapping[str, Any]) -> bool:
    """Return whether podman wrote this output of `docker info`, by itself or for docker's client.

    Only podman has a log driver k8s-file. Its containers need other arguments: with docker's, one
    would see copies of other tasks' folders.
    """
    drivers = (about.get("Plugins") or {}).get("Log") or ()
    return "host" in about or "k8s-file" in drivers


def says_running(inspected: Mapping[str, Any]) -> bool:
    """Return whether the engine claims that the container runs."""
    status = inspected["State"].get("Status")
    return bool(inspected["State"].get("Running")) or status in {"running", "paused", "stopping"}


def process_ids(inspected: Mapping[str, Any]) -> list[int]:
    """Return the ids that `inspect` names: the container's first process, then its conmon."""
    pids = (inspected["State"].get("Pid"), inspected["State"].get("ConmonPid"))
    return [pid for pid in pids if pid]


def read_container(inspected: Mapping[str, Any], *, has_processes: bool) -> Container:
    """Return what is true of a container, by the engine's `inspect` and the host's processes."""
    state = inspected["State"]
    started_at = _moment(state.get("StartedAt"))
    finished_at = _moment(state.get("FinishedAt"))
    if says_running(inspected):
        phase = Phase.RUNNING if has_processes else Phase.VANISHED
    elif state.get("Status") in {"removing", "dead"} and state.get("ExitCode") in SIGNALLED:
        # `rm --force` has killed it, and this is what the engine says while it removes it.
        phase = Phase.VANISHED
    elif finished_at is not None:
        # Not compared with StartedAt: the clock may have been set back in between.
        phase = Phase.EXITED
    elif started_at is None and process_ids(inspected):
        # podman was killed after the start and before it noted it.
        phase = Phase.RUNNING if has_processes else Phase.VANISHED
    else:
        phase = Phase.CREATED if started_at is None else Phase.VANISHED
    return Container(
        container_id=inspected["Id"],
        name=inspected["Name"].removeprefix("/"),
        phase=phase,
        image_id=(inspected.get("Image") or "").removeprefix("sha256:"),
        exit_code=int(state.get("ExitCode") or 0),
        out_of_memory=bool(state.get("OOMKilled")),
        started_at=started_at,
        finished_at=finished_at,
        labels=inspected.get("Config", {}).get("Labels") or {},
        variables=_variables(inspected.get("Config", {}).get("Env") or []),
    )


def log_file(inspected: Mapping[str, Any]) -> Path | None:
    """Return the path of podman's log of the container; None if its format is another one."""
    config = (inspected.get("HostConfig") or {}).get("LogConfig") or {}
    is_readable = config.get("Type") in {"k8s-file", "json-file"}  # two names of one format
    return Path(config["Path"]) if is_readable and config.get("Path") else None


def _variables(lines: Sequence[str]) -> dict[str, str]:
    """Parse NAME=VALUE lines; of a name that comes twice the last counts, as in the container."""
    return {name: text for name, _, text in (line.partition("=") for line in lines)}


def _moment(text: str | None) -> float | None:
    """Parse an engine's timestamp; both use the year 1 for what has not happened."""
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
