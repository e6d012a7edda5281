"""Loads the role's modules, and makes programs for them to call."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

LIBRARY = Path(__file__).resolve().parents[2] / "ansible" / "roles" / "victoria_runner" / "library"


def load(name: str) -> ModuleType:
    """Load a module of the role, which Ansible copies to a host."""
    spec = importlib.util.spec_from_file_location(name, LIBRARY / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Programs:
    """Programs on the PATH that note how they were called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._log = folder / "calls"

    def make(self, name: str, script: str = "") -> None:
        """Make a program of these lines of shell."""
        path = self.folder / name
        path.write_text(f'#!/bin/sh\necho {name} "$@" >> {self._log}\n{script}\n', encoding="utf-8")
        path.chmod(0o755)

    def calls(self) -> list[str]:
        """Return how they were called."""
        return self._log.read_text(encoding="utf-8").splitlines() if self._log.exists() else []
