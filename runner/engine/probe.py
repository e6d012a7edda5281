"""Start a container as a task would be started, and see what it really has.

The container runs a shell script in place of the image's program. It reads files of the kernel, so
it needs nothing but a shell, and for the network bash, python3 or curl.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from runner.engine.base import ContainerSpec, Engine
from runner.engine.script import NoShell, remove_probe, run_script, unique_name
from runner.errors import EngineError
from runner.handles import readable_size

METADATA_ADDRESS = "169.254.169.254"
_TIMEOUT_S = 60.0
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
writable() {{
  if (: > "$1/$2") 2> /dev/null; then echo writable; rm -f "$1/$2"; else echo not; fi
}}
echo "Home: $(writable "$1" "$2")"
echo "Folder: $(writable "$3" "$2")"
echo "Files: $(writable "$3/files" "$2")"
count=0
for entry in "$1"/tasks/*; do [ -e "$entry" ] && count=$((count + 1)); done
echo "Tasks: $count"
answers() {{
  if command -v bash > /dev/null; then set -- bash -c ": < /dev/tcp/$1/$2"
  elif command -v python3 > /dev/null; then set -- python3 -c \
'import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)' "$1" "$2"
  elif command -v curl > /dev/null; then set -- curl -sk -o /dev/null --max-time 3 \
--noproxy '*' "$3://$1:$2/"
  else echo unknown; return; fi
  "$@" > /dev/null 2>&1 &
  asking=$!
  (sleep 3; kill -9 $asking) > /dev/null 2>&1 &
  if wait $asking 2> /dev/null; then echo answers; else echo silent; fi
}}
echo "Metadata: $(answers {METADATA_ADDRESS} 80 http)"
[ -z "$4" ] || echo "Orchestrator: $(answers "$4" "$5" "$6")"
"""
_ANSWERS = {"answers": True, "silent": False}
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
    is_folder_writable: bool
    """Its task's own folder."""
    are_files_writable: bool
    visible_tasks: int
    """How many folders of tasks it sees; its own is one."""
    reaches_metadata: bool | None
    reaches_orchestrator: bool | None


async def probe_rights(  # noqa: PLR0913 - the container, and what it tries
    engine: Engine,
    spec: ContainerSpec,
    home: str,
    file_name: str,
    *,
    folder: str = "/nowhere",
    url: str = "",
) -> Rights:
    """Start a container, see what it has, and remove it.

    `spec` needs no name and no arguments. The container tries to write `file_name` in `home` and in
    its task's `folder`, and to connect to the orchestrator's `url`.

    Raises:
        NoShell: the image has no shell.
        EngineError: the container cannot be started, or does not end.
    """
    spec = replace(spec, name=unique_name("victoria-doctor"))
    arguments = (home, file_name, folder, *_address(url))
    result = await run_script(engine, spec, _SCRIPT, arguments, _TIMEOUT_S)
    return parse_rights(result.output)


async def try_start(engine: Engine, spec: ContainerSpec) -> None:
    """Start a container that ends at once, and remove it; first one that an earlier call left.

    `spec` needs no arguments.

    Raises:
        EngineError: it cannot be started, or this host cannot run its program.
    """
    await remove_probe(engine, spec.name)
    try:
        exit_code, output = await run_script(engine, spec, ":", (), _TIMEOUT_S)
    except NoShell:
        return  # the engine came as far as to look for it
    if exit_code != 0:
        raise EngineError(
            f"cannot run anything in a container: exit code {exit_code} {output.strip()}".strip()
        )


def _address(url: str) -> tuple[str, ...]:
    """Return the host, port and scheme of a URL."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.hostname or "", str(port), parts.scheme


def parse_rights(output: str) -> Rights:
    """Parse the output of the script; raise EngineError if it is not complete."""
    pairs = [line.partition(":")[::2] for line in output.splitlines()]
    facts = {name.strip(): text.strip() for name, text in reversed(pairs)}
    try:
        bits, uid = int(facts["CapEff"], 16), int(facts["Uid"].split()[0])
        root = facts.get("RootOptions")
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
            is_folder_writable=facts["Folder"] == "writable",
            are_files_writable=facts["Files"] == "writable",
            visible_tasks=int(facts["Tasks"]),
            reaches_metadata=_ANSWERS.get(facts["Metadata"]),
            reaches_orchestrator=_ANSWERS.get(facts.get("Orchestrator", "")),
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
        "memory": _describe_limit(memory and readable_size(memory), "at most {}"),
    }


def _describe_limit(limit: int | str | None, text: str) -> str:
    return "not seen" if limit is None else text.format(limit) if limit else "no limit"
