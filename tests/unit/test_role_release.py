"""The role installs, selects, saves and restores releases: library/victoria_runner_release.py."""

import fcntl
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.role import ROLE, load

module = load("library/victoria_runner_release.py")
pack = load("files/pack.py")
service = sys.modules["ansible.module_utils.victoria_runner_service"]


def write_wheel(folder: Path) -> Path:
    wheel = folder / "victoria_runner-1.0-py3-none-any.whl"
    wheel.touch()
    return wheel


def run_pack(*arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    command = [python, str(ROLE / "files" / "pack.py"), *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def params(root: Path, **more: object) -> dict[str, object]:
    return {
        "prefix": str(root / "prefix"),
        "release": "one",
        "python": sys.executable,
        "requirement": "",
        "variables": {},
        "keep": 2,
        "config_dir": str(root / "config"),
        "unit_file": str(root / "victoria-runner.service"),
        "networks_unit_file": str(root / "networks.service"),
        "networks_drop_in": str(root / "drop-in.conf"),
        **more,
    }


def write_release(root: Path, name: str, *, at_s: int = 0) -> Path:
    folder = root / "prefix" / "releases" / name
    program = folder / "venv" / "bin" / "victoria-runner"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    (folder / ".complete").touch()
    for path in (folder, folder / "venv", program.parent):
        path.chmod(0o755)
    os.utime(folder, (at_s, at_s))
    return folder


def releases(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "prefix" / "releases").iterdir())


FAKE_PYTHON = """#!/bin/sh
case "$2 $3" in
    venv*) mkdir -p "$3/bin" "$3/lib/python3.11/site-packages"; cp "$0" "$3/bin/python";;
    "pip install") cd "${0%/*}"; echo '#!/bin/sh' > victoria-runner; chmod +x victoria-runner;;
esac
"""


@pytest.mark.usefixtures("umask")
def test_release_that_is_installed_under_umask_027_runs_for_other_accounts(tmp_path: Path) -> None:
    parcels = tmp_path / "prefix" / "releases"
    parcels.mkdir(parents=True)
    python = tmp_path / "python"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    run_pack(str(parcels / "one.tar"), str(write_wheel(tmp_path)), "", "")
    to_install = params(tmp_path, python=str(python))
    assert module.install(to_install, check=True)["changed"] is True
    assert releases(tmp_path) == ["one.tar"]
    assert module.install(to_install, check=False)["changed"] is True
    assert module.is_usable(parcels / "one")
    later = parcels / "one/venv/lib/python3.14/site-packages"
    assert later.resolve() == parcels / "one/venv/lib/python3.11/site-packages"
    files = (tmp_path / "prefix").rglob("[!.]*")
    closed = [path for path in files if path.stat().st_mode & 4 == 0]
    assert (closed, releases(tmp_path)) == ([], ["one"])
    assert module.install(to_install, check=False) == {"changed": False}


def test_pip_gets_its_variables_and_no_log_or_list_of_processes_does(tmp_path: Path) -> None:
    """The keyword environment writes them into a command line, which sudo logs on the host."""
    parcels = tmp_path / "prefix" / "releases"
    parcels.mkdir(parents=True)
    python = tmp_path / "python"
    python.write_text(FAKE_PYTHON + f'echo "$2 $PIP_INDEX_URL $PIP_RETRIES" >> {tmp_path}/calls\n')
    python.chmod(0o755)
    run_pack(str(parcels / "one.tar"), str(write_wheel(tmp_path)), "", "")
    variables = {"PIP_INDEX_URL": "https://me:word@index", "PIP_RETRIES": 1}
    module.install(params(tmp_path, python=str(python), variables=variables), check=False)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert "pip https://me:word@index 1" in calls
    assert module.argument_spec()["variables"]["no_log"] is True
    for path in (ROLE / "tasks").glob("*.yml"):
        assert not re.search(r"^ *environment:", path.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("damage", [b"", b"not a parcel"], ids=["empty", "damaged"])
def test_damaged_parcel_is_named(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "prefix" / "releases").mkdir(parents=True)
    (tmp_path / "prefix" / "releases" / "one.tar").write_bytes(damage)
    with pytest.raises(module.Failure, match="cannot install release one: its parcel is damaged; "):
        module.install(params(tmp_path), check=False)


def test_failed_installation_names_its_reason_and_leaves_no_release(tmp_path: Path) -> None:
    (tmp_path / "prefix" / "releases").mkdir(parents=True)
    run_pack(str(tmp_path / "prefix" / "releases" / "one.tar"), "", "", "")
    with pytest.raises(
        module.Failure,
        match=r"cannot install release one: cannot run no-such-python: .*victoria_runner_python",
    ):
        module.install(params(tmp_path, python="no-such-python"), check=False)
    assert not module.is_usable(tmp_path / "prefix" / "releases" / "one")


PIP = {
    "unreachable": (
        "WARNING: connection broken by 'NewConnectionError: refused'\nERROR: No matching version",
        "cannot reach the package index: 'NewConnectionError: refused'; give the host access",
    ),
    "full-disk": (
        "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
        "No space left on device; free some space where /opt/x is",
    ),
    "another-package": (
        "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.",
        "a package is not the one that the list of hashes has; give",
    ),
    "no-venv": (
        "The virtual environment was not created successfully because ensurepip is not\navailable.",
        "its Python has no module venv; install python3-venv on the host",
    ),
    "old-python": (
        "ERROR: Package 'victoria-runner' requires a different Python: 3.9.2 not in '>=3.10'",
        "Package 'victoria-runner' requires a different Python: 3.9.2 not in '>=3.10'; set v",
    ),
    "its-own-last-line": ("ERROR: first\nERROR: last\nhint: none", "last; give the host access"),
    "silent": ("", "no reason given; give the host access"),
}


@pytest.mark.parametrize(("stderr", "problem"), list(PIP.values()), ids=list(PIP))
def test_problem_of_an_installation_is_the_last_reason(stderr: str, problem: str) -> None:
    error = subprocess.CalledProcessError(1, "pip", "", stderr)
    assert module.problem_of(error, Path("/opt/x")).startswith(problem)


def test_selected_release_is_the_current_one_and_the_one_before_the_previous(
    tmp_path: Path,
) -> None:
    write_release(tmp_path, "one")
    write_release(tmp_path, "two")
    prefix = tmp_path / "prefix"
    first = module.select(params(tmp_path), check=False)
    assert first["diff"] == {"before": "\n", "after": "releases/one\n"}
    assert not (prefix / "previous").is_symlink()
    assert module.select(params(tmp_path), check=False) == {"changed": False}
    assert module.select(params(tmp_path, release="two"), check=True)["changed"] is True
    assert module.link(prefix / "current") == "releases/one"
    module.select(params(tmp_path, release="two"), check=False)
    links = [module.link(prefix / name) for name in ("current", "previous")]
    assert links == ["releases/two", "releases/one"]


def write_configuration(root: Path, text: str) -> None:
    (root / "config").mkdir(exist_ok=True)
    for name in ("runner.env", "registration-token", "registry-logins.json"):
        (root / "config" / name).write_text(f"{name} {text}\n")
        (root / "config" / name).chmod(0o600)
    (root / "victoria-runner.service").write_text(f"unit {text}\n")


def test_what_works_is_saved_once_and_old_releases_are_pruned(tmp_path: Path) -> None:
    for number, name in enumerate(("old", "older", "one", "two")):
        write_release(tmp_path, name, at_s=1000 - number)
    (tmp_path / "prefix" / "releases" / "cut-off").mkdir()
    (tmp_path / "prefix" / "releases" / "cut-off.tar").touch()
    write_configuration(tmp_path, "that works")
    module.select(params(tmp_path), check=False)
    assert module.save(params(tmp_path), check=True)["changed"] is True
    saved = module.save(params(tmp_path), check=False)
    assert sorted(saved["removed"]) == ["cut-off", "cut-off.tar", "older", "two"]
    assert releases(tmp_path) == ["old", "one"]
    assert module.save(params(tmp_path), check=False)["changed"] is False
    module.select(params(tmp_path, release="old"), check=False)
    write_configuration(tmp_path, "of another one")
    shown = module.save(params(tmp_path, keep=3), check=False)["diff"]["after"]
    names = (
        *("runner.env", "registration-token", "registry-logins.json"),
        *("unit", "release", "previous"),
    )
    assert shown == "".join(f"saved: {name}\n" for name in names)


def test_check_mode_makes_neither_the_folder_of_the_releases_nor_the_lock(tmp_path: Path) -> None:
    write_configuration(tmp_path, "that works")
    before = sorted(tmp_path.rglob("*"))
    assert module.save(params(tmp_path), check=True)["changed"] is True
    assert module.install(params(tmp_path), check=True)["changed"] is True
    assert module.select(params(tmp_path), check=True)["changed"] is True
    assert module.restore(params(tmp_path), check=True)["changed"] is False
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the log of a systemctl that succeeds."""
    log = tmp_path / "systemctl.log"
    program = tmp_path / "systemctl"
    program.write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return log


@pytest.mark.parametrize("is_cut_off", [False, True], ids=["saved", "while-it-was-replaced"])
def test_going_back_restores_files_links_and_service(
    tmp_path: Path, systemctl: Path, *, is_cut_off: bool
) -> None:
    write_release(tmp_path, "one")
    write_release(tmp_path, "two")
    write_configuration(tmp_path, "that works")
    module.select(params(tmp_path), check=False)
    module.save(params(tmp_path, keep=3), check=False)
    if is_cut_off:
        (tmp_path / "config" / "good").rename(tmp_path / "config" / "good.old")
    write_configuration(tmp_path, "that does not")
    (tmp_path / "config" / "secrets.env").touch()
    for name in ("networks.service", "drop-in.conf"):
        (tmp_path / name).touch()
    module.select(params(tmp_path, release="two"), check=False)

    unchanged = module.restore(params(tmp_path), check=True)
    assert (unchanged["changed"], systemctl.exists()) == (False, False)
    restored = module.restore(params(tmp_path), check=False)
    assert (restored["release"], restored["is_running"]) == ("one", True)
    assert (tmp_path / "config" / "runner.env").read_text() == "runner.env that works\n"
    assert (tmp_path / "config" / "runner.env").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "victoria-runner.service").read_text() == "unit that works\n"
    left = [(tmp_path / name).exists() for name in ("config/secrets.env", "networks.service")]
    assert left == [False, False]
    assert module.link(tmp_path / "prefix" / "current") == "releases/one"
    assert not (tmp_path / "prefix" / "previous").is_symlink()
    assert systemctl.read_text().splitlines() == [
        "disable --now networks.service",
        "daemon-reload",
        f"show victoria-runner.service --property={service.PROPERTIES}",
        "restart victoria-runner.service",
    ]


@pytest.mark.parametrize("is_untouched", [True, False], ids=["its-process", "another-process"])
def test_going_back_restarts_a_service_only_if_it_runs_something_else(
    tmp_path: Path, systemctl: Path, *, is_untouched: bool
) -> None:
    """An image that cannot be fetched fails a play before the service is touched."""
    python = write_release(tmp_path, "one") / "venv" / "bin" / "python"
    python.symlink_to("/bin/sleep")
    write_configuration(tmp_path, "that works")
    unit = tmp_path / "victoria-runner.service"
    unit.write_text("SetCredential=unit:1\n")
    module.select(params(tmp_path), check=False)
    module.save(params(tmp_path), check=False)
    copies = tmp_path / "credentials" / unit.name
    copies.mkdir(parents=True)
    (copies / "unit").write_text("1")
    (copies / "runner.env").write_text("runner.env that works\n" if is_untouched else "another")
    write_configuration(tmp_path, "that does not")

    with subprocess.Popen([python, "60"]) as process:
        shown = f"ActiveState=active\nMainPID={process.pid}"
        with (tmp_path / "systemctl").open("a") as program:
            program.write(f'[ "$1" != show ] || echo "{shown}"\n')
        result = module.restore(params(tmp_path), check=False, credentials=copies.parent)
        process.kill()
    assert (result["changed"], result["is_running"]) == (True, True)
    assert (tmp_path / "config" / "runner.env").read_text() == "runner.env that works\n"
    restarts = [line for line in systemctl.read_text().splitlines() if line.startswith("restart")]
    assert restarts == ([] if is_untouched else ["restart victoria-runner.service"])


def test_there_is_nothing_to_go_back_to_before_the_first_success(tmp_path: Path) -> None:
    write_configuration(tmp_path, "that does not work")
    result = module.restore(params(tmp_path), check=False)
    assert (result["changed"], result["release"]) == (False, "")


def test_play_waits_for_another_one_on_the_same_host(tmp_path: Path) -> None:
    with module.locked(tmp_path), (tmp_path / ".lock").open("w") as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        refused = pytest.raises(module.Failure, match="another play is at work on this host")
        with refused, module.locked(tmp_path, 0):
            pass


def packed_names(parcel: Path) -> list[str]:
    with tarfile.open(parcel) as archive:
        return sorted(name for name in archive.getnames() if not name.endswith("wheels"))


def test_parcel_has_wheel_wheels_and_constraints(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "dependency-1-py3-none-any.whl").touch()
    (wheels / "README").touch()
    pins = tmp_path / "pins.txt"
    pins.write_text("dependency==1\n")
    parcel = tmp_path / "cache" / "parcel.tar"
    result = run_pack(str(parcel), str(write_wheel(tmp_path)), str(wheels), str(pins))
    assert (result.returncode, result.stderr) == (0, "")
    assert packed_names(parcel) == [
        "parcel",
        "parcel/constraints.txt",
        "parcel/victoria_runner-1.0-py3-none-any.whl",
        "parcel/wheels/dependency-1-py3-none-any.whl",
    ]
    assert [path.name for path in parcel.parent.iterdir()] == ["parcel.tar"]


def write_python(folder: Path, script: str) -> str:
    folder.mkdir(parents=True)
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return str(python)


@pytest.mark.parametrize("makes_environments", [True, False], ids=["venv", "nothing"])
def test_controller_without_pip_gets_one_from_a_virtual_environment(
    tmp_path: Path, *, makes_environments: bool
) -> None:
    environment = tmp_path / "environment"
    with_pip = write_python(tmp_path / "with-pip", "exit 0")
    make = f'mkdir -p "$4/bin" && cp {with_pip} "$4/bin/python"' if makes_environments else "exit 1"
    bare = write_python(tmp_path / "bare", f"case $2 in venv) {make};; *) exit 1;; esac")
    expected = str(environment / "bin" / "python") if makes_environments else None
    assert pack.python_with_pip([bare, "/no/python"], environment) == expected
    assert pack.python_with_pip([bare, with_pip], environment) == with_pip


def test_wheel_that_cannot_be_built_ends_with_its_last_error() -> None:
    script = "echo 'ERROR: no hatchling here' >&2; echo '[notice] a newer pip' >&2; exit 1"
    problem = "cannot build a wheel of /checkout: ERROR: no hatchling here; give the controller"
    with pytest.raises(pack.Failure, match=problem):
        pack.build(Path("/checkout"), "sh", "-c", script)


def test_parcel_without_its_wheel_ends_with_one_sentence(tmp_path: Path) -> None:
    result = run_pack(str(tmp_path / "parcel.tar"), str(tmp_path / "none.whl"), "", "")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "No such file or directory" in result.stderr
    assert list(tmp_path.iterdir()) == []
