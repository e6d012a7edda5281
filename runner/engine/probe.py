"""Start a container as a task would be started, and see what it really has.

The container runs a shell script in place of the image's program. It reads files of the kernel, so
it needs nothing but a shell, and for the network bash, python3 or curl.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace

import anyio

from runner.engine.base import LABEL_PROBE, ContainerSpec, Engine, Phase
from runner.errors import EngineError

METADATA_ADDRESS = "169.254.169.254"
_TIMEOUT_S = 60.0
_LOOK_AGAIN_S = 0.2
_LINES = 200
_NO_SHELL = re.compile(r"\bsh\W.*not found|executable file.*not found", re.IGNORECASE)
_UNLIMITED_BYTES = 1 << 60
"""cgroup v1 shows a number near 2**63 where there is no limit."""
_SCRIPT = f"""\
while read -r line; do echo "$line"; done < /proc/self/status
while read -r line; do echo "UidMap: $line"; done < /proc/self/uid_map
for file in /sys/fs/cgroup/pids.max /sys/fs/cgroup/pids/pids.max; do
  [ -r $file ] && read -r value < $file && echo "PidsMax: $value" && break
done
for file in /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes; do
  [ -r $file ] && read -r value < $file && echo "MemoryMax: $value" && break
done
while read -r device folder kind options rest; do
  [ "$folder" = / ] && echo "RootOptions: $options"
done < /proc/mounts
if (: > "$1/$2") 2> /dev/null; then echo "Home: writable"; rm -f "$1/$2"
else echo "Home: not writable"; fi
if command -v bash > /dev/null; then set -- bash -c ': < /dev/tcp/{METADATA_ADDRESS}/80'
elif command -v python3 > /dev/null; then set -- python3 -c \
'import socket; socket.create_connection(("{METADATA_ADDRESS}", 80), 3)'
elif command -v curl > /dev/null; then set -- curl -s -o /dev/null --max-time 3 \
--noproxy '*' http://{METADATA_ADDRESS}/
else echo "Metadata: unknown"; exit 0; fi
"$@" > /dev/null 2>&1 &
asking=$!
(sleep 3; kill -9 $asking) > /dev/null 2>&1 &
if wait $asking 2> /dev/null; then echo "Metadata: answers"; else echo "Metadata: silent"; fi
"""
# In the order of linux/capability.h.
_CAPABILITIES = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID"),
    *("SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW"),
    *("IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE"),
    *("SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME"),
    *("SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP"),
    *("MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ"),
    *("PERFMON", "BPF", "CHECKPOINT_RESTORE"),
)


class NoShell(EngineError):
    """The image has no shell, so that nothing can be seen of its containers."""


@dataclass(frozen=True)
class Rights:
    """What a container has. None: that could not be seen."""

    capabilities: tuple[str, ...]
    may_gain_privileges: bool
    pids_limit: int | None
    """0: there is no limit."""
    has_seccomp: bool
    uid: int
    host_uid: int | None
    has_read_only_root: bool | None
    memory_limit: int | None
    """Bytes; 0: there is no limit."""
    is_home_writable: bool
    reaches_metadata: bool | None


async def probe_rights(engine: Engine, spec: ContainerSpec, home: str, file_name: str) -> Rights:
    """Start a container, see what it has, and remove it.

    `spec` needs no name and no arguments. The container tries to write `file_name` in `home`.

    Raises:
        NoShell: the image has no shell.
        EngineError: the container cannot be started, or does not end.
    """
    spec = replace(spec, name=f"victoria-doctor-{secrets.token_hex(8)}")
    _, output = await _run_shell(engine, spec, ("-c", _SCRIPT, "sh", home, file_name))
    return parse_rights(output)


async def try_start(engine: Engine, spec: ContainerSpec) -> None:
    """Start a container that ends at once, and remove it; first one that an earlier call left.

    `spec` needs no arguments.

    Raises:
        EngineError: it cannot be started, or this host cannot run its program.
    """
    await _remove(engine, spec.name)
    try:
        exit_code, output = await _run_shell(engine, spec, ("-c", ":"))
    except NoShell:
        return  # the engine came as far as to look for it
    if exit_code != 0:
        raise EngineError(
            f"cannot run anything in a container: exit code {exit_code} {output.strip()}".strip()
        )


async def _run_shell(
    engine: Engine, spec: ContainerSpec, arguments: tuple[str, ...]
) -> tuple[int, str]:
    """Run the image's shell in a container; return its exit code and output."""
    spec = replace(
        spec,
        arguments=arguments,
        labels={**spec.labels, LABEL_PROBE: spec.name},
        timeout_s=_TIMEOUT_S,
        run_args=(*spec.run_args, "--entrypoint", "sh"),
    )
    try:
        container_id = await engine.run(spec)
        with anyio.fail_after(_TIMEOUT_S):
            exit_code = await _wait_for_end(engine, container_id)
        return exit_code, await engine.last_output(container_id, _LINES)
    except TimeoutError:
        raise EngineError(f"the container did not end within {_TIMEOUT_S:g} s") from None
    except EngineError as error:
        if _NO_SHELL.search(str(error)):
            raise NoShell("the image has no shell (sh)") from error
        raise
    finally:
        with anyio.CancelScope(shield=True):
            await _remove(engine, spec.name)


