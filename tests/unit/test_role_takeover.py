"""The role's module that takes over a runner by hand, or one with another state folder."""

import fcntl
import getpass
import os
import pwd
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.unit.role import ROLE, Programs, load

takeover = load("library/victoria_runner_takeover.py")
release = load("library/victoria_runner_release.py")
USER = getpass.getuser()
RUNNER_ID = "11111111-2222-3333-4444-555555555555"


class Host:
    """A host in a folder: its systemctl shows one unit."""

    def __init__(self, root: Path, programs: Programs) -> None:
        self.root = root
        self.programs = programs
        self.state_dir = root / "var/state"
        self.prefix = root / "opt"
        self.config_dir = root / "etc"
        self.unit_file, self.command = root / "u.service", root / "command"
        for folder in (self.prefix, self.config_dir, root / "var"):
            folder.mkdir()

    def wanted(self, **changes: object) -> Any:  # noqa: ANN401 - the module is loaded by its path
        names = ("prefix", "state_dir", "config_dir", "unit_file", "command")
        paths = {name: getattr(self, name) for name in names}
        return takeover.Wanted(**{"unit": "u.service", "user": USER, **paths, **changes})

    def show(self, program: str, *more: str, variables: str = "", arguments: str = "") -> None:
        """Let systemctl show a unit that runs this program with these variables."""
        (self.config_dir / "runner.env").write_text(variables, encoding="utf-8")
        path = self.prefix / program
        lines = [
            "LoadState=loaded",
            "ActiveState=active",
            "UnitFileState=enabled",
            "InvocationID=first",
            f"User={USER}",
            f"EnvironmentFiles={self.config_dir}/runner.env (ignore_errors=no)",
            f"ExecStart={{ path={path} ; argv[]={path}{arguments} ; ignore_errors=no ; pid=1 }}",
            *more,
        ]
        (self.root / "shown").write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.programs.make("systemctl", f'[ "$1" != show ] || cat {self.root}/shown')

    def make_state(self, folder: Path, runner_id: str = RUNNER_ID) -> None:
        """Make a state folder with a journal."""
        folder.mkdir(parents=True)
        (folder / "runner-id").write_text(runner_id + "\n", encoding="ascii")
        (folder / "journal.sqlite3").write_text(f"journal of {runner_id}", encoding="ascii")

    def act(self, state: str, source: str | None = None, **changes: object) -> dict[str, Any]:
        result = takeover.act(self.wanted(**changes), state, source, is_check=False)
        return dict(result)

    def install_by_hand(self, state_dir: Path) -> dict[str, str]:
        """Install a runner by hand; return its files."""
        self.make_state(state_dir)
        self.show(BY_HAND, variables=f"VICTORIA_RUNNER_STATE_DIR={state_dir}\n")
        (self.config_dir / "registration-token").write_text("token by hand")
        self.unit_file.write_text("unit by hand")
        self.command.write_text("command by hand")
        return self.files()

    def install_by_role(self) -> None:
        """Write what the role writes, and begin its runner."""
        self.show(BY_ROLE, "InvocationID=second")
        for name in ("registration-token", "secrets.env"):
            (self.config_dir / name).write_text("by the role")
        self.unit_file.write_text("unit of the role")
        self.command.write_text("command of the role")
        (self.prefix / "current").symlink_to("releases/one")

    def files(self) -> dict[str, str]:
        """Return the files of the runner and their content."""
        folders = [self.config_dir.iterdir(), [self.unit_file, self.command]]
        return {path.name: path.read_text() for paths in folders for path in paths}

    def go_back(self) -> dict[str, Any]:
        """Go back to what worked, as the role does when its runner does not."""
        names = ("prefix", "config_dir", "unit_file", "command")
        paths = {name: str(getattr(self, name)) for name in names}
        networks = {
            f"networks_{name}": str(self.root / "none") for name in ("unit_file", "drop_in")
        }
        return dict(release.restore({**paths, **networks}, check=False))

    def verbs(self) -> list[str]:
        calls = [call.split()[1] for call in self.programs.calls()]
        return [verb for verb in calls if verb not in {"show", "cat"}]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    host = Host(tmp_path, Programs(programs))
    host.programs.make("systemctl", "echo LoadState=not-found")
    return host


KILLED = 9
KILLED_AT_REMOVAL = """
import os, pathlib, shutil
from tests.unit.role import load
takeover = load("library/victoria_runner_takeover.py")
def removed(path, **_):
    for each in pathlib.Path(path).glob("journal*"):
        each.unlink()
        os._exit(9)
shutil.rmtree = removed
takeover.move_folder(pathlib.Path("{old}"), pathlib.Path("{state_dir}"))
"""
BY_ROLE, BY_HAND = "current/venv/bin/victoria-runner", "bin/victoria-runner"
HOME = pwd.getpwnam(USER).pw_dir


