"""Sets up what the Molecule scenarios need: Ansible in an environment of its own, hosts, a key."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from tests.setup import hosts, pythons
from tests.setup import podman as task_engine
from tests.setup.packages import ensure_engine_part, ensure_program
from tests.setup.steps import ROOT, SetupError, as_root, attempt, cache_folder, require, say

FOLDER = ".venv-rollout"
PINNED = ROOT / "constraints-rollout.txt"
WANTED = ["molecule", "ansible", "ansible-core", "ansible-lint", "yamllint"]
# What ansible-core that installs dnf's Python by itself runs on.
PYTHONS = ["3.13", "3.12", "3.14"]
NO_PYTHON = (
    "cannot run Ansible: it needs Python 3.12 or later, and none is here; "
    "install one, for example with 'uv python install 3.13' or pyenv"
)
NO_ROOT = (
    "cannot make hosts: that takes root, and sudo does not give it to this account; "
    "let it use sudo, or run ./dev rollout as root"
)


def tools() -> Path | None:
    """Give the folder of Ansible's programs, installed if need be; None without a Python for it."""
    found = next((python for version in PYTHONS if (python := pythons.find(version))), None)
    folder = ROOT / FOLDER
    inside = folder / "bin" / "python"
    wanted = hashlib.sha256(PINNED.read_bytes()).hexdigest()
    mark = folder / ".made-from"
    if mark.exists() and mark.read_text() == wanted and attempt([str(inside), "-c", ""])[0]:
        return inside.parent
    if found is None:
        return None
    say(f"installing Ansible and Molecule into {FOLDER}")
    if not attempt([str(inside), "-m", "pip", "--version"])[0]:
        pythons.make_empty(found, folder)
    require(
        [
            *(str(inside), "-m", "pip", "install", "-q", "--disable-pip-version-check"),
            *("-c", str(PINNED), *WANTED),
        ],
        "cannot install Ansible: see pip's message above; is PyPI reachable?",
        timeout_s=1200,
    )
    mark.write_text(wanted)
    return inside.parent


def ready() -> dict[str, str]:
    """Make everything ready; give the environment that tells the scenarios."""
    programs = tools()
    if programs is None:
        raise SetupError(NO_PYTHON)
    require(as_root(["true"]), NO_ROOT, stdin=None)
    ensure_program("ssh", "the way to the scenarios' hosts")
    ensure_program("newuidmap", "containers without root")
    ensure_engine_part("netavark", "the network of the scenarios' hosts")
    ensure_engine_part("aardvark-dns", "their names")
    _, stand_in = task_engine.ready()
    bundle = ca_bundle(programs)
    named = hosts.images(bundle)
    folder = cache_folder() / "rollout"
    folder.mkdir(mode=0o700, exist_ok=True)
    return {
        "PATH": path_for_root(programs),
        "CONTAINERS_CONF": str(hosts.settings(named["UBUNTU"], folder)),
        "VICTORIA_TEST_IMAGE": in_roots_podman(stand_in),
        "VICTORIA_ROLLOUT_FOLDER": str(folder),
        "VICTORIA_ROLLOUT_CA": bundle or "",
        **{f"VICTORIA_ROLLOUT_{name}_HOST": image for name, image in named.items()},
        # Molecule's own, so that it does not take colours for wanted.
        "NO_COLOR": "1",
        "ANSIBLE_NOCOLOR": "1",
    }


def path_for_root(programs: Path) -> str:
    """Give a PATH with Ansible's programs, and with those of root, which podman's network calls."""
    return f"{programs}:{os.environ['PATH']}:/usr/sbin:/sbin"


def in_roots_podman(image: str) -> str:
    """Bring the stand-in image to root's podman, whence it goes into the scenarios' registry."""
    if not hosts.has(image):
        say("copying the stand-in image to root's podman")
        script = 'podman save --quiet "$1" | sudo podman load --quiet'
        require(["sh", "-c", script, "sh", image], "cannot copy the stand-in image")
    return image


def ca_bundle(programs: Path) -> str | None:
    """Give the certificates that this machine's pip is told to trust; the hosts' pip gets them."""
    _, output = attempt([str(programs / "python"), "-m", "pip", "config", "list"])
    for line in output.splitlines():
        name, _, value = line.partition("=")
        if name.rpartition(".")[2] == "cert":
            return value.strip("'\"")
    return None


def command(python: Path, environment: dict[str, str], arguments: list[str]) -> list[str]:
    """Give the command that runs the scenarios; as root, for they make hosts."""
    asked = {name: value for name, value in os.environ.items() if name.startswith("VICTORIA_")}
    variables = [f"{name}={value}" for name, value in {**asked, **environment}.items()]
    # Root's pytest leaves nothing in the checkout that its owner could not write to afterwards.
    pytest = [str(python), "-m", "pytest", "-p", "no:cacheprovider", "tests/rollout", *arguments]
    return as_root(["env", *variables, "PYTHONDONTWRITEBYTECODE=1", *pytest])


def lint() -> list[list[str]]:
    """Give the commands that check the role and the scenarios; none without a Python for them."""
    programs = tools()
    if programs is None:
        say(f"the role is not checked: {NO_PYTHON}")
        return []
    path = f"PATH={programs}:{os.environ['PATH']}"
    return [
        ["env", path, "yamllint", "--strict", "ansible", "molecule", ".config", ".github"],
        ["env", path, "ansible-lint", "--offline", "-q"],
    ]
