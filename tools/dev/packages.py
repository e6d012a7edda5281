"""Install missing programs with the system's package manager."""

import os
import re
import shlex
import shutil
from functools import cache
from pathlib import Path

from tools.dev.shell import SetupError, as_root, run, say

# For each program, the packages of apt and of dnf.
PACKAGES = {
    # The packages that apt recommends are what makes podman work without root.
    "podman": ("--install-recommends podman", "podman"),
    "runc": ("runc", "runc"),
    "dockerd": ("docker.io", "moby-engine"),
    "docker": ("docker-cli", "docker-cli"),
    "mmdebstrap": ("mmdebstrap", "mmdebstrap debian-keyring"),
    "systemctl": ("systemd", "systemd"),
    "postgres": ("postgresql", "postgresql-server"),
    "chromium": ("chromium", "chromium"),
    "node": ("nodejs", "nodejs"),
    "npm": ("npm", "nodejs-npm"),
    "ssh": ("openssh-client", "openssh-clients"),
    "newuidmap": ("uidmap", "shadow-utils"),
    "netavark": ("netavark iptables", "netavark"),
    "aardvark-dns": ("aardvark-dns", "aardvark-dns"),
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ENGINE_FOLDERS = (
    *("/usr/lib/podman", "/usr/libexec/podman"),
    *("/usr/local/lib/podman", "/usr/local/libexec/podman"),
)


def ensure_program(program: str, why: str) -> None:
    """Install the program if this machine lacks it."""
    if find_program(program) is not None:
        return
    install(*PACKAGES[program], why)
    if find_program(program) is None:
        raise SetupError(f"cannot find {program} after installing it; look at your PATH")


def ensure_engine_part(program: str, why: str) -> None:
    """Install a program that podman calls, and that is on nobody's PATH."""
    if not any(Path(folder, program).exists() for folder in ENGINE_FOLDERS):
        install(*PACKAGES[program], why)


def ensure_browser() -> str:
    """Return the path of a Chromium, installed if there is none under any of its names."""
    if not any(map(find_program, BROWSERS)):
        ensure_program("chromium", "the browser that the dashboard's tests run in")
    return next(filter(None, map(find_program, BROWSERS)))


def find_program(program: str) -> str | None:
    """Return the program's path; daemons are also looked for where a user's PATH does not lead."""
    # Debian keeps each version of PostgreSQL apart; the newest comes first.
    postgresql = sorted(
        map(str, Path("/usr/lib/postgresql").glob("*/bin")),
        key=lambda path: [int(number) for number in re.findall(r"\d+", path)],
        reverse=True,
    )
    folders = (os.environ.get("PATH", ""), "/usr/sbin", "/sbin", *postgresql)
    return shutil.which(program, path=":".join(folders))


def install(apt: str, dnf: str, why: str) -> None:
    """Install packages, named in one string for apt and one for dnf, without a question."""
    if os.geteuid() != 0 and not shutil.which("sudo"):
        raise SetupError("cannot install packages: there is no sudo; run ./dev as root")
    if shutil.which("apt-get"):
        update_apt()
        options = "env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends"
        command = as_root([*options.split(), *apt.split()])
    elif shutil.which("dnf"):
        command = as_root(["dnf", "install", "-y", "-q", *dnf.split()])
    else:
        raise SetupError(f"cannot install {dnf}: found neither apt nor dnf; install it by hand")
    shown = shlex.join(command)
    say(f"installing what is missing ({why}), up to some minutes: {shown}")
    run(command, error=f"cannot install packages: see above; run '{shown}' by hand")


@cache
def update_apt() -> None:
    """Fetch apt's lists, once a run, since a new machine has none; a dead source is no error."""
    run(as_root(["apt-get", "update", "-q"]))
