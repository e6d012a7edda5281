"""The role explains a service: module_utils/victoria_runner_service.py."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.unit.role import UNIT, load, write_program

service = load("module_utils/victoria_runner_service.py")
NOW, BEFORE = "a" * 32, "b" * 32


def entry(message: object, priority: int = 6, *, by: str = "stdout", of: str = NOW) -> str:
    """Return a line of `journalctl --output=json`: of the program, or of systemd about its unit."""
    field = "_SYSTEMD_INVOCATION_ID" if by == "stdout" else "INVOCATION_ID"
    return json.dumps({"MESSAGE": message, "PRIORITY": str(priority), "_TRANSPORT": by, field: of})


def shown(state: str, **more: object) -> str:
    """Return what `systemctl show` prints."""
    values = {"ActiveState": state, "Result": "exit-code", "InvocationID": NOW, **more}
    return "".join(f"{name}={value}\n" for name, value in values.items())


SYSTEMD_ONLY_SAYS = [
    entry(f"{UNIT}: Main process exited, code=exited, status=203/EXEC", 5, by="journal"),
    entry(f"{UNIT}: Failed with result 'exit-code'.", 4, by="journal"),
    entry("Failed to start victoria-runner.service - Victoria Remote Runner.", 3, by="journal"),
]
CAUSES = {
    "no-right-to-the-program": (
        shown("activating", ExecMainStatus=203),
        [
            entry("INFO draining: no new task is taken", of=BEFORE),
            entry(
                f"{UNIT}: Failed at step EXEC spawning /opt/x/venv/bin/victoria-runner: "
                "Permission denied",
                3,
                by="journal",
            ),
            *SYSTEMD_ONLY_SAYS,
        ],
        "systemd cannot start /opt/x/venv/bin/victoria-runner: Permission denied (203/EXEC)",
    ),
    "its-own-error": (
        shown("failed", ExecMainStatus=78),
        [
            entry("INFO starting"),
            entry("ERROR cannot use --memory 8 gig: it is not a size", 3),
            entry("INFO exiting reason=configuration"),
            *SYSTEMD_ONLY_SAYS,
        ],
        "cannot use --memory 8 gig: it is not a size",
    ),
    "a-full-disk": (
        shown("failed", ExecMainStatus=75),
        [entry("ERROR cannot write the journal: No space left on device; free some space", 3)],
        "cannot write the journal: No space left on device; free some space",
    ),
    "a-traceback-in-one-line": (
        shown("failed", ExecMainStatus=1),
        [entry(r'ERROR a defect traceback="Traceback:\n  File x\nRuntimeError: broken"', 3)],
        "RuntimeError: broken",
    ),
    "a-traceback-in-json": (
        shown("failed", ExecMainStatus=1),
        [entry(json.dumps({"message": "a defect", "traceback": "Traceback:\nKeyError: 'x'"}), 3)],
        "KeyError: 'x'",
    ),
    "another-python": (
        shown("activating", ExecMainStatus=1),
        [entry("Traceback (most recent call last):"), entry("No module named 'runner'")],
        "No module named 'runner'",
    ),
    "a-missing-file": (
        shown("failed", Result="resources"),
        [
            entry(f"{UNIT}: Failed to load environment files: No such file", 4, by="journal"),
            *SYSTEMD_ONLY_SAYS,
        ],
        "Failed to load environment files: No such file",
    ),
    "only-the-start-before-has-lines": (
        shown("failed", Result="timeout"),
        [entry("ERROR of the runner before", 3, of=BEFORE)],
        "it has logged nothing since this start (failed, timeout)",
    ),
    "a-program-that-ended-at-once": (
        shown("failed"),
        [
            entry("Starting dep.service...", by="journal"),
            json.dumps({"MESSAGE": "no space", "_TRANSPORT": "stdout"}),
            *SYSTEMD_ONLY_SAYS,
        ],
        "no space",
    ),
    "the-attempt-before-while-the-new-one-is-silent": (
        shown("activating", NRestarts=1),
        [entry("ERROR of the attempt before", 3, of=BEFORE)],
        "of the attempt before",
    ),
    "the-last-warning-of-a-runner-that-is-up": (
        shown("active"),
        [
            entry("WARNING cannot register: Connection refused", 4),
            entry("INFO waiting"),
            entry("an event\nof podman", by="journal"),
            entry("container died", 3, by="journal"),
        ],
        "cannot register: Connection refused",
    ),
    "bytes-that-are-not-utf-8": (
        shown("active"),
        [entry(list(b"WARNING \xff"), 4), "{cut"],
        "\N{REPLACEMENT CHARACTER}",
    ),
}


@pytest.mark.parametrize(("properties", "lines", "cause"), list(CAUSES.values()), ids=list(CAUSES))
def test_cause_is_that_of_this_start(properties: str, lines: list[str], cause: str) -> None:
    values = service.properties(properties)
    entries = service.entries_of(service.parse_journal("\n".join(lines)), values)
    assert service.cause_of(values, entries, UNIT) == cause


INVALID = "ERROR Registration failed - invalid registration token"
FIELDS = "since=2026-01-31T09:26:53Z lasted_s=0 failures=1 next_attempt_s=0"


@pytest.mark.parametrize(
    ("line", "is_refusal"),
    [
        pytest.param(f"{INVALID} {FIELDS}", True, id="refused"),
        pytest.param(f"ERROR Registration failed - HTTP 403: no {FIELDS}", True, id="forbidden"),
        pytest.param(
            json.dumps({"message": INVALID[6:], "since": "x", "failures": 1}), True, id="as-json"
        ),
        pytest.param(INVALID, False, id="a-first-one-without-a-reason"),
        pytest.param(json.dumps({"message": INVALID[6:]}), False, id="a-first-one-as-json"),
        pytest.param(
            f"ERROR cannot register: HTTP 401 without a reason, maybe from a proxy {FIELDS}",
            False,
            id="a-bare-401-of-a-proxy",
        ),
    ],
)
def test_token_is_refused_only_with_a_reason(line: str, *, is_refusal: bool) -> None:
    (parsed,) = service.parse_journal(entry(line, 3))
    assert service.is_refusal(parsed) is is_refusal


def test_failed_dependency_is_the_cause_of_a_start_that_never_began(programs: Path) -> None:
    """Systemd shows the state of the start before, whose lines are in the journal."""
    write_program(
        programs,
        "systemctl",
        'case $2 in user@*) echo "ActiveState=failed"; echo "Result=exit-code";\n'
        f'echo "InvocationID={NOW}";; esac',
    )
    write_program(programs, "journalctl", f"echo '{entry('Failed to set up PAM', 3)}'")
    values = service.properties(
        shown("inactive", Requires="sysinit.target user@1001.service system.slice")
    )
    assert service.failed_dependency(values) == (
        "user@1001.service, which the runner requires, does not run: Failed to set up PAM"
    )


def test_engine_that_was_stopped_is_named_with_what_starts_it(programs: Path) -> None:
    """Nothing starts an account's systemd after `loginctl terminate-user`."""
    write_program(
        programs,
        "systemctl",
        'case $2 in user@*) echo "ActiveState=inactive"; echo "Result=success";; esac',
    )
    write_program(programs, "journalctl", "")
    values = service.properties(shown("inactive", Requires="user@1001.service"))
    facts = service.log_facts(UNIT, values)
    assert facts["Dependency"] == facts["Cause"]
    assert facts["Dependency"] == (
        "user@1001.service, which the runner requires, was stopped: run "
        "`systemctl start user@1001.service`, which starts the runner as well"
    )


