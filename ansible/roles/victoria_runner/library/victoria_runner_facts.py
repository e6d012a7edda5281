"""Read what a host is, what it has of the runner, and how the service and its doctor are."""

from __future__ import annotations

import grp
import hashlib
import json
import os
import pwd
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
  packages: {description: Packages to look for., type: list, elements: str, default: []}
  package_manager: {description: apt or another., type: str, default: ""}
  doctor: {description: Whether to run doctor., type: bool, default: false}
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
host: {description: What the host is and has of the runner., type: dict, returned: always}
service:
  description: >-
    Properties of systemd; Release and Version of the running process; Outdated, what it has not
    read as it is now; Refusals of the token, and the Cause of what is wrong.
  type: dict
  returned: always
doctor: {description: The report of doctor or its problem., type: dict, returned: with doctor}
"""

CREDENTIALS = Path("/run/credentials")
DOCTOR_TIMEOUT_S = 120
DOCKER_TIMEOUT_S = 20
LOOKS_AT_ANOTHER_NAME = 10
"""A registered runner whose name has changed is accepted or refused within this many seconds."""
JOURNAL_LINES = 1000
WARNING = 4
"""A priority of syslog."""
NOT_FOUND = 127
"""The exit code of a program that is not there."""
PROPERTIES = (
    "ActiveState,SubState,Result,ExecMainStatus,StatusText,UnitFileState,MainPID,InvocationID,"
    "NRestarts,NeedDaemonReload,Requires"
)
Entry = Mapping[str, Any]
"""An entry of the journal."""


def run(*command: str, timeout_s: float = 30) -> subprocess.CompletedProcess[str]:
    """Run a program; one that is missing or does not end in time fails like any other."""
    variables = {**os.environ, "LC_ALL": "C.UTF-8"}
    try:
        return subprocess.run(  # noqa: S603 - fixed programs
            command,
            env=variables,
            timeout=timeout_s,
            check=False,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer within {timeout_s:.0f} s")
    except OSError as error:
        return subprocess.CompletedProcess(command, NOT_FOUND, "", str(error.strerror))


def text_of(path: Path) -> str:
    """Return the content of a file; nothing if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# The host


