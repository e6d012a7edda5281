"""One call of the fault engine for which something is planned; see engine.py.

Called by its shell script as ``FOLDER REAL CALL ARGUMENTS...``, with the runner as parent.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

LONGEST_S = 900.0
CHECK_INTERVAL_S = 0.01


def main(folder: Path, real: str, call: str, arguments: list[str]) -> int:
    """Do what is planned; return the exit code."""
    name, plan = claim(folder, call, lambda: names_in(folder, real, arguments))
    if name is None:
        os.execv(real, [real, *arguments])  # noqa: S606 - as if we had not been here
    _, _, act, when, _ = name.split(".")
    code = 1
    if when == "during":
        kill_runner()
    if when != "before":
        code = subprocess.call([real, *arguments])
    with (folder / "met" / name).open("a") as file:
        file.write(f"{os.getpid()}\n")
    if when != "during":
        do(act, folder / "released" / name, plan["message"])
    if act == "block" and when == "before":
        os.execv(real, [real, *arguments])  # noqa: S606 - as above
    return int(plan["exit_code"]) if act == "fail" else code


def names_in(folder: Path, real: str, arguments: list[str]) -> set[str]:
    """Return the arguments, and the names of the containers whose ids are among them."""
    names = set(arguments)
    for container_id in (text for text in arguments if re.fullmatch("[0-9a-f]{64}", text)):
        known = folder / "names" / container_id
        if not known.exists():
            command = [real, "container", "inspect", "--format", "{{.Name}}", container_id]
            inspected = subprocess.run(command, capture_output=True, text=True, check=False)
            if inspected.returncode == 0:
                known.write_text(inspected.stdout.strip().lstrip("/"))
        if known.exists():
            names.add(known.read_text())
    return names


def claim(
    folder: Path, call: str, names: Callable[[], set[str]]
) -> tuple[str | None, dict[str, str]]:
    """Return the oldest plan for this call that no other call has taken: its name and content."""
    for path in sorted((folder / "plans").glob(f"{call}.*")):
        try:
            plan: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
            if plan["needs"] and plan["needs"] not in names():
                continue
            if path.suffix == ".once":
                path.rename(folder / f"{path.name}.taken")
        except FileNotFoundError:
            continue  # another call was quicker
        return path.name, plan
    return None, {}


def do(act: str, released: Path, message: str) -> None:
    if act == "kill":
        kill_runner()
    elif act == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(LONGEST_S)
    elif act == "fail":
        sys.stderr.write(f"{message}\n")
        sys.stderr.flush()
    elif act == "block":
        wait_while(lambda: not released.exists())


def wait_while(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + LONGEST_S
    while condition() and time.monotonic() < until:
        time.sleep(CHECK_INTERVAL_S)


def kill_runner() -> None:
    """Kill the process that has called, and wait until it is gone."""
    runner = os.getppid()
    command = Path(f"/proc/{runner}/cmdline").read_bytes().split(b"\0")
    if not {b"runner", b"tests.harness.launcher"} & set(command):
        raise SystemExit(f"cannot kill the runner: {runner} is {command}")
    with suppress(ProcessLookupError):
        os.kill(runner, signal.SIGKILL)
    wait_while(lambda: os.getppid() == runner)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]))
