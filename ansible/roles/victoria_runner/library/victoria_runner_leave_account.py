#!/usr/bin/python
"""Ansible module: remove what the role put under the runner's account, and nothing of others.

That is: the runner's containers, by their label; the membership in the group docker, if the role
had added it; and lingering with the account's systemd, if the role had enabled it and nothing else
needs it, or if the account itself is removed next.

Arguments:
    user: the account.
    state_dir: the runner's state folder, which has the id that its containers carry.
    runtime: the engine that the runner uses.
    linger_mark, docker_mark: files that say that these are the role's.
    removes_account: whether the account is removed next.

Returns:
    removed: what was removed, in words.
    images: the names of Podman's images that stay in the account's storage, if it can list them.
    storage: the folder of that storage, unless it has no images.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from pathlib import Path

LABEL = "victoria-runner.runner-id"
ROOT = Path("/")
PODMANS_OWN = re.compile(r"catatonit|podman|slirp4netns|pasta(\.avx2)?|aardvark-dns")
"""Processes that hold Podman's namespaces, outside of the account's systemd."""


class Failed(Exception):
    """What the operator reads."""


class Engine:
    """An engine whose containers may be the runner's."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self._command = command

    def lines(self, *arguments: str) -> list[str]:
        """Return the lines that a command prints."""
        return run([*self._command, *arguments], f"use {self.name}").split()

    def answers(self) -> bool:
        """Check that the engine works."""
        return succeeds([*self._command, "info"])


def run(command: list[str], purpose: str) -> str:
    """Run a program and return its output."""
    result = subprocess.run(
        command, check=False, capture_output=True, encoding="utf-8", errors="replace"
    )
    if result.returncode != 0:
        cause = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise Failed(f"cannot {purpose}: {cause}; correct that and run this again")
    return result.stdout


def succeeds(command: list[str]) -> bool:
    """Check that a program ends without an error."""
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def users_systemd_is_active(uid: int) -> bool:
    """Check that the account's systemd is running."""
    return succeeds(["systemctl", "--quiet", "is-active", f"user@{uid}.service"])


def podman_of(account: pwd.struct_passwd) -> Engine | None:
    """Return the account's Podman; None if there is none, or it has nothing running."""
    if not shutil.which("podman") or not users_systemd_is_active(account.pw_uid):
        return None
    folder = f"/run/user/{account.pw_uid}"
    environment = [
        f"HOME={account.pw_dir}",
        f"XDG_RUNTIME_DIR={folder}",
        f"DBUS_SESSION_BUS_ADDRESS=unix:path={folder}/bus",
    ]
    command = ["runuser", "-u", account.pw_name, "--", "env", "--chdir=/", *environment, "podman"]
    return Engine("podman", command)


def docker(runtime: str) -> Engine | None:
    """Return Docker; its daemon must answer only if the runner uses it."""
    engine = Engine("docker", ["docker"])
    if not shutil.which("docker") or (runtime != "docker" and not engine.answers()):
        return None
    return engine


def remove_containers(engines: list[Engine], state_dir: Path) -> list[str]:
    """Remove the runner's containers of both engines: it may have been moved between them.

    By label, because containers of others may have names that begin like ours.
    """
    try:
        runner_id = (state_dir / "runner-id").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return []
    removed = []
    for engine in engines if runner_id else []:
        for container in engine.lines(
            "ps", "--all", "--quiet", "--filter", f"label={LABEL}={runner_id}"
        ):
            engine.lines("rm", "--force", container)
            removed.append(f"container {container}")
    return removed


def leave_group(user: str, mark: Path) -> list[str]:
    """Remove the account from the group docker, if the role had added it."""
    if not mark.exists():
        return []
    removed = []
    if "docker" in run(["id", "--groups", "--name", user], "read the account's groups").split():
        run(["gpasswd", "--delete", user, "docker"], "change the group docker")
        removed.append("membership in the group docker")
    # With the mark, an interrupted removal would fail here next time.
    mark.unlink()
    return removed


def has_others(podman: Engine | None, home: Path) -> bool:
    """Check whether the account runs anything else: containers, or services of its own."""
    if podman is not None and podman.lines("ps", "--quiet"):
        return True
    return any((home / ".config/systemd/user").glob("*.wants/*"))


def end_lingering(account: pwd.struct_passwd, root: Path) -> list[str]:
    """Disable lingering, and stop the account's systemd and Podman's own processes."""
    removed = []
    if (root / "var/lib/systemd/linger" / account.pw_name).exists():
        run(["loginctl", "disable-linger", account.pw_name], "disable lingering")
        removed.append("lingering")
    if users_systemd_is_active(account.pw_uid):
        run(["systemctl", "stop", f"user@{account.pw_uid}.service"], "stop the account's systemd")
        removed.append(f"user@{account.pw_uid}.service")
    for process in (root / "proc").glob("[0-9]*"):
        end_own_process(process, account.pw_uid)
    return removed


def end_own_process(process: Path, uid: int) -> None:
    """Kill a process if it is Podman's own, of this account."""
    try:
        name = (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
        if process.stat().st_uid == uid and PODMANS_OWN.fullmatch(name):
            os.kill(int(process.name), 9)
    except OSError:
        pass  # it has ended


def images_that_stay(podman: Engine | None, home: Path) -> dict[str, object]:
    """Return what of Podman's storage stays with the account."""
    storage = home / ".local/share/containers"
    if not (storage / "storage").is_dir():
        return {"images": [], "storage": ""}
    if podman is None:
        return {"images": [], "storage": str(storage)}
    images = sorted(set(podman.lines("images", "--format", "{{.Repository}}:{{.Tag}}")))
    return {"images": images, "storage": str(storage) if images else ""}


def leave(
    account: pwd.struct_passwd,
    parameters: dict[str, str],
    *,
    removes_account: bool,
    root: Path = ROOT,
) -> dict[str, object]:
    """Remove all of it; return what Ansible shows."""
    podman = podman_of(account)
    engines = [engine for engine in (podman, docker(parameters["runtime"])) if engine is not None]
    removed = remove_containers(engines, Path(parameters["state_dir"]))
    removed += leave_group(account.pw_name, Path(parameters["docker_mark"]))
    home = Path(account.pw_dir)
    kept = {} if removes_account else images_that_stay(podman, home)
    is_ours = Path(parameters["linger_mark"]).exists()
    if removes_account or (is_ours and not has_others(podman, home)):
        removed += end_lingering(account, root)
    return {"removed": removed, "images": [], "storage": "", **kept}


def main() -> None:
    """Do what Ansible asks for."""
    from ansible.module_utils.basic import AnsibleModule  # only Ansible has it

    module = AnsibleModule(
        {
            "user": {"type": "str", "required": True},
            "state_dir": {"type": "path", "required": True},
            "runtime": {"type": "str", "required": True},
            "linger_mark": {"type": "path", "required": True},
            "docker_mark": {"type": "path", "required": True},
            "removes_account": {"type": "bool", "default": False},
        }
    )
    parameters = dict(module.params)
    removes_account = parameters.pop("removes_account")
    try:
        account = pwd.getpwnam(parameters["user"])
        result = leave(account, parameters, removes_account=removes_account)
    except KeyError:
        module.exit_json(changed=False, removed=[], images=[], storage="")
    except (Failed, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=bool(result["removed"]), **result)


if __name__ == "__main__":
    main()
