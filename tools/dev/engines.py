"""Make podman and docker work on this machine, so that containers of the stand-in image run.

Docker's daemon is the one that already answers, or one of our own while it is needed. Several ./dev
share our daemon: each holds a shared lock while it needs it, and the one that can make its lock
exclusive at the end is the last, and stops the daemon.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tools.dev.packages import ensure_program, find_program
from tools.dev.shell import Result, SetupError, as_root, cache_dir, run, say, wait_until

SETTING_HEADER = (
    "# Written by ./dev of victoria-runner, because podman could not start a container here."
)
NO_ULIMITS = """\
[containers]
# limits may not be raised on this machine
default_ulimits = []
"""
RUNC = """\
[engine]
# the default runtime does not work with the cgroups of this machine
runtime = "runc"
"""

RUN_DIR = Path(f"/run/victoria-dev/{os.getuid()}")
DATA_ROOT = Path(f"/var/lib/victoria-dev/docker-{os.getuid()}")
PID_FILE = RUN_DIR / "docker.pid"
SOCKET = f"unix://{RUN_DIR}/docker.sock"

# dockerd's flags, from an ordinary machine to one that allows little; the first set that works is
# remembered. Without a bridge the daemon cannot find out the host's address, so it is given.
NO_NETWORK = ["--iptables=false", "--bridge=none", "--host-gateway-ip=127.0.0.1"]
NO_CGROUP_MANAGER = ["--exec-opt=native.cgroupdriver=cgroupfs"]
DOCKERD_FLAGS = [
    [],
    NO_NETWORK,
    [*NO_NETWORK, *NO_CGROUP_MANAGER, "--storage-driver=vfs"],
]


@dataclass(frozen=True)
class Engine:
    """An engine's command line, and the environment that leads to the right daemon."""

    name: str
    env: dict[str, str] = field(default_factory=dict)
    rootful: bool = False

    def run(self, *arguments: str, error: str | None = None, timeout_s: float = 300) -> Result:
        """Run the engine, as `shell.run` does."""
        command = [self.name, *arguments]
        if self.rootful:  # env, because sudo passes no environment on
            command = as_root(
                ["env", *(f"{key}={value}" for key, value in self.env.items()), *command]
            )
        return run(command, error=error, timeout_s=timeout_s, env=self.env)

    def has(self, image: str) -> bool:
        """Return whether the image is there."""
        return self.run("image", "inspect", image).ok

    def try_container(self, image: str) -> Result:
        """Run a container of the stand-in image."""
        command = ("run", "--rm", "--network", "host", image)
        trial = ("--accept-license", "--task", "[print-line it works]")
        return self.run(*command, *trial, timeout_s=120)

    def verify(self, image: str) -> None:
        """Run a container; if that fails, remove the image, so that the next ./dev tries again."""
        result = self.try_container(image)
        if not result.ok:
            self.run("image", "rm", "-f", image)
            raise SetupError(f"cannot run a container with {self.name}: {result.last_line}")

    def copy_from(self, source: "Engine", image: str) -> None:
        """Copy an image from another engine, under the same name."""
        say(f"copying {image} from {source.name} to {self.name}")
        with tempfile.TemporaryDirectory(prefix="victoria-image-") as folder:
            archive = str(Path(folder) / "image.tar")
            form = ["--format", "docker-archive"] if source.name == "podman" else []
            source.run("save", *form, "-o", archive, image, error=f"cannot save {image}")
            self.run("load", "-i", archive, error=f"cannot load {image}")


def make_podman_run(engine: Engine, image: str) -> None:
    """Try a container; if it does not start, keep the setting that this machine needs."""
    result = engine.try_container(image)
    setting = None if result.ok else setting_that_helps(engine, image)
    if setting is not None:
        _write_setting(setting, result.last_line)


def setting_that_helps(engine: Engine, image: str) -> str | None:
    """Return the first setting with which a container starts, or None."""
    for setting in settings_to_try():
        with tempfile.NamedTemporaryFile("w", suffix=".conf") as trial:
            trial.write(setting)
            trial.flush()
            if Engine(engine.name, {"CONTAINERS_CONF": trial.name}).try_container(image).ok:
                return setting
    return None


