#!/usr/bin/python
"""Ansible module: take over the runner that this host's service is now.

It may have been installed by hand (docs/install.md), or by the role with another state folder. Its
tasks are adopted, and its node keeps its id and key, if the new runner gets its state folder.

Arguments:
    unit: name of the service.
    user, prefix, state_dir, config_dir: the role's.
    unit_file, command: what else the role writes over; only for `moved`.
    state: `checked` changes nothing, and fails with a sentence if the runner cannot be taken over;
        `moved` saves the files of a runner by hand, to which victoria_runner_release can go back,
        and moves its state folder, with the service stopped and a link in the old place;
        `returned` moves the folder back, if the role's runner does not work, and leaves the service
        stopped; `tidied` removes that link and what the installation by hand left, once it works.
    source: the state folder of the runner before, for `returned` and `tidied`.

Returns:
    source: the state folder of the runner that the service is now; empty if there is none.
    has_journal: whether that folder has a journal.
    removed: what `tidied` removed.
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ansible.module_utils.victoria_runner_files import SAVED, replace_saved, text_of

JOURNAL = "journal.sqlite3"
VIRTUAL_ENVIRONMENT = ("bin", "include", "lib", "lib64", "share", ".gitignore", "pyvenv.cfg")
TOKEN = "registration-token"  # noqa: S105 - the name of a file
OPTION = "VICTORIA_RUNNER_STATE_DIR"
HEADS = re.compile(r"path=(\S+) ; argv\[\]=(.*?) ; ")
ARGUMENT = re.compile(r" --state-dir[= ](\S+)")
VARIABLE = re.compile(r"^\s*(\w+)=(.*?)\s*$", re.MULTILINE)


class Failed(Exception):
    """What the operator reads."""


@dataclass(frozen=True)
class Wanted:
    """The runner as the role will have it."""

    unit: str
    user: str
    prefix: Path
    state_dir: Path
    config_dir: Path
    unit_file: Path | None = None
    command: Path | None = None


@dataclass(frozen=True)
class Present:
    """The runner that the service is now."""

    user: str
    program: Path
    state_dir: Path
    is_active: bool
    is_enabled: bool
    invocation: str
    """By which systemd names this run of the service."""

    @property
    def has_journal(self) -> bool:
        """Whether it has ever taken a task, or registered."""
        return (self.state_dir / JOURNAL).exists()


def run(*command: str) -> str:
    """Run a program and return its output."""
    result = subprocess.run(
        command, check=False, capture_output=True, encoding="utf-8", errors="replace"
    )
    if result.returncode != 0:
        cause = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise Failed(f"cannot run {' '.join(command[:2])}: {cause}")
    return result.stdout


def look_at(unit: str) -> Present | None:
    """Return the runner of the unit; None if there is no such unit, or it does not run a runner."""
    names = (
        "LoadState,ActiveState,UnitFileState,InvocationID,User,ExecStart,Environment,"
        "EnvironmentFiles,StateDirectory"
    )
    lines = run("systemctl", "show", unit, f"--property={names}").splitlines()
    shown: dict[str, list[str]] = {}
    for name, _, value in (line.partition("=") for line in lines):
        shown.setdefault(name, []).append(value)
    head = HEADS.search(" ".join(shown.get("ExecStart", [])))
    if shown.get("LoadState") != ["loaded"] or head is None:
        return None
    user = "".join(shown.get("User", [])) or "root"
    return Present(
        user=user,
        program=Path(head[1]),
        state_dir=state_dir_of(shown, user, head[2]),
        is_active=shown.get("ActiveState") not in (["inactive"], ["failed"]),
        is_enabled=shown.get("UnitFileState") == ["enabled"],
        invocation="".join(shown.get("InvocationID", [])),
    )


def state_dir_of(shown: dict[str, list[str]], user: str, command: str) -> Path:
    """Return the state folder of a runner with this unit, as runner/settings.py chooses it."""
    variables = variables_of(shown)
    option = ARGUMENT.search(command)
    chosen = option[1] if option else variables.get(OPTION)
    try:
        home = variables.get("HOME") or pwd.getpwnam(user).pw_dir
    except KeyError:
        home = "/"
    if chosen:
        return Path(re.sub(r"^~(?=/|$)", home, chosen))
    from_systemd = " ".join(shown.get("StateDirectory", [])).split()
    if from_systemd:
        return Path("/var/lib", from_systemd[0].partition(":")[0])
    return Path(variables.get("XDG_STATE_HOME") or f"{home}/.local/state", "victoria-runner")


def variables_of(shown: dict[str, list[str]]) -> dict[str, str]:
    """Return the variables of the service, of which files take precedence; without quotes."""
    texts = [line.replace(" ", "\n") for line in shown.get("Environment", [])]
    for line in shown.get("EnvironmentFiles", []):
        try:
            texts.append(
                Path(line.partition(" (")[0]).read_text(encoding="utf-8", errors="replace")
            )
        except OSError:
            continue  # as systemd itself, if the line begins with a hyphen
    return {name: value.strip("\"'") for text in texts for name, value in VARIABLE.findall(text)}


def check(wanted: Wanted, present: Present | None) -> None:
    """Check that the runner can be taken over.

    Raises:
        Failed: it cannot, and nothing has been changed.
    """
    if present is None:
        return
    if wanted.prefix not in present.program.parents:
        raise Failed(
            f"cannot install a second runner: {wanted.unit} runs {present.program}, which is not "
            f"in {wanted.prefix}, and a host has one runner; set victoria_runner_prefix to the "
            "folder of that one to take it over, or remove it first"
        )
    if wanted.user != present.user and present.user != str(uid_of(wanted.user)):
        raise Failed(
            f"cannot run as {wanted.user}: {wanted.unit} runs as {present.user}, whose containers "
            f"another account does not reach; set victoria_runner_user to {present.user}, or "
            "decommission the host first"
        )
    if must_move(wanted, present) and is_taken(wanted.state_dir, present.state_dir):
        raise Failed(
            f"cannot move the state folder {present.state_dir}: {wanted.state_dir} is not empty; "
            "set victoria_runner_state_dir to the first, or move away what is in the second"
        )


def must_move(wanted: Wanted, present: Present) -> bool:
    """Check whether the runner's state folder is in another place than the role's."""
    source = present.state_dir
    return source.is_dir() and source.resolve() != wanted.state_dir.resolve()


def is_taken(target: Path, source: Path) -> bool:
    """Check whether the target has anything but a copy of the source, from a broken-off move."""
    return target.is_dir() and any(target.iterdir()) and not is_copy(target, source)


def is_copy(target: Path, source: Path) -> bool:
    """Check whether both are the state folder of the same runner."""
    return None is not read_id(target) == read_id(source)


def read_id(state_dir: Path) -> str | None:
    """Return the runner id in a state folder."""
    try:
        return (state_dir / "runner-id").read_text(encoding="ascii").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def uid_of(user: str) -> int | None:
    """Return the id of an account, which a unit may name instead of it."""
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return None


def is_by_hand(wanted: Wanted, present: Present) -> bool:
    """Check whether the service runs another program than the role's releases."""
    return wanted.prefix / "current" not in present.program.parents