async def _wait_for_end(engine: Engine, container_id: str) -> int:
    while True:
        await engine.wait(container_id)
        container = await engine.inspect(container_id)
        if container is None:
            raise EngineError("the container was removed by somebody else")
        if container.phase is not Phase.RUNNING:
            return container.exit_code
        await anyio.sleep(_LOOK_AGAIN_S)


async def _remove(engine: Engine, name: str) -> None:
    container = await engine.inspect(name)
    if container is not None and container.labels.get(LABEL_PROBE) == name:
        await engine.remove(container.container_id)


def parse_rights(output: str) -> Rights:
    """Parse the output of the script; raise EngineError if it is not complete."""
    pairs = [line.partition(":")[::2] for line in output.splitlines()]
    facts = {name.strip(): text.strip() for name, text in reversed(pairs)}
    try:
        bits, uid = int(facts["CapEff"], 16), int(facts["Uid"].split()[0])
        metadata, root = facts.get("Metadata"), facts.get("RootOptions")
        return Rights(
            capabilities=tuple(_capability_names(bits)),
            may_gain_privileges=facts["NoNewPrivs"] == "0",
            pids_limit=_limit(facts.get("PidsMax")),
            has_seccomp=facts["Seccomp"] != "0",
            uid=uid,
            host_uid=_host_uid(uid, [text for name, text in pairs if name == "UidMap"]),
            has_read_only_root=None if root is None else "ro" in root.split(","),
            memory_limit=_limit(facts.get("MemoryMax")),
            is_home_writable=facts["Home"] == "writable",
            reaches_metadata={"answers": True, "silent": False}.get(metadata or ""),
        )
    except (LookupError, ValueError) as error:
        raise EngineError("the container did not say what it has") from error


def _capability_names(bits: int) -> list[str]:
    known = [name for index, name in enumerate(_CAPABILITIES) if bits >> index & 1]
    more = bits >> len(_CAPABILITIES)
    return [*known, f"0x{more << len(_CAPABILITIES):x}"] if more else known


def _limit(text: str | None) -> int | None:
    if text is None:
        return None
    number = 0 if text == "max" else int(text)
    return 0 if number >= _UNLIMITED_BYTES else number


def _host_uid(uid: int, maps: list[str]) -> int | None:
    """Return the user id on the host; a line of uid_map: first inside, first outside, count."""
    for line in maps:
        inside, outside, count = map(int, line.split())
        if inside <= uid < inside + count:
            return outside + uid - inside
    return None


def describe(rights: Rights) -> Mapping[str, str]:
    """Return what a container has as sentences, by what they are about."""
    limit, memory, root = rights.pids_limit, rights.memory_limit, rights.has_read_only_root
    host = "not known" if rights.host_uid is None else str(rights.host_uid)
    return {
        "user": f"uid {rights.uid} in the container, uid {host} on this host",
        "capabilities": ", ".join(rights.capabilities) or "none",
        "new privileges": "can be gained" if rights.may_gain_privileges else "cannot be gained",
        "processes": _describe_limit(limit, "at most {}"),
        "seccomp": "system calls are filtered" if rights.has_seccomp else "no filter",
        "root": "not seen" if root is None else "read-only" if root else "writable",
        "memory": _describe_limit(memory and memory >> 20, "at most {} MiB"),
    }


def _describe_limit(limit: int | None, text: str) -> str:
    return "not seen" if limit is None else text.format(limit) if limit else "no limit"
