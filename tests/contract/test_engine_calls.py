"""No secret in an engine call: every argument and variable of each call is kept by a recorder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from runner.engine.base import ContainerSpec
from runner.engine.cli import find_engine

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

KEY, TOKEN = "node-key-0123456789", "registration-token-0123456789"
RECORDER = """\
#!/bin/sh
{{ printf '%s\\n' "$@"; env; }} >> '{book}'
case $1 in info) echo '{{"version": {{"Version": "5.0.0"}}, "host":
 {{"security": {{"rootless": false}}, "cgroupManager": "systemd"}}}}' ;; run) echo c0ffee ;; esac
"""


@pytest.fixture
def anyio_backend() -> str:
    """Name the event loop that the runner uses."""
    return "asyncio"


async def test_no_call_of_the_engine_has_a_secret_in_its_arguments_or_variables(
    tmp_path: Path,
) -> None:
    book = tmp_path / "book"
    program = tmp_path / "podman"
    program.write_text(RECORDER.format(book=book))
    program.chmod(0o755)
    env_file = tmp_path / "task.env"
    env_file.write_text(f"NODE_API_KEY={KEY}\n")
    ours = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "VICTORIA_RUNNER_REGISTRATION_TOKEN": TOKEN,
        "NOTIFY_SOCKET": "/run/systemd/notify",
        "HTTPS_PROXY": "http://proxy.example:3128",
    }
    engine = find_engine("podman", ours)
    spec = ContainerSpec(name="victoria-t-1", image="i", arguments=("x",), env_files=(env_file,))
    assert await engine.run(spec) == "c0ffee"

    calls = book.read_text()
    assert str(env_file) in calls
    assert "HTTPS_PROXY=http://proxy.example:3128" in calls
    assert not [secret for secret in (KEY, TOKEN, "NOTIFY_SOCKET") if secret in calls]