def save(wanted: Wanted, present: Present) -> None:
    """Save what the role writes over, unless a play that was broken off has done so."""
    good = wanted.config_dir / "good"
    if (good / "by-hand").exists() or wanted.unit_file is None or wanted.command is None:
        return
    wanted.config_dir.mkdir(parents=True, exist_ok=True)
    sources = {name: wanted.config_dir / name for name in SAVED}
    state = {
        "state_dir": str(present.state_dir),
        "is_active": present.is_active,
        "is_enabled": present.is_enabled,
        "invocation": present.invocation,
    }
    sources |= {"unit": wanted.unit_file, "command": wanted.command}
    replace_saved(good, sources, {"by-hand": json.dumps(state)})


def move(wanted: Wanted, present: Present) -> None:
    """Move the state folder, with the service stopped meanwhile. Its containers go on."""
    if present.is_active:
        run("systemctl", "stop", wanted.unit)
    try:
        with locked(present.state_dir):
            move_folder(present.state_dir, wanted.state_dir)
    except (OSError, Failed) as error:
        if present.is_active:
            run("systemctl", "start", wanted.unit)
        raise Failed(f"cannot move the state folder {present.state_dir}: {error}") from error


def move_back(wanted: Wanted, source: Path) -> bool:
    """Move the state folder back to the place of a link that a move left, and leave none."""
    target = wanted.state_dir
    if not is_link_to(source, target) or not target.is_dir():
        return False
    run("systemctl", "stop", wanted.unit)
    with locked(target):
        move_folder(target, source)
        target.unlink()
    return True


def source_of(wanted: Wanted, source: str | None) -> Path | None:
    """Return the state folder of the runner before, also after a play that was broken off."""
    saved = json.loads(text_of(wanted.config_dir / "good" / "by-hand") or "{}")
    path = saved.get("state_dir") or source
    return Path(path) if path else None


@contextmanager
def locked(state_dir: Path) -> Iterator[None]:
    """Hold the lock of a state folder; see runner/state_dir.py."""
    handle = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise Failed("a runner without the service is using it; stop that one") from None
    finally:
        os.close(handle)


