"""What the output of many tasks costs the orchestrator, with and without people who watch it.

Everything is on one machine: the server on SQLite, and the simulation, which is one process. Each
node has one task, which prints at a steady rate; the node sends that as the runner does. Beside it,
another node sends heartbeats, and somebody asks for /health.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx

from benchmarks.connection import CallFailed, Connection
from benchmarks.servers import Servers, allow_open_files, served
from benchmarks.simulated_fleet import Fleet, Node, Tally
from benchmarks.system import spent
from orchestrator.db.database import DATABASE_NAME

_BYTES_PER_S = 1000
_TASKS_PER_WATCHER = 10
_FIRST_INTERVAL_S = 5.0
"""As the runner has it until the server asks for another one."""
_STARTED_PER_S = 20.0
_SETTLE_S = 15.0
"""Until every node has heard of the interval under this load, and of its watcher."""
_PROBE_EVERY_S = 0.1
_ENDS_SPREAD_S = 10.0
_STARTS_WITHIN_S = _ENDS_WITHIN_S = 120.0
_RETRY_S = 0.5
_LINES = "".join(
    f"{number:06} step {number % 97} has read {number * 37 % 1009} rows of week {number % 53}\n"
    for number in range(2000)
)
_HEAD = (
    "tasks watchers chunks/s interval   /health p50/p99   heartbeats p50/p99   seen p50/p99"
    "   server simulation   MiB/min  a byte  at the end   log MiB   errors not whole"
)


def _text(start: int, end: int) -> str:
    """Return what a task prints between two offsets; it has one byte a character."""
    first, length = start % len(_LINES), end - start
    return (_LINES * (1 + (first + length) // len(_LINES)))[first : first + length]


@dataclass
class _Printed:
    """What a task has printed, and how much of it was sent."""

    began_s: float
    sent: int = 0
    chunks: int = 0
    interval_s: float = _FIRST_INTERVAL_S

    def printed_at(self, offset: int) -> float:
        """Return when the byte with this offset was printed."""
        return self.began_s + offset / _BYTES_PER_S


class _PrintingNode(Node):
    """A node whose task prints until all are to end."""

    def __init__(
        self, number: int, urls: Sequence[str], tally: Tally, outputs: dict[str, _Printed]
    ) -> None:
        super().__init__(number, urls, tally, None)
        self._outputs = outputs
        self.ending = asyncio.Event()

    async def _do(self, task: dict[str, Any]) -> None:
        task_id = task["task_id"]
        self._tally.note_given(task["prompt"], self.id)
        await self._tell("/status", {"task_id": task_id, "status": "running"})
        self.held_task_id = task_id
        printed = self._outputs[task_id] = _Printed(time.monotonic())
        is_done = False
        while not is_done:
            with anyio.move_on_after(printed.interval_s):
                await self.ending.wait()
                await asyncio.sleep(random.uniform(0, _ENDS_SPREAD_S))  # noqa: S311 - no secret
            is_done = self.ending.is_set()
            await self._send(task_id, printed, is_done=is_done)
        await self._tell("/status", {"task_id": task_id, "status": "success"})
        self.held_task_id = None
        self._tally.note_ended(task["prompt"])

    async def _send(self, task_id: str, printed: _Printed, *, is_done: bool) -> None:
        end = round((time.monotonic() - printed.began_s) * _BYTES_PER_S)
        chunk: dict[str, object] = {"offset": printed.sent, "text": _text(printed.sent, end)}
        answer = await self._tell(
            f"/tasks/{task_id}/output", {**chunk, "done": True} if is_done else chunk
        )
        printed.sent, printed.interval_s = answer["length"], answer["interval_seconds"]
        printed.chunks += 1


class PrintingFleet(Fleet):
    """As many nodes as tasks, which print, and one more node that has no task."""

    def __init__(self, size: int, servers: Servers) -> None:
        """Prepare a fleet that is not registered yet."""
        super().__init__(0, servers.urls, servers.token, servers.admin_key)
        self.outputs: dict[str, _Printed] = {}
        """By the task's id."""
        self._printing = [
            _PrintingNode(number, servers.urls, self.tally, self.outputs) for number in range(size)
        ]
        self.other = Node(size, servers.urls, self.tally, None)
        self.nodes = [self.other, *self._printing]
        self.admin = Connection(servers.urls, 0, {"X-API-Key": servers.admin_key})

    @asynccontextmanager
    async def printing(self) -> AsyncIterator[None]:
        """Have all tasks print as long as the block lasts; the other node does nothing by itself.

        Raises CallFailed, and TimeoutError.
        """
        await self.register()
        self.nodes.remove(self.other)
        async with self.at_work():
            for number in range(len(self.nodes)):
                await asyncio.sleep(1 / _STARTED_PER_S)
                prompt = f"print {number}"
                self.tally.created_at[prompt] = time.monotonic()
                await self.admin.call("POST", "/tasks", {"prompt": prompt})
            with anyio.fail_after(_STARTS_WITHIN_S):
                while len(self.outputs) < len(self.nodes):  # noqa: ASYNC110
                    await asyncio.sleep(_PROBE_EVERY_S)
            yield
        self.other.close()
        self.admin.close()

    async def end(self) -> None:
        """Have all tasks end; note it as a failure if they do not."""
        for node in self._printing:
            node.ending.set()
        if not await self.await_ends(_ENDS_WITHIN_S):
            self.tally.failures.append("a task did not end")


