"""What other callers notice while one sends as much as it can, of what hurts most.

The attacker is a process of its own and keeps its connections busy. Beside it, ten nodes send
heartbeats and poll, and somebody asks for /health. The server's limits are the default ones.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import statistics
import sys
import tempfile
import time
from asyncio.subprocess import PIPE
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import anyio

from benchmarks.connection import CallFailed, Connection
from benchmarks.servers import Servers, served
from benchmarks.simulated_fleet import Fleet, Node
from orchestrator.routes.bodies import MAX_VALUES

_NODES = 10
_SECONDS = 10.0
_PAUSE_S = 0.05
"""Between two calls of one kind from one caller."""
_TARGETS_MS = {"/health": 250, "heartbeat": 500}


@dataclass(frozen=True)
class _Attacker:
    """What an attacker has: a node's key and a task of that node, and a submitter's key."""

    url: str
    node_id: str
    node_key: str
    task_id: str
    scoped_key: str


@dataclass(frozen=True)
class _Attack:
    """Calls that are repeated on so many connections."""

    name: str
    connections: int
    path: str
    bodies: Callable[[_Attacker], Iterator[bytes]]
    is_scoped: bool = False


def _message(length: int) -> Callable[[_Attacker], Iterator[bytes]]:
    def bodies(attacker: _Attacker) -> Iterator[bytes]:
        report = {"task_id": attacker.task_id, "status": "running", "message": "m" * length}
        return _repeated(json.dumps(report).encode())

    return bodies


def _log(content: bytes) -> Callable[[_Attacker], Iterator[bytes]]:
    def bodies(attacker: _Attacker) -> Iterator[bytes]:
        head = b'{"task_id": "%s", "session": {"a": [' % attacker.task_id.encode()
        return _repeated(head + content + b"[]]}}")

    return bodies


def _ids(count: int) -> Callable[[_Attacker], Iterator[bytes]]:
    def bodies(attacker: _Attacker) -> Iterator[bytes]:
        head = b'{"node_id": "%s", "status": "busy", "task_ids": [' % attacker.node_id.encode()
        return _repeated(head + b"1," * count + b"1]}")

    return bodies


def _good_ids(attacker: _Attacker) -> Iterator[bytes]:
    ids = [f"{number:0128}" for number in range(1000)]
    beat = {"node_id": attacker.node_id, "status": "busy", "task_ids": ids}
    return _repeated(json.dumps(beat).encode())


def _tasks(
    count: int, target: Callable[[int], dict[str, object]]
) -> Callable[[_Attacker], Iterator[bytes]]:
    def bodies(_: _Attacker) -> Iterator[bytes]:
        for number in range(count):
            yield json.dumps({"prompt": "p", **target(number)}).encode()

    return bodies


def _pattern(number: int) -> dict[str, object]:
    return {"target_node_name": "*" + "*".join(f"{number:04}-{part}" for part in range(9)) + "*"}


def _repeated(body: bytes) -> Iterator[bytes]:
    while True:
        yield body


_MANY_VALUES = b"[]," * (MAX_VALUES // 2 - 500)  # a bracket and a comma each
_LARGEST = b'"' + b"x" * (9_700_000 - len(_MANY_VALUES)) + b'",' + _MANY_VALUES
_ATTACKS = (
    _Attack("1 MB status messages", 2, "/status", _message(1_000_000)),
    _Attack("100 kB status messages", 2, "/status", _message(100_000)),
    _Attack("9.7 MB logs of [],[],…", 4, "/logs", _log(b"[]," * 3_230_000)),
    _Attack("9.7 MB logs, the most values", 4, "/logs", _log(_LARGEST)),
    _Attack("heartbeats with 500,000 ids", 2, "/nodes/heartbeat", _ids(500_000)),
    _Attack("heartbeats with 1,000 ids", 2, "/nodes/heartbeat", _good_ids),
    _Attack(
        "150 tasks with 1 MiB of tags",
        2,
        "/tasks",
        _tasks(150, lambda _: {"target_tags": {f"{n:05}": "v" * 150 for n in range(6000)}}),
        is_scoped=True,
    ),
    _Attack(
        "150 tasks with the most tags",
        2,
        "/tasks",
        _tasks(150, lambda _: {"target_tags": {f"{n:0255}": "v" * 255 for n in range(32)}}),
        is_scoped=True,
    ),
    _Attack("2,000 distinct patterns", 4, "/tasks", _tasks(2000, _pattern), is_scoped=True),
)


def abuse() -> None:
    """Measure what others notice of each attack; print a table."""
    print(f"abuse: load average {os.getloadavg()[0]:.1f}; p50/p99/max in ms")
    print(f"{'':30}{'/health':>20}{'heartbeat':>20}{'poll':>20}{'database':>12}  responses")
    with (
        tempfile.TemporaryDirectory(prefix="victoria-bench-") as folder,
        served(Path(folder), None) as servers,
    ):
        asyncio.run(_measure_all(servers, Path(folder)))
    print(f"targets for the 99th percentile: {_TARGETS_MS}")


async def _measure_all(servers: Servers, folder: Path) -> None:
    fleet = Fleet(_NODES + 1, servers.urls, servers.token, servers.admin_key)
    await fleet.register()
    admin = Connection(servers.urls, 0, {"X-API-Key": servers.admin_key})
    attacker = await _attacker(fleet.nodes.pop(), admin, servers.urls[0])
    quiet = asyncio.sleep(_SECONDS / 2, Counter[str]())
    await _measure("nothing", quiet, fleet, admin, folder)
    for number, attack in enumerate(_ATTACKS):
        await _measure(attack.name, _in_process(number, attacker), fleet, admin, folder)


async def _attacker(node: Node, admin: Connection, url: str) -> _Attacker:
    wanted = {"prompt": "p", "target_node_id": node.id}
    task = cast("dict[str, Any]", await admin.call("POST", "/tasks", wanted))
    await node.waiting.call("GET", "/tasks/pending")
    key = await admin.call("POST", "/keys", {"name": "n", "description": "d"})
    return _Attacker(url, node.id, node.key, task["id"], cast("dict[str, Any]", key)["api_key"])


async def _measure(
    name: str, attack: Awaitable[Counter[str]], fleet: Fleet, admin: Connection, folder: Path
) -> None:
    times_ms: defaultdict[str, list[float]] = defaultdict(list)

    async def repeat(kind: str, call: Callable[[], Awaitable[object]]) -> None:
        while True:
            begun = time.monotonic()
            await call()
            times_ms[kind].append((time.monotonic() - begun) * 1000)
            await asyncio.sleep(_PAUSE_S)

    def calls_of(node: Node) -> Iterator[asyncio.Task[None]]:
        body = {"node_id": node.id, "status": "idle"}
        beat = partial(node.telling.call, "POST", "/nodes/heartbeat", body)
        yield asyncio.create_task(repeat("heartbeat", beat))
        yield asyncio.create_task(
            repeat("poll", partial(node.waiting.call, "GET", "/tasks/pending"))
        )

    size = _size(folder)
    calls = [asyncio.create_task(repeat("/health", partial(admin.call, "GET", "/health")))]
    calls += [call for node in fleet.nodes for call in calls_of(node)]
    responses = await attack
    for call in calls:
        call.cancel()
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(result, CallFailed):
            print(f"  {result}")
    for connection in (admin, *(c for node in fleet.nodes for c in (node.telling, node.waiting))):
        connection.close()  # it may have been cancelled within a response
    shown = "".join(f"{_shown(times_ms[kind]):>20}" for kind in ("/health", "heartbeat", "poll"))
    counts = ", ".join(f"{count} {code}" for code, count in responses.most_common())
    grown_mib = (_size(folder) - size) / 1024**2
    print(f"{name:30}{shown}{grown_mib:8.1f} MiB  {counts}", flush=True)


def _shown(times_ms: list[float]) -> str:
    ordered = sorted(times_ms)
    p99 = ordered[math.ceil(0.99 * len(ordered)) - 1]
    return f"{statistics.median(ordered):.0f}/{p99:.0f}/{ordered[-1]:.0f}"


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "data").glob("orchestrator.db*"))


async def _in_process(number: int, attacker: _Attacker) -> Counter[str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, str(number), stdin=PIPE, stdout=PIPE
    )
    try:
        output, _ = await process.communicate(json.dumps(asdict(attacker)).encode())
    finally:
        if process.returncode is None:
            process.kill()
    return Counter(json.loads(output))


async def _attack(attack: _Attack, attacker: _Attacker) -> Counter[str]:
    """Return how often each response came."""
    responses: Counter[str] = Counter()
    bodies = attack.bodies(attacker)
    key = attacker.scoped_key if attack.is_scoped else attacker.node_key

    async def repeat() -> None:
        connection = Connection([attacker.url], 0, {"X-API-Key": key})
        for body in bodies:
            try:
                await connection.call("POST", attack.path, body)
                responses["200"] += 1
            except CallFailed as error:
                responses[str(error).partition(": ")[2][:3]] += 1
                connection.close()

    # What has an end is carried through.
    seconds = None if attack.is_scoped else _SECONDS
    with anyio.move_on_after(seconds):
        await asyncio.gather(*(repeat() for _ in range(attack.connections)))
    return responses


if __name__ == "__main__":
    chosen = _ATTACKS[int(sys.argv[1])]
    print(json.dumps(asyncio.run(_attack(chosen, _Attacker(**json.load(sys.stdin))))))