def move_folder(source: Path, target: Path) -> None:
    """Move a folder and leave a link. Until the link is there, the source is whole."""
    os.umask(0o022)  # the account must be able to reach it, whatever root's is
    target.parent.mkdir(parents=True, exist_ok=True)
    # A link to the source stays until the folder can take its place.
    if not is_link_to(target, source) and is_copy(target, source):
        shutil.rmtree(target)
    elif not target.is_symlink() and target.exists():
        target.rmdir()
    if source.stat().st_dev == target.parent.stat().st_dev:
        target.unlink(missing_ok=True)
        source.rename(target)
    else:
        copy = target.with_name(f"{target.name}.part")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(source, copy, symlinks=True)
        owner = source.stat()
        for path in (copy, *copy.rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
        os.sync()
        target.unlink(missing_ok=True)
        copy.rename(target)
        # Half a source must not pass for the whole one, if its removal is killed.
        source.rename(aside(source))
    source.symlink_to(target)
    shutil.rmtree(aside(source), ignore_errors=True)


def aside(source: Path) -> Path:
    """Return where a folder is that was copied and is being removed."""
    return source.with_name(f".{source.name}.moved")


def is_link_to(path: Path, folder: Path) -> bool:
    """Check whether a path is a link to this folder."""
    return path.is_symlink() and path.resolve() == folder.resolve()


def leftovers(wanted: Wanted, present: Present | None) -> Iterator[Path]:
    """Return what of an installation by hand, or of a move, is of no more use."""
    if present is None or is_by_hand(wanted, present):
        return
    if (wanted.prefix / "pyvenv.cfg").exists():
        yield from (wanted.prefix / name for name in VIRTUAL_ENVIRONMENT)
    token = wanted.config_dir / TOKEN
    if str(token) not in run("systemctl", "cat", wanted.unit) + variables_text(wanted.config_dir):
        yield token


def variables_text(config_dir: Path) -> str:
    """Return the variables of the role's runner."""
    files = sorted(config_dir.glob("*.env"))
    return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files)


def links_to(state_dir: Path, sources: list[Path]) -> Iterator[Path]:
    """Return which of these places are links that a move left."""
    return (path for path in sources if is_link_to(path, state_dir))


def remove(path: Path) -> bool:
    """Remove a file, a link or a folder; return whether it was there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
        return True
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def tidy(wanted: Wanted, sources: list[Path], *, is_check: bool) -> list[str]:
    """Remove what is of no more use; return it."""
    # The own default of a runner by hand: the play that moved it may have been broken off.
    try:
        usual = Path(pwd.getpwnam(wanted.user).pw_dir, ".local/state/victoria-runner")
    except KeyError:
        usual = wanted.state_dir
    links = links_to(wanted.state_dir, [*sources, usual])
    copied = (aside(source) for source in (*sources, usual) if aside(source).is_dir())
    paths = {*links, *copied, *leftovers(wanted, look_at(wanted.unit))} - {wanted.state_dir}
    return [str(path) for path in sorted(paths) if is_check or remove(path)]


def main() -> None:
    """Run as a module of Ansible."""
    from ansible.module_utils.basic import AnsibleModule  # only Ansible has it

    module = AnsibleModule(
        {
            "unit": {"type": "str", "required": True},
            "user": {"type": "str", "required": True},
            "prefix": {"type": "path", "required": True},
            "state_dir": {"type": "path", "required": True},
            "config_dir": {"type": "path", "required": True},
            "unit_file": {"type": "path"},
            "command": {"type": "path"},
            "state": {
                "type": "str",
                "choices": ["checked", "moved", "returned", "tidied"],
                "required": True,
            },
            "source": {"type": "path"},
        },
        supports_check_mode=True,
    )
    given = dict(module.params)
    state, source = given.pop("state"), given.pop("source")
    for name in ("prefix", "state_dir", "config_dir", "unit_file", "command"):
        given[name] = given[name] and Path(given[name])
    wanted = Wanted(**given)
    try:
        result = act(wanted, state, source, is_check=module.check_mode)
    except (Failed, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


def act(wanted: Wanted, state: str, source: str | None, *, is_check: bool) -> dict[str, object]:
    """Check, move, move back or tidy; return what Ansible shows."""
    if state == "tidied":
        removed = tidy(wanted, [Path(source)] if source else [], is_check=is_check)
        return {"changed": bool(removed), "removed": removed}
    if state == "returned":
        before = source_of(wanted, source)
        return {"changed": before is not None and not is_check and move_back(wanted, before)}
    present = look_at(wanted.unit)
    check(wanted, present)
    is_moved = state == "moved" and present is not None and must_move(wanted, present)
    if state == "moved" and present is not None and not is_check:
        if is_by_hand(wanted, present):
            save(wanted, present)
        if is_moved:
            move(wanted, present)
    return {
        "changed": is_moved,
        "source": "" if present is None else str(present.state_dir),
        "has_journal": present is not None and present.has_journal,
    }


if __name__ == "__main__":
    main()