@pytest.mark.parametrize(
    ("more", "variables", "arguments", "expected"),
    [
        pytest.param([], "", "", f"{HOME}/.local/state/victoria-runner", id="default"),
        pytest.param([], "VICTORIA_RUNNER_STATE_DIR=/a\n", "", "/a", id="by-hand"),
        pytest.param([], 'VICTORIA_RUNNER_STATE_DIR="/a"\n', "", "/a", id="by-the-role"),
        pytest.param([], "VICTORIA_RUNNER_STATE_DIR=~/a\n", "", f"{HOME}/a", id="below-the-home"),
        pytest.param([], "XDG_STATE_HOME=/x\n", "", "/x/victoria-runner", id="xdg"),
        pytest.param(["StateDirectory=vr"], "", "", "/var/lib/vr", id="systemd"),
        pytest.param(["Environment=A=b VICTORIA_RUNNER_STATE_DIR=/e C=d"], "", "", "/e", id="unit"),
        pytest.param([], "VICTORIA_RUNNER_STATE_DIR=/a\n", " --state-dir /o", "/o", id="option"),
    ],
)
def test_state_folder_is_the_one_that_the_runner_has(
    host: Host, more: list[str], variables: str, arguments: str, expected: str
) -> None:
    host.show(BY_HAND, *more, variables=variables, arguments=arguments)
    assert host.act("checked", state_dir=Path(expected))["source"] == expected


def test_host_without_a_runner_has_none_to_take_over(host: Host) -> None:
    assert host.act("moved") == {"changed": False, "source": "", "has_journal": False}


def test_state_folder_is_moved_while_the_service_is_stopped_and_leaves_a_link(host: Host) -> None:
    old = host.root / "old"
    host.make_state(old)
    host.show(BY_HAND, variables=f"VICTORIA_RUNNER_STATE_DIR={old}\n")
    assert host.act("checked") == {"changed": False, "source": str(old), "has_journal": True}
    assert host.verbs() == []
    assert host.act("moved")["changed"]
    assert host.verbs() == ["stop"]
    assert (host.state_dir / "runner-id").read_text() == RUNNER_ID + "\n"
    assert old.readlink() == host.state_dir
    assert not host.act("moved")["changed"]


def test_folder_moved_under_umask_027_can_be_reached_by_the_account(host: Host) -> None:
    old, target = host.root / "old", host.root / "new/parent/state"
    host.make_state(old)
    host.show(BY_HAND, variables=f"VICTORIA_RUNNER_STATE_DIR={old}\n")
    before = os.umask(0o027)
    try:
        assert host.act("moved", state_dir=target)["changed"]
    finally:
        os.umask(before)
    modes = [path.stat().st_mode & 0o777 for path in (target.parent, target.parent.parent)]
    assert modes == [0o755, 0o755]


def test_moved_folder_is_tidied_once_the_roles_runner_works(host: Host) -> None:
    old = host.root / "old"
    host.make_state(old)
    (host.prefix / "pyvenv.cfg").touch()
    (host.prefix / "bin").mkdir()
    (host.prefix / "releases").mkdir()
    (host.config_dir / "registration-token").write_text("secret")
    host.show(BY_HAND, variables=f"VICTORIA_RUNNER_STATE_DIR={old}\n")
    host.act("moved")
    assert host.act("tidied", str(old))["removed"] == [str(old)]
    host.show(BY_ROLE, variables=f"VICTORIA_RUNNER_STATE_DIR={host.state_dir}\n")
    removed = host.act("tidied", str(old))["removed"]
    assert removed == [
        str(host.config_dir / "registration-token"),
        str(host.prefix / "bin"),
        str(host.prefix / "pyvenv.cfg"),
    ]
    assert [path.name for path in host.prefix.iterdir()] == ["releases"]
    assert (host.state_dir / "journal.sqlite3").exists()
    assert not host.act("tidied", str(old))["changed"]


def test_token_file_that_is_in_use_stays(host: Host) -> None:
    token = host.config_dir / "registration-token"
    token.write_text("secret")
    host.show(BY_ROLE, variables=f"VICTORIA_RUNNER_REGISTRATION_TOKEN_FILE={token}\n")
    assert host.act("tidied")["removed"] == []
    assert token.exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        pytest.param({"prefix": Path("/srv/second")}, "cannot install a second runner: ", id="two"),
        pytest.param({"user": "nobody"}, f"cannot run as nobody: .*runs as {USER}", id="user"),
    ],
)
def test_runner_of_another_folder_or_account_is_refused(
    host: Host, changes: dict[str, Any], sentence: str
) -> None:
    host.show(BY_ROLE, variables=f"VICTORIA_RUNNER_STATE_DIR={host.state_dir}\n")
    with pytest.raises(takeover.Failed, match=sentence):
        host.act("checked", **changes)
    assert host.verbs() == []


def test_folder_with_something_else_in_it_is_refused_and_left(host: Host) -> None:
    old = host.root / "old"
    host.make_state(old)
    host.make_state(host.state_dir, RUNNER_ID.replace("1", "9"))
    host.show(BY_HAND, variables=f"VICTORIA_RUNNER_STATE_DIR={old}\n")
    with pytest.raises(takeover.Failed, match="is not empty"):
        host.act("moved")
    assert not old.is_symlink()
    assert RUNNER_ID not in (host.state_dir / "runner-id").read_text()


