"""`python -m tests.soak`: the soak as a program; see docs/reliability.md."""

import argparse
import math
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from tests.engines import Engine, NoEngineError, check_answering, named_engines, named_image
from tests.soak.audit import Fault
from tests.soak.host import running_host
from tests.soak.schedule import draw
from tests.soak.soak import Soak
from tools.dev import options

SEEDS = 1_000_000
MANY_TASKS = 300
FEWEST_FAULTS = 200  # so many faults hit in a soak of many tasks, or it has tried too little


def main(arguments: list[str]) -> int:
    """Run a soak on each engine asked for; 0 only if nothing happened that must not."""
    given = options.soak().parse_args(arguments)
    seed = secrets.randbelow(SEEDS) if given.seed is None else given.seed
    try:
        image = named_image()
        engines = [Engine(name) for name in given.engine or ()] or named_engines()[:1]
        for engine in engines:
            check_answering(engine)
    except NoEngineError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1
    return max([run(seed, engine, image, given) for engine in engines])


def run(seed: int, engine: Engine, image: str, given: argparse.Namespace) -> int:
    """Run one soak from its seed to its table; return the exit code.

    After so many minutes no more tasks are created; those that were are audited all the same.
    """
    name = f"victoria-soak-{engine.name}-{seed}"
    folder = given.folder / name if given.folder else Path(tempfile.mkdtemp(prefix=f"{name}-"))
    say(f"seed {seed}: {given.tasks} tasks on {engine.name}, in {folder}")
    began = time.monotonic()
    ends_at = math.inf if given.minutes is None else began + 60 * given.minutes
    version = engine.run("version", "--format", "{{.Client.Version}}")
    is_podman_4 = engine.name == "podman" and version.startswith("4.")
    schedule = draw(seed, given.tasks, knows_two_steps=is_podman_4)
    with running_host(schedule, engine, image, folder) as host:
        soak = Soak(host, schedule, say, lambda: time.monotonic() > ends_at)
        soak.run()
    limit = "with" if schedule.has_memory_limit else "without"
    minutes = (time.monotonic() - began) / 60
    print(
        f"soak on {engine.name}, {limit} a memory limit, {minutes:.1f} minutes",
        *table(soak),
        sep="\n",
    )
    has_enough = len(soak.records) < MANY_TASKS or soak.upsets.hits.total() >= FEWEST_FAULTS
    if not has_enough:
        print(f"cannot count this soak: fewer than {FEWEST_FAULTS} faults hit")
    if soak.findings:
        print(f"logs and databases are kept in {folder}")
    elif given.folder is None:
        shutil.rmtree(folder)
    print(f"seed {seed}", flush=True)
    return 0 if has_enough and not soak.findings else 1


def table(soak: Soak) -> Iterator[str]:
    """Yield lines that show what the soak did, and what it found."""
    kinds = Counter(record.plan.kind.value for record in soak.records)
    hits, ends = soak.upsets.hits, soak.watch.ends
    parts = {"tasks": kinds, "faults that hit": hits, "ends of the runner": ends}
    for title, counts in parts.items():
        yield f"{title:<52}{counts.total():>6}"
        yield from (f"  {name:<50}{number:>6}" for name, number in sorted(counts.items()))
    found = Counter(finding.fault for finding in soak.findings)
    yield from (f"{fault.value:<52}{found[fault]:>6}" for fault in Fault)
    yield from (f"! {finding.fault.value}: {finding.what}" for finding in soak.findings)


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def end(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    sys.exit(main(sys.argv[1:]))
