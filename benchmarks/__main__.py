"""`./dev bench`: what the runner, the status reporter and the orchestrator cost.

The options are in tools/dev/options.py. Figures are medians of rounds that alternate between the
two sides, so that a slow moment of the machine hits both.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import httpx

from benchmarks.abuse import abuse
from benchmarks.calls import calls
from benchmarks.claims import claims
from benchmarks.fleet import fleet
from benchmarks.lists import lists
from benchmarks.output import output
from benchmarks.peers import peers
from benchmarks.reporter import reporter
from benchmarks.system import System, engine_seconds, spent, started
from tools.dev import options

PROMPT = "no-op"


def main() -> int:
    """Run the benchmarks that the arguments name; print a table of each."""
    arguments = options.bench().parse_args()
    what = arguments.what
    if "reporter" in what:
        reporter(arguments.rounds)
    if "claims" in what:
        claims()
    if "calls" in what:
        calls(arguments.rounds)
    if "lists" in what:
        lists(arguments.rounds)
    if "output" in what:
        output(arguments.printing, arguments.seconds)
    if "abuse" in what:
        abuse()
    if "fleet" in what:
        fleet(arguments.nodes, arguments.rate, arguments.seconds, arguments.heartbeat_seconds)
    if options.ENGINE_BENCHMARKS & set(what):
        on_engines(arguments)
    return 0


def on_engines(arguments: Namespace) -> None:
    """Run the benchmarks that need an engine and an image."""
    what = arguments.what
    engines = os.environ["VICTORIA_TEST_ENGINES"].split(",")
    image = os.environ["VICTORIA_TEST_IMAGE"]
    if "throughput" in what:
        for engine in engines:
            throughput(engine, image, arguments.tasks, arguments.rounds)
    if "idle" in what:
        idle(engines[0], image, arguments.idle_seconds)
    if "peers" in what:
        peers(engines[0], image, arguments.tasks, arguments.rounds, arguments.idle_seconds)


def throughput(engine: str, image: str, tasks: int, rounds: int) -> None:
    """Compare queued no-op tasks at the default poll interval with as many bare runs."""
    with_runner: list[float] = []
    bare: list[float] = []
    engine_share: list[float] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="victoria-bench-")))
        system = stack.enter_context(started(folder / "plain", engine, image))
        for _ in range(rounds):
            bare.append(bare_runs(engine, image, tasks))
            with_runner.append(queued_tasks(system, tasks))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="victoria-bench-")))
        # In rounds of their own: noting each call takes time that bare runs do not take.
        system = stack.enter_context(started(folder / "timed", engine, image, times_calls=True))
        for _ in range(rounds):
            before = engine_seconds(system.calls_log)
            seconds = queued_tasks(system, tasks)
            engine_share.append((engine_seconds(system.calls_log) - before) / seconds)
    ratio = statistics.median(a / b for a, b in zip(with_runner, bare, strict=True))
    print(f"{engine}: {tasks} no-op tasks, {rounds} rounds, medians")
    print(f"  {engine} run --rm, one after another   {statistics.median(bare):7.2f} s")
    print(f"  queued at the orchestrator             {statistics.median(with_runner):7.2f} s")
    print(f"  ratio                                  {ratio:7.2f}")
    print(f"  share in which an engine call ran      {statistics.median(engine_share):7.0%}")


def bare_runs(engine: str, image: str, tasks: int) -> float:
    """Give the seconds that as many foreground runs take, each removed before the next."""
    arguments = ["--network", "host", image, "--accept-license", "--task", PROMPT]
    begun = time.monotonic()
    for _ in range(tasks):
        subprocess.run(
            [engine, "run", "--rm", *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return time.monotonic() - begun


def queued_tasks(system: System, tasks: int) -> float:
    """Queue tasks at once; give the seconds until the last is a success."""
    begun = time.monotonic()
    ids = [system.create_task(PROMPT) for _ in range(tasks)]
    while system.unfinished(ids):
        time.sleep(0.02)
    return time.monotonic() - begun


def idle(engine: str, image: str, seconds: float) -> None:
    """Tell what a registered runner without work costs, after it has run one task."""
    with (
        tempfile.TemporaryDirectory(prefix="victoria-bench-") as name,
        started(Path(name), engine, image) as system,
    ):
        fresh = spent(system.runner_pid)
        task = system.create_task(PROMPT)
        while system.unfinished([task]):
            time.sleep(0.05)
        before = spent(system.runner_pid)
        time.sleep(seconds)
        after = spent(system.runner_pid)
    an_hour = (after.cpu_s - before.cpu_s) * 3600 / seconds
    print(f"idle: {seconds:.0f} s watched, Python {sys.version.split()[0]}")
    print(f"  peak resident memory, registered       {fresh.peak_mib:7.1f} MiB")
    print(f"  peak resident memory, after one task   {after.peak_mib:7.1f} MiB")
    print(f"  resident memory when idle              {after.resident_mib:7.1f} MiB")
    print(f"  CPU                                    {an_hour:7.1f} s per hour")


def end(*_: object) -> NoReturn:
    """End on TERM as on Ctrl-C: what was started is stopped."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, end)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("bench: stopped")
    except httpx.HTTPError as error:
        sys.exit(f"bench: the orchestrator did not answer: {error}")