def test_copy_of_a_move_that_was_broken_off_is_replaced(host: Host) -> None:
    old = host.root / "old"
    host.make_state(old)
    host.make_state(host.state_dir)
    (old / "journal.sqlite3").write_text("a newer journal")
    host.show(BY_HAND, variables=f"VICTORIA_RUNNER_STATE_DIR={old}\n")
    assert host.act("moved")["changed"]
    assert (host.state_dir / "journal.sqlite3").read_text() == "a newer journal"


def test_folder_is_moved_to_another_file_system_and_never_half_removed(host: Host) -> None:
    """What is left of a source whose removal was killed must not pass for the whole journal."""
    memory = Path("/dev/shm")  # noqa: S108 - another file system
    if not memory.is_dir() or memory.stat().st_dev == host.root.stat().st_dev:
        pytest.skip("no second file system")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        old, target = host.root / "old", Path(folder, "state")
        host.make_state(old)
        script = KILLED_AT_REMOVAL.format(old=old, state_dir=target)
        result = subprocess.run([sys.executable, "-c", script], check=False, cwd=ROLE.parents[2])
        assert result.returncode == KILLED
        assert not old.is_dir() or old.is_symlink()
        host.show(BY_HAND, variables=f"VICTORIA_RUNNER_STATE_DIR={old}\n")
        host.act("moved", state_dir=target)
        assert (target / "journal.sqlite3").read_text() == f"journal of {RUNNER_ID}"
        aside = str(takeover.aside(old))
        assert aside in host.act("tidied", str(old), state_dir=target)["removed"]
        assert not Path(aside).exists()


def test_variables_that_are_not_utf_8_are_read(host: Host) -> None:
    host.show(BY_HAND, variables="VICTORIA_RUNNER_STATE_DIR=/a\n")
    with (host.config_dir / "runner.env").open("ab") as file:
        file.write(b"# f\xfcr Acme\n")
    assert host.act("checked", state_dir=Path("/a"))["source"] == "/a"


def test_folder_that_a_runner_without_the_service_uses_is_not_moved(host: Host) -> None:
    old = host.root / "old"
    host.make_state(old)
    host.show(BY_HAND, variables=f"VICTORIA_RUNNER_STATE_DIR={old}\n")
    with (old / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(takeover.Failed, match="a runner without the service is using it"):
            host.act("moved")
    assert host.verbs() == ["stop", "start"]
    assert (old / "journal.sqlite3").exists()


@pytest.mark.parametrize("is_cut_off", [False, True], ids=["fails", "fails-after-a-killed-play"])
def test_runner_by_hand_is_back_if_the_one_of_the_role_does_not_work(
    host: Host, *, is_cut_off: bool
) -> None:
    old = host.root / "old"
    before = host.install_by_hand(old)
    host.act("moved")
    if is_cut_off:  # with the configuration half written
        (host.config_dir / "registration-token").write_text("by the role")
        host.act("moved")
    host.install_by_role()

    assert host.act("returned", None if is_cut_off else str(old))["changed"]
    restored = host.go_back()
    assert (old.is_symlink(), host.state_dir.exists()) == (False, False)
    assert (old / "journal.sqlite3").read_text() == f"journal of {RUNNER_ID}"
    assert (restored["by_hand"]["state_dir"], restored["is_running"]) == (str(old), True)
    assert host.files() == before
    assert not (host.prefix / "current").is_symlink()
    assert host.verbs() == ["stop", "stop", "daemon-reload", "enable", "restart"]
    # Nothing is left that a later play could take for what works.
    assert not host.go_back()["changed"]


def test_runner_by_hand_that_nothing_has_touched_goes_on(host: Host) -> None:
    """An image that cannot be fetched fails a play before the service is touched."""
    host.install_by_hand(host.state_dir)
    host.act("moved")
    assert not host.act("returned", str(host.state_dir))["changed"]
    assert host.go_back()["is_running"]
    assert host.verbs() == ["daemon-reload", "enable"]


def test_runner_by_hand_that_was_stopped_and_disabled_stays_so(host: Host) -> None:
    host.install_by_hand(host.state_dir)
    host.command.unlink()
    shown = (host.root / "shown").read_text()
    shown = shown.replace("=active", "=inactive").replace("=enabled", "=disabled")
    (host.root / "shown").write_text(shown)
    host.act("moved")
    host.install_by_role()
    restored = host.go_back()
    assert (restored["by_hand"]["is_active"], restored["is_running"]) == (False, False)
    assert not host.command.exists()
    assert host.verbs() == ["daemon-reload", "disable", "stop"]


def test_state_folder_of_the_roles_own_runner_is_moved_back_as_well(host: Host) -> None:
    old = host.root / "old"
    host.make_state(old)
    host.show(BY_ROLE, variables=f"VICTORIA_RUNNER_STATE_DIR={old}\n")
    host.act("moved")
    assert not (host.config_dir / "good").exists()
    assert host.act("returned", str(old))["changed"]
    assert (old / "journal.sqlite3").exists()
    assert not host.state_dir.exists()
    assert not host.act("returned", str(old))["changed"]
