"""What our runner costs beside others: the bare engine, a polling loop, and a Prefect worker.

All do the same: run no-op tasks, on one machine, in one run. A task is running once its own code
runs: its first act is to make a file, and the time of that file is compared with the call that
created the task.
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks import polling_loop
from benchmarks.prefect_worker import QUERY_INTERVAL_S, Prefect, prefect
from benchmarks.servers import served
from benchmarks.system import System, line_of, running, spent, started, wait_until
from orchestrator.db.database import DATABASE_NAME

PREFECT_VARIABLE = "VICTORIA_BENCH_PREFECT"
"""Python of the environment that has Prefect."""

_PROMPT = "no-op"
_TASK_TIMEOUT_S = 180.0
_SETTLE_S = 0.5
"""Until a runner whose task has ended waits for the next one."""
_HEAD = """\
                                       creation to running     queued at once       waiting
                                     median, s  p90, s  x ours       s  x bare     MiB  CPU s/h"""


@dataclass(frozen=True)
class Peer:
    """One way to run no-op tasks."""

    name: str
    create: Callable[[], str]
    """Create a task, return its id."""
    unfinished: Callable[[list[str]], bool]
    home: Path
    """The folder in which a task makes its file."""
    interval_s: float = 0.0
    """Seconds between two polls, 0 if it does not have to poll."""
    worker_pid: int | None = None

    def mark(self, task_id: str) -> Path:
        """Return the file that a task makes as its first act."""
        return self.home / "tasks" / task_id / "starts.log"


def peers(engine: str, image: str, tasks: int, rounds: int, idle_seconds: float) -> None:
    """Measure all, one after another, then watch all workers wait; print one table."""
    load = os.getloadavg()[0]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="victoria-bench-")))
        bare = _bare(folder, engine, image)
        ours = _ours(stack.enter_context(started(folder / "ours", engine, image)), folder / "ours")
        loop = stack.enter_context(_polling_loop(folder / "loop", engine, image))
        latencies = {peer: _latencies(peer, tasks) for peer in (loop, bare, ours)}
        row_s = _rows([loop], tasks, 1) | _rows([bare, ours], tasks, rounds)
        # Started last, since its server uses some CPU even without work.
        system = stack.enter_context(prefect(folder / "prefect", os.environ[PREFECT_VARIABLE]))
        for peer in (
            _no_op_flow(system, folder),
            _container_flow(system, folder, engine, image),
        ):
            latencies[peer] = _latencies(peer, tasks)
            row_s |= _rows([peer], tasks, 1)
        idle = _idle(list(latencies), idle_seconds)
    print(
        f"peers: {tasks} no-op tasks each, {engine}, Prefect {system.version}; {os.cpu_count()}"
        f" cores; load {load:.1f} before, {os.getloadavg()[0]:.1f} after; {time.ctime()}"
    )
    print(_HEAD)
    for peer, found in latencies.items():
        median_s = statistics.median(found)
        p90_s = sorted(found)[math.ceil(0.9 * len(found)) - 1]
        print(
            f"  {peer.name:<33} {median_s:7.2f} {p90_s:7.2f}"
            f" {median_s / statistics.median(latencies[ours]):7.2f}"
            f" {row_s[peer]:8.2f} {row_s[peer] / row_s[bare]:7.2f} {idle[peer]}"
        )


def _latencies(peer: Peer, tasks: int) -> list[float]:
    """Return the seconds from creation to running of tasks, created one after another."""
    latencies: list[float] = []
    ids: list[str] = []
    for number in range(tasks):
        # Each one comes at another moment between two polls, evenly spread.
        time.sleep(_SETTLE_S + peer.interval_s * (number + 0.5) / tasks)
        created_s = time.time()
        ids.append(peer.create())
        mark = peer.mark(ids[-1])
        wait_until(mark.exists, f"{peer.name}: a task did not start", _TASK_TIMEOUT_S)
        latencies.append(mark.stat().st_mtime - created_s)
        if not peer.interval_s:
            _wait_until_finished(peer, ids)
    _wait_until_finished(peer, ids)
    return latencies


def _rows(some: Sequence[Peer], tasks: int, rounds: int) -> dict[Peer, float]:
    """Return the seconds from the first creation to the last end, medians of alternating rounds."""
    seconds: dict[Peer, list[float]] = {peer: [] for peer in some}
    for _ in range(rounds):
        for peer in some:
            time.sleep(_SETTLE_S)
            began = time.monotonic()
            ids = [peer.create() for _ in range(tasks)]
            _wait_until_finished(peer, ids)
            seconds[peer].append(time.monotonic() - began)
    return {peer: statistics.median(found) for peer, found in seconds.items()}


def _idle(some: Sequence[Peer], seconds: float) -> dict[Peer, str]:
    """Return the columns on memory and CPU of each worker, after a time without tasks."""
    columns = dict.fromkeys(some, f"{'-':>7} {'-':>8}")
    workers = {peer: peer.worker_pid for peer in some if peer.worker_pid is not None}
    before = {peer: spent(pid) for peer, pid in workers.items()}
    time.sleep(seconds)
    for peer, pid in workers.items():
        after = spent(pid)
        an_hour_s = (after.cpu_s - before[peer].cpu_s) * 3600 / seconds
        columns[peer] = f"{after.resident_mib:7.1f} {an_hour_s:8.1f}"
    return columns


def _bare(folder: Path, engine: str, image: str) -> Peer:
    home = folder / "bare"
    home.mkdir()

    def create() -> str:
        task_id = uuid.uuid4().hex
        command = polling_loop.foreground(engine, image, str(home), task_id, _PROMPT)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return task_id

    return Peer(f"{engine} run --rm, bare", create, lambda _: False, home)


def _ours(system: System, folder: Path) -> Peer:
    return Peer(
        "our runner and orchestrator",
        lambda: system.create_task(_PROMPT),
        system.unfinished,
        folder / "Victoria",
        worker_pid=system.runner_pid,
    )


@contextmanager
def _polling_loop(folder: Path, engine: str, image: str) -> Iterator[Peer]:
    home, log = folder / "Victoria", folder / "polling-loop.log"
    home.mkdir(parents=True)
    with served(folder, None) as servers:
        url = servers.urls[0]
        arguments = ["benchmarks.polling_loop", url, str(home), engine, image]
        environment = {**os.environ, "REGISTRATION_TOKEN": servers.token}
        key = {"X-API-Key": servers.admin_key}
        with (
            running(arguments, log, environment) as process,
            httpx.Client(base_url=url, headers=key, trust_env=False) as admin,
        ):
            line_of(log, "registered")
            system = System(admin, process.pid, folder / "data" / DATABASE_NAME, folder / "calls")
            yield Peer(
                f"polling loop, every {polling_loop.POLL_INTERVAL_S:.0f} s",
                lambda: system.create_task(_PROMPT),
                system.unfinished,
                home,
                polling_loop.POLL_INTERVAL_S,
                process.pid,
            )


def _no_op_flow(system: Prefect, folder: Path) -> Peer:
    home = folder / "no-op-flow"

    def create() -> str:
        task_id = uuid.uuid4().hex
        mark = home / "tasks" / task_id / "starts.log"
        system.create_run("no-op", task_id, {"mark": str(mark)})
        return task_id

    name = "Prefect worker, no container"
    return Peer(name, create, system.unfinished, home, QUERY_INTERVAL_S, system.worker_pid)


def _container_flow(system: Prefect, folder: Path, engine: str, image: str) -> Peer:
    home = folder / "container-flow"
    home.mkdir()

    def create() -> str:
        task_id = uuid.uuid4().hex
        command = polling_loop.foreground(engine, image, str(home), task_id, _PROMPT)
        system.create_run("container", task_id, {"command": command})
        return task_id

    name = f"Prefect worker, {engine} run --rm"
    return Peer(name, create, system.unfinished, home, QUERY_INTERVAL_S)


def _wait_until_finished(peer: Peer, ids: list[str]) -> None:
    seconds = _TASK_TIMEOUT_S + len(ids) * peer.interval_s
    wait_until(lambda: not peer.unfinished(ids), f"{peer.name}: a task did not end", seconds)
