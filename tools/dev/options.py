"""The options of demo, soak and bench.

They are parsed before anything is installed or started, so --help and a wrong option cost nothing.
"""

import argparse
from pathlib import Path

ENGINES = ("podman", "docker")
DEFAULT_BENCHMARKS = ("throughput", "idle", "reporter")
ENGINE_BENCHMARKS = {"throughput", "idle", "peers"}
DATABASE_BENCHMARKS = ("claims", "fleet")
"""Benchmarks that need a PostgreSQL and no engine."""
HEARTBEAT_S = 15.0
"""As the runner has it by default."""

_BENCH = """\
Run benchmarks. Without a name: throughput, idle and reporter.

benchmarks:
  throughput   queued no-op tasks, compared with bare runs of the engine, on podman and docker
  idle         memory and CPU time of a runner without work
  reporter     startup time and memory of the status reporter, compared with a bare MCP server
  peers        no-op tasks on our runner, compared with bare runs of podman, a polling loop and a
               Prefect worker: latency, throughput and idle cost; takes 20 minutes
  claims       tasks assigned per second from a queue of 10,000, on SQLite and PostgreSQL
  calls        CPU time of a heartbeat and an empty poll, compared with a bare route of Starlette
  lists        time of a page of GET /tasks by filter, with 100,000 tasks on SQLite
  output       CPU time, response times and database growth of the orchestrator while tasks print
               1 kB per second each, also with people who watch them, on SQLite; takes 20 minutes
  abuse        response times of the orchestrator beside callers that send all they can, on SQLite
  fleet        latency and CPU time of the orchestrator under a simulated fleet, on SQLite and
               PostgreSQL; see docs/scaling.md
"""


def demo() -> argparse.ArgumentParser:
    """Return the parser of ./dev demo."""
    parser = argparse.ArgumentParser(
        prog="./dev demo",
        description="Run an orchestrator and a runner on this machine, and a task in a container.",
    )
    parser.add_argument("--keep", action="store_true", help="keep both running until Ctrl-C")
    return parser


def soak() -> argparse.ArgumentParser:
    """Return the parser of ./dev soak."""
    parser = argparse.ArgumentParser(
        prog="./dev soak",
        description="Run random tasks under random faults, then check what became of each; see "
        "docs/reliability.md. The exit code is 0 only if no task was lost or ran twice, and "
        "nothing was left behind.",
    )
    _option(parser, "--tasks", int, 300, "number of tasks")
    parser.add_argument(
        "--seed", type=int, help="repeat the schedule of this seed (default: random)"
    )
    parser.add_argument(
        "--engine",
        action="append",
        choices=ENGINES,
        help="engine to run on; repeatable (default: podman, or docker if only docker is here)",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        help="keep logs and databases in this folder, even if nothing went wrong",
    )
    parser.add_argument(
        "--minutes", type=float, help="create no more tasks after this long (default: no limit)"
    )
    return parser


def bench() -> argparse.ArgumentParser:
    """Return the parser of ./dev bench."""
    parser = argparse.ArgumentParser(
        prog="./dev bench",
        usage="./dev bench [BENCHMARK ...] [OPTIONS]",
        description=_BENCH,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # No `choices`: up to Python 3.10 they refuse the default.
    parser.add_argument(
        "what", nargs="*", type=_benchmark, default=DEFAULT_BENCHMARKS, help=argparse.SUPPRESS
    )
    engine = parser.add_argument_group("throughput, idle, peers, reporter, calls and lists")
    _option(engine, "--tasks", int, 10, "throughput, peers: tasks per round")
    _option(engine, "--rounds", int, 5, "all but idle: rounds; figures are medians")
    _option(engine, "--idle-seconds", float, 60.0, "idle, peers: how long to measure, in seconds")
    output = parser.add_argument_group("output")
    _option(
        output,
        "--printing",
        int,
        [50, 100, 200, 400],
        "tasks that print, measured one after another",
        nargs="+",
    )
    fleet = parser.add_argument_group("fleet and output")
    _option(fleet, "--nodes", int, [2000], "fleet: sizes, measured one after another", nargs="+")
    _option(
        fleet,
        "--rate",
        float,
        [10.0],
        "fleet: tasks created per second, measured one after another",
        nargs="+",
    )
    _option(fleet, "--seconds", float, 60.0, "length of each measurement in seconds")
    fleet.add_argument(
        "--heartbeat-seconds",
        type=float,
        metavar="N",
        help="fleet: seconds between two heartbeats of a node (default: as the server says)",
    )
    return parser


def _benchmark(name: str) -> str:
    names = (
        *DEFAULT_BENCHMARKS,
        "peers",
        "calls",
        "lists",
        "output",
        "abuse",
        *DATABASE_BENCHMARKS,
    )
    if name not in names:
        raise argparse.ArgumentTypeError(f"cannot run {name!r}: choose from {', '.join(names)}")
    return name


def _option(  # noqa: PLR0913, PLR0917 - as argparse has it
    parser: argparse._ActionsContainer,
    name: str,
    kind: type,
    default: object,
    meaning: str,
    nargs: str | None = None,
) -> None:
    shown = " ".join(map(str, default)) if isinstance(default, list) else default
    parser.add_argument(
        name,
        type=kind,
        default=default,
        nargs=nargs,
        help=f"{meaning} (default: {shown})",
        metavar="N",
    )
