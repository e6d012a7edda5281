"""What ./dev does on a machine where things are missing, and with what it starts."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tools.dev.__main__ import project_checks
from tools.dev.engines import Engine, setting_that_helps
from tools.dev.packages import find_program
from tools.dev.rollout import path_for_root

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).resolve().parents[2]

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


def test_term_is_passed_on_and_its_exit_code_is_the_programs() -> None:
    program = "trap 'echo ended; exit 7' TERM; echo begun; while :; do sleep 0.1; done"
    caller = (
        "import sys; from tools.dev.shell import run_in_foreground;"
        f"sys.exit(run_in_foreground(['sh', '-c', {program!r}]))"
    )
    command = [sys.executable, "-c", caller]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        process.terminate()
        assert process.stdout.read() == b"ended\n"
        assert process.wait() == 7


def test_import_rules_are_checked_if_there_are_any() -> None:
    python = Path(".venv/bin/python")
    without = [command[0] for command in project_checks(python, "[project]\n")]
    assert ".venv/bin/lint-imports" not in without
    settings = "[project]\n\n[tool.importlinter]\nroot_packages = []\n"
    assert ".venv/bin/lint-imports" in [command[0] for command in project_checks(python, settings)]