@dataclass(frozen=True)
class _Look:
    """What was used up, and done, at a moment."""

    at_s: float
    server_s: float
    simulation_s: float
    database_bytes: int
    sent_bytes: int
    chunks: int


@dataclass(frozen=True)
class Measured:
    """What one number of tasks came to."""

    chunks_per_s: float
    interval_s: float
    """What the server asks for of a task that nobody watches."""
    times_ms: dict[str, list[float]]
    """Of `/health`, `heartbeats` and `seen`, sorted. A byte is seen when a watcher gets it; the
    time is that of the first byte of each event, since it was printed."""
    server_cores: float
    simulation_cores: float
    database_bytes_per_minute: float
    bytes_per_byte: float
    """By how many bytes the database grows for one that is printed, while the tasks run."""
    bytes_per_byte_at_end: float
    log_bytes: int
    """Of SQLite's write-ahead log, which is beside the database."""
    failures: list[str]
    not_whole: int
    """Tasks whose stored output is not what they printed."""


def output(sizes: Sequence[int], seconds: float) -> None:
    """Print a row for each number of tasks, without and with people who watch."""
    allow_open_files(2 * max(sizes))
    print(
        f"output: tasks that print {_BYTES_PER_S} bytes a second, on SQLite; each row"
        f" {seconds:.0f} s; times in ms (seen: in s), CPU in cores, of {os.cpu_count()};"
        f" load {os.getloadavg()[0]:.1f} before; {time.ctime()}"
    )
    print(_HEAD)
    for tasks_per_watcher in (None, _TASKS_PER_WATCHER):
        for size in sizes:
            watchers = 0 if tasks_per_watcher is None else size // tasks_per_watcher
            with (
                tempfile.TemporaryDirectory(prefix="victoria-bench-") as folder,
                served(Path(folder), None) as servers,
            ):
                measured = asyncio.run(measure(Path(folder), servers, size, watchers, seconds))
            _print_row(f"{size:5} {watchers:8}", measured)


async def measure(
    folder: Path, servers: Servers, size: int, watchers: int, seconds: float
) -> Measured:
    """Have so many tasks print, and so many of them watched; look at what that costs."""
    fleet = PrintingFleet(size, servers)
    times_ms: dict[str, list[float]] = {"/health": [], "heartbeats": [], "seen": []}
    async with fleet.printing(), _watching(fleet, servers, watchers, times_ms["seen"]):
        await asyncio.sleep(min(_SETTLE_S, seconds))
        times_ms["seen"].clear()
        before = _look(folder, servers, fleet)
        await _probe(fleet, seconds, times_ms)
        after, log_bytes = _look(folder, servers, fleet), _size(folder, "-wal")
        times_ms = {kind: sorted(times) for kind, times in times_ms.items()}
        interval_s = max(printed.interval_s for printed in fleet.outputs.values())
        await fleet.end()
        at_end = _look(folder, servers, fleet)
        not_whole = await _count_not_whole(fleet, servers)
    took_s = after.at_s - before.at_s
    return Measured(
        chunks_per_s=(after.chunks - before.chunks) / took_s,
        interval_s=interval_s,
        times_ms=times_ms,
        server_cores=(after.server_s - before.server_s) / took_s,
        simulation_cores=(after.simulation_s - before.simulation_s) / took_s,
        database_bytes_per_minute=(after.database_bytes - before.database_bytes) / took_s * 60,
        bytes_per_byte=_growth(before, after),
        bytes_per_byte_at_end=_growth(before, at_end),
        log_bytes=log_bytes,
        failures=list(fleet.tally.failures),
        not_whole=not_whole,
    )


def _print_row(name: str, measured: Measured) -> None:
    health, beats = (_shown(measured.times_ms[kind]) for kind in ("/health", "heartbeats"))
    seen = _shown([time_ms / 1000 for time_ms in measured.times_ms["seen"]], digits=1)
    print(
        f"{name} {measured.chunks_per_s:8.1f} {measured.interval_s:8.0f}"
        f" {health:>17} {beats:>20} {seen:>14}"
        f" {measured.server_cores:8.2f} {measured.simulation_cores:10.2f}"
        f" {measured.database_bytes_per_minute / 1024**2:9.1f}"
        f" {measured.bytes_per_byte:7.2f} {measured.bytes_per_byte_at_end:11.2f}"
        f" {measured.log_bytes / 1024**2:9.1f}"
        f" {len(measured.failures):8} {measured.not_whole:9}",
        flush=True,
    )
    for sentence in sorted(set(measured.failures))[:3]:
        print(f"    {sentence}")


