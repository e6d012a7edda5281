"""The arguments of the engine's `run`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from runner.engine.base import ContainerSpec
from runner.engine.hardening import flag_values, hardening_arguments
from runner.model import Limits

LOG_SIZE = "10m"
"""How much of a container's output the engine keeps: the newest; docker up to twice as much."""

_HOST_NAME = "host.containers.internal"
"""The name by which a container reaches the host; podman sets it by itself."""


def run_arguments(kind: str, spec: ContainerSpec, *, can_limit_processes: bool = True) -> list[str]:
    """Return the arguments of `podman run` or `docker run`: every flag that a container gets."""
    arguments = ["run", "--detach", "--pull", "never", "--name", spec.name]
    for key, value in spec.labels.items():
        arguments += ["--label", f"{key}={value}"]
    for path in spec.env_files:
        arguments += ["--env-file", str(path)]
    arguments += _mount_arguments(kind, spec)
    if spec.cid_file is not None:
        arguments += ["--cidfile", str(spec.cid_file)]
    arguments += ["--log-opt", f"max-size={LOG_SIZE}"]
    if kind == "podman":
        arguments += ["--log-driver", "k8s-file"]
        if spec.timeout_s is not None and math.isfinite(spec.timeout_s):
            arguments += ["--timeout", str(max(1, round(spec.timeout_s)))]
    else:
        # With a second file a reader has time for the end of the first: docker leaves no other.
        arguments += ["--log-driver", "json-file", "--log-opt", "max-file=2"]
        if not _sets_host_name(spec.run_args):
            arguments += ["--add-host", f"{_HOST_NAME}:host-gateway"]
    arguments += _limit_arguments(kind, spec.limits)
    arguments += hardening_arguments(
        spec.hardening, spec.run_args, can_limit_processes=can_limit_processes
    )
    return [*arguments, *spec.run_args, spec.image, *spec.arguments]


def has_memory_limit(spec: ContainerSpec) -> bool:
    """Return whether the container has a memory limit, and so may be killed by it."""
    flags = [argument.partition("=")[0] for argument in spec.run_args]
    return spec.limits.memory is not None or "--memory" in flags or "-m" in flags


def _mount_arguments(kind: str, spec: ContainerSpec) -> list[str]:
    arguments: list[str] = []
    sources = {*spec.volumes, *spec.read_only}
    for source, target in {**spec.volumes, **spec.read_only}.items():
        mode = "ro" if source in spec.read_only else "rw"
        # For SELinux the engine labels a source with all that is below it: once is enough.
        is_labelled = any(parent in sources for parent in source.parents)
        arguments += ["--volume", f"{source}:{target}:{mode}{'' if is_labelled else ',z'}"]
    for target in spec.covered:
        # podman copies what a tmpfs covers into it, unless told not to; docker never does.
        copies = ",notmpcopyup" if kind == "podman" else ""
        arguments += ["--tmpfs", f"{target}:ro,size=64k,mode=755{copies}"]
    return arguments


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


def _sets_host_name(run_args: Sequence[str]) -> bool:
    """Return whether the host's name is set already, or docker refuses to set any.

    That is so with the network of another container; with the host's own none is needed.
    """
    networks = [*flag_values(run_args, "--network"), *flag_values(run_args, "--net")]
    networks = [network.removeprefix("name=").partition(",")[0] for network in networks]
    return any(name == "host" or name.startswith("container:") for name in networks) or any(
        host.startswith(_HOST_NAME) for host in flag_values(run_args, "--add-host")
    )
