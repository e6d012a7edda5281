"""The installed release: whether it still runs on the Python that it was installed for."""

from __future__ import annotations

import re
import sys
from pathlib import Path

_PACKAGES = re.compile(r"/lib/python(3\.\d+)/site-packages/")


def other_python(module: Path = Path(__file__), running: tuple[int, int] | None = None) -> str:
    """Return a sentence if an upgrade of the distribution has replaced Python; empty if not.

    The role links the packages of a release for other versions of Python, so that it goes on.
    """
    major, minor = running or sys.version_info[:2]
    installed_for = _PACKAGES.search(str(module.resolve()))
    if installed_for is None or installed_for[1] == f"{major}.{minor}":
        return ""
    return (
        f"this release was installed for Python {installed_for[1]}, and the host has "
        f"{major}.{minor} now; run site.yml, or install it again by hand"
    )
