"""What ./dev does on a machine where things are missing."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from tests.setup.image import Engine
from tests.setup.packages import find_program
from tests.setup.podman import setting_that_helps
from tests.setup.rollout import path_for_root

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

# A podman whose default runtime cannot start a container here, whatever the limits.
ONLY_WITH_RUNC = """#!/bin/sh
[ -n "$CONTAINERS_CONF" ] && grep -q '^runtime = "runc"' "$CONTAINERS_CONF" && command -v runc
"""
# Installs what is asked for into its own folder.
INSTALLER = """#!/bin/sh
[ "$1" = update ] && exit
for package; do :; done
printf '#!/bin/sh\\n' > "$(dirname "$0")/$package"
chmod +x "$(dirname "$0")/$package"
"""
PASSES_ON = '#!/bin/sh\nexec "$@"\n'


def test_another_runtime_is_installed_where_the_default_one_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (
        ("podman", ONLY_WITH_RUNC),
        ("apt-get", INSTALLER),
        ("sudo", PASSES_ON),
    ):
        program = tmp_path / name
        program.write_text(text)
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin")

    setting = setting_that_helps(Engine("podman"), "any-image")

    assert setting is not None
    assert 'runtime = "runc"' in setting
    assert find_program("runc") is not None


def test_an_account_that_does_not_know_roots_programs_makes_hosts_that_have_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/local/bin:/usr/bin:/bin")
    folders = path_for_root(tmp_path).split(":")
    assert folders[0] == str(tmp_path)
    assert {"/usr/sbin", "/sbin"} <= set(folders)
