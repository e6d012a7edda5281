"""`./dev demo`: the whole system on this machine, once through, for people to watch.

A reference orchestrator and a runner as real processes on loopback, and one task in a real
container, with the commands that people use. Ends with 0 and leaves nothing behind; with `--keep`
both continue until Ctrl-C.
"""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import cast

from tools.dev import options

PROGRAM = Path(sys.executable).with_name("victoria-orchestrator")
NODE = "demo-runner-1"
TARGET = "demo-*"
STAND_IN = "A stand-in for Victoria Terminal carries out what is in square brackets."
FILE = ("sales figures.csv", "region,units\nnorth,12\neast,7\nsouth,30\nwest,3\n")
PROMPT = """\
Add up the units in the file that came with this task.
[print-line reading sales figures.csv] [sleep 2]
[print-line north 12, east 7] [sleep 2]
[print-line south 30, west 3] [sleep 2]
[print-line writing total.txt] [artifact total.txt 52 units in 4 regions] [sleep 2]
"""
RESULT = ("total.txt", "52 units in 4 regions")
OWN_PROMPT = (
    "Count to three. [print-line one] [sleep 5] [print-line two] [sleep 5] [print-line three]"
    " [artifact count.txt one, two, three]"
)
DEADLINE_S = 180.0
END_S = 90.0
INTERRUPTED = 130


class DemoError(Exception):
    """The demo cannot go on; the sentence says why."""


@dataclass(frozen=True)
class Demo:
    """A running orchestrator, called by its command line as people call it."""

    folder: Path
    url: str

    @property
    def key_file(self) -> Path:
        """The file with the admin key."""
        return self.folder / "orchestrator" / "admin-key"

    def call(self, *arguments: str, is_captured: bool = False) -> str:
        """Print a command and what it prints, as it comes; return its output if it is captured."""
        print(f"$ victoria-orchestrator {shlex.join(arguments)}")
        variables = {
            "VICTORIA_ORCHESTRATOR_URL": self.url,
            "VICTORIA_ORCHESTRATOR_API_KEY": self.key_file.read_text().strip(),
        }
        done = subprocess.run(
            [PROGRAM, *arguments],
            cwd=self.folder,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if is_captured else sys.stdout,
            stderr=sys.stdout,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        print(done.stdout or "")
        if done.returncode:
            raise DemoError(f"{arguments[1]} ended with exit code {done.returncode}")
        return done.stdout or ""


def main() -> int:
    """Run the demo; return the exit code."""
    keep = options.demo().parse_args().keep
    # What commands print is to come after what is printed before them.
    cast("TextIOWrapper", sys.stdout).reconfigure(line_buffering=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="victoria-demo-")))
        try:
            demo = Demo(folder, start_orchestrator(stack, folder))
            start_runner(stack, demo)
            task_id = show_task(demo)
        except (DemoError, subprocess.TimeoutExpired) as error:
            print(f"\ndemo: {error}", file=sys.stderr)
            for log in sorted(folder.glob("*.log")):
                print(f"--- {log.name}\n{log.read_text()}", file=sys.stderr)
            return 1
        if keep:
            show_commands(demo, task_id)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
            signal.sigwait({signal.SIGINT, signal.SIGTERM})
            print("\nstopping both, and removing what they had")
        else:
            print("All of it is stopped and removed now. To try it yourself: ./dev demo --keep")
    return 0


def start_orchestrator(stack: ExitStack, folder: Path) -> str:
    """Start the reference orchestrator on a free port; return its URL."""
    data_dir = folder / "orchestrator"
    arguments = ["--host", "127.0.0.1", "--port", "0", "--data-dir", str(data_dir)]
    process = running("orchestrator", arguments, folder, stop_with=[signal.SIGTERM])
    line = wait_for_line(stack.enter_context(process), folder / "orchestrator.log", "listening on ")
    url = line.split("listening on ")[1].strip()
    print(f"orchestrator  {url}  (reference orchestrator, SQLite)")
    return url


