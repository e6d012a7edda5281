"""Run programs: their results, errors, root, and a lock for the set-up."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = 77
"""Exit code of a command that finds no suitable Python; automake uses it for skipped tests."""
INTERRUPTED = 130
"""Exit code after Ctrl-C or TERM."""


class SetupError(Exception):
    """A step failed; the message is one sentence that says what to do."""


class MissingPythonError(SetupError):
    """A command needs a version of Python that this machine does not have."""


class Result(NamedTuple):
    """Whether a program succeeded, and what it printed."""

    ok: bool
    output: str

    @property
    def last_line(self) -> str:
        """Return the line that most likely names the cause."""
        return (self.output.strip().splitlines() or ["no output"])[-1]


def say(line: str) -> None:
    """Print one line about what is being done."""
    print(f"dev: {line}", file=sys.stderr, flush=True)


def run(
    command: Sequence[str],
    *,
    error: str | None = None,
    timeout_s: float = 600,
    env: Mapping[str, str] | None = None,
) -> Result:
    """Run a program; if it fails and `error` is given, print its output and raise SetupError."""
    try:
        done = subprocess.run(
            command,
            check=False,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **(env or {})},
        )
        result = Result(done.returncode == 0, done.stdout)
    except FileNotFoundError:
        result = Result(ok=False, output=f"{command[0]} is not installed")
    except subprocess.TimeoutExpired:
        result = Result(ok=False, output=f"{command[0]} took longer than {timeout_s:.0f} s")
    if error and not result.ok:
        print(result.output.rstrip(), file=sys.stderr)
        raise SetupError(error)
    return result


def wait_until(condition: Callable[[], object], timeout_s: float = 60) -> bool:
    """Wait until the condition holds; return False if it does not within that time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def as_root(command: Sequence[str]) -> list[str]:
    """Return the command, with sudo unless this is root."""
    return list(command) if os.geteuid() == 0 else ["sudo", *command]


def run_in_foreground(command: Sequence[str], env: Mapping[str, str] | None = None) -> int:
    """Run the program that everything was set up for; return its exit code.

    Ctrl-C reaches it from the terminal and TERM is passed on; we wait, to clean up after it.
    """
    children: list[subprocess.Popen[bytes]] = []
    terminated = False

    def pass_on(*_: object) -> None:
        nonlocal terminated
        terminated = True
        for child in children:
            child.terminate()

    # Before the start, or a TERM in between would leave the program running.
    handlers = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),
        signal.SIGTERM: signal.signal(signal.SIGTERM, pass_on),
    }
    try:
        children.append(subprocess.Popen(command, cwd=ROOT, env={**os.environ, **(env or {})}))
        if terminated:
            pass_on()
        code = children[0].wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def cache_dir() -> Path:
    """Return this user's folder for locks and logs of the set-up."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "victoria-dev"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def setup_lock() -> Iterator[None]:
    """Let one ./dev at a time set things up."""
    with (cache_dir() / "setup.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another ./dev to finish its set-up")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