def settings_to_try() -> Iterator[str]:
    """Yield contents of a containers.conf, the mildest first; install what the later ones need."""
    yield NO_ULIMITS
    ensure_program("runc", "another runtime, because podman's own starts no container here")
    yield RUNC
    yield f"{NO_ULIMITS}{RUNC}"


def _write_setting(setting: str, reason: str) -> None:
    """Write the setting to a file of its own that podman reads; never overwrite another's."""
    if os.geteuid() == 0:
        base = Path("/etc")
    else:
        base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    target = base / "containers" / "containers.conf.d" / "90-victoria-dev.conf"
    if target.exists() and not target.read_text().startswith(SETTING_HEADER):
        raise SetupError(f"cannot change podman's settings: {target} is not ours; remove it")
    say(f"podman cannot start a container here ({reason}): writing {target}")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(f"{SETTING_HEADER}\n# Its message: {reason}\n{setting}")


def docker_answers(engine: Engine) -> bool:
    """Return whether a daemon answers there."""
    return engine.run("version", "--format", "{{.Server.Version}}", timeout_s=20).ok


@contextlib.contextmanager
def running_docker(image: str, source: Engine) -> Iterator[Engine]:
    """Yield a docker that runs containers of this image, which the source has."""
    ensure_program("dockerd", "the second engine that the tests run on")
    ensure_program("docker", "the second engine's command line")
    if docker_answers(Engine("docker")):
        _copy(image, source, Engine("docker"))
        yield Engine("docker")
        return
    engine = Engine("docker", {"DOCKER_HOST": SOCKET})
    with (cache_dir() / "docker.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        try:
            _bring_up(image, source, engine)
            yield engine
        finally:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _stop()


def _bring_up(image: str, source: Engine, engine: Engine) -> None:
    """Make containers of the image run in our daemon, with the first flags that allow it."""
    if docker_answers(engine):
        _copy(image, source, engine)
        return
    memory = cache_dir() / "docker-flags"
    remembered = memory.read_text() if memory.exists() else ""
    order = sorted(range(len(DOCKERD_FLAGS)), key=lambda number: str(number) != remembered)
    for number in order:
        try:
            _start(engine, DOCKERD_FLAGS[number])
            _copy(image, source, engine)
        except SetupError:
            _stop()
            if number == order[-1]:
                raise
        else:
            memory.write_text(str(number))
            return


def _copy(image: str, source: Engine, target: Engine) -> None:
    if not target.has(image):
        target.copy_from(source, image)
        target.verify(image)


def _start(engine: Engine, flags: list[str]) -> None:
    """Start our daemon, in a session of its own so that Ctrl-C spares it; wait until it answers."""
    log = cache_dir() / "dockerd.log"
    error = f"cannot start a docker daemon: see {log}"
    say(f"starting a docker daemon for this run, with {' '.join(flags) or 'its defaults'}")
    run(as_root(["mkdir", "-p", str(RUN_DIR), str(DATA_ROOT)]), error=error)
    command = [
        *("setsid", "--fork", "--wait", find_program("dockerd") or "dockerd"),
        *(f"--host={SOCKET}", f"--group={os.getgid()}", f"--pidfile={PID_FILE}"),
        *(f"--data-root={DATA_ROOT}", f"--exec-root={RUN_DIR}/exec", *flags),
    ]
    with log.open("w") as output:
        daemon = subprocess.Popen(
            as_root(command), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    wait_until(lambda: docker_answers(engine) or daemon.poll() is not None)
    if not docker_answers(engine):
        raise SetupError(error)


def _stop() -> None:
    """Stop our daemon, by its own process id, and wait until it is gone."""
    pid = _running_pid()
    if pid is None:
        return
    run(as_root(["kill", f"-{signal.SIGTERM.value}", str(pid)]))
    if not wait_until(lambda: _running_pid() != pid):
        run(as_root(["kill", f"-{signal.SIGKILL.value}", str(pid)]))
        raise SetupError(f"cannot stop our docker daemon: process {pid} took too long, killed")


def _running_pid() -> int | None:
    """Return our daemon's process id if it runs; the file may be old, the number another's."""
    try:
        pid = int(PID_FILE.read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if f"--pidfile={PID_FILE}".encode() in command.split(b"\0") else None
