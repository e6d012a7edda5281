"""Read what a host is, what it has of the runner, and how the service and its doctor are."""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
import re
import shutil
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.module_utils.victoria_runner_files import is_usable, link, text_of
from ansible.module_utils.victoria_runner_service import (
    NOT_FOUND,
    registered_facts,
    run,
    service_facts,
)

DOCUMENTATION = r"""
module: victoria_runner_facts
short_description: Read the state of the Victoria Remote Runner on a host
description:
  - Reads all that the role depends on in one task, because each task starts a Python program.
  - Changes nothing. Needs root and Python 3.10.
options:
  user: {description: Account of the runner., type: str, required: true}
  home: {description: Home of a new account., type: path, required: true}
  prefix: {description: Folder of the releases., type: path, required: true}
  state_dir: {description: The runner's state folder., type: path, required: true}
  config_dir: {description: Folder of the configuration., type: path, required: true}
  command: {description: The command for operators., type: path, required: true}
  unit_file: {description: The unit of the service., type: path, required: true}
  drop_in: {description: Folder of settings of the unit., type: path, required: true}
  networks_unit_file: {description: The unit that blocks networks., type: path, required: true}
  expected:
    description: Owner, mode and hash of files that should be there; a hash of a secret is hidden.
    type: dict
    default: {}
  packages: {description: Packages to look for., type: list, elements: str, default: []}
  package_manager: {description: apt or another., type: str, default: ""}
  doctor: {description: Whether to run doctor., type: bool, default: false}
  fetch: {description: Whether doctor fetches the image., type: bool, default: false}
  registered_within:
    description: How many seconds to wait until doctor finds the runner registered.
    type: int
    default: 0
"""
EXAMPLES = r"""
- name: Check the state of the host
  victoria_runner_facts:
    user: victoria
    home: /home/victoria
    prefix: /opt/victoria-runner
    state_dir: /var/lib/victoria-runner
    config_dir: /etc/victoria-runner
    command: /usr/local/bin/victoria-runner
    unit_file: /etc/systemd/system/victoria-runner.service
    drop_in: /run/systemd/system/victoria-runner.service.d
    networks_unit_file: /etc/systemd/system/victoria-runner-networks.service
"""
RETURN = r"""
host: {description: What the host is and has of the runner., type: dict, returned: without doctor}
service:
  description: >-
    Properties of systemd; Release and Version of the running process; Outdated, what it has not
    read as it is now. With doctor also Refusals of the token, the Cause of what is wrong, and the
    Dependency that does not run.
  type: dict
  returned: always
doctor: {description: The report of doctor or its problem., type: dict, returned: with doctor}
"""

ENGINE_TIMEOUT_S = 20
NFT, TABLE = "/usr/sbin/nft", "victoria_runner"
OF_STATE = ("lock", "run", "journal.sqlite3", "identity.json", "lost+found")
"""How names in a state folder begin, which may be a disk of its own."""
HELPERS = (
    "victoria-runner-return.service",
    "victoria-runner-cleanup.service",
    "victoria-runner-cleanup.timer",
)
"""Units beside the service."""


