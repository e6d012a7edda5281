"""What the status reporter costs beside a bare server of the same SDK: start and memory."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

from benchmarks.system import spent

_HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "bench", "version": "1"},
    },
}
_BARE = """
import anyio
from mcp import types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

async def list_tools(context, params):
    return types.ListToolsResult(tools=[])

async def main():
    server = Server("bare", on_list_tools=list_tools)
    async with stdio_server() as (incoming, outgoing):
        await server.run(incoming, outgoing, server.create_initialization_options())

anyio.run(main)
"""


@dataclass(frozen=True)
class Cost:
    """One start: seconds until the answer to `initialize`, and MiB resident after it."""

    start_s: float
    cpu_s: float
    resident_mib: float


def reporter(rounds: int) -> None:
    """Compare the two, turn by turn."""
    ours: list[Cost] = []
    bare: list[Cost] = []
    with tempfile.TemporaryDirectory(prefix="victoria-bench-") as home:
        variables = {
            "ORCHESTRATOR_URL": "http://127.0.0.1:1",
            "JOB_ID": "bench",
            "NODE_API_KEY": "bench",
            "VICTORIA_HOME": home,
        }
        for _ in range(rounds):
            bare.append(_cost(["-c", _BARE], {}))
            ours.append(_cost(["-m", "runner.status_reporter"], variables))
    print(f"status reporter: {rounds} starts, medians, Python {sys.version.split()[0]}")
    print("                                      start       CPU    resident")
    for name, costs in (("a bare server of the SDK", bare), ("the status reporter", ours)):
        start_s = statistics.median(cost.start_s for cost in costs)
        cpu_s = statistics.median(cost.cpu_s for cost in costs)
        resident = statistics.median(cost.resident_mib for cost in costs)
        print(f"  {name:<30} {start_s:8.2f} s {cpu_s:7.2f} s {resident:7.1f} MiB")


def _cost(arguments: list[str], variables: dict[str, str]) -> Cost:
    begun = time.monotonic()
    with subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        if process.stdin is None or process.stdout is None:
            raise AssertionError("both are pipes")
        process.stdin.write(json.dumps(_HELLO).encode() + b"\n")
        process.stdin.flush()
        if not process.stdout.readline():
            raise SystemExit("bench: a server does not answer")
        start_s = time.monotonic() - begun
        found = spent(process.pid)
        process.stdin.close()
        process.wait()
    return Cost(start_s, found.cpu_s, found.resident_mib)
