"""Finds Pythons and makes virtual environments that hold the project and its tools."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

from tests.setup.packages import install_with_apt
from tests.setup.steps import ROOT, attempt, require, say

VERSION = "import sys; print('%d.%d' % sys.version_info[:2])"


def environment(python: str = sys.executable, folder: str = ".venv") -> Path:
    """Return the Python of an up-to-date environment in that folder, made when needed."""
    inside = ROOT / folder / "bin" / "python"
    mark = ROOT / folder / ".made-from"
    wanted = fingerprint()
    if mark.exists() and mark.read_text() == wanted and attempt([str(inside), "-c", ""])[0]:
        return inside
    say(f"installing the project and its tools into {folder}")
    if not attempt([str(inside), "-m", "pip", "--version"])[0]:
        make_empty(python, ROOT / folder)
    require(
        [
            *(str(inside), "-m", "pip", "install", "-q", "--disable-pip-version-check"),
            *("-e", f"{ROOT}[orchestrator,reporter,dev]", "-c", str(ROOT / "constraints.txt")),
        ],
        "cannot install the project's dependencies: see pip's message above; is PyPI reachable?",
    )
    mark.write_text(wanted)
    return inside


def fingerprint() -> str:
    """Return a hash of what says what is installed; the settings of tools do not."""
    project = (ROOT / "pyproject.toml").read_text().partition("\n[tool.")[0]
    pinned = (ROOT / "constraints.txt").read_text()
    return hashlib.sha256(f"{project}\0{pinned}".encode()).hexdigest()


def make_empty(python: str, folder: Path) -> None:
    """Make the bare environment; on Debian and Ubuntu that takes a package of its own."""
    if not attempt([python, "-c", "import ensurepip"])[0] and shutil.which("apt-get"):
        version = version_of(python)
        install_with_apt(
            ["--no-install-recommends", f"python{version}-venv"], "Python environments"
        )
    require(
        [python, "-m", "venv", "--clear", str(folder)],
        f"cannot make {folder.name} with {python}: install its venv module, or another Python",
    )


def version_of(python: str) -> str | None:
    """Return "3.N", or None for what does not run."""
    runs, output = attempt([python, "-c", VERSION])
    return output.strip() if runs else None


def find(version: str) -> str | None:
    """Return a Python of this version, from PATH or pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    candidates = [f"python{version}", *pyenv.glob(f"versions/{version}.*/bin/python3")]
    return next((str(one) for one in candidates if version_of(str(one)) == version), None)
