"""The system that is measured: orchestrator and runner as processes, and what /proc tells."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from orchestrator.db.database import DATABASE_NAME

_DEADLINE_S = 60.0
# Stands first on PATH under the engine's name, and notes when each call began and ended.
_TIMER = """#!/bin/sh
begun=$(cut -d' ' -f1 /proc/uptime)
{engine} "$@"
code=$?
echo "$begun $(cut -d' ' -f1 /proc/uptime) $1" >> {log}
exit $code
"""


@dataclass(frozen=True)
class Spent:
    """What a process has used up: CPU seconds, and MiB of memory now and at most."""

    cpu_s: float
    resident_mib: float
    peak_mib: float


@dataclass(frozen=True)
class System:
    """A running orchestrator with one runner."""

    admin: httpx.Client
    runner_pid: int
    database: Path
    calls_log: Path

    def create_task(self, prompt: str) -> str:
        """Queue a task; give its id."""
        answer = self.admin.post("/tasks", json={"prompt": prompt})
        answer.raise_for_status()
        return str(answer.json()["id"])

    def unfinished(self, ids: list[str]) -> bool:
        """Say whether one of the tasks has not ended; a failure ends the benchmark.

        The database is looked at, since each question to the orchestrator is work for it.
        """
        with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)) as connection:
            status_of = dict(connection.execute("SELECT id, status FROM tasks"))
        if "error" in status_of.values():
            raise SystemExit("bench: a task failed")
        return any(status_of[one] != "success" for one in ids)


@contextmanager
def started(
    folder: Path, engine: str, image: str, *, times_calls: bool = False
) -> Iterator[System]:
    """Run both programs for as long as the block lasts, and note each call of the engine."""
    folder.mkdir(exist_ok=True)
    calls_log = folder / "calls"
    calls_log.touch()
    environment = dict(os.environ)
    if times_calls:
        timing = _timing(folder, engine, calls_log)
        environment["PATH"] = f"{timing}:{environment['PATH']}"
    data_dir, log = folder / "orchestrator", folder / "orchestrator.log"
    with running(["orchestrator", "--port", "0", "--data-dir", str(data_dir)], log, environment):
        url = line_of(log, "listening on ").split("listening on ")[1].strip()
        options = [
            f"--orchestrator-url={url}",
            f"--registration-token-file={data_dir / 'registration-token'}",
            f"--victoria-home={folder / 'Victoria'}",
            f"--state-dir={folder / 'state'}",
            f"--container-image={image}",
            f"--container-runtime={engine}",
            "--run-arg=--network=host",
            # docker knows no images that are surely in no registry, and none answers here.
            "--pull=missing",
        ]
        runner_log = folder / "runner.log"
        key = (data_dir / "admin-key").read_text().strip()
        with (
            running(["runner", *options], runner_log, environment) as runner,
            httpx.Client(base_url=url, headers={"X-API-Key": key}, trust_env=False) as admin,
        ):
            line_of(runner_log, "registered ")
            yield System(admin, runner.pid, data_dir / DATABASE_NAME, calls_log)
            # It may be removing its last container.
            runner.send_signal(signal.SIGINT)
            runner.wait(_DEADLINE_S)


def engine_seconds(calls_log: Path) -> float:
    """Give the seconds in which at least one engine call was under way."""
    spans = sorted(
        (float(begun), float(ended))
        for begun, ended, _ in (line.split() for line in calls_log.read_text().splitlines())
    )
    total, reached = 0.0, 0.0
    for begun, ended in spans:
        total += max(0.0, ended - max(begun, reached))
        reached = max(reached, ended)
    return total


def spent(pid: int) -> Spent:
    """Read what a process has used up."""
    status = dict(
        line.split(":", 1)
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if ":" in line
    )
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    return Spent(
        cpu_s=ticks / os.sysconf("SC_CLK_TCK"),
        resident_mib=int(status["VmRSS"].split()[0]) / 1024,
        peak_mib=int(status["VmHWM"].split()[0]) / 1024,
    )


def parent_of(pid: int) -> int:
    """Give the id of a process's parent."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def children_of(pid: int) -> list[int]:
    """Give the ids of the processes whose parent this one is."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


@contextmanager
def running(
    arguments: list[str], log: Path, environment: Mapping[str, str], python: str = sys.executable
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Python program, by default one of ours, for as long as the block lasts."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [python, "-m", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**environment, "PYTHONUNBUFFERED": "1"},
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(_DEADLINE_S)


def line_of(log: Path, text: str) -> str:
    """Wait for a line with this text in a program's log; give it."""
    until = time.monotonic() + _DEADLINE_S
    while time.monotonic() < until:
        for line in log.read_text().splitlines():
            if text in line:
                return line
        time.sleep(0.02)
    raise SystemExit(f"bench: {log.stem} did not start:\n{log.read_text()}")


def wait_until(condition: Callable[[], bool], failure: str, seconds: float = _DEADLINE_S) -> None:
    """Wait until the condition holds; if it does not within that time, exit with the failure."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise SystemExit(f"bench: {failure} within {seconds:.0f} s")
        time.sleep(0.02)


def _timing(folder: Path, engine: str, calls_log: Path) -> Path:
    real = next(
        str(Path(place) / engine)
        for place in os.environ["PATH"].split(":")
        if (Path(place) / engine).exists()
    )
    script = folder / "bin" / engine
    script.parent.mkdir()
    script.write_text(_TIMER.format(engine=real, log=calls_log))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script.parent
