"""What the modules of the role read of files and releases, and how they save what works."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

SAVED = (
    *("runner.env", "secrets.env", "registration-token", "container.env"),
    *("ca.pem", "networks.nft", "registry-logins.json"),
)
"""What the role writes into the folder of the configuration, in this order."""


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


def replace_saved(good: Path, sources: Mapping[str, Path], texts: Mapping[str, str]) -> None:
    """Replace the folder of what works; if this is killed, one of the two is complete."""
    new, old = good.with_name("good.new"), good.with_name("good.old")
    shutil.rmtree(new, ignore_errors=True)
    if good.exists():
        shutil.rmtree(old, ignore_errors=True)
    new.mkdir(mode=0o700)
    for name, path in sources.items():
        if path.exists():
            copy_file(path, new / name)
    for name, text in texts.items():
        if text:
            (new / name).write_text(f"{text}\n", encoding="utf-8")
    if good.exists():
        good.rename(old)
    new.rename(good)
    shutil.rmtree(old, ignore_errors=True)


def copy_file(source: Path, target: Path) -> None:
    """Replace a file by a copy with the same owner and mode, in one step."""
    new = target.with_name(f".{target.name}.new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    shutil.copyfile(source, new)
    status = source.stat()
    os.chown(new, status.st_uid, status.st_gid)
    new.chmod(stat.S_IMODE(status.st_mode))
    new.replace(target)
