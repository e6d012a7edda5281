"""What a container is to the runner: how one is asked for, and how engines' accounts are read.

Nothing here calls an engine. What the engines say is not taken on trust: see `Phase`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any

from runner.limits import Limits

SIGNALLED = frozenset({137, 143})
"""Exit codes of a program that KILL or TERM has ended."""
LOG_SIZE = "10m"
"""How much of a container's output the engine keeps; older output makes way."""


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
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What it was started with. There are secrets among them."""


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
    limits: Limits = Limits()  # noqa: RUF009 - a named tuple: it cannot be changed
    run_args: tuple[str, ...] = ()
    cid_file: Path | None = None
    """Where the engine writes the container's id before it starts it; must not exist."""
    watcher_file: Path | None = None
    """Where podman writes the id of the process that watches the container; gone after `run`."""


@dataclass(frozen=True)
class EngineFacts:
    """What the engine says of itself."""

    version: str
    is_rootless: bool
    cgroup_manager: str
    is_remote: bool = False
    """Its containers' process ids are not this host's."""
    has_user_ids: bool = True
    """False when a rootless engine has no user ids to give to containers."""


def run_arguments(kind: str, spec: ContainerSpec) -> list[str]:
    """Write out the command that starts the container: podman's or docker's, without its name."""
    arguments = ["run", "--detach", "--pull", "never", "--name", spec.name]
    for key, value in spec.labels.items():
        arguments += ["--label", f"{key}={value}"]
    for path in spec.env_files:
        arguments += ["--env-file", str(path)]
    for source, target in spec.volumes.items():
        arguments += ["--volume", f"{source}:{target}:z"]
    if spec.cid_file is not None:
        arguments += ["--cidfile", str(spec.cid_file)]
    arguments += ["--log-opt", f"max-size={LOG_SIZE}"]
    if kind == "podman":
        if spec.watcher_file is not None:
            arguments += ["--conmon-pidfile", str(spec.watcher_file)]
        arguments += ["--log-driver", "k8s-file"]
        if spec.timeout_s is not None:
            arguments += ["--timeout", str(max(1, round(spec.timeout_s)))]
    else:
        arguments += ["--log-driver", "json-file", "--log-opt", "max-file=1"]
        if not _uses_host_network(spec.run_args):
            arguments += ["--add-host", "host.containers.internal:host-gateway"]
    arguments += _limit_arguments(kind, spec.limits)
    return [*arguments, *spec.run_args, spec.image, *spec.arguments]


def has_memory_limit(spec: ContainerSpec) -> bool:
    """Tell whether the container may be ended for its use of memory."""
    given = [argument.partition("=")[0] for argument in spec.run_args]
    return spec.limits.memory is not None or "--memory" in given or "-m" in given


def _limit_arguments(kind: str, limits: Limits) -> list[str]:
    arguments: list[str] = []
    if limits.memory is not None:
        arguments += ["--memory", limits.memory]
    if limits.cpus is not None:
        arguments += ["--cpus", limits.cpus]
    if limits.gpus is None:
        return arguments
    if kind == "docker":
        devices = "all" if limits.gpus == "all" else f'"device={limits.gpus}"'
        return [*arguments, "--gpus", devices]
    for device in limits.gpus.split(","):
        arguments += ["--device", f"nvidia.com/gpu={device}"]
    return arguments


def _uses_host_network(run_args: Sequence[str]) -> bool:
    joined = " ".join(run_args)
    return any(words in joined for words in ("--network=host", "--network host", "--net=host"))


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


def claims_to_run(told: Mapping[str, Any]) -> bool:
    """Tell whether the engine says, in its `inspect`, that the container runs."""
    status = told["State"].get("Status")
    return bool(told["State"].get("Running")) or status in {"running", "paused", "stopping"}


def process_ids(told: Mapping[str, Any]) -> list[int]:
    """Give the ids that `inspect` names: the container's first process, then what watches it."""
    pids = (told["State"].get("Pid"), watcher_id(told))
    return [pid for pid in pids if pid]


def watcher_id(told: Mapping[str, Any]) -> int | None:
    """Give the id that `inspect` names of the process that watches the container."""
    watcher: int | None = told["State"].get("ConmonPid")
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


def read_container(told: Mapping[str, Any], *, has_processes: bool) -> Container:
    """Say what is true of a container, by the engine's `inspect` and a look for its processes."""
    state = told["State"]
    started_at = _moment(state.get("StartedAt"))
    finished_at = _moment(state.get("FinishedAt"))
    if claims_to_run(told):
        phase = Phase.RUNNING if has_processes else Phase.VANISHED
    elif state.get("Status") in {"removing", "dead"} and state.get("ExitCode") in SIGNALLED:
        # `rm --force` has ended it, and says so for as long as the removal takes.
        phase = Phase.VANISHED
    elif finished_at is not None:
        # Not held against StartedAt: the clock may have been set back in between.
        phase = Phase.EXITED
    elif started_at is None and process_ids(told):
        # podman was killed before it wrote down that it had started it.
        phase = Phase.RUNNING if has_processes else Phase.VANISHED
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
        variables=_variables(told.get("Config", {}).get("Env") or []),
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