class Files:
    """Files of a configuration, and the copies that systemd made at the start of the service."""

    def __init__(self, root: Path) -> None:
        self.config, self.copies = root / "config", root / "credentials" / UNIT
        self.unit = root / UNIT
        self.config.mkdir()
        self.copies.mkdir(parents=True)
        for name in ("runner.env", "registration-token"):
            (self.config / name).write_text(f"{name} of before\n")
        self.unit.write_text("[Service]\nSetCredential=unit:1\n")
        self.start()

    def start(self) -> None:
        for file in self.config.iterdir():
            (self.copies / file.name).write_bytes(file.read_bytes())
        (self.copies / "unit").write_text(self.unit.read_text().strip().rpartition(":")[2])

    def outdated(self) -> list[str]:
        return list(service.outdated_files(self.config, self.unit, self.copies.parent))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_process_is_that_of_the_files_until_one_has_another_content(files: Files) -> None:
    assert files.outdated() == []
    for file in files.config.iterdir():
        os.utime(file, (2**33, 2**33))
    assert files.outdated() == []


def test_process_is_outdated_whatever_time_the_changed_file_shows(files: Files) -> None:
    token = files.config / "registration-token"
    token.write_text("another\n")
    os.utime(token, (0, 0))
    assert files.outdated() == ["registration-token"]
    files.start()
    assert files.outdated() == []
    (files.config / "runner.env").unlink()
    assert files.outdated() == ["runner.env"]


