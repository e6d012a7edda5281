"""`./dev demo`: the whole system on this machine, once through, for people to watch.

A reference orchestrator and a runner as real processes on loopback, one file, one task in a real
container. Ends 0 and leaves nothing behind; with `--keep` both go on until Ctrl-C.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from tools.dev import options

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    """Run the demo; give the exit code."""
    keep = options.demo().parse_args().keep
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="victoria-demo-")))
        try:
            url, admin_key = start_orchestrator(stack, folder)
            start_runner(stack, folder, url)
            with httpx.Client(
                base_url=url,
                headers={"X-API-Key": admin_key},
                timeout=DEADLINE_S,
                trust_env=False,
            ) as admin:
                task = show_task(admin, folder)
            if keep:
                say_how_to_go_on(folder, url, admin_key)
                wait_for_ctrl_c()
        except DemoError as error:
            print(f"\ndemo: {error}", file=sys.stderr)
            for log in sorted(folder.glob("*.log")):
                print(f"--- {log.name}\n{log.read_text()}", file=sys.stderr)
            return 1
        if not keep:
            print("\nEverything is stopped and removed now; see it running with: ./dev demo --keep")
    return 0 if task["status"] == "success" else 1


def start_orchestrator(stack: ExitStack, folder: Path) -> tuple[str, str]:
    """Start the reference orchestrator on a free port; give its URL and admin key."""
    data_dir = folder / "orchestrator"
    log = folder / "orchestrator.log"
    arguments = ["orchestrator", "--host", "127.0.0.1", "--port", "0", "--data-dir", str(data_dir)]
    process = stack.enter_context(running(arguments, log, {}, stop_with=[signal.SIGTERM]))
    line = wait_for_line(process, log, "listening on ")
    url = line.split("listening on ")[1].strip()
    print(f"orchestrator  {url}  (reference orchestrator, SQLite)")
    return url, (data_dir / "admin-key").read_text().strip()


def start_runner(stack: ExitStack, folder: Path, url: str) -> None:
    """Start a runner on the demo's engine and see it register."""
    engine = os.environ["VICTORIA_DEMO_ENGINE"]
    log = folder / "runner.log"
    token_file = folder / "orchestrator" / "registration-token"
    options = {
        "--orchestrator-url": url,
        "--registration-token-file": str(token_file),
        "--name": NODE,
        "--victoria-home": str(folder / "Victoria"),
        "--state-dir": str(folder / "state"),
        "--container-image": os.environ["VICTORIA_DEMO_IMAGE"],
        "--container-runtime": engine,
        "--min-free-disk": "100M",
        # So that the container, too, reaches an orchestrator that listens on loopback.
        "--run-arg": "--network=host",
    }
    arguments = ["runner", *(f"{name}={value}" for name, value in options.items())]
    # The first interrupt drains, the second stops what still runs: nothing is left behind.
    process = stack.enter_context(
        running(arguments, log, {}, stop_with=[signal.SIGINT, signal.SIGINT])
    )
    wait_for_line(process, log, "registered ")
    print(f"runner        {NODE}  ({engine})")


def show_task(admin: httpx.Client, folder: Path) -> dict[str, Any]:
    """Upload a file, create a task for it, and show what becomes of it."""
    name, content = FILE
    uploaded = answer(admin.post("/upload", files={"file": (name, content)}))
    print(f"file          {name}  sha256 {uploaded['checksum'][:16]}…")
    body = {"prompt": PROMPT, "target_node_name": TARGET, "files": [uploaded["filename"]]}
    task = answer(admin.post("/tasks", json=body))
    print(f"task          {task['id']}  for {TARGET}\n")
    shown = None
    started_at = time.monotonic()
    while shown not in FINAL:
        task = answer(admin.get(f"/tasks/{task['id']}"))
        if task["status"] != shown:
            shown = task["status"]
            print(f"  {time.monotonic() - started_at:5.1f} s  {shown}")
        if time.monotonic() - started_at > DEADLINE_S:
            raise DemoError(f"the task has not ended within {DEADLINE_S:.0f} s")
        time.sleep(0.05)
    print(f"\nresult        {indented(task['result'] or task['error_message'])}")
    place = folder / "Victoria" / "tasks" / str(task["id"])
    print(f"files         {place}")
    for path in sorted(place.rglob("*")):
        if path.is_file():
            print(f"              {path.relative_to(place)}  {path.stat().st_size} bytes")
    return task


def say_how_to_go_on(folder: Path, url: str, admin_key: str) -> None:
    """Print commands that can be pasted into another terminal."""
    key = shlex.quote(f"X-API-Key: {admin_key}")
    print(
        f"""
Both go on running. In another terminal:

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


def wait_for_ctrl_c() -> None:
    """Return at an interrupt or a polite request to end."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
    print("\nstopping both, and removing what they had")


@contextmanager
def running(
    arguments: list[str], log: Path, variables: dict[str, str], *, stop_with: list[signal.Signals]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run one of our programs for as long as the block lasts, in a session of its own."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **variables},
        )
    try:
        yield process
    finally:
        stop(process, stop_with)


def stop(process: subprocess.Popen[bytes], signals: list[signal.Signals]) -> None:
    """End a program as its user would, and by force if that does not help."""
    for number in signals:
        if process.poll() is None:
            process.send_signal(number)
            # The second must not come before the first was seen.
            time.sleep(0.2)
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_for_line(process: subprocess.Popen[bytes], log: Path, text: str) -> str:
    """Wait until a program has logged a line with that text; give the line."""
    until = time.monotonic() + DEADLINE_S
    while time.monotonic() < until:
        for line in log.read_text(errors="replace").splitlines():
            if text in line:
                return line
        if process.poll() is not None:
            raise DemoError(f"{process.args!s} ended with exit code {process.returncode}")
        time.sleep(0.05)
    raise DemoError(f"{log.stem} did not say {text.strip()!r} within {DEADLINE_S:.0f} s")


def answer(response: httpx.Response) -> dict[str, Any]:
    """Give the object in a good answer."""
    if not response.is_success:
        raise DemoError(f"the orchestrator answers {response.status_code}: {response.text}")
    body: dict[str, Any] = response.json()
    return body


def indented(text: str | None) -> str:
    """Put every further line of a text under the first."""
    return (text or "").replace("\n", "\n" + " " * 14)


if __name__ == "__main__":
    sys.exit(main())