def host_facts(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the host is, and what it has of the runner."""
    prefix, config = Path(params["prefix"]), Path(params["config_dir"])
    state, home, unit = (Path(params[name]) for name in ("state_dir", "home", "unit_file"))
    command, drop_in = Path(params["command"]), Path(params["drop_in"])
    networks = Path(params["networks_unit_file"])
    ours = (unit, drop_in, networks, state, command, config, prefix)
    docker_answers = does_docker_answer()
    return {
        **account_facts(params["user"]),
        "cgroup": "cgroup2fs" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "other",
        "free": [free_mib(path) for path in (prefix, state, home)],
        "home": rights_of(home),
        "state_dir": rights_of(state),
        "config_dir": rights_of(config),
        "runner_env": file_facts(config / "runner.env"),
        "ca": file_facts(config / "ca.pem"),
        "command": file_facts(command),
        "unit": file_facts(unit),
        "orchestrator_url": variable(config / "runner.env", "ORCHESTRATOR_URL"),
        "container_runtime": variable(config / "runner.env", "CONTAINER_RUNTIME"),
        "secrets": [
            str(path)
            for path in (config / "secrets.env", config / "container.env")
            if path.exists()
        ],
        "has_secret_variables": has_secrets(text_of(config / "runner.env")),
        "has_journal": (state / "journal.sqlite3").exists(),
        "has_unit": unit.exists(),
        "has_drain": (drop_in / "drain.conf").exists(),
        "has_networks": networks.exists(),
        "docker_answers": docker_answers,
        "has_docker": docker_answers or has_dockerd(),
        "current": link(prefix / "current"),
        "previous": link(prefix / "previous"),
        "releases": [path.name for path in folders(prefix / "releases") if is_usable(path)],
        "ours": [str(path) for path in ours if os.path.lexists(path)],
        "missing": missing_packages(params["packages"], params["package_manager"]),
    }


def account_facts(user: str) -> dict[str, Any]:
    """Return what the host knows of an account; `account` is empty if there is none."""
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        entry = None
    uid = "none" if entry is None else str(entry.pw_uid)
    ranges = {
        file: [
            line.split(":")[1:]
            for line in text_of(Path(file)).splitlines()
            if line.startswith(f"{user}:")
        ]
        for file in ("/etc/subuid", "/etc/subgid")
    }
    return {
        "account": "" if entry is None else ":".join(map(str, entry)),
        "groups": [] if entry is None else groups_of(user, entry.pw_gid),
        "has_subids": all(ranges.values()),
        # As nft writes ranges of ids.
        "subordinate_ids": [
            f"{first}-{int(first) + int(count) - 1}" for first, count in ranges["/etc/subuid"]
        ],
        "lingers": Path("/var/lib/systemd/linger", user).exists(),
        "has_systemd": Path(f"/run/user/{uid}/bus").is_socket(),
    }


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
    while not path.is_dir():
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
    """Return owner, group, mode and hash of a file without secrets; nothing if it is not there."""
    try:
        return f"{rights_of(path)} {hashlib.sha256(path.read_bytes()).hexdigest()}"
    except OSError:
        return ""


def variable(path: Path, name: str) -> str:
    """Return a variable of the service as the role writes it; nothing if it is not set."""
    values = re.findall(rf'^VICTORIA_RUNNER_{name}="(.*)"$', text_of(path), re.MULTILINE)
    return values[-1] if values else ""


def has_secrets(variables: str) -> bool:
    """Return whether the service's variables hold what is now in files of its own.

    That is a token, a proxy with a password, or a variable for the engine.
    """
    engine = re.search(r'^VICTORIA_RUNNER_ENGINE_ENV="?([^"\n]*)', variables, re.MULTILINE)
    names = ["VICTORIA_RUNNER_REGISTRATION_TOKEN", *(engine[1].split() if engine else [])]
    patterns = [rf"^{re.escape(name)}=" for name in names] + [r"^\w+PROXY=.*@"]
    return any(re.search(pattern, variables, re.MULTILINE | re.IGNORECASE) for pattern in patterns)


def link(path: Path) -> str:
    """Return where a symbolic link points to; nothing if it is none."""
    return str(path.readlink()) if path.is_symlink() else ""


def folders(path: Path) -> list[Path]:
    """Return the folders in a folder, by name."""
    return sorted(each for each in path.iterdir() if each.is_dir()) if path.is_dir() else []


def is_usable(release: Path) -> bool:
    """Return whether a release is complete, and other accounts may run it."""
    program = release / "venv" / "bin" / "victoria-runner"
    others = stat.S_IROTH | stat.S_IXOTH
    try:
        return (release / ".complete").exists() and all(
            path.stat().st_mode & others == others
            for path in (release, release / "venv", program.parent, program)
        )
    except OSError:
        return False


def does_docker_answer() -> bool:
    """Return whether a daemon answers; podman's own command named docker has no such field."""
    answer = run("docker", "info", "--format", "{{.DockerRootDir}}", timeout_s=DOCKER_TIMEOUT_S)
    return answer.returncode == 0 and bool(answer.stdout.strip())


def has_dockerd() -> bool:
    """Return whether there is a docker, whatever package it came from: docker-ce, a vendor's."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    return shutil.which("dockerd", path=path) is not None


def missing_packages(packages: Sequence[str], manager: str) -> list[str]:
    """Return the packages that are not installed, or that apt would remove with another."""
    if not packages:
        return []
    if manager != "apt":
        answer = run("rpm", "--query", "--whatprovides", *packages)
        if answer.returncode == NOT_FOUND:
            return list(packages)
        absent = set(re.findall(r"^no package provides (\S+)", answer.stdout, re.MULTILINE))
        return [name for name in packages if name in absent]
    answer = run("dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n", *packages)
    installed = {
        line.split()[0] for line in answer.stdout.splitlines() if line.endswith(" installed")
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


# The service


def service_facts(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return how systemd sees the service, what the running process is, and what is wrong."""
    prefix, unit_file = Path(params["prefix"]), Path(params["unit_file"])
    unit = unit_file.name
    shown = properties(run("systemctl", "show", unit, f"--property={PROPERTIES}").stdout)
    pid = int(shown.get("MainPID") or 0)
    release = release_of(pid, prefix / "releases")
    current = Path(link(prefix / "current")).name
    outdated = outdated_files(Path(params["config_dir"]), unit_file) if pid else []
    if pid and release != current:
        outdated.append("release")
    entries = entries_of(journal(unit), shown)
    return {
        **shown,
        "MainPID": pid,
        "Release": release,
        "Version": version_of(prefix / "releases" / release) if release else "",
        "Outdated": outdated,
        "Refusals": sum(map(is_refusal, entries)),
        "Cause": failed_dependency(shown) or cause_of(shown, entries, unit),
    }


def properties(text: str) -> dict[str, str]:
    """Parse what `systemctl show` prints of one unit."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {name: value for name, is_pair, value in pairs if is_pair}


def release_of(pid: int, releases: Path) -> str:
    """Return the release that a process runs, by the Python that it was started with."""
    words = text_of(Path(f"/proc/{pid}/cmdline")).split("\0") if pid else []
    for word in words[:2]:
        if word.startswith(f"{releases}/"):
            return Path(word).relative_to(releases).parts[0]
    return ""


def version_of(release: Path) -> str:
    """Return the version of the runner in a release; nothing if its folder is damaged."""
    for folder in release.glob("venv/lib/python3*/site-packages/victoria_runner-*.dist-info"):
        return folder.name.removesuffix(".dist-info").partition("-")[2]
    return ""


def outdated_files(config: Path, unit_file: Path, credentials: Path = CREDENTIALS) -> list[str]:
    """Return which files the running process has not read as they are now.

    At each start systemd copies everything that the service reads into its folder of credentials,
    and the name of the unit's own content. No clock, `touch` or interrupted play changes that.
    """
    folder = credentials / unit_file.name
    if not folder.is_dir():
        return ["unit"]
    outdated = []
    for copy in sorted(folder.iterdir()):
        if copy.name == "unit":
            is_same = f"SetCredential=unit:{text_of(copy)}" in text_of(unit_file).splitlines()
        else:
            is_same = text_of(copy) == text_of(config / copy.name)
        if not is_same:
            outdated.append(copy.name)
    return outdated


def journal(unit: str) -> list[Entry]:
    """Return the last entries that a unit, or systemd about it, has written; oldest first."""
    return parse_journal(
        run(
            *("journalctl", "--quiet", "--output=json", f"--lines={JOURNAL_LINES}"),
            "--output-fields=MESSAGE,PRIORITY,_TRANSPORT,INVOCATION_ID,_SYSTEMD_INVOCATION_ID",
            *(f"_SYSTEMD_UNIT={unit}", "+", f"UNIT={unit}"),
        ).stdout
    )


def parse_journal(text: str) -> list[Entry]:
    """Parse what `journalctl --output=json` prints."""
    entries: list[Entry] = []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # cut off by the end of the journal's file
        message = entry.get("MESSAGE") or ""
        if isinstance(message, list):  # what is not UTF-8 comes as numbers
            message = bytes(message).decode(errors="replace")
        entries.append({**entry, "MESSAGE": message})
    return entries


def entries_of(entries: Sequence[Entry], shown: Mapping[str, str]) -> list[Entry]:
    """Return the entries of this start; of the attempt before it while the new one is silent."""
    by_start: dict[str, list[Entry]] = {}
    start = ""
    for entry in entries:
        # The last lines of a program that has ended come without an id, after systemd's own.
        start = entry.get("INVOCATION_ID") or entry.get("_SYSTEMD_INVOCATION_ID") or start
        by_start.setdefault(start, []).append(entry)
    last = shown.get("InvocationID", "")
    chosen = by_start.pop(last, [])
    is_retry = shown.get("ActiveState") != "active" and shown.get("NRestarts", "0") != "0"
    if is_retry and by_start and not any(map(is_telling, chosen)):
        return list(by_start.values())[-1]
    return chosen


def is_telling(entry: Entry) -> bool:
    """Return whether an entry is the program's own, or a warning of systemd."""
    return entry.get("_TRANSPORT") == "stdout" or is_warning(entry)


def is_warning(entry: Entry) -> bool:
    """Return whether an entry has the priority of a warning, or a higher one."""
    return int(entry.get("PRIORITY") or 6) <= WARNING


def is_refusal(entry: Entry) -> bool:
    """Return whether the orchestrator refused the token with a reason, or for ten minutes.

    A first refusal without a reason may be a proxy's; that line does not count failures.
    """
    pattern = r"(invalid registration token|Registration failed - HTTP 403).*\bfailures\b"
    return entry.get("_TRANSPORT") == "stdout" and bool(re.search(pattern, entry["MESSAGE"]))


def failed_dependency(shown: Mapping[str, str]) -> str:
    """Return which unit that the service requires does not run, and why; nothing if all do.

    A start that fails by it leaves the service with the state of the start before.
    """
    if shown.get("ActiveState") == "active":
        return ""
    services = [unit for unit in shown.get("Requires", "").split() if unit.endswith(".service")]
    for unit in services:
        needed = properties(run("systemctl", "show", unit, f"--property={PROPERTIES}").stdout)
        if needed.get("ActiveState") not in {"active", "reloading", "refreshing"}:
            cause = cause_of(needed, entries_of(journal(unit), needed), unit)
            return f"{unit}, which the runner requires, does not run: {cause}"
    return ""


def cause_of(shown: Mapping[str, str], entries: Sequence[Entry], unit: str) -> str:
    """Return why a service is as it is: by the entries of this start, else by its state."""
    is_up = shown.get("ActiveState") == "active"
    of_program = [entry for entry in entries if entry.get("_TRANSPORT") == "stdout"]
    of_systemd = [] if is_up else [entry for entry in entries if entry not in of_program]
    for entry in reversed(of_systemd):
        step = re.search(r"Failed at step (\w+) spawning (\S+): (.+)", entry["MESSAGE"])
        if step:
            codes = re.findall(
                rf"status=(\d+/{step[1]})", " ".join(e["MESSAGE"] for e in of_systemd)
            )
            return f"systemd cannot start {step[2]}: {step[3]} ({[step[1], *codes][-1]})"
    for chosen in (filter(is_warning, of_program), filter(is_reason, of_systemd), of_program):
        sentences = [sentence_of(entry["MESSAGE"], unit) for entry in chosen]
        if any(sentences):
            return [sentence for sentence in sentences if sentence][-1]
    state = f"{shown.get('ActiveState', 'unknown')}, {shown.get('Result', 'unknown')}"
    return f"it has logged nothing since this start ({state})"


def is_reason(entry: Entry) -> bool:
    """Return whether a warning of systemd has the reason, and not only that there is one."""
    only_that = r"Failed with result|Failed to start |(Main|Control) process exited|, ignoring"
    return is_warning(entry) and not re.search(only_that, entry["MESSAGE"])


def sentence_of(message: str, unit: str) -> str:
    """Return the sentence in a line of the log: without its level, or the end of its traceback."""
    try:
        event = json.loads(message)
    except ValueError:
        event = None
    if isinstance(event, dict):
        traceback = str(event.get("traceback") or "").strip()
        return traceback.splitlines()[-1] if traceback else str(event.get("message", ""))
    # The text format has a traceback in JSON's quotes.
    last = message.strip().splitlines()[-1:] or [""]
    last_line = last[0].rsplit("\\n", 1)[-1].removesuffix('"')
    return re.sub(rf"^(CRITICAL|ERROR|WARNING|INFO|{re.escape(unit)}:) ", "", last_line)


# Its doctor


def ask_doctor(command: str) -> dict[str, Any]:
    """Return the report of doctor as it is, or an empty one and the problem."""
    if not os.access(command, os.X_OK):
        return {"report": {}, "text": "", "problem": "the runner is not installed"}
    answer = run(command, "doctor", "--json", timeout_s=DOCTOR_TIMEOUT_S)
    text = f"{answer.stdout}{answer.stderr}".strip()
    try:
        report = json.loads(answer.stdout)
    except ValueError:
        last = (text.splitlines() or ["it prints nothing"])[-1]
        return {"report": {}, "text": text, "problem": f"doctor does not answer: {last}"}
    return {"report": report, "text": text, "problem": ""}


def is_registering(service: Mapping[str, Any], doctor: Mapping[str, Any], looks: int) -> bool:
    """Return whether the runner is at work, but does not have its node yet."""
    report = doctor["report"]
    if service["ActiveState"] != "active" or service["Refusals"] or not report.get("ok", True):
        return False
    # A registered runner is accepted or refused anew when its name or tags have changed.
    has_another_name = "under another name" in doctor["text"]
    return report.get("node_id") is None or (has_another_name and looks < LOOKS_AT_ANOTHER_NAME)


def registered_facts(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of service and doctor, once it is clear how the registration goes."""
    deadline_s = time.monotonic() + params["registered_within"]
    looks = 0
    while True:
        service, doctor = service_facts(params), ask_doctor(params["command"])
        looks += 1
        if not is_registering(service, doctor, looks) or time.monotonic() >= deadline_s:
            return {"service": service, "doctor": doctor}
        time.sleep(1)


def facts(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was asked for: doctor's view of the service, or the host's state."""
    if params["doctor"]:
        return registered_facts(params)
    return {"host": host_facts(params), "service": service_facts(params)}


def arguments() -> dict[str, Any]:
    """Return the specification of the module's arguments."""
    paths: Iterable[str] = (
        *("home", "prefix", "state_dir", "config_dir", "command", "unit_file", "drop_in"),
        "networks_unit_file",
    )
    return {
        "user": {"type": "str", "required": True},
        **{name: {"type": "path", "required": True} for name in paths},
        "packages": {"type": "list", "elements": "str", "default": []},
        "package_manager": {"type": "str", "default": ""},
        "doctor": {"type": "bool", "default": False},
        "registered_within": {"type": "int", "default": 0},
    }


def main() -> None:
    """Run as a module of Ansible."""
    from ansible.module_utils.basic import AnsibleModule  # noqa: PLC0415 - not where tests run

    module = AnsibleModule(argument_spec=arguments(), supports_check_mode=True)
    module.exit_json(changed=False, **facts(module.params))


if __name__ == "__main__":
    main()
