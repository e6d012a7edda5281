"""The program of the stand-in image: follows its prompt, and records that it did.

Called as ``--accept-license --task PROMPT`` or ``--accept-license --task=PROMPT``. The first thing
it does is to append a line to ``tasks/$JOB_ID/starts.log`` below the Victoria home, so that a test
can count how often a task ran, and knows from when on TERM ends it (before, as PID 1 with Python
still loading, it would not).
The last is ``tasks/$JOB_ID/result.txt``. In between it carries out the directives in the prompt,
in their order; all else is plain text:

    [print BYTES]  [print-line TEXT]  [stderr TEXT]  [env NAME]   output
    [artifact NAME TEXT]                     a file in the folder of artifacts
    [write NAME TEXT]  [wait-for NAME]       a file in the Victoria home: make it, wait for it;
                                             [wait-for OWN/NAME] is in the task's own folder
    [run NAME ARGUMENTS]  run a Python program that is one of the task's files
    [sleep SECONDS]  [hang]  [ignore-term]   take time, never end, ignore TERM and INT
    [eat-memory MIB]  [fail CODE]            hold memory until the end, end with an exit code
    [rights]                                 print what the kernel lets this container do

With ``--accept-license`` alone the prompt is in the file that TASK_PROMPT_FILE names. A prompt
without directives is echoed together with the task's files. Runs on Python 3.9, with the standard
library, and imports little, since every test waits for its start.
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
CHECK_INTERVAL_S = 0.02
NUMBER = {"print", "sleep", "eat-memory", "fail"}
TEXT = {"print-line", "stderr", "env", "wait-for", "write", "artifact", "run"}
BARE = {"hang", "ignore-term", "rights"}


class Refused(Exception):
    """The arguments, or a directive, cannot be obeyed."""


def main(arguments: list[str]) -> int:
    home = os.environ.get("VICTORIA_HOME", "/workspace/Victoria")
    folder = os.path.join(home, "tasks", task_id())
    die_on_signals()  # before the mark, so that a test that has seen the mark may send TERM
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
    name = os.environ.get("JOB_ID") or os.environ.get("TASK_ID") or "unnamed"
    if "/" in name or name in {".", ".."}:
        raise Refused(f"cannot use JOB_ID: {name!r} is not a folder name")
    return name


def mark_start(folder: str) -> None:
    """Append one line for this start; a single write, so that no two lines mix."""
    os.makedirs(folder, exist_ok=True)
    log = os.open(os.path.join(folder, "starts.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    mark = f"time={time.time():.6f} pid={os.getpid()} hostname={os.uname().nodename}\n"
    os.write(log, mark.encode())
    os.close(log)


def die_on_signals() -> None:
    """Let TERM and INT end this process, which ignores them otherwise as PID 1 of a container."""
    on_end_signals(lambda number, _frame: os._exit(128 + number))


def read_arguments(arguments: list[str]) -> str:
    """Return the prompt; both arguments of the real image are required."""
    if arguments == ["--accept-license"] and "TASK_PROMPT_FILE" in os.environ:
        with open(os.environ["TASK_PROMPT_FILE"], encoding="utf-8") as file:
            return file.read()
    *options, prompt = arguments or [""]
    if prompt.startswith("--task="):
        options, prompt = [*options, "--task"], prompt.removeprefix("--task=")
    elif prompt.startswith("-") and " " not in prompt:
        options = []  # to argparse it is an option
    if options != ["--accept-license", "--task"] or not prompt.strip():
        raise Refused(f"cannot start: --accept-license --task PROMPT is wanted, not {arguments!r}")
    return prompt


def find_directives(prompt: str) -> list[tuple[str, str]]:
    """Return the names and values in square brackets that mean something to us."""
    directives = []
    for part in prompt.split("[")[1:]:
        inside, closed, _ = part.partition("]")
        name, _, value = inside.partition(" ")
        if closed and means_something(name, value):
            directives.append((name, value))
    return directives


def means_something(name: str, value: str) -> bool:
    """Return whether this is a directive and not just text in brackets."""
    if name in BARE:
        return not value
    if name in NUMBER:
        return value.isdecimal() or (name == "sleep" and value.replace(".", "", 1).isdecimal())
    return name in TEXT and bool(value)


def obey(name: str, value: str, home: str, held: list[bytearray]) -> None:
    first, _, rest = value.partition(" ")
    acts: dict[str, Callable[[], object]] = {
        "print": lambda: print_bytes(int(value)),
        "print-line": lambda: show(value),
        "stderr": lambda: write_all(2, value.encode() + b"\n"),
        "env": lambda: show(
            f"{value}={os.environ[value]}" if value in os.environ else f"{value} is not set"
        ),
        "write": lambda: write_whole(below(home, first), rest),
        "artifact": lambda: write_whole(below(os.environ["TASK_ARTIFACTS_DIR"], first), rest),
        "wait-for": lambda: wait_for(below(home, value.replace("OWN", f"tasks/{task_id()}"))),
        "run": lambda: run_program(first, rest.split()),
        "sleep": lambda: time.sleep(float(value)),
        "hang": hang,
        "rights": show_rights,
        "ignore-term": lambda: on_end_signals(signal.SIG_IGN),
        # Copied, not allocated: zeroed memory would not be resident before it is touched.
        "eat-memory": lambda: held.extend(bytearray(b"x") * MIB for _ in range(int(value))),
    }
    acts[name]()


def on_end_signals(handler: signal.Handlers | Callable[[int, FrameType | None], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)


def show_rights() -> None:
    """Print what this process may do, and how many there may be in its container."""
    with open("/proc/self/status", encoding="ascii") as file:
        show("".join(line for line in file if line.startswith(("CapEff", "NoNewPrivs"))).rstrip())
    for path in ("/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"):
        if os.path.exists(path):
            with open(path, encoding="ascii") as file:
                show(f"pids.max:\t{file.read().strip()}")


def hang() -> None:
    while True:
        signal.pause()


def wait_for(path: str) -> None:
    """Wait for a file to exist; the task's own timeout is the only one."""
    while not os.path.exists(path):
        time.sleep(CHECK_INTERVAL_S)


def run_program(name: str, arguments: list[str]) -> None:
    """Run a Python file of the task; the orchestrator has put an id before the file's name."""
    import runpy  # noqa: PLC0415 - loads much that only this directive needs

    folder = os.environ["TASK_FILES_DIR"]
    path = next(os.path.join(folder, file) for file in os.listdir(folder) if file.endswith(name))
    sys.argv[1:] = arguments
    runpy.run_path(path, run_name="__main__")


def show(text: str) -> None:
    write_all(1, text.encode() + b"\n")


def print_bytes(wanted: int) -> None:
    """Print exactly this many bytes, in lines, as fast as the reader takes them."""
    blocks, rest = divmod(wanted, len(BLOCK))
    for _ in range(blocks):
        write_all(1, BLOCK)
    write_all(1, BLOCK[-rest:] if rest else b"")


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