def host_facts(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the host is, and what it has of the runner."""
    prefix, config = Path(params["prefix"]), Path(params["config_dir"])
    state, unit = Path(params["state_dir"]), Path(params["unit_file"])
    command, drop_in = Path(params["command"]), Path(params["drop_in"])
    networks = Path(params["networks_unit_file"])
    account = account_facts(params["user"])
    # An account that was there before has its own.
    home = Path(account["account"].split(":")[5] if account["account"] else params["home"])
    helpers = [unit.with_name(name) for name in HELPERS]
    states = [state] if is_state_dir(state) else []
    ours = (unit, *helpers, drop_in, networks, *states, command, config, prefix)
    return {
        **account,
        **engine_facts(params["package_manager"]),
        **configuration_facts(config),
        **unit_facts(unit),
        "cgroup": "cgroup2fs" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "other",
        "free": [free_mib(path) for path in (prefix, state, home)],
        "home": rights_of(home),
        "state_dir": rights_of(state),
        "is_state_dir_ours": bool(states),
        "as_expected": files_as(params["expected"]),
        "command": file_facts(command),
        "helpers": helper_facts(helpers),
        "has_journal": (state / "journal.sqlite3").exists(),
        "has_drain": (drop_in / "drain.conf").exists(),
        **networks_facts(config / "networks.nft", networks),
        "has_left_by_hand": is_left_by_hand(prefix, home),
        "own_logins": own_logins(home, account["account"]),
        "current": link(prefix / "current"),
        "previous": link(prefix / "previous"),
        "releases": [path.name for path in folders(prefix / "releases") if is_usable(path)],
        "ours": [str(path) for path in ours if os.path.lexists(path)],
        "missing": missing_packages(params["packages"], params["package_manager"]),
    }


def engine_facts(manager: str) -> dict[str, Any]:
    """Return which engines there are, and where they came from."""
    podman = run("podman", "--version", timeout_s=ENGINE_TIMEOUT_S)
    # Podman's own command named docker has no such fields, and is not a docker.
    asked = "{{.DockerRootDir}} {{.LiveRestoreEnabled}}"
    docker = run("docker", "info", "--format", asked, timeout_s=ENGINE_TIMEOUT_S)
    answers = docker.returncode == 0 and bool(docker.stdout.strip())
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    has_podman = podman.returncode == 0
    return {
        "podman": podman.stdout.split()[-1] if has_podman and podman.stdout.strip() else "",
        # One that runs, and is not of the package of that name.
        "has_podman_of_others": has_podman and not is_installed("podman", manager),
        "docker_answers": answers,
        # Whatever package it came from: docker-ce, moby, a vendor's.
        "has_docker": answers or shutil.which("dockerd", path=path) is not None,
        "live_restore": docker.stdout.split()[-1] if answers else "",
    }


def configuration_facts(config: Path) -> dict[str, Any]:
    """Return what the folder of the configuration has."""
    variables = text_of(config / "runner.env")
    secrets = ("secrets.env", "container.env", "registry-logins.json", "docker")
    return {
        "config_dir": rights_of(config),
        "runner_env": file_facts(config / "runner.env"),
        "orchestrator_url": variable(variables, "ORCHESTRATOR_URL"),
        "container_runtime": variable(variables, "CONTAINER_RUNTIME"),
        "unit_state_dir": variable(variables, "STATE_DIR"),
        "secrets": [str(config / name) for name in secrets if (config / name).exists()],
        "has_secret_variables": has_secrets(variables),
        # Whether a release has once worked here.
        "has_worked": any(text_of(config / name / "release") for name in ("good", "good.old")),
        # Whether what works is a runner by hand, which a play has begun to take over.
        "was_by_hand": (config / "good" / "by-hand").exists(),
        "docker_is_ours": (config / "docker-is-ours").exists(),
        "live_restore_is_ours": (config / "live-restore-is-ours").exists(),
        # A play was killed before it restarted the daemon that it had reloaded.
        "docker_restart_is_due": (config / "docker-restart-is-due").exists(),
    }


def unit_facts(unit: Path) -> dict[str, Any]:
    """Return the unit, and what it starts."""
    pairs = [line.partition("=") for line in text_of(unit).splitlines()]
    settings = {name: value for name, _, value in pairs}
    return {
        "unit": file_facts(unit),
        "has_unit": unit.exists(),
        "unit_user": settings.get("User", ""),
        "unit_program": (settings.get("ExecStart", "").split() or [""])[0],
    }


def networks_facts(rules: Path, unit_file: Path, nft: str = NFT) -> dict[str, Any]:
    """Return what blocks networks: its files, and the name of the rules that are loaded."""
    if not unit_file.exists():
        return {"has_networks": False, "networks": "", "loaded_rules": ""}
    drop_in = unit_file.parent / "nftables.service.d" / "victoria-runner.conf"
    words = [*map(file_facts, (rules, unit_file, drop_in))]
    units = (unit_file.name, "nftables.service")
    loaded = run("systemctl", "show", "--property=NeedDaemonReload", "--value", *units).stdout
    return {
        "has_networks": True,
        # A play may have been killed after it had written them.
        "networks": " ".join([*words, *(["outdated"] if "yes" in loaded else [])]),
        "loaded_rules": loaded_rules(nft),
    }


def helper_facts(helpers: Sequence[Path]) -> str:
    """Return the units beside the service, with owner, mode and hash, and their states."""
    words = [f"{path.name} {file_facts(path)}" for path in helpers if path.exists()]
    enabled = run("systemctl", "is-enabled", HELPERS[0]).stdout.strip()
    active = run("systemctl", "is-active", HELPERS[-1]).stdout.strip()
    # A play may have been killed after it had written them.
    loaded = run("systemctl", "show", "--property=NeedDaemonReload", "--value", *HELPERS).stdout
    return " ".join([*words, enabled, active, *(["outdated"] if "yes" in loaded else [])])


def loaded_rules(nft: str) -> str:
    """Return the name of the rules of blocked networks that are loaded; nothing if none are."""
    rules = re.search(r"\bchain (rules_\w+)", run(nft, "list", "table", "inet", TABLE).stdout)
    return rules[1] if rules else ""


def is_state_dir(path: Path) -> bool:
    """Return whether a folder is a runner's, or what a removal that was killed has left of it."""
    if path.is_symlink() or not path.is_dir():
        return path.is_symlink()
    names = [each.name for each in path.iterdir()]
    return "runner-id" in names or all(name.startswith(OF_STATE) for name in names)


def is_left_by_hand(prefix: Path, home: Path) -> bool:
    """Return whether a play that took a runner over was broken off before it removed this."""
    # Root may not look into a home on NFS.
    usual = home / ".local/state/victoria-runner"
    is_link = os.path.islink(usual)  # noqa: PTH114 - Path's own raises there
    return is_link or (prefix / "pyvenv.cfg").exists()


def own_logins(home: Path, account: str) -> list[str]:
    """Return the files with registry logins of the account itself."""
    uid = account.split(":")[2] if account else "none"
    files = (
        home / ".config/containers/auth.json",
        home / ".docker/config.json",
        Path(f"/run/user/{uid}/containers/auth.json"),
    )
    return [str(path) for path in files if os.access(path, os.F_OK)]


def account_facts(user: str) -> dict[str, Any]:
    """Return what the host knows of an account; `account` is empty if there is none."""
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        entry = None
    uid = "none" if entry is None else str(entry.pw_uid)
    files = ("/etc/subuid", "/etc/subgid")
    ranges = {file: ranges_of(user, uid, text_of(Path(file))) for file in files}
    return {
        "account": "" if entry is None else ":".join(map(str, entry)),
        "groups": "" if entry is None else " ".join(groups_of(user, entry.pw_gid)),
        "has_subids": all(ranges.values()),
        # As nft writes ranges of ids.
        "subordinate_ids": [
            f"{first}-{int(first) + int(count) - 1}" for first, count in ranges["/etc/subuid"]
        ],
        "lingers": Path("/var/lib/systemd/linger", user).exists(),
        "has_systemd": Path(f"/run/user/{uid}/bus").is_socket(),
    }


def ranges_of(user: str, uid: str, text: str) -> list[list[str]]:
    """Return the first id and the count of each range that a file gives to a name or its UID."""
    lines = re.findall(r"^([^:\n]+):(\d+):(\d+)\s*$", text, re.MULTILINE)
    return [[first, count] for name, first, count in lines if name in {user, uid}]


def groups_of(user: str, gid: int) -> list[str]:
    """Return the names of an account's groups."""
    names = []
    for number in os.getgrouplist(user, gid):
        try:
            names.append(grp.getgrgid(number).gr_name)
        except KeyError:
            continue  # a number without a name
    return names


def free_mib(path: Path) -> int:
    """Return how many MiB are free where a folder is, or will be."""
    while not os.path.isdir(path):  # noqa: PTH112 - Path's own raises where root may not look
        path = path.parent
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize >> 20


def rights_of(path: Path) -> str:
    """Return owner, group and mode of a file or folder; nothing if it does not exist."""
    try:
        status = path.stat()
    except OSError:
        return ""
    names = []
    for find, number in ((pwd.getpwuid, status.st_uid), (grp.getgrgid, status.st_gid)):
        try:
            names.append(str(find(number)[0]))
        except KeyError:
            names.append(str(number))
    return f"{':'.join(names)} {stat.S_IMODE(status.st_mode):o}"


def file_facts(path: Path) -> str:
    """Return owner, group, mode and hash of a file; nothing if it is not there."""
    try:
        return f"{rights_of(path)} {hashlib.sha256(path.read_bytes()).hexdigest()}"
    except OSError:
        return ""


def files_as(expected: Mapping[str, str]) -> list[str]:
    """Return the files that have the expected owner, mode and hash."""
    facts_of = ((name, file_facts(Path(name))) for name in expected)
    return [
        name for name, text in facts_of if re.sub(":[^ ]*", "", text, count=1) == expected[name]
    ]


def variable(variables: str, name: str) -> str:
    """Return a variable of the service as the role writes it, or a person without quotes."""
    values = re.findall(rf'^VICTORIA_RUNNER_{name}="?([^"\n]*)"?$', variables, re.MULTILINE)
    return values[-1] if values else ""


def has_secrets(variables: str) -> bool:
    """Return whether the service's variables hold what is now in files of its own.

    That is a token, a proxy with a password, or a variable for the engine.
    """
    engine = re.search(r'^VICTORIA_RUNNER_ENGINE_ENV="?([^"\n]*)', variables, re.MULTILINE)
    names = ["VICTORIA_RUNNER_REGISTRATION_TOKEN", *(engine[1].split() if engine else [])]
    patterns = [rf"^{re.escape(name)}=" for name in names] + [r"^\w+PROXY=.*@"]
    return any(re.search(pattern, variables, re.MULTILINE | re.IGNORECASE) for pattern in patterns)


def folders(path: Path) -> list[Path]:
    """Return the folders in a folder, by name."""
    return sorted(each for each in path.iterdir() if each.is_dir()) if path.is_dir() else []


def is_installed(package: str, manager: str) -> bool:
    """Return whether a package of this name is installed."""
    if manager != "apt":
        return bool(run("rpm", "--query", "--quiet", package).returncode == 0)
    result = run("dpkg-query", "--show", "--showformat=${db:Status-Status}", package)
    return bool(result.stdout == "installed")


def missing_packages(packages: Sequence[str], manager: str) -> list[str]:
    """Return the packages that are not installed, or that apt would remove with another."""
    if not packages:
        return []
    if manager != "apt":
        result = run("rpm", "--query", "--whatprovides", *packages)
        if result.returncode == NOT_FOUND:
            return list(packages)
        absent = set(re.findall(r"^no package provides (\S+)", result.stdout, re.MULTILINE))
        return [name for name in packages if name in absent]
    result = run("dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n", *packages)
    installed = {
        line.split()[0] for line in result.stdout.splitlines() if line.endswith(" installed")
    }
    automatic = automatic_packages(Path("/var/lib/apt/extended_states"))
    return [name for name in packages if name not in installed or name in automatic]


def automatic_packages(states: Path) -> set[str]:
    """Return the packages that others pulled in: apt removes them with those, unless named."""
    stanzas = [stanza.splitlines() for stanza in text_of(states).split("\n\n")]
    return {
        line.partition(": ")[2]
        for stanza in stanzas
        if "Auto-Installed: 1" in stanza
        for line in stanza
        if line.startswith("Package: ")
    }


def facts(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was asked for: doctor's view of the service, or the host's state."""
    if params["doctor"]:
        return dict(registered_facts(params))
    service = service_facts(params)
    return {"host": {**host_facts(params), "runs": bool(service["MainPID"])}, "service": service}


def arguments() -> dict[str, Any]:
    """Return the specification of the module's arguments."""
    paths: Iterable[str] = (
        *("home", "prefix", "state_dir", "config_dir", "command", "unit_file", "drop_in"),
        "networks_unit_file",
    )
    return {
        "user": {"type": "str", "required": True},
        **{name: {"type": "path", "required": True} for name in paths},
        "expected": {"type": "dict", "default": {}, "no_log": True},
        "packages": {"type": "list", "elements": "str", "default": []},
        "package_manager": {"type": "str", "default": ""},
        "doctor": {"type": "bool", "default": False},
        "fetch": {"type": "bool", "default": False},
        "registered_within": {"type": "int", "default": 0},
    }


def main() -> None:
    """Run as a module of Ansible."""
    from ansible.module_utils.basic import AnsibleModule

    module = AnsibleModule(argument_spec=arguments(), supports_check_mode=True)
    try:
        result = facts(module.params)
    except OSError as error:
        module.fail_json(msg=f"cannot read the state of the host: {error}")
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
