"""How the service of the runner is: by systemd, by its process, by its log and by its doctor."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.module_utils.victoria_runner_files import link, text_of

CREDENTIALS = Path("/run/credentials")
DOCTOR_TIMEOUT_S = 120
FETCH_TIMEOUT_S = 3900
"""The runner itself waits an hour for an image."""
USAGE_ERROR = 2
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
        return subprocess.run(
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


# The service


def service_facts(params: Mapping[str, Any], credentials: Path = CREDENTIALS) -> dict[str, Any]:
    """Return how systemd sees the service, and what the running process is."""
    prefix, unit_file = Path(params["prefix"]), Path(params["unit_file"])
    status = properties(run("systemctl", "show", unit_file.name, f"--property={PROPERTIES}").stdout)
    pid = int(status.get("MainPID") or 0)
    release = release_of(pid, prefix / "releases")
    config = Path(params["config_dir"])
    outdated = outdated_files(config, unit_file, credentials) if pid else []
    if pid and release != Path(link(prefix / "current")).name:
        outdated.append("release")
    return {
        **dict.fromkeys(PROPERTIES.split(","), ""),  # on a host without systemd
        **status,
        "MainPID": pid,
        "Release": release,
        "Version": version_of(prefix / "releases" / release) if release else "",
        "Outdated": outdated,
    }


def log_facts(unit: str, status: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the log of a service tells about this start."""
    entries = entries_of(journal(unit), status)
    dependency = failed_dependency(status)
    return {
        "Refusals": sum(map(is_refusal, entries)),
        "Dependency": dependency,
        "Cause": dependency or cause_of(status, entries, unit),
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


def outdated_files(config: Path, unit_file: Path, credentials: Path) -> list[str]:
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


def entries_of(entries: Sequence[Entry], status: Mapping[str, str]) -> list[Entry]:
    """Return the entries of this start; of the attempt before it while the new one is silent."""
    by_start: dict[str, list[Entry]] = {}
    start = ""
    for entry in entries:
        # The last lines of a program that has ended come without an id, after systemd's own.
        start = entry.get("INVOCATION_ID") or entry.get("_SYSTEMD_INVOCATION_ID") or start
        by_start.setdefault(start, []).append(entry)
    last = status.get("InvocationID", "")
    group = by_start.pop(last, [])
    is_retry = status.get("ActiveState") != "active" and status.get("NRestarts", "0") != "0"
    if is_retry and by_start and not any(map(is_telling, group)):
        return list(by_start.values())[-1]
    return group


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


def failed_dependency(status: Mapping[str, str]) -> str:
    """Return which unit that the service requires does not run, and why; nothing if all do.

    A start that fails by it leaves the service with the state of the start before.
    """
    if status.get("ActiveState") == "active":
        return ""
    services = [unit for unit in status.get("Requires", "").split() if unit.endswith(".service")]
    for unit in services:
        dependency = properties(run("systemctl", "show", unit, f"--property={PROPERTIES}").stdout)
        if dependency.get("ActiveState") == "inactive" and dependency.get("Result") == "success":
            # As by `loginctl terminate-user`, after which nothing starts it by itself.
            return (
                f"{unit}, which the runner requires, was stopped: run `systemctl start {unit}`, "
                "which starts the runner as well"
            )
        if dependency.get("ActiveState") not in {"active", "reloading", "refreshing"}:
            cause = cause_of(dependency, entries_of(journal(unit), dependency), unit)
            return f"{unit}, which the runner requires, does not run: {cause}"
    return ""


def cause_of(status: Mapping[str, str], entries: Sequence[Entry], unit: str) -> str:
    """Return why a service is as it is: by the entries of this start, else by its state."""
    is_up = status.get("ActiveState") == "active"
    of_program = [entry for entry in entries if entry.get("_TRANSPORT") == "stdout"]
    of_systemd = [] if is_up else [entry for entry in entries if entry not in of_program]
    for entry in reversed(of_systemd):
        step = re.search(r"Failed at step (\w+) spawning (\S+): (.+)", entry["MESSAGE"])
        if step:
            codes = re.findall(
                rf"status=(\d+/{step[1]})", " ".join(e["MESSAGE"] for e in of_systemd)
            )
            return f"systemd cannot start {step[2]}: {step[3]} ({[step[1], *codes][-1]})"
    for group in (filter(is_warning, of_program), filter(is_reason, of_systemd), of_program):
        sentences = [sentence_of(entry["MESSAGE"], unit) for entry in group]
        if any(sentences):
            return [sentence for sentence in sentences if sentence][-1]
    state = f"{status.get('ActiveState', 'unknown')}, {status.get('Result', 'unknown')}"
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


def ask_doctor(command: str, *, fetches: bool = False) -> dict[str, Any]:
    """Return the report of doctor as it is, or an empty one and the problem."""
    if not os.access(command, os.X_OK):
        return {"report": {}, "text": "", "problem": "the runner is not installed"}
    doctor = (command, "doctor", "--json")
    if fetches:
        result = run(*doctor, "--fetch", timeout_s=FETCH_TIMEOUT_S)
    # An older release, to which a host returns, has no such option.
    if not fetches or result.returncode == USAGE_ERROR:
        result = run(*doctor, timeout_s=DOCTOR_TIMEOUT_S)
    text = f"{result.stdout}{result.stderr}".strip()
    try:
        report = json.loads(result.stdout)
    except ValueError:
        last = (text.splitlines() or ["it prints nothing"])[-1]
        return {"report": {}, "text": text, "problem": f"doctor does not answer: {last}"}
    return {"report": report, "text": text, "problem": ""}


def is_registering(service: Mapping[str, Any], doctor: Mapping[str, Any], looks: int) -> bool:
    """Return whether the runner is at work, but does not have its node yet."""
    report = doctor["report"]
    failed = [check for check in report.get("checks", []) if not check["ok"]]
    # An older doctor does not tell what keeps tasks away, so everything does.
    is_blocked = any(check.get("blocking", True) for check in failed)
    if service["ActiveState"] != "active" or service["Refusals"] or is_blocked:
        return False
    # A registered runner is accepted or refused anew when its name or tags have changed.
    has_another_name = "under another name" in doctor["text"]
    return report.get("node_id") is None or (has_another_name and looks < LOOKS_AT_ANOTHER_NAME)


def registered_facts(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of service and doctor, once it is clear how the registration goes."""
    deadline_s = time.monotonic() + params["registered_within"]
    looks = 0
    while True:
        service = service_facts(params)
        # A registry may count how often it is asked.
        doctor = ask_doctor(params["command"], fetches=params["fetch"] and looks == 0)
        service |= log_facts(Path(params["unit_file"]).name, service)
        looks += 1
        if not is_registering(service, doctor, looks) or time.monotonic() >= deadline_s:
            return {"service": service, "doctor": doctor}
        time.sleep(1)
