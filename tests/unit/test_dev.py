"""What ./dev does on a machine where things are missing, and with what it starts."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rollout.molecule import ending_with_all_it_started
from tools.dev import ci
from tools.dev.engines import Engine, setting_that_helps
from tools.dev.packages import find_program
from tools.dev.rollout import command

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


def test_another_runtime_is_installed_where_the_default_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("podman", ONLY_WITH_RUNC), ("apt-get", INSTALLER), ("sudo", PASSES_ON)):
        program = tmp_path / name
        program.write_text(text)
        program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin")
    assert 'runtime = "runc"' in str(setting_that_helps(Engine("podman"), "any-image"))
    assert find_program("runc") is not None


def test_plays_end_with_the_scenario_that_is_interrupted() -> None:
    command = ["sh", "-c", "trap '' TERM; sleep 1000 & echo begun; wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as molecule:
        assert molecule.stdout is not None
        assert molecule.stdout.readline() == b"begun\n"
        with pytest.raises(KeyboardInterrupt), ending_with_all_it_started(molecule, patience_s=1):
            raise KeyboardInterrupt
        # Its output ends when every process that it started has.
        assert molecule.stdout.read() == b""


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


@pytest.mark.parametrize("command", ["demo", "soak", "bench"])
def test_help_explains_every_option_and_starts_nothing(command: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-m", "tools.dev", command, "--help"],
        cwd=ROOT,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    option = r"^  --\S+.*?"
    explained = re.findall(rf"{option}(?: {{2,}}|\n {{8,}})\w", done.stdout, re.MULTILINE)
    assert len(explained) == len(re.findall(option, done.stdout, re.MULTILINE)) > 0
    assert not (tmp_path / ".cache").exists()


def test_ci_runs_all_and_ends_with_the_worst_exit_code(capfd: pytest.CaptureFixture[str]) -> None:
    steps = (("no-such-command",), ("help",), ("bench", "--taks"), ("test", "--python", "3.1"))
    assert ci.run(steps) == 2
    last = capfd.readouterr().err.splitlines()[-4:]
    assert [line.partition(" s  ")[2] for line in last] == [
        "./dev no-such-command: failed, exit code 1",
        "./dev help: ok",
        "./dev bench --taks: failed, exit code 2",
        "./dev test --python 3.1: skipped, see above",  # this machine has no such Python
    ]
    assert ci.run(steps[-1:]) == 0


def test_short_scenarios_are_the_default_and_all_the_long_ones_too() -> None:
    assert command(Path("python"), {}, [])[-2:] == ["-m", "not long"]
    assert command(Path("python"), {}, ["--all"])[-1] == "tests/rollout"
