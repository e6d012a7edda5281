"""The role's programs, which Ansible hands to a host's Python."""

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jinja2
import yaml

ROLE = Path(__file__).resolve().parents[2] / "ansible" / "roles" / "victoria_runner"
UNIT = "victoria-runner.service"
OF_ANSIBLE = ("ansible", "ansible.module_utils")
"""The packages in which Ansible puts what modules share; no tests have more of it."""


def load(name: str) -> ModuleType:
    """Return a program of the role as a module."""
    return _load(name, Path(name).stem)


def _load(name: str, as_name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(as_name, ROLE / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[as_name] = module  # dataclasses look for their module there
    spec.loader.exec_module(module)
    return module


def write_program(folder: Path, name: str, script: str) -> Path:
    """Write a shell script that stands in for a program."""
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


def text_of(name: str) -> str:
    """Return the text of a file of the role."""
    return (ROLE / name).read_text(encoding="utf-8")


def read(name: str) -> dict[str, Any]:
    """Return a YAML file of the role."""
    return dict(yaml.safe_load(text_of(name)))


def rendered(name: str, **values: object) -> str:
    """Return a template of the role with these values."""
    jinja = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True, autoescape=False)  # noqa: S701 - no HTML
    jinja.filters["hash"] = lambda text, kind: hashlib.new(kind, text.encode()).hexdigest()
    return str(jinja.from_string(text_of(name)).render(**values))


class Programs:
    """Programs on the PATH that note how they were called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._log = folder / "calls"

    def make(self, name: str, script: str = "") -> None:
        """Make a program of these lines of shell."""
        write_program(self.folder, name, f'echo {name} "$@" >> {self._log}\n{script}')

    def calls(self) -> list[str]:
        """Return how they were called."""
        return self._log.read_text(encoding="utf-8").splitlines() if self._log.exists() else []


for package in OF_ANSIBLE:
    sys.modules.setdefault(package, ModuleType(package))
for path in sorted((ROLE / "module_utils").glob("*.py")):
    _load(f"module_utils/{path.name}", f"{OF_ANSIBLE[-1]}.{path.stem}")
