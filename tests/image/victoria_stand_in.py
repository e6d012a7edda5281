"""The program of the stand-in image: follows its prompt, and records that it did.

Called as ``--accept-license --task PROMPT``. The first thing it does is to append a line to
``tasks/$JOB_ID/starts.log`` below the Victoria home, so that a test can count how often a task ran,
and knows from when on TERM ends it (before, as PID 1 with Python still loading, it would not).
The last is ``tasks/$JOB_ID/result.txt``. In between it carries out the directives in the prompt,
in their order; whatever else stands there is plain text:

    [print BYTES]  [print-line TEXT]  [stderr TEXT]  [env NAME]   output
    [write NAME TEXT]  [wait-for NAME]       a file in the Victoria home: make it, wait for it
    [sleep SECONDS]  [hang]  [ignore-term]   take time, never end, ignore TERM and INT
    [eat-memory MIB]  [fail CODE]            hold memory until the end, end with an exit code

A prompt without directives is echoed together with the task's files. Runs on Python 3.9, with the
standard library, and imports little, since every test waits for its start.
"""

from __future__ import annotations

import os
import signal
import sys
import time

TYPE_CHECKING = False  # typing's own takes too long to import
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

PROMPT_SHOWN = 200
LINE = b"x" * 99 + b"\n"
BLOCK = LINE * 10_000
MIB = 1 << 20
LOOK_AGAIN_S = 0.02
NUMBER = {"print", "sleep", "eat-memory", "fail"}
TEXT = {"print-line", "stderr", "env", "wait-for", "write"}
BARE = {"hang", "ignore-term"}


class Refused(Exception):
    """The arguments, or a directive, cannot be obeyed."""


def main(arguments: list[str]) -> int:
    """Do the task; return the exit code."""
    home = os.environ.get("VICTORIA_HOME", "/workspace/Victoria")
    folder = os.path.join(home, "tasks", task_id())
    die_when_told()  # before the mark, so that whoever has seen the mark may send TERM
    mark_start(folder)
    prompt = read_arguments(arguments)
    directives = find_directives(prompt)
    files = [] if "TASK_FILES_DIR" not in os.environ else describe(os.environ["TASK_FILES_DIR"])
    lines = [f"prompt: {prompt[:PROMPT_SHOWN]}", *(f"file: {line}" for line in files)]
    if not directives:
        show(f"task: {prompt[:PROMPT_SHOWN]}")
        for line in files:
            show(f"file: {line}")
    held: list[bytearray] = []
    code = 0
    for name, value in directives:
        lines.append(f"did: {name} {value}".rstrip())
        if name == "fail":
            code = int(value)
            break
        obey(name, value, home, held)
    lines.append("outcome: success" if code == 0 else f"outcome: failed with {code}")
    write_whole(os.path.join(folder, "result.txt"), "\n".join(lines) + "\n")
    return code


def task_id() -> str:
    """Return the task's id; ``unnamed`` when the image is run by hand."""
    found = os.environ.get("JOB_ID") or os.environ.get("TASK_ID") or "unnamed"
    if "/" in found or found in {".", ".."}:
        raise Refused(f"cannot use JOB_ID: {found!r} is no folder name")
    return found


