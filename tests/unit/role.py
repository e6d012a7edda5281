"""The role's programs, which Ansible hands to a host's Python."""

import importlib.util
from pathlib import Path
from types import ModuleType

ROLE = Path(__file__).resolve().parents[2] / "ansible" / "roles" / "victoria_runner"


def load(name: str) -> ModuleType:
    """Return a program of the role as a module."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROLE / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
