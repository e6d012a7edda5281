"""Print what this host shows of the runner and of the running task's container, as JSON.

The secrets to search for come on standard input, one per line, so that no command line has them.
"""

import json
import pwd
import subprocess
import sys
from pathlib import Path

UNIT = "victoria-runner.service"


def main() -> None:
    """Collect and print everything."""
    secrets = [line.encode() for line in sys.stdin.read().split()]
    unit = properties()
    uid = pwd.getpwnam(unit["User"]).pw_uid
    # By its program: a pull has the image's name in its command line.
    tasks = [pid for pid in pids() if b"/bin/victoria-stand-in" in read(pid, "cmdline")]
    monitors = [pid for pid in pids() if read(pid, "comm").strip() == b"conmon"]
    files = [Path("/etc/victoria-runner", name) for name in ("runner.env", "registration-token")]
    shown = {
        "systemctl show": run("systemctl", "show", UNIT, "--no-pager"),
        "the journal": run("journalctl", "--quiet", "--output=json"),
        "ps": b"\n".join(read(pid, "cmdline") for pid in pids()),
        "runner.env": files[0].read_bytes(),
        "the task's environment": b"\n".join(read(pid, "environ") for pid in [*tasks, *monitors]),
    }
    found = {
        "unit": unit,
        "uid": uid,
        # Earlier releases have the token in runner.env.
        "files": [rights(path) for path in files if path.exists()],
        "release": release(int(unit["MainPID"])),
        "variables": variables(int(unit["MainPID"])),
        "tasks": tasks,
        "cgroups": [cgroup(pid) for pid in [*tasks, *monitors]],
        "monitors": len(monitors),
        "notify_socket": any(b"NOTIFY_SOCKET=" in read(pid, "environ") for pid in tasks),
        "leaks": [place for place, text in shown.items() if any(one in text for one in secrets)],
    }
    json.dump(found, sys.stdout)


def properties() -> dict[str, str]:
    """Return the properties of the unit."""
    names = "User,ActiveState,UnitFileState,MainPID,NRestarts"
    lines = run("systemctl", "show", UNIT, f"--property={names}").decode().splitlines()
    return dict(line.split("=", 1) for line in lines)


def pids() -> list[int]:
    """Return the id of every process on this host except this one."""
    found = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
    return [pid for pid in found if b"--look-for" not in read(pid, "cmdline")]


def read(pid: int, name: str) -> bytes:
    """Read a file of a process; return nothing if the process has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def rights(path: Path) -> list[str]:
    """Return owner and mode of a file."""
    status = path.stat()
    return [pwd.getpwuid(status.st_uid).pw_name, oct(status.st_mode & 0o777)]


def release(pid: int) -> str:
    """Return the release that a process runs, by its Python's folder."""
    python = Path(read(pid, "cmdline").decode().partition("\0")[0])
    return next((path.name for path in python.parents if path.parent.name == "releases"), "")


def variables(pid: int) -> dict[str, str]:
    """Return the options with which a runner was started."""
    pairs = (pair.partition("=") for pair in read(pid, "environ").decode().split("\0"))
    return {name: value for name, _, value in pairs if name.startswith("VICTORIA_RUNNER_")}


def cgroup(pid: int) -> str:
    """Return the path of a process in the unified hierarchy."""
    lines = read(pid, "cgroup").decode().splitlines()
    return next((line[3:] for line in lines if line.startswith("0::")), "")


def run(*command: str) -> bytes:
    """Run a program and return its output."""
    return subprocess.run(command, check=True, capture_output=True).stdout


if __name__ == "__main__":
    main()