def start_runner(stack: ExitStack, demo: Demo) -> None:
    """Start a runner on the demo's engine, and wait until it is registered."""
    folder, engine = demo.folder, os.environ["VICTORIA_DEMO_ENGINE"]
    arguments = [
        f"--orchestrator-url={demo.url}",
        f"--registration-token-file={folder / 'orchestrator' / 'registration-token'}",
        f"--name={NODE}",
        f"--victoria-home={folder / 'Victoria'}",
        f"--state-dir={folder / 'state'}",
        f"--container-image={os.environ['VICTORIA_DEMO_IMAGE']}",
        f"--container-runtime={engine}",
        "--min-free-disk=100M",
        # So that the container, too, reaches an orchestrator that listens on loopback.
        "--run-arg=--network=host",
    ]
    # The first interrupt drains, the second stops what still runs: nothing is left behind.
    process = running("runner", arguments, folder, stop_with=[signal.SIGINT, signal.SIGINT])
    wait_for_line(stack.enter_context(process), folder / "runner.log", "registered ")
    print(f"runner        {NODE}  ({engine})")


def show_task(demo: Demo) -> str:
    """Create a task, watch it, and download what it made; return its id."""
    name, content = FILE
    (demo.folder / name).write_text(content)
    (demo.folder / "prompt.txt").write_text(PROMPT)
    print(f"\n{STAND_IN}\n\n$ cat prompt.txt\n{PROMPT}")
    arguments = ["--prompt-file", "prompt.txt", "--file", name, "--node-name", TARGET]
    task_id = demo.call("task", "create", *arguments, is_captured=True).strip()
    demo.call("task", "watch", task_id)
    demo.call("task", "download", task_id, "--to", "results")
    name, content = RESULT
    result = (demo.folder / "results" / name).read_text()
    print(f"$ cat results/{name}\n{result}\n")
    if result != content:
        raise DemoError(f"the result is {result!r}, not {content!r}")
    return task_id


def show_commands(demo: Demo, task_id: str) -> None:
    """Print commands that can be pasted into another terminal."""
    secret, log = demo.key_file, demo.folder / "runner.log"
    print(
        f"""\
Both continue to run. In another terminal:

  # the command line, and the orchestrator that it calls; nothing of this is stored
  export PATH="$PATH":{shlex.quote(str(PROGRAM.parent))}
  export VICTORIA_ORCHESTRATOR_URL={demo.url}
  export VICTORIA_ORCHESTRATOR_API_KEY=$(cat {shlex.quote(str(secret))})

  # create a task, and watch it until it ends
  task=$(victoria-orchestrator task create {shlex.join(["--node-name", TARGET, OWN_PROMPT])})
  victoria-orchestrator task watch $task

  # list the files that it made, and download them
  victoria-orchestrator task artifacts $task
  victoria-orchestrator task download $task --to results

  # show its history; run it again, and cancel that
  victoria-orchestrator task show $task
  victoria-orchestrator task cancel $(victoria-orchestrator task rerun $task)
  victoria-orchestrator task list

  # all commands
  victoria-orchestrator --help

In a browser, with the key {secret.read_text().strip()}

  {demo.url}/dashboard
  {demo.url}/dashboard/tasks/{task_id}

The runner's log is {log}.
Ctrl-C here stops both and removes {demo.folder}."""
    )


@contextmanager
def running(
    program: str, arguments: list[str], folder: Path, *, stop_with: list[signal.Signals]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run one of our programs for as long as the block lasts, in a session of its own."""
    with (folder / f"{program}.log").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        for number in stop_with:
            process.send_signal(number)
            time.sleep(0.2)  # the second must not come before the first was seen
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for_line(process: subprocess.Popen[bytes], log: Path, text: str) -> str:
    """Wait until a program has logged a line with that text; return the line."""
    until = time.monotonic() + DEADLINE_S
    while time.monotonic() < until:
        for line in log.read_text(errors="replace").splitlines():
            if text in line:
                return line
        if process.poll() is not None:
            raise DemoError(f"{process.args!s} ended with exit code {process.returncode}")
        time.sleep(0.05)
    raise DemoError(f"{log.stem} did not log {text.strip()!r} within {DEADLINE_S:.0f} s")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
