"""What a fleet asks of the orchestrator, and how soon a created task arrives at its node.

Everything is on one machine: servers, database, and the simulation, which is one process.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.servers import POSTGRESQL_VARIABLE, Servers, allow_open_files, served
from benchmarks.simulated_fleet import Fleet
from benchmarks.system import children_of, spent
from tools.dev.options import HEARTBEAT_S

_SETTLE_S = 20.0
"""Until the first round of heartbeats is over, and every node waits."""
_ENDS_WITHIN_S = 60.0
_HEAD = (
    "                      nodes tasks/s calls/s  p50 ms  p99 ms  max ms"
    "  server database simulation KiB/node failed lost twice"
)


@dataclass(frozen=True)
class Measured:
    """What one fleet at one rate of tasks came to."""

    calls_per_s: float
    latencies_s: list[float]
    """Of all tasks, from the call that creates one to its assignment at a node, sorted."""
    servers_cores: float
    database_cores: float
    simulation_cores: float
    failures: list[str]
    lost: int
    """Tasks that no node was given."""
    twice: int
    """Tasks that more than one node was given."""

    def quantile_ms(self, part: float) -> float:
        """Give the latency that so large a part of the tasks did not go over."""
        latencies = self.latencies_s
        return latencies[min(int(part * len(latencies)), len(latencies) - 1)] * 1000


def fleet(
    sizes: Sequence[int], rates: Sequence[float], seconds: float, heartbeat_s: float | None
) -> None:
    """Put each size of fleet before SQLite, PostgreSQL, and two servers on PostgreSQL."""
    allow_open_files(max(sizes))
    url = os.environ.get(POSTGRESQL_VARIABLE)
    setups: list[tuple[str, str | None, tuple[str, ...]]] = [("SQLite", None, ())]
    if url is None:
        print(f"{POSTGRESQL_VARIABLE} is not set: on SQLite only")
    else:
        setups += [("PostgreSQL", url, ()), ("PostgreSQL, 2 workers", url, ("--workers=2",))]
    pace = "as the server says" if heartbeat_s is None else f"every {heartbeat_s:.0f} s"
    print(
        f"fleet: each row {seconds:.0f} s; heartbeats {pace}; CPU in cores, of {os.cpu_count()};"
        f" load {os.getloadavg()[0]:.1f} before; {time.ctime()}"
    )
    print(_HEAD)
    # Three heartbeats, as the server has it by itself for the runner's.
    silent_after = f"--heartbeat-timeout={3 * (heartbeat_s or HEARTBEAT_S)}"
    for name, database_url, options in setups:
        for size in sizes:
            with (
                tempfile.TemporaryDirectory(prefix="victoria-bench-") as folder,
                served(Path(folder), database_url, silent_after, *options) as servers,
            ):
                nodes = Fleet(size, servers.urls, servers.token, servers.admin_key, heartbeat_s)
                asyncio.run(_print_rows(f"{name:<22}{size:5}", servers, nodes, rates, seconds))


async def measure(nodes: Fleet, servers: Servers, rate: float, seconds: float) -> Measured:
    """Create tasks for a fleet that is at work, and wait until all have arrived."""
    tally = nodes.tally
    tally.forget()
    begun_s, before = time.monotonic(), _cpu_s(servers)
    await nodes.create_tasks(rate, seconds)
    took_s, after, calls = time.monotonic() - begun_s, _cpu_s(servers), tally.calls
    await nodes.await_ends(_ENDS_WITHIN_S)
    servers_s, database_s, simulation_s = (
        late - early for early, late in zip(before, after, strict=True)
    )
    return Measured(
        calls_per_s=calls / took_s,
        latencies_s=sorted(tally.latencies_s.values()),
        servers_cores=servers_s / took_s,
        database_cores=database_s / took_s,
        simulation_cores=simulation_s / took_s,
        failures=list(tally.failures),
        lost=len(tally.missing),
        twice=len(tally.doubles),
    )


async def _print_rows(
    name: str, servers: Servers, nodes: Fleet, rates: Sequence[float], seconds: float
) -> None:
    await nodes.register()
    registered_mib = _resident_mib(servers)
    async with nodes.at_work():
        await asyncio.sleep(_SETTLE_S)
        a_node_kib = (_resident_mib(servers) - registered_mib) * 1024 / len(nodes.nodes)
        for rate in rates:
            found = await measure(nodes, servers, rate, seconds)
            print(
                f"{name} {rate:7.0f} {found.calls_per_s:7.0f} {found.quantile_ms(0.5):7.0f}"
                f" {found.quantile_ms(0.99):7.0f} {found.quantile_ms(1):7.0f}"
                f" {found.servers_cores:7.2f} {found.database_cores:8.2f}"
                f" {found.simulation_cores:10.2f} {a_node_kib:8.1f}"
                f" {len(found.failures):6} {found.lost:4} {found.twice:5}",
                flush=True,
            )
            for sentence in sorted(set(found.failures))[:3]:
                print(f"    {sentence}")
    print(f"    servers before a node waits: {registered_mib:.0f} MiB")


def _cpu_s(servers: Servers) -> tuple[float, float, float]:
    database = [] if servers.database_pid is None else children_of(servers.database_pid)
    return (
        sum(spent(pid).cpu_s for pid in servers.pids),
        sum(spent(pid).cpu_s for pid in database),
        time.process_time(),
    )


def _resident_mib(servers: Servers) -> float:
    return sum(spent(pid).resident_mib for pid in servers.pids)
