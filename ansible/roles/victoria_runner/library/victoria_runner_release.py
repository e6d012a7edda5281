"""Install a release, point to it, save what works, go back to that, and prune old releases."""

from __future__ import annotations

import fcntl
import filecmp
import json
import os
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from ansible.module_utils.victoria_runner_files import (
    SAVED,
    copy_file,
    is_usable,
    link,
    replace_saved,
    text_of,
)
from ansible.module_utils.victoria_runner_service import CREDENTIALS, NOT_FOUND, service_facts

DOCUMENTATION = r"""
module: victoria_runner_release
short_description: Manage the releases of the Victoria Remote Runner on a host
description:
  - A release is a folder with a virtual environment of its own, complete or absent.
  - The link C(current) selects one.
  - Only one play at a time changes a host. One that was killed is finished by the next.
options:
  state:
    description:
      - C(installed) installs C(release) from its parcel.
      - C(current) points to C(release).
      - C(saved) saves the release and the configuration, which work, and prunes old releases.
      - C(restored) goes back to what was saved, and restarts the service unless it still runs that.
        Before a release has worked, that is a runner by hand, saved by victoria_runner_takeover.
    type: str
    choices: [installed, current, saved, restored]
    required: true
  prefix: {description: Folder of the releases., type: path, required: true}
  release: {description: Name of the release., type: str, default: ""}
  python: {description: The Python to install with., type: str, default: python3}
  requirement: {description: "What pip installs, if no wheel.", type: str, default: ""}
  variables:
    description:
      - Environment variables of the installation. Not by C(environment), which writes them into the
        command line that sudo logs.
    type: dict
    default: {}
  keep: {description: How many releases to keep., type: int, default: 2}
  config_dir: {description: Folder of the configuration., type: path}
  command: {description: The command for operators., type: path}
  unit_file: {description: The unit of the service., type: path}
  networks_unit_file: {description: The unit that blocks networks., type: path}
  networks_drop_in: {description: The setting of nftables.service., type: path}
"""
EXAMPLES = r"""
- name: Ensure the link to the release is current
  victoria_runner_release:
    state: current
    prefix: /opt/victoria-runner
    release: 60e84a01fd9b-py3.13
"""
RETURN = r"""
release: {description: The restored release; empty if none is., type: str, returned: restored}
is_running: {description: Whether the restored runner runs., type: bool, returned: restored}
by_hand: {description: "The restored runner by hand, if it is one.", type: dict, returned: restored}
removed: {description: The releases that were pruned., type: list, returned: saved}
"""

LOCK_TIMEOUT_S = 300
MINOR_VERSIONS = range(10, 31)
"""Of Python 3: from the first that the runner supports, to some years ahead."""
FOR_OTHERS = 0o055
NO_INDEX_ADVICE = (
    "give the host access to its package index (victoria_runner_pip_environment, "
    "victoria_runner_proxy), or provide all wheels (victoria_runner_wheels)"
)


class Failure(Exception):
    """Something that an operator has to mend."""


