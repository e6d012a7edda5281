"""Makes podman work on this machine, and the stand-in image in it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tests.setup.image import Engine, find_or_build, last_line, try_out
from tests.setup.packages import ensure_program, find_program
from tests.setup.steps import SetupError, say

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
    reason = last_line(output)
    for setting in settings_to_try():
        with tempfile.NamedTemporaryFile("w", suffix=".conf") as trial:
            trial.write(setting)
            trial.flush()
            if Engine("podman", {"CONTAINERS_CONF": trial.name}).runs(image)[0]:
                keep(setting, reason)
                return


def settings_to_try() -> list[str]:
    """Return the contents of a containers.conf that may help."""
    if find_program("runc") is None:
        return [NO_ULIMITS]
    return [NO_ULIMITS, RUNC, f"{NO_ULIMITS}{RUNC}"]


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
