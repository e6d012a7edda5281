"""Pack everything that a host needs to install a release: PARCEL PACKAGE WHEELS CONSTRAINTS.

Runs on the controller, whose Python may have no pip: uv builds the wheel of a checkout as well, and
so does a virtual environment, which brings its own pip.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

WITHOUT_PIP = (
    "cannot build a wheel of {}: this controller has neither pip nor uv nor the module venv; "
    "install python3-pip or uv, or set victoria_runner_package to a wheel"
)


class Failure(Exception):
    """Something that an operator has to mend."""


def main() -> None:
    """Pack what the command line names."""
    parcel, package, wheels, constraints = sys.argv[1:]
    target = Path(parcel)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent) as work:
            folder = Path(work) / "parcel"
            fill(folder, package, wheels, constraints)
            with tarfile.open(f"{work}/parcel.tar", "w") as archive:
                archive.add(folder, "parcel")
            Path(f"{work}/parcel.tar").replace(target)
    except (Failure, OSError) as error:
        sys.exit(str(error))


def fill(folder: Path, package: str, wheels: str, constraints: str) -> None:
    """Write the content of a parcel."""
    (folder / "wheels").mkdir(parents=True)
    if Path(package).is_dir() and package:
        build_wheel(Path(package), folder)
    elif package:
        shutil.copy(package, folder)
    for wheel in Path(wheels).glob("*.whl") if wheels else []:
        shutil.copy(wheel, folder / "wheels")
    pins = folder / "constraints.txt"
    if constraints:
        shutil.copyfile(constraints, pins)
    else:
        pins.touch()


def build_wheel(package: Path, folder: Path) -> None:
    """Build the wheel of a checkout with what this controller has."""
    uv = shutil.which("uv")
    if has_pip(sys.executable):
        by_pip(sys.executable, package, folder)
    elif uv:
        build(package, uv, "build", "--quiet", "--wheel", "--out-dir", str(folder), str(package))
        (folder / ".gitignore").unlink(missing_ok=True)
    else:
        others = (sys.executable, shutil.which("python3"), "/usr/bin/python3")
        with tempfile.TemporaryDirectory() as work:
            python = python_with_pip([each for each in others if each], Path(work) / "venv")
            if python is None:
                raise Failure(WITHOUT_PIP.format(package))
            by_pip(python, package, folder)


def python_with_pip(pythons: Sequence[str], environment: Path) -> str | None:
    """Return the first Python with pip, else that of a new environment; None if there is none."""
    for python in pythons:
        if has_pip(python):
            return python
    for python in pythons:
        program = str(environment / "bin" / "python")
        if succeeds(python, "-m", "venv", "--clear", str(environment)) and has_pip(program):
            return program
    return None


def has_pip(python: str) -> bool:
    """Return whether a Python has pip."""
    return succeeds(python, "-m", "pip", "--version")


def succeeds(*command: str) -> bool:
    """Run a program; return whether it succeeded."""
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0  # noqa: S603 - fixed programs
    except OSError:
        return False


def by_pip(python: str, package: Path, folder: Path) -> None:
    """Build a wheel with the pip of a Python."""
    options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--wheel-dir", str(folder))
    build(package, python, "-m", "pip", "wheel", *options, str(package))


def build(package: Path, *command: str) -> None:
    """Run a program that builds a wheel."""
    result = subprocess.run(  # noqa: S603 - fixed programs
        command, check=False, capture_output=True, encoding="utf-8", errors="replace"
    )
    if result.returncode != 0:
        lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.lower().startswith("error")] or lines
        raise Failure(
            f"cannot build a wheel of {package}: {(errors or ['no reason given'])[-1]}; give the "
            "controller access to a package index, or set victoria_runner_package to a wheel"
        )


if __name__ == "__main__":
    main()
