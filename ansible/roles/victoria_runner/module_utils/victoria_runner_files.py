"""What the modules of the role read of files and releases."""

from __future__ import annotations

import stat
from pathlib import Path


def text_of(path: Path) -> str:
    """Return the content of a file; nothing if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def link(path: Path) -> str:
    """Return where a symbolic link points to; nothing if it is none."""
    return str(path.readlink()) if path.is_symlink() else ""


def is_usable(release: Path) -> bool:
    """Return whether a release is complete, and other accounts may run it."""
    program = release / "venv" / "bin" / "victoria-runner"
    others = stat.S_IROTH | stat.S_IXOTH
    try:
        return (release / ".complete").exists() and all(
            path.stat().st_mode & others == others
            for path in (release, release / "venv", program.parent, program)
        )
    except OSError:
        return False
