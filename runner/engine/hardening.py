"""What a container may do: the engine's arguments that take rights away from it.

An operator's own `--run-arg` wins wherever it sets the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from runner.model import Hardening

PIDS_LIMIT = 4096
"""More processes than any agent's build starts; docker itself has no limit."""
DROPPED_CAPABILITIES = ("MKNOD", "NET_RAW", "AUDIT_WRITE")
"""Devices, forged packets and audit records: no agent needs them, and not all engines drop them."""
_TMPFS = ("/tmp", "/run")  # noqa: S108 - inside the container
_PRIVILEGED = frozenset({"--privileged", "--privileged=true"})


def hardening_arguments(
    hardening: Hardening, run_args: Sequence[str], *, can_limit_processes: bool = True
) -> list[str]:
    """Return the arguments of `run` for this hardening, less what `run_args` sets."""
    if hardening is Hardening.ENGINE:
        return []
    arguments: list[str] = []
    if not any("no-new-privileges" in value for value in flag_values(run_args, "--security-opt")):
        arguments.append("--security-opt=no-new-privileges")
    if can_limit_processes and not _has(run_args, "--pids-limit"):
        arguments.append(f"--pids-limit={PIDS_LIMIT}")
    arguments += _capability_arguments(hardening, run_args)
    if hardening is Hardening.STRICT:
        if not _has(run_args, "--read-only"):
            arguments.append("--read-only")
        mounted = [value.partition(":")[0] for value in flag_values(run_args, "--tmpfs")]
        volumes = flag_values(run_args, "--volume")
        mounted += [value.split(":")[1] for value in volumes if ":" in value]
        arguments += [f"--tmpfs={folder}" for folder in _TMPFS if folder not in mounted]
    return arguments


def _capability_arguments(hardening: Hardening, run_args: Sequence[str]) -> list[str]:
    added = {
        name.upper().removeprefix("CAP_")
        for value in flag_values(run_args, "--cap-add")
        for name in value.split(",")
    }
    if "ALL" in added or any(argument in _PRIVILEGED for argument in run_args):
        return []
    if hardening is Hardening.STRICT:
        return ["--cap-drop=ALL"]  # both engines add single ones after that
    return [f"--cap-drop={name}" for name in DROPPED_CAPABILITIES if name not in added]


def _has(run_args: Sequence[str], flag: str) -> bool:
    return any(argument.partition("=")[0] == flag for argument in run_args)


def flag_values(run_args: Sequence[str], flag: str) -> Iterator[str]:
    """Yield the values of a flag, whether written as one argument or as two."""
    for index, argument in enumerate(run_args):
        name, equals, value = argument.partition("=")
        if name == flag and equals:
            yield value
        elif name == flag and index + 1 < len(run_args):
            yield run_args[index + 1]
