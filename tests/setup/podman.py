"""Makes podman work on this machine, and the stand-in image in it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.setup.image import Engine, find_or_build, last_line, try_out
from tests.setup.packages import ensure_program
from tests.setup.steps import SetupError, say

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER = "# Written by ./dev of victoria-runner, because podman could not start a container here."
# Each with its reason, from the mildest on; the first that helps is kept.
NO_ULIMITS = """\
[containers]
# limits may not be raised on this machine
default_ulimits = []
"""
RUNC = """\
[engine]
# the default runtime does not work with the cgroups of this machine
runtime = "runc"
"""


def ready() -> tuple[Engine, str]:
    """Return podman and the name of the stand-in image in it; both work."""
    ensure_program("podman", "the engine that tasks run in")
    engine = Engine("podman")
    image, is_new = find_or_build(engine)
    if is_new:
        make_it_run(engine, image)
        try_out(engine, image)
    return engine, image


def make_it_run(engine: Engine, image: str) -> None:
    """Try a container; if it does not start, look for the setting that this machine needs."""
    runs, output = engine.runs(image)
    if runs:
        return
    setting = setting_that_helps(engine, image)
    if setting is not None:
        keep(setting, last_line(output))


def setting_that_helps(engine: Engine, image: str) -> str | None:
    """Return the first setting with which a container starts, or nothing if none does."""
    for setting in settings_to_try():
        with tempfile.NamedTemporaryFile("w", suffix=".conf") as trial:
            trial.write(setting)
            trial.flush()
            if Engine(engine.name, {"CONTAINERS_CONF": trial.name}).runs(image)[0]:
                return setting
    return None


def settings_to_try() -> Iterator[str]:
    """Yield the contents of a containers.conf that may help; install what the later ones need."""
    yield NO_ULIMITS
    ensure_program("runc", "another runtime, for podman's own starts no container here")
    yield RUNC
    yield f"{NO_ULIMITS}{RUNC}"


def keep(setting: str, reason: str) -> None:
    """Write the setting where podman reads it, beside what is there, never over it."""
    if os.geteuid() == 0:
        base = Path("/etc")
    else:
        base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    target = base / "containers" / "containers.conf.d" / "90-victoria-dev.conf"
    if target.exists() and not target.read_text().startswith(HEADER):
        raise SetupError(f"cannot change podman's settings: {target} is not ours, remove it")
    say(f"podman cannot start a container here ({reason}): writing {target}")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(f"{HEADER}\n# It said: {reason}\n{setting}")
