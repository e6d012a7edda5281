"""Installs missing programs with the system's package manager."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from functools import cache
from pathlib import Path

from tests.setup.steps import SetupError, as_root, attempt, require, say

# For each program, its packages. Podman's recommended packages are what makes it work without root.
APT = {
    "podman": ["--install-recommends", "podman"],
    "runc": ["--no-install-recommends", "runc"],
    "dockerd": ["--no-install-recommends", "docker.io"],
    "docker": ["--no-install-recommends", "docker-cli"],
    "mmdebstrap": ["--no-install-recommends", "mmdebstrap"],
    "systemctl": ["--no-install-recommends", "systemd"],
    "postgres": ["--no-install-recommends", "postgresql"],
    "chromium": ["--no-install-recommends", "chromium"],
    "ssh": ["--no-install-recommends", "openssh-client"],
    "newuidmap": ["--no-install-recommends", "uidmap"],
    "netavark": ["--no-install-recommends", "netavark", "iptables"],
    "aardvark-dns": ["--no-install-recommends", "aardvark-dns"],
}
DNF = {
    "podman": ["podman"],
    "runc": ["runc"],
    "dockerd": ["moby-engine"],
    "docker": ["docker-cli"],
    "mmdebstrap": ["mmdebstrap", "debian-keyring"],
    "systemctl": ["systemd"],
    "postgres": ["postgresql-server"],
    "chromium": ["chromium"],
    "ssh": ["openssh-clients"],
    "newuidmap": ["shadow-utils"],
    "netavark": ["netavark"],
    "aardvark-dns": ["aardvark-dns"],
}

ENGINE_FOLDERS = ["/usr/lib/podman", "/usr/libexec/podman", "/usr/local/libexec/podman"]


def ensure_program(program: str, why: str) -> None:
    """Install the program if this machine lacks it."""
    if find_program(program) is not None:
        return
    install(program, why)
    if find_program(program) is None:
        raise SetupError(f"cannot find {program} after installing it: look at your PATH")


def ensure_engine_part(program: str, why: str) -> None:
    """Install what podman calls, and keeps where nobody's PATH leads."""
    if not any(Path(folder, program).exists() for folder in ENGINE_FOLDERS):
        install(program, why)


def install(program: str, why: str) -> None:
    """Install a program's packages."""
    if shutil.which("apt-get"):
        install_with_apt(APT[program], why)
    elif shutil.which("dnf"):
        run_installer(["dnf", "install", "-y", "-q", *DNF[program]], why)
    else:
        raise SetupError(
            f"cannot install {program}: neither apt nor dnf is here, install it by hand"
        )


def find_program(program: str) -> str | None:
    """Look on PATH, and where daemons lie when PATH is an ordinary user's."""
    folders = (os.environ.get("PATH", ""), "/usr/sbin", "/sbin", *postgresql_folders())
    return shutil.which(program, path=":".join(folders))


def postgresql_folders() -> list[str]:
    """Return where Debian keeps its versions of PostgreSQL, each apart, the newest first."""
    found = Path("/usr/lib/postgresql").glob("*/bin")
    return sorted(map(str, found), key=lambda path: [int(n) for n in re.findall(r"\d+", path)])[
        ::-1
    ]


def install_with_apt(arguments: list[str], why: str) -> None:
    """Install with apt, from fresh lists, asking nothing."""
    refresh_lists()
    installer = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-q"]
    run_installer([*installer, *arguments], why)


@cache
def refresh_lists() -> None:
    """Fetch apt's lists, once a run; a new machine has none. One dead source stops nothing."""
    check_sudo()
    attempt(as_root(["apt-get", "update", "-q"]), stdin=None)


def run_installer(command: list[str], why: str) -> None:
    """Run it as root, and say so before."""
    check_sudo()
    shown = shlex.join(as_root(command))
    say(f"installing what is missing ({why}): {shown}")
    require(as_root(command), f"cannot install packages: run '{shown}' and see why", stdin=None)


def check_sudo() -> None:
    """Fail with a sentence where root is needed and cannot be had."""
    if os.geteuid() != 0 and not shutil.which("sudo"):
        raise SetupError("cannot install packages: run ./dev as root, or install sudo")
