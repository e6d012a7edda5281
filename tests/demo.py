"""`./dev demo`: the whole system on this machine, once through, for people to watch.

A reference orchestrator and a runner as real processes on loopback, one file, one task in a real
container. Ends with 0 and leaves nothing behind; with `--keep` both continue until Ctrl-C.
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
from pathlib import Path
from typing import Any

import httpx

from tools.dev import options

NODE = "demo-runner-1"
TARGET = "demo-*"
PROMPT = "Count the lines of the file that came with this task. [print-line it has 3 lines]"
FILE = ("sales figures.csv", b"region,units\nnorth,12\nsouth,30\n")
FINAL = frozenset({"success", "error", "cancelled"})
DEADLINE_S = 180.0
END_S = 90.0


class DemoError(Exception):
    """The demo cannot go on; the sentence says why."""


def main() -> int:
    """Run the demo; return the exit code."""
    keep = options.demo().parse_args().keep
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="victoria-demo-")))
        try:
            url, admin_key = start_orchestrator(stack, folder)
            start_runner(stack, folder, url)
            headers = {"X-API-Key": admin_key}
            with httpx.Client(
                base_url=url, headers=headers, timeout=DEADLINE_S, trust_env=False
            ) as admin:
                task = show_task(admin, folder)
        except DemoError as error:
            print(f"\ndemo: {error}", file=sys.stderr)
            for log in sorted(folder.glob("*.log")):
                print(f"--- {log.name}\n{log.read_text()}", file=sys.stderr)
            return 1
        if keep:
            show_commands(folder, url, admin_key)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
            signal.sigwait({signal.SIGINT, signal.SIGTERM})
            print("\nstopping both, and removing what they had")
        else:
            print("\nEverything is stopped and removed now; see it running with: ./dev demo --keep")
    return 0 if task["status"] == "success" else 1


def start_orchestrator(stack: ExitStack, folder: Path) -> tuple[str, str]:
    """Start the reference orchestrator on a free port; return its URL and admin key."""
    data_dir = folder / "orchestrator"
    arguments = ["--host", "127.0.0.1", "--port", "0", "--data-dir", str(data_dir)]
    process = running("orchestrator", arguments, folder, stop_with=[signal.SIGTERM])
    line = wait_for_line(stack.enter_context(process), folder / "orchestrator.log", "listening on ")
    url = line.split("listening on ")[1].strip()
    print(f"orchestrator  {url}  (reference orchestrator, SQLite)")
    return url, (data_dir / "admin-key").read_text().strip()


def start_runner(stack: ExitStack, folder: Path, url: str) -> None:
    """Start a runner on the demo's engine, and wait until it is registered."""
    engine = os.environ["VICTORIA_DEMO_ENGINE"]
    arguments = [
        f"--orchestrator-url={url}",
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


def show_task(admin: httpx.Client, folder: Path) -> dict[str, Any]:
    """Upload a file, create a task for it, and show what becomes of it."""
    name, content = FILE
    uploaded = body_of(admin.post("/upload", files={"file": (name, content)}))
    print(f"file          {name}  sha256 {uploaded['checksum'][:16]}…")
    body = {"prompt": PROMPT, "target_node_name": TARGET, "files": [uploaded["filename"]]}
    task = body_of(admin.post("/tasks", json=body))
    print(f"task          {task['id']}  for {TARGET}\n")
    status = None
    started_at = time.monotonic()
    while status not in FINAL:
        task = body_of(admin.get(f"/tasks/{task['id']}"))
        if task["status"] != status:
            status = task["status"]
            print(f"  {time.monotonic() - started_at:5.1f} s  {status}")
        if time.monotonic() - started_at > DEADLINE_S:
            raise DemoError(f"the task has not ended within {DEADLINE_S:.0f} s")
        time.sleep(0.05)
    result = (task["result"] or task["error_message"] or "").replace("\n", "\n" + " " * 14)
    print(f"\nresult        {result}")
    task_folder = folder / "Victoria" / "tasks" / str(task["id"])
    print(f"files         {task_folder}")
    for path in sorted(task_folder.rglob("*")):
        if path.is_file():
            print(f"              {path.relative_to(task_folder)}  {path.stat().st_size} bytes")
    return task


def show_commands(folder: Path, url: str, admin_key: str) -> None:
    """Print commands that can be pasted into another terminal."""
    key = shlex.quote(f"X-API-Key: {admin_key}")
    print(
        f"""
Both continue to run. In another terminal:

  # create a task
  curl -s -H {key} -H 'Content-Type: application/json' \\
      -d '{{"prompt": "hello [sleep 5]", "target_node_name": "{TARGET}"}}' {url}/tasks

  # see all tasks; cancel one
  curl -s -H {key} {url}/tasks
  curl -s -H {key} -X DELETE {url}/tasks/TASK_ID

  # or in a browser, with the key {admin_key}
  {url}/dashboard

  # the runner's log
  tail -f {folder / "runner.log"}

Ctrl-C here stops both and removes {folder}."""
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


def body_of(response: httpx.Response) -> dict[str, Any]:
    """Return the object in the body of a response that must be a success."""
    if not response.is_success:
        raise DemoError(f"the orchestrator responds with {response.status_code}: {response.text}")
    body: dict[str, Any] = response.json()
    return body


if __name__ == "__main__":
    sys.exit(main())