def _shown(times: Sequence[float], digits: int = 0) -> str:
    if not times:
        return "-"
    p99 = times[math.ceil(0.99 * len(times)) - 1]
    return f"{statistics.median(times):.{digits}f}/{p99:.{digits}f}"


async def _probe(fleet: PrintingFleet, seconds: float, times_ms: dict[str, list[float]]) -> None:
    """Call /health, and send heartbeats of the other node, for so long."""
    beat = {"node_id": fleet.other.id, "status": "idle"}
    calls = {
        "/health": partial(fleet.admin.call, "GET", "/health"),
        "heartbeats": partial(fleet.other.telling.call, "POST", "/nodes/heartbeat", beat),
    }
    ends_at = time.monotonic() + seconds

    async def repeat(kind: str) -> None:
        while time.monotonic() < ends_at:
            began = time.monotonic()
            try:
                await calls[kind]()
            except CallFailed as error:
                fleet.tally.failures.append(str(error))
            times_ms[kind].append((time.monotonic() - began) * 1000)
            await asyncio.sleep(_PROBE_EVERY_S)

    await asyncio.gather(*(repeat(kind) for kind in calls))


@asynccontextmanager
async def _watching(
    fleet: PrintingFleet, servers: Servers, watchers: int, seen_ms: list[float]
) -> AsyncIterator[None]:
    """Have so many tasks watched as long as the block lasts."""
    async with _client(servers) as client, anyio.create_task_group() as group:
        for task_id in list(fleet.outputs)[:watchers]:
            group.start_soon(_watch, client, fleet, task_id, seen_ms)
        yield
        group.cancel_scope.cancel()


async def _watch(
    client: httpx.AsyncClient, fleet: PrintingFleet, task_id: str, seen_ms: list[float]
) -> None:
    """Read the events of a task until its end, over as many streams as that takes."""
    printed, reached, event = fleet.outputs[task_id], "0", ""
    while event != "end":
        headers = {"Accept": "text/event-stream", "Last-Event-ID": reached}
        try:
            async with client.stream(
                "GET", f"/tasks/{task_id}/output", headers=headers
            ) as response:
                response.raise_for_status()
                async for line in response.aiter_lines():
                    name, _, value = line.partition(": ")
                    if name == "event":
                        event = value
                    elif name == "id":
                        reached = value
                    elif name == "data" and event == "output":
                        printed_at = printed.printed_at(json.loads(value)["offset"])
                        seen_ms.append((time.monotonic() - printed_at) * 1000)
        except httpx.HTTPError as error:
            fleet.tally.failures.append(f"watch: {type(error).__name__}: {error}")
            await asyncio.sleep(_RETRY_S)


async def _count_not_whole(fleet: PrintingFleet, servers: Servers) -> int:
    """Return how many tasks have another output stored than they have printed."""
    count = 0
    async with _client(servers) as client:
        for task_id, printed in fleet.outputs.items():
            response = await client.get(f"/tasks/{task_id}/output")
            is_done = response.headers.get("X-Output-Done") == "true"
            count += not is_done or response.text != _text(0, printed.sent)
    return count


def _client(servers: Servers) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=servers.urls[0],
        headers={"X-API-Key": servers.admin_key},
        limits=httpx.Limits(max_connections=None),
        timeout=_ENDS_WITHIN_S,
        trust_env=False,
    )


def _look(folder: Path, servers: Servers, fleet: PrintingFleet) -> _Look:
    address = f"file:{folder / 'data' / DATABASE_NAME}?mode=ro"
    with closing(sqlite3.connect(address, uri=True)) as connection:
        # Those in the write-ahead log are counted too.
        (pages,), (page_bytes,) = (
            connection.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size")
        )
    outputs = fleet.outputs.values()
    return _Look(
        at_s=time.monotonic(),
        server_s=sum(spent(pid).cpu_s for pid in servers.pids),
        simulation_s=time.process_time(),
        database_bytes=pages * page_bytes,
        sent_bytes=sum(printed.sent for printed in outputs),
        chunks=sum(printed.chunks for printed in outputs),
    )


def _growth(before: _Look, after: _Look) -> float:
    sent_bytes = after.sent_bytes - before.sent_bytes
    return (after.database_bytes - before.database_bytes) / max(1, sent_bytes)


def _size(folder: Path, suffix: str) -> int:
    path = folder / "data" / f"{DATABASE_NAME}{suffix}"
    return path.stat().st_size if path.exists() else 0
