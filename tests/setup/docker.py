"""Makes docker work: the daemon that answers already, or one of our own for as long as it is used.

Several ./dev share that daemon. Each holds a shared lock while it needs it; whoever can make its
lock exclusive at the end is the last, and stops it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.setup import image as images
from tests.setup.image import Engine
from tests.setup.packages import ensure_program, find_program
from tests.setup.steps import SetupError, as_root, attempt, cache_folder, require, say

if TYPE_CHECKING:
    from collections.abc import Iterator

START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 60
LOOK_AGAIN_S = 0.1

RUN = Path(f"/run/victoria-dev/{os.getuid()}")
STORE = Path(f"/var/lib/victoria-dev/docker-{os.getuid()}")
PID_FILE = RUN / "docker.pid"
SOCKET = f"unix://{RUN}/docker.sock"

# dockerd's flags, from an ordinary machine to one that allows little; the first set that works is
# remembered. Without a bridge the daemon cannot know the host's address, so it is told.
NO_NETWORK = ["--iptables=false", "--bridge=none", "--host-gateway-ip=127.0.0.1"]
NO_CGROUP_MANAGER = ["--exec-opt=native.cgroupdriver=cgroupfs"]
FLAGS = [
    [],
    NO_NETWORK,
    [*NO_NETWORK, *NO_CGROUP_MANAGER, "--storage-driver=vfs"],
]


@contextlib.contextmanager
def docker() -> Iterator[Engine]:
    """Give a docker whose daemon answers; stop the daemon afterwards if it is ours and unused."""
    ensure_program("dockerd", "the second engine that the tests run on")
    ensure_program("docker", "the second engine's command line")
    if answers(Engine("docker")):
        yield Engine("docker")
        return
    with (cache_folder() / "docker.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        try:
            yield Engine("docker", {"DOCKER_HOST": SOCKET})
        finally:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                stop()


def bring_up(engine: Engine, image: str, source: Engine) -> None:
    """See to it that containers of the stand-in image run, by our own daemon where it must be."""
    if answers(engine):
        images.copy(image, source, engine)
        return
    problem = None
    for number in numbers_to_try():
        problem = try_flags(FLAGS[number], engine, image, source)
        if problem is None:
            remembered().write_text(str(number))
            return
        stop()
    if problem is not None:
        raise problem


def try_flags(flags: list[str], engine: Engine, image: str, source: Engine) -> SetupError | None:
    """Start our daemon with these flags; return what is wrong with them."""
    try:
        start(engine, flags)
        images.copy(image, source, engine)
    except SetupError as error:
        return error
    return None


def build(engine: Engine) -> str:
    """Return the stand-in image's name in a docker that is the only engine; build it if need be."""
    image, is_new = images.find_or_build(engine)
    if is_new:
        images.try_out(engine, image)
    return image


def answers(engine: Engine) -> bool:
    """Tell whether a daemon answers there."""
    return engine.attempt("version", "--format", "{{.Server.Version}}", timeout_s=20)[0]


def remembered() -> Path:
    """Return the file that keeps which flags worked."""
    return cache_folder() / "docker-flags"


def numbers_to_try() -> list[int]:
    """Return the places in FLAGS, what worked before first."""
    numbers = list(range(len(FLAGS)))
    before = remembered().read_text() if remembered().exists() else ""
    return sorted(numbers, key=lambda number: str(number) != before)


def start(engine: Engine, flags: list[str]) -> None:
    """Start our daemon, in a session of its own so that Ctrl-C spares it; await its answer."""
    log = cache_folder() / "dockerd.log"
    advice = f"cannot start a docker daemon: see {log}"
    say("starting a docker daemon for this run" + (f" with {' '.join(flags)}" if flags else ""))
    require(as_root(["mkdir", "-p", str(RUN), str(STORE)]), advice, stdin=None)
    command = [
        *("setsid", "--fork", "--wait", find_program("dockerd") or "dockerd"),
        *(f"--host={SOCKET}", f"--group={os.getgid()}", f"--pidfile={PID_FILE}"),
        *(f"--data-root={STORE}", f"--exec-root={RUN}/exec", *flags),
    ]
    with log.open("w") as output:
        daemon = subprocess.Popen(
            as_root(command), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    deadline = time.monotonic() + START_TIMEOUT_S
    while not answers(engine):
        if daemon.poll() is not None or time.monotonic() > deadline:
            raise SetupError(advice)
        time.sleep(LOOK_AGAIN_S)


def stop() -> None:
    """Stop our daemon, by its own process id, and wait until it is gone."""
    pid = running_pid()
    if pid is None:
        return
    deadline = time.monotonic() + STOP_TIMEOUT_S
    attempt(as_root(["kill", f"-{signal.SIGTERM.value}", str(pid)]))
    while running_pid() == pid:
        if time.monotonic() > deadline:
            attempt(as_root(["kill", f"-{signal.SIGKILL.value}", str(pid)]))
            raise SetupError(f"cannot stop our docker daemon: process {pid} took too long, killed")
        time.sleep(LOOK_AGAIN_S)


def running_pid() -> int | None:
    """Return the process id of our daemon if it runs: the file may be old, the number another's."""
    try:
        pid = int(PID_FILE.read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if f"--pidfile={PID_FILE}".encode() in command.split(b"\0") else None