def test_process_is_outdated_by_another_unit(files: Files) -> None:
    files.unit.write_text("[Service]\nSetCredential=unit:12\n")
    assert files.outdated() == ["unit"]


def test_process_of_an_earlier_role_is_outdated(tmp_path: Path) -> None:
    assert service.outdated_files(tmp_path, tmp_path / UNIT, tmp_path / "none") == ["unit"]


def test_release_of_a_process_is_that_of_its_python(tmp_path: Path) -> None:
    assert service.release_of(0, tmp_path) == ""
    assert service.release_of(os.getpid(), tmp_path) == ""


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        pytest.param("echo '{\"ok\": true}'", "", id="report"),
        pytest.param(
            "echo \"No module named 'runner'\" >&2; exit 1",
            "doctor does not answer: No module named 'runner'",
            id="another-python",
        ),
        pytest.param("exit 1", "doctor does not answer: it prints nothing", id="silent"),
    ],
)
def test_doctor_that_does_not_answer_is_a_problem(
    tmp_path: Path, script: str, problem: str
) -> None:
    command = write_program(tmp_path, "victoria-runner", script)
    answer = service.ask_doctor(str(command))
    assert answer["problem"] == problem
    assert answer["report"] == ({} if problem else {"ok": True})


def test_doctor_of_an_older_release_fetches_no_image(tmp_path: Path) -> None:
    script = 'case $* in *--fetch) exit 2 ;; *) echo "{\\"ok\\": true}" ;; esac'
    command = str(write_program(tmp_path, "victoria-runner", script))
    assert service.ask_doctor(command, fetches=True)["report"] == {"ok": True}
    write_program(tmp_path, "victoria-runner", "echo '{\"fetched\": \"'$3'\"}'")
    assert service.ask_doctor(command, fetches=True)["report"] == {"fetched": "--fetch"}
    assert service.ask_doctor(command)["report"] == {"fetched": ""}


def test_image_is_fetched_once_while_the_registration_is_waited_for(programs: Path) -> None:
    write_program(programs, "systemctl", "echo ActiveState=active")
    write_program(programs, "journalctl", "")
    log = programs / "calls"
    answers = f"""echo "$@" >> {log}
    case $(wc -l < {log}) in 1) echo '{{"node_id": null}}';; *) echo '{{"node_id": "n"}}';; esac"""
    command = write_program(programs, "victoria-runner", answers)
    facts = service.registered_facts(
        {
            "command": str(command),
            "fetch": True,
            "registered_within": 60,
            "prefix": str(programs),
            "config_dir": str(programs),
            "unit_file": str(programs / UNIT),
        }
    )
    assert facts["doctor"]["report"] == {"node_id": "n"}
    assert log.read_text().splitlines() == ["doctor --json --fetch", "doctor --json"]


def test_runner_that_is_not_installed_is_a_problem(tmp_path: Path) -> None:
    assert service.ask_doctor(str(tmp_path / "none"))["problem"] == "the runner is not installed"


@pytest.mark.parametrize(
    ("state", "refusals", "report", "looks", "waits"),
    [
        pytest.param("active", 0, {"ok": True, "node_id": None}, 1, True, id="not-yet"),
        pytest.param("active", 0, {}, 1, True, id="doctor-is-silent"),
        pytest.param("active", 0, {"ok": True, "node_id": "n"}, 1, False, id="registered"),
        pytest.param("active", 1, {"ok": True, "node_id": None}, 1, False, id="refused"),
        pytest.param("failed", 0, {"ok": True, "node_id": None}, 1, False, id="failed"),
        pytest.param(
            "active", 0, {"checks": [{"ok": False}], "node_id": None}, 1, False, id="problem"
        ),
        pytest.param(
            "active", 0, {"checks": [{"ok": False, "blocking": False}]}, 1, True, id="history"
        ),
        pytest.param(
            "active", 0, {"ok": True, "node_id": "n", "x": "under another name"}, 9, True, id="name"
        ),
        pytest.param(
            "active", 0, {"ok": True, "node_id": "n", "x": "under another name"}, 10, False,
            id="name-for-long",
        ),
    ],
)  # fmt: skip
def test_registration_is_waited_for_while_it_is_open(
    state: str, refusals: int, report: dict[str, Any], looks: int, *, waits: bool
) -> None:
    doctor = {"report": report, "text": json.dumps(report)}
    shown_by_systemd = {"ActiveState": state, "Refusals": refusals}
    assert service.is_registering(shown_by_systemd, doctor, looks) is waits
