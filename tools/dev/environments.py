"""Find Pythons, and make virtual environments with the packages that a command needs."""

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from tools.dev.packages import install
from tools.dev.shell import ROOT, MissingPythonError, run, say

VERSION = "import sys; print('%d.%d' % sys.version_info[:2])"
ANSIBLE_PYTHONS = ("3.13", "3.12", "3.14")
"""Those that ansible-core runs on, the preferred one first."""
OLDEST_ANSIBLE_PYTHONS = ("3.13", "3.12", "3.11")
"""Those that the oldest supported ansible-core runs on."""
PREFECT_PYTHONS = ("3.13", "3.12", "3.11")
"""Those that Prefect runs on, the preferred one first."""
NO_ANSIBLE_PYTHON = (
    "cannot run Ansible: it needs Python 3.12 or later, and none was found; "
    "install one, for example with 'uv python install 3.13' or pyenv"
)


@dataclass(frozen=True)
class Environment:
    """A virtual environment: where it is, and what pip installs into it."""

    folder: Path
    content: str
    """For people: what is installed, how much that is, and how long it takes."""
    packages: tuple[str, ...]
    pins: str = "constraints.txt"
    is_lean: bool = False
    """Without compiled modules and without pip: half the size, a slower first start."""

    @property
    def python(self) -> Path:
        """Return the path of its Python."""
        return self.folder / "bin" / "python"

    def is_current(self) -> bool:
        """Return whether it is complete and up to date."""
        mark = self.folder / ".made-from"
        is_marked = mark.exists() and mark.read_text() == self._fingerprint()
        return is_marked and run([str(self.python), "-c", ""]).ok

    def ensure(self, python: str = sys.executable) -> Path:
        """Return its Python; if it is not current, update it, or make it with the Python given."""
        if self.is_current():
            return self.python
        say(f"installing into {self.folder.name} {self.content}")
        pip = [str(self.python), "-m", "pip"]
        if not run([*pip, "--version"]).ok:
            _make_empty(python, self.folder)
        run(
            [
                *pip,
                "install",
                "-q",
                "--disable-pip-version-check",
                *(["--no-compile"] if self.is_lean else []),
                *self.packages,
                "-c",
                str(ROOT / self.pins),
            ],
            error=f"cannot fill {self.folder.name}: see pip's message above; is PyPI reachable?",
            timeout_s=1200,
        )
        if self.is_lean:
            run([*pip, "uninstall", "-q", "-y", "pip"])
        (self.folder / ".made-from").write_text(self._fingerprint())
        return self.python

    def _fingerprint(self) -> str:
        parts = [*self.packages, (ROOT / self.pins).read_text()]
        if "-e" in self.packages:
            parts.append(project_table())
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def project_table() -> str:
    """Return what pyproject.toml says of the project, without the settings of tools."""
    return (ROOT / "pyproject.toml").read_text().partition("\n[tool.")[0]


def project() -> Environment:
    """Return the environment with the project, its extras and the developers' tools."""
    packages = ("-e", f"{ROOT}[orchestrator,client,reporter,test,dev]")
    return Environment(
        ROOT / ".venv", "the project and its tools: 430 MB, a minute or two", packages
    )


def ensure_tests(version: str) -> Path:
    """Return a Python of this version for the tests that hold on every one."""
    python = find_python(version)
    if python is None:
        raise MissingPythonError(
            f"cannot test on Python {version}: none was found on PATH or under pyenv; "
            f"install one, for example with 'uv python install {version}' or pyenv"
        )
    packages = ("-e", f"{ROOT}[orchestrator,client,reporter,test]")
    return Environment(
        ROOT / f".venv-{version}", "the project and pytest: 130 MB, a minute", packages
    ).ensure(python)


def ensure_demo() -> Path:
    """Return a Python for the demo: the project's if it is current, else one with less."""
    if project().is_current():
        return project().python
    packages = ("-e", f"{ROOT}[orchestrator,client]")
    content = "runner, orchestrator and command line: 75 MB, half a minute"
    return Environment(ROOT / ".venv-demo", content, packages, is_lean=True).ensure()


def ensure_ansible() -> Path | None:
    """Return the folder of Ansible's programs, or None if no Python can run them."""
    environment = Environment(
        ROOT / ".venv-rollout",
        "Ansible and Molecule: 540 MB, a minute or two",
        ("molecule", "ansible", "ansible-core", "ansible-lint", "yamllint"),
        "constraints-rollout.txt",
    )
    if not environment.is_current():
        python = next(filter(None, map(find_python, ANSIBLE_PYTHONS)), None)
        if python is None:
            return None
        environment.ensure(python)
    return environment.python.parent


def ensure_oldest_ansible(programs: Path) -> Path:
    """Return the folder of the programs of the oldest ansible-core that the role promises."""
    environment = Environment(
        ROOT / ".venv-ansible-oldest",
        "the oldest supported ansible-core: 40 MB, half a minute",
        ("ansible-core",),
        "constraints-ansible-oldest.txt",
    )
    python = next(filter(None, map(find_python, OLDEST_ANSIBLE_PYTHONS)), None)
    return environment.ensure(python or str(programs / "python")).parent


def ensure_uv() -> Path:
    """Return the path of uv, which resolves for all Pythons at once and knows hashes."""
    environment = Environment(ROOT / ".venv-lock", "uv: 60 MB, some seconds", ("uv==0.13.9",))
    return environment.ensure().with_name("uv")


def ensure_prefect() -> Path:
    """Return a Python with Prefect, which ./dev bench peers compares the runner with."""
    environment = Environment(
        ROOT / ".venv-prefect",
        "Prefect, to compare with: 260 MB, a minute",
        ("prefect",),
        "benchmarks/constraints.txt",
    )
    if environment.is_current():
        return environment.python
    python = next(filter(None, map(find_python, PREFECT_PYTHONS)), None)
    if python is None:
        raise MissingPythonError(
            "cannot compare with Prefect: it needs Python 3.11 or later, and none was found; "
            "install one, for example with 'uv python install 3.13' or pyenv"
        )
    return environment.ensure(python)


def version_of(python: str) -> str | None:
    """Return "3.N", or None for a Python that does not run."""
    result = run([python, "-c", VERSION])
    return result.output.strip() if result.ok else None


def find_python(version: str) -> str | None:
    """Return a Python of this version, from PATH or pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    candidates = [f"python{version}", *map(str, pyenv.glob(f"versions/{version}.*/bin/python3"))]
    return next((python for python in candidates if version_of(python) == version), None)


def _make_empty(python: str, folder: Path) -> None:
    if not run([python, "-c", "import ensurepip"]).ok:
        # Debian and Ubuntu keep it in a package of its own.
        install(f"python{version_of(python)}-venv", "python3", "Python environments")
    run(
        [python, "-m", "venv", "--clear", str(folder)],
        error=f"cannot make {folder.name} with {python}: see above; install its venv module",
    )
