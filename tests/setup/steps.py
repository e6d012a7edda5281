"""How a step of the set-up speaks, runs programs, and fails."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import FrameType

ROOT = Path(__file__).resolve().parents[2]


class SetupError(Exception):
    """A step failed; the message is one sentence that says what to do."""


def say(line: str) -> None:
    """Print one line about what is being done."""
    print(f"dev: {line}", file=sys.stderr, flush=True)


def attempt(
    command: Sequence[str],
    *,
    timeout_s: float = 600,
    environment: Mapping[str, str] | None = None,
    stdin: int | None = subprocess.DEVNULL,
) -> tuple[bool, str]:
    """Run a program; return whether it succeeded, and what it printed."""
    try:
        done = subprocess.run(
            command,
            check=False,
            timeout=timeout_s,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **(environment or {})},
        )
    except FileNotFoundError:
        return False, f"{command[0]} is not installed"
    except subprocess.TimeoutExpired:
        return False, f"{command[0]} took longer than {timeout_s:.0f} s"
    return done.returncode == 0, done.stdout


def require(
    command: Sequence[str],
    advice: str,
    *,
    timeout_s: float = 600,
    environment: Mapping[str, str] | None = None,
    stdin: int | None = subprocess.DEVNULL,
) -> str:
    """Run a program that has to succeed; its output, then the advice, are the error otherwise."""
    succeeded, output = attempt(command, timeout_s=timeout_s, environment=environment, stdin=stdin)
    if not succeeded:
        print(output.rstrip(), file=sys.stderr)
        raise SetupError(advice)
    return output


def as_root(command: Sequence[str]) -> list[str]:
    """Return the command as root would give it here."""
    return list(command) if os.geteuid() == 0 else ["sudo", *command]


def hand_over(command: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
    """Run the program that all was set up for, in the foreground; return its exit code.

    Ctrl-C reaches it from the terminal, TERM is passed on; we stay to tidy up after it.
    """
    child = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **(environment or {})})

    def pass_on(_number: int, _frame: FrameType | None) -> None:
        child.terminate()

    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda _number, _frame: None),
        signal.SIGTERM: signal.signal(signal.SIGTERM, pass_on),
    }
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def cache_folder() -> Path:
    """Return this user's folder for locks and logs of the set-up."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "victoria-dev"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Keep two ./dev from setting up the same thing at the same time."""
    with (cache_folder() / "setup.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another ./dev to finish its set-up")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
