"""A program named podman or docker that stands first on PATH and breaks the runner at named calls.

    engine = FaultEngine(tmp_path / "fault-engine", "podman")
    runner.environment["PATH"] = engine.search_path
    engine.plan("run", Act.KILL, When.AFTER)

Every call without a plan goes through to the real engine. Plans are files in a folder, so they hold
for every process of the runner, over any number of starts.

A call is named as on the engine's command line: run, create, start, pull, wait, stop, rm and so on;
`container inspect` is inspect, and `image inspect` is image.
"""

import itertools
import json
import os
import shutil
import signal
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from tests.orchestrator.serving import wait_for

DEADLINE_S = 120.0
_HANDLER = Path(__file__).with_name("engine_call.py")
# A shell, since every call of every test passes here; Python is started only for a plan.
_SCRIPT = """\
#!/bin/sh
call=$1
[ "$call" = container ] && call=$2
for plan in '{folder}/plans/'"$call".*; do
  [ -e "$plan" ] && exec '{python}' -I -S '{handler}' '{folder}' '{real}' "$call" "$@"
done
exec '{real}' "$@"
"""


class Act(str, Enum):
    """What is done at a call."""

    BLOCK = "block"  # wait until it is released, then go on
    FAIL = "fail"  # print a message on standard error and exit
    HANG = "hang"  # never end, not even at TERM
    KILL = "kill"  # kill the runner


class When(str, Enum):
    """At which moment of a call."""

    BEFORE = "before"  # the real engine is not called, or only when a block is released
    DURING = "during"  # the real engine is called, and the runner killed meanwhile (KILL only)
    AFTER = "after"  # the real engine has done it; the runner has no result yet


@dataclass(frozen=True)
class Planned:
    """A fault that is planned, or has happened."""

    name: str
    folder: Path

    @property
    def has_happened(self) -> bool:
        return (self.folder / "met" / self.name).exists()

    def wait(self) -> None:
        wait_for(lambda: self.has_happened, DEADLINE_S)

    def release(self) -> None:
        (self.folder / "released" / self.name).touch()

    def lift(self) -> None:
        """Take it back for later calls; a call that hangs already does so until it is killed."""
        (self.folder / "plans" / self.name).unlink(missing_ok=True)


class FaultEngine:
    """The control of one fault engine, which lives in a folder of its own."""

    def __init__(self, folder: Path, kind: str) -> None:
        """Make the program that stands for the real engine of that name."""
        self.folder = folder
        self._numbers = itertools.count(1)
        for name in ("bin", "plans", "met", "released", "names"):
            (folder / name).mkdir(parents=True)
        program = folder / "bin" / kind
        values = {"python": sys.executable, "handler": _HANDLER, "real": shutil.which(kind)}
        program.write_text(_SCRIPT.format(folder=folder, **values))
        program.chmod(0o755)

    @property
    def search_path(self) -> str:
        return f"{self.folder / 'bin'}:{os.environ['PATH']}"

    def plan(  # noqa: PLR0913 - each has a default that tests mostly keep
        self,
        call: str,
        act: Act,
        when: When = When.BEFORE,
        *,
        always: bool = False,
        exit_code: int = 125,
        message: str = "Error: the fault engine refuses",
        needs: str = "",
    ) -> Planned:
        """Have the next call of that name meet this, or every one until it is lifted.

        With `needs`, only a call that has this text, or the id of a container of this name, as one
        of its arguments.
        """
        kind = "always" if always else "once"
        name = f"{call}.{next(self._numbers):06}.{act.value}.{when.value}.{kind}"
        part = self.folder / f"{name}.part"
        part.write_text(json.dumps({"exit_code": exit_code, "message": message, "needs": needs}))
        part.rename(self.folder / "plans" / name)
        return Planned(name, self.folder)

    def clear(self) -> None:
        """Take back all that has not happened, and release every blocked call."""
        for name in ("plans", "met"):
            for path in (self.folder / name).iterdir():
                planned = Planned(path.name, self.folder)
                planned.release()
                planned.lift()

    @property
    def counts(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        for path in (self.folder / "met").iterdir():
            call, _, act, when, _ = path.name.split(".")
            counts[f"{call} {act} {when}"] += len(path.read_text().splitlines())
        return counts


def end_calls(folder: Path) -> None:
    """Wait for engine calls that outlive the runner, for they may still make a container.

    They are known by a path in this folder. Those of the fault engine, which may hang, are killed.
    """
    wait_for(lambda: not _has_calls(folder), DEADLINE_S)


def _has_calls(folder: Path) -> bool:
    has_calls = False
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            command = path.read_bytes()
            if any(f"{folder}{end}".encode() in command for end in "/\0"):
                has_calls = True
                if b"engine_call.py" in command:
                    os.kill(int(path.parent.name), signal.SIGKILL)
    return has_calls