@contextmanager
def locked(prefix: Path, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
    """Hold the lock of the releases: a play that was killed may still be at work here."""
    prefix.mkdir(parents=True, exist_ok=True)
    deadline_s = time.monotonic() + timeout_s
    with (prefix / ".lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= deadline_s:
                    raise Failure(
                        f"cannot change {prefix}: another play is at work on this host; "
                        "run this again once it has ended"
                    ) from None
            time.sleep(0.2)
        yield


def replace_link(path: Path, target: str) -> None:
    """Point a link to a target in one step; remove it if there is no target."""
    if not target:
        path.unlink(missing_ok=True)
        return
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(path)


# Install


def install(params: Mapping[str, Any], *, check: bool) -> dict[str, Any]:
    """Install a release from its parcel."""
    prefix, name = Path(params["prefix"]), params["release"]
    folder = prefix / "releases" / name
    if is_usable(folder):
        return {"changed": False}
    result = {"changed": True, "diff": {"before": "", "after": f"release {name}\n"}}
    if check:
        return result
    os.umask(0o022)  # the account of the runner must be able to read it, whatever root's is
    with locked(prefix):
        if is_usable(folder):
            return {"changed": False}
        try:
            unpack(folder)
            for path in (prefix, folder.parent, folder):
                path.chmod(path.stat().st_mode | FOR_OTHERS)
            make_environment(folder, params)
            link_libraries(folder / "venv" / "lib")
            shutil.rmtree(folder / "parcel")
            folder.with_name(f"{name}.tar").unlink()
            os.sync()
            (folder / ".complete").touch()
        except subprocess.CalledProcessError as error:
            what = params["requirement"] or f"release {name}"
            raise Failure(f"cannot install {what}: {problem_of(error, prefix)}") from error
        except tarfile.TarError as error:
            problem = (
                "its parcel is damaged; remove it from the controller's ~/.cache/victoria-runner"
            )
            raise Failure(f"cannot install release {name}: {problem}") from error
        except OSError as error:
            raise Failure(f"cannot install release {name}: {error}") from error
    return result


def unpack(folder: Path) -> None:
    """Unpack the parcel of a release into its folder, which is empty before."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tarfile.open(folder.with_name(f"{folder.name}.tar")) as parcel:
        if hasattr(tarfile, "data_filter"):
            parcel.extractall(folder, filter="data")
        else:
            parcel.extractall(folder)  # noqa: S202 - made by the controller


def make_environment(folder: Path, params: Mapping[str, Any]) -> None:
    """Make the virtual environment of a release, and install the parcel into it."""
    parcel, pip = folder / "parcel", [str(folder / "venv" / "bin" / "python"), "-m", "pip"]
    variables = {name: str(value) for name, value in params["variables"].items()}
    call = partial(run, {**os.environ, **variables})
    call(params["python"], "-m", "venv", str(folder / "venv"))
    options = ["--quiet", "--disable-pip-version-check", "--no-input"]
    if any(parcel.glob("wheels/*.whl")):
        # The folder has everything: no network is needed.
        options += ["--no-index", "--find-links", str(parcel / "wheels")]
    pins = parcel / "constraints.txt"
    if "--hash=" in pins.read_text(encoding="utf-8"):
        # Exactly the files that are listed, and only wheels: nothing of an index runs as root.
        exactly = ("--only-binary", ":all:", "--require-hashes", "--requirement", str(pins))
        call(*pip, "install", *options, *exactly)
        options.append("--no-deps")
    else:
        options += ["--constraint", str(pins)]
    wheels = [str(path) for path in parcel.glob("*.whl")]
    requirement = params["requirement"]
    call(*pip, "install", *options, *([requirement] if requirement else wheels))
    call(*pip, "check", "--disable-pip-version-check")
    call(str(folder / "venv" / "bin" / "victoria-runner"), "--version")


def link_libraries(folder: Path) -> None:
    """Let later versions of Python find the packages, all of them pure Python.

    An upgrade of the distribution brings one, before the next play installs a release for it.
    """
    library = next(folder.glob("python3.*"), None)
    for minor in MINOR_VERSIONS if library else []:
        path = folder / f"python3.{minor}"
        if library and not path.exists():
            path.symlink_to(library.name)


def run(variables: Mapping[str, str], *command: str) -> None:
    """Run a program of the installation."""
    try:
        subprocess.run(
            command,
            env=variables,
            check=True,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        problem = f"cannot run {command[0]}: {error.strerror}"
        raise subprocess.CalledProcessError(NOT_FOUND, command, "", problem) from error


def problem_of(error: subprocess.CalledProcessError, prefix: Path) -> str:
    """Return why a program of the installation failed, and what to do."""
    output = f"{error.stdout}{error.stderr}".strip()
    # pip's last line only tells that it found no version, or conflicting versions.
    unreachable = re.search(r"connection broken by (.+)", output)
    if error.returncode == NOT_FOUND:
        return f"{output}; install it on the host, or correct victoria_runner_python"
    if "No space left on device" in output:
        return f"No space left on device; free some space where {prefix} is"
    if "ensurepip is not" in output or "No module named venv" in output:
        return "its Python has no module venv; install python3-venv on the host"
    if unreachable:
        return f"cannot reach the package index: {unreachable[1]}; {NO_INDEX_ADVICE}"
    if "DO NOT MATCH THE HASHES" in output:
        return f"a package is not the one that the list of hashes has; {NO_INDEX_ADVICE}"
    lines = output.splitlines() or ["no reason given"]
    errors = [line for line in lines if line.startswith("ERROR: ")] or lines
    is_old = "requires a different Python" in errors[-1]
    advice = "set victoria_runner_python to 3.10 or later" if is_old else NO_INDEX_ADVICE
    return f"{errors[-1].removeprefix('ERROR: ')}; {advice}"


# Select


def select(params: Mapping[str, Any], *, check: bool) -> dict[str, Any]:
    """Point to a release."""
    prefix, target = Path(params["prefix"]), f"releases/{params['release']}"
    before = link(prefix / "current")
    if before == target:
        return {"changed": False}
    if not check:
        with locked(prefix):
            before = link(prefix / "current")
            if before not in {"", target}:
                replace_link(prefix / "previous", before)
            replace_link(prefix / "current", target)
    return {"changed": True, "diff": {"before": f"{before}\n", "after": f"{target}\n"}}


# Save and prune


def save(params: Mapping[str, Any], *, check: bool) -> dict[str, Any]:
    """Save the release and the configuration, and prune old releases."""
    prefix, config = Path(params["prefix"]), Path(params["config_dir"])
    # The lock is a file on the host.
    with nullcontext() if check else locked(prefix):
        sources = {name: config / name for name in SAVED} | {"unit": Path(params["unit_file"])}
        links = {"release": link(prefix / "current"), "previous": link(prefix / "previous")}
        changes = changes_since(config / "good", sources, links)
        removed = old_releases(prefix, params["keep"])
        if not check:
            if changes:
                replace_saved(config / "good", sources, links)
            for path in removed:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    names = [path.name for path in removed]
    return {
        "changed": bool(changes or removed),
        "removed": names,
        "diff": {
            "before": "".join(f"release {name}\n" for name in names),
            "after": "".join(f"saved: {name}\n" for name in changes),
        },
    }


def changes_since(good: Path, sources: Mapping[str, Path], links: Mapping[str, str]) -> list[str]:
    """Return which of the saved files differ from those of now."""
    return [name for name, path in sources.items() if not is_same_file(path, good / name)] + [
        name for name, target in links.items() if target != text_of(good / name).strip()
    ]


def is_same_file(path: Path, other: Path) -> bool:
    """Return whether two files have the same content, owner and mode, or both do not exist."""
    if not (path.exists() and other.exists()):
        return path.exists() == other.exists()
    one, two = path.stat(), other.stat()
    rights = [(status.st_uid, status.st_gid, status.st_mode) for status in (one, two)]
    return rights[0] == rights[1] and filecmp.cmp(path, other, shallow=False)


def old_releases(prefix: Path, keep: int) -> list[Path]:
    """Return the releases to remove, and what an interrupted installation has left."""
    selected = {Path(link(prefix / name)).name for name in ("current", "previous")} - {""}
    others = sorted(
        (path for path in (prefix / "releases").glob("*") if path.name not in selected),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    kept = [path for path in others if is_usable(path)][: max(0, keep - len(selected))]
    return [path for path in others if path not in kept]


# Go back


def restore(
    params: Mapping[str, Any], *, check: bool, credentials: Path = CREDENTIALS
) -> dict[str, Any]:
    """Go back to the release and the configuration that worked, and let the service run them."""
    prefix, config = Path(params["prefix"]), Path(params["config_dir"])
    good = next((path for path in (config / "good", config / "good.old") if path.exists()), None)
    release = text_of(good / "release").strip() if good else ""
    by_hand = json.loads(text_of(good / "by-hand") or "null") if good else None
    is_saved = bool(by_hand) or is_usable(prefix / (release or "none"))
    if check or good is None or not is_saved:
        return {"changed": False, "release": "", "is_running": False, "by_hand": {}}
    before = link(prefix / "current")
    with locked(prefix):
        restore_files(good, params)
        replace_link(prefix / "current", release)
        replace_link(prefix / "previous", text_of(good / "previous").strip())
        restore_networks(params, is_blocking=(config / "networks.nft").exists())
        systemctl("daemon-reload")
        service = service_facts(params, credentials)
        if by_hand:
            is_running = restore_by_hand(Path(params["unit_file"]).name, by_hand, service)
            shutil.rmtree(good)
        else:
            # A process that still is the one of these files was not touched.
            is_running = service["ActiveState"] == "active" and not service["Outdated"]
            is_running = is_running or systemctl("restart", Path(params["unit_file"]).name)
    return {
        "changed": True,
        "release": Path(release).name,
        "is_running": is_running,
        "by_hand": by_hand or {},
        "diff": {"before": f"{before}\n", "after": f"{release or 'by hand'}\n"},
    }


def restore_files(good: Path, params: Mapping[str, Any]) -> None:
    """Write the files that were saved, and remove those that were not there."""
    config = Path(params["config_dir"])
    for name in SAVED:
        if (good / name).exists():
            copy_file(good / name, config / name)
        else:
            (config / name).unlink(missing_ok=True)
    copy_file(good / "unit", Path(params["unit_file"]))
    if (good / "command").exists():
        copy_file(good / "command", Path(params["command"]))
    elif (good / "by-hand").exists():
        Path(params["command"]).unlink(missing_ok=True)


def restore_by_hand(unit: str, by_hand: Mapping[str, Any], service: Mapping[str, Any]) -> bool:
    """Let the service of a runner by hand be as it was; return whether it runs."""
    systemctl("enable" if by_hand["is_enabled"] else "disable", unit)
    if not by_hand["is_active"]:
        systemctl("stop", unit)
        return False
    is_untouched = service["InvocationID"] == by_hand["invocation"]
    return (is_untouched and service["ActiveState"] == "active") or systemctl("restart", unit)


def restore_networks(params: Mapping[str, Any], *, is_blocking: bool) -> None:
    """Load the rules of blocked networks again, or remove them if none were saved."""
    unit_file = Path(params["networks_unit_file"])
    if is_blocking:
        # The service loads the rules too, or does not start.
        systemctl("reload-or-restart", unit_file.name)
    elif unit_file.exists():
        systemctl("disable", "--now", unit_file.name)
        unit_file.unlink()
        Path(params["networks_drop_in"]).unlink(missing_ok=True)


def systemctl(*arguments: str) -> bool:
    """Call systemctl; return whether it succeeded."""
    command = ["systemctl", *arguments]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


ACTIONS = {"installed": install, "current": select, "saved": save, "restored": restore}


def argument_spec() -> dict[str, Any]:
    """Return the specification of the module's arguments."""
    return {
        "state": {"type": "str", "choices": list(ACTIONS), "required": True},
        "prefix": {"type": "path", "required": True},
        "release": {"type": "str", "default": ""},
        "python": {"type": "str", "default": "python3"},
        "requirement": {"type": "str", "default": ""},
        "variables": {"type": "dict", "default": {}, "no_log": True},
        "keep": {"type": "int", "default": 2},
        "config_dir": {"type": "path"},
        "command": {"type": "path"},
        "unit_file": {"type": "path"},
        "networks_unit_file": {"type": "path"},
        "networks_drop_in": {"type": "path"},
    }


def main() -> None:
    """Run as a module of Ansible."""
    from ansible.module_utils.basic import AnsibleModule

    module = AnsibleModule(
        argument_spec=argument_spec(),
        required_if=[
            ("state", "installed", ["release"]),
            ("state", "current", ["release"]),
            ("state", "saved", ["config_dir", "unit_file"]),
            (
                "state",
                "restored",
                ["config_dir", "command", "unit_file", "networks_unit_file", "networks_drop_in"],
            ),
        ],
        supports_check_mode=True,
    )
    # Ansible would mask each of them in every message, also a "1" and the name of a host; and an
    # older one prints the arguments with -vvv.
    params = dict(module.params)
    module.params["variables"] = {}
    module.no_log_values = {value for value in module.no_log_values if "@" in value}
    try:
        result = ACTIONS[params["state"]](params, check=module.check_mode)
    except Failure as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"cannot change the releases or what was saved: {error}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
