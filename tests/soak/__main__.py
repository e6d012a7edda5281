"""`python -m tests.soak`: the soak as a program; see docs/reliability.md."""

from __future__ import annotations

import argparse
import math
import secrets
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

from tests.engines import Engine, NoEngineError, check_answering, named_engines, named_image
from tests.soak.run import run_soak
from tools.dev import options

SEEDS = 1_000_000
MANY_TASKS = 300
FEWEST_FAULTS = 200
"""So many faults hit in a soak of many tasks, or it has tried too little."""


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
    return max([_soak(seed, engine, image, given) for engine in engines])


def _soak(seed: int, engine: Engine, image: str, given: argparse.Namespace) -> int:
    name = f"victoria-soak-{engine.name}-{seed}"
    kept_below: Path | None = given.folder
    folder = kept_below / name if kept_below else Path(tempfile.mkdtemp(prefix=f"{name}-"))
    began = time.monotonic()
    ends_at = math.inf if given.minutes is None else began + 60 * given.minutes
    outcome = run_soak(
        seed, given.tasks, engine, image, folder, _say, lambda: time.monotonic() > ends_at
    )
    print(outcome.table(minutes=(time.monotonic() - began) / 60))
    has_enough = len(outcome.accounts) < MANY_TASKS or outcome.faults.total() >= FEWEST_FAULTS
    if not has_enough:
        print(f"cannot count this soak: fewer than {FEWEST_FAULTS} faults hit")
    if not outcome.is_clean:
        print(f"logs and databases are kept in {folder}")
    elif kept_below is None:
        shutil.rmtree(folder)
    print(f"seed {seed}", flush=True)
    return 0 if outcome.is_clean and has_enough else 1


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def _end(*_: object) -> NoReturn:
    """End on TERM as on Ctrl-C: through everything that tidies up."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    sys.exit(main(sys.argv[1:]))
