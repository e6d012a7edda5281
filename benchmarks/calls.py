"""What the two calls that a fleet makes all the time cost the server, against a bare route.

The bare route reads JSON and returns as much JSON as a heartbeat's response, in Starlette on
uvicorn with httptools and uvloop: the least that a server in Python does for a call.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path

from benchmarks.connection import Connection
from benchmarks.servers import served
from benchmarks.simulated_fleet import Fleet
from benchmarks.system import line_of, running, spent

_CONNECTIONS = 20
_CALLS = 4000
"""In one round. CPU time is counted in hundredths of a second."""


def calls(rounds: int) -> None:
    """Measure the CPU time of a call at each server in turn; print medians and ratios."""
    with (
        tempfile.TemporaryDirectory(prefix="victoria-bench-") as folder,
        running(["benchmarks.bare"], Path(folder) / "bare.log", os.environ) as bare,
        served(Path(folder), None) as servers,
    ):
        bare_url = line_of(Path(folder) / "bare.log", "listening on ").rpartition(" ")[2].strip()
        fleet = Fleet(_CONNECTIONS, servers.urls, servers.token, servers.admin_key)
        measured = asyncio.run(_measure(rounds, bare_url, bare.pid, fleet, servers.pids[0]))
    print(f"calls: {rounds} rounds of {_CALLS} calls, CPU time of the server, medians")
    for name, times_ms in measured.items():
        ratio = statistics.median(
            one / bare for one, bare in zip(times_ms, measured["bare route"], strict=True)
        )
        print(f"  {name:<24} {statistics.median(times_ms):6.3f} ms   {ratio:5.2f} times bare")


async def _measure(
    rounds: int, bare_url: str, bare_pid: int, fleet: Fleet, pid: int
) -> dict[str, list[float]]:
    await fleet.register()
    bare = [Connection([bare_url], 0, {"X-API-Key": "x" * 43}) for _ in fleet.nodes]
    measured: dict[str, list[float]] = {"bare route": [], "heartbeat": [], "empty poll": []}

    async def beat(number: int) -> None:
        node = fleet.nodes[number]
        body = {"node_id": node.id, "status": "idle"}
        await node.telling.call("POST", "/nodes/heartbeat", body)

    async def poll(number: int) -> None:
        await fleet.nodes[number].waiting.call("GET", "/tasks/pending")

    async def plain(number: int) -> None:
        body = {"node_id": fleet.nodes[number].id, "status": "idle"}
        await bare[number].call("POST", "/", body)

    for one in range(rounds + 1):
        for name, call, server in (
            ("bare route", plain, bare_pid),
            ("heartbeat", beat, pid),
            ("empty poll", poll, pid),
        ):
            cpu_ms = await _cpu_ms(call, server)
            if one:  # the first round connects, and warms both up
                measured[name].append(cpu_ms)
    for connection in bare:
        connection.close()
    for node in fleet.nodes:
        node.close()
    return measured


async def _cpu_ms(call: Callable[[int], Coroutine[None, None, None]], pid: int) -> float:
    async def some(number: int) -> None:
        for _ in range(_CALLS // _CONNECTIONS):
            await call(number)

    before = spent(pid).cpu_s
    await asyncio.gather(*(some(number) for number in range(_CONNECTIONS)))
    return (spent(pid).cpu_s - before) * 1000 / _CALLS