def mark_start(folder: str) -> None:
    """Append one line for this start; a single write, so that no two lines mix."""
    os.makedirs(folder, exist_ok=True)
    log = os.open(os.path.join(folder, "starts.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    mark = f"time={time.time():.6f} pid={os.getpid()} hostname={os.uname().nodename}\n"
    os.write(log, mark.encode())
    os.close(log)


def die_when_told() -> None:
    """Let TERM and INT end this process, which as PID 1 of a container ignores them otherwise."""
    on_end_signals(lambda number, _frame: os._exit(128 + number))


def read_arguments(arguments: list[str]) -> str:
    """Return the prompt; both arguments of the real image are required."""
    if "--accept-license" not in arguments:
        raise Refused("cannot start: the licence is not accepted, give --accept-license")
    rest = [argument for argument in arguments if argument != "--accept-license"]
    if len(rest) != 2 or rest[0] != "--task":
        raise Refused(f"cannot start: --task PROMPT is wanted, not {rest!r}")
    if not rest[1].strip():
        raise Refused("cannot start: the prompt is empty")
    return rest[1]


def find_directives(prompt: str) -> list[tuple[str, str]]:
    """Return the names and values in square brackets that mean something to us."""
    found = []
    for part in prompt.split("[")[1:]:
        inside, closed, _ = part.partition("]")
        name, _, value = inside.partition(" ")
        if closed and means_something(name, value):
            found.append((name, value))
    return found


def means_something(name: str, value: str) -> bool:
    """Tell a directive from text that merely stands in brackets."""
    if name in BARE:
        return not value
    if name in NUMBER:
        return value.isdecimal() or (name == "sleep" and value.replace(".", "", 1).isdecimal())
    return name in TEXT and bool(value)


def obey(name: str, value: str, home: str, held: list[bytearray]) -> None:
    """Carry out one directive."""
    acts: dict[str, Callable[[], object]] = {
        "print": lambda: print_bytes(int(value)),
        "print-line": lambda: show(value),
        "stderr": lambda: write_all(2, value.encode() + b"\n"),
        "env": lambda: show(
            f"{value}={os.environ[value]}" if value in os.environ else f"{value} is not set"
        ),
        "write": lambda: write_below(home, *value.partition(" ")[::2]),
        "wait-for": lambda: wait_for(below(home, value)),
        "sleep": lambda: time.sleep(float(value)),
        "hang": hang,
        "ignore-term": lambda: on_end_signals(signal.SIG_IGN),
        # Copied, not allocated: zeroed memory would not be resident before it is touched.
        "eat-memory": lambda: held.extend(bytearray(b"x") * MIB for _ in range(int(value))),
    }
    acts[name]()


def on_end_signals(handler: signal.Handlers | Callable[[int, FrameType | None], None]) -> None:
    """Set what TERM and INT do."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)


def hang() -> None:
    """Never return."""
    while True:
        signal.pause()


def wait_for(path: str) -> None:
    """Wait for a file to exist; the task's own timeout is the only one."""
    while not os.path.exists(path):
        time.sleep(LOOK_AGAIN_S)


def show(text: str) -> None:
    """Print a line, at once."""
    write_all(1, text.encode() + b"\n")


def print_bytes(wanted: int) -> None:
    """Print exactly this many bytes, in lines, as fast as the reader takes them."""
    for _ in range(wanted // len(BLOCK)):
        write_all(1, BLOCK)
    rest = wanted % len(BLOCK)
    if rest:
        write_all(1, BLOCK[: rest - 1] + b"\n")


def write_all(descriptor: int, content: bytes) -> None:
    """Write the whole of it; a pipe takes it in pieces."""
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]


def write_whole(path: str, text: str) -> None:
    """Write a file atomically: a reader sees all of it or nothing."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    part = f"{path}.part"
    with open(part, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(part, path)


def write_below(home: str, name: str, text: str) -> None:
    """Write a file in the Victoria home."""
    write_whole(below(home, name), text)


def below(home: str, name: str) -> str:
    """Return the path of a file in the Victoria home; refuse one that lies outside."""
    root = os.path.realpath(home)
    path = os.path.realpath(os.path.join(root, name))
    if not path.startswith(root + os.sep):
        raise Refused(f"cannot use {name!r}: it is outside the Victoria home")
    return path


def describe(folder: str) -> list[str]:
    """Return a line for each file of the task: size, SHA-256, name."""
    import hashlib  # noqa: PLC0415 - loads OpenSSL, which a task without files need not wait for

    lines = []
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(parent, name)
            digest = hashlib.sha256()
            with open(path, "rb") as file:
                while block := file.read(MIB):
                    digest.update(block)
            size = os.path.getsize(path)
            lines.append(f"{size} {digest.hexdigest()} {os.path.relpath(path, folder)}")
    return lines


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Refused as refusal:
        write_all(2, f"{refusal}\n".encode())
        sys.exit(2)
