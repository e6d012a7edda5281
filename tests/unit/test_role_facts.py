"""The role reads what a host and its service are: library/victoria_runner_facts.py."""

import hashlib
import os
import pwd
import re
from pathlib import Path
from typing import Any

import pytest

from runner.journal.journal import JOURNAL_NAME
from tests.unit.role import ROLE, UNIT, load, write_program

facts = load("library/victoria_runner_facts.py")


def places(root: Path, **more: object) -> dict[str, Any]:
    """Return the arguments of the module, with every place in one folder."""
    paths = ("home", "prefix", "state_dir", "config_dir", "command", "drop_in")
    return {
        **{name: str(root / name) for name in paths},
        "user": "nobody-of-this-name",
        "unit_file": str(root / UNIT),
        "networks_unit_file": str(root / "networks.service"),
        "expected": {},
        "packages": [],
        "package_manager": "apt",
        "doctor": False,
        "fetch": False,
        "registered_within": 0,
        **more,
    }


@pytest.mark.parametrize(
    ("program", "answers", "live_restore"),
    [
        pytest.param("echo /var/lib/docker true", True, "true", id="daemon"),
        pytest.param("exit 1", False, "", id="no-daemon"),
        pytest.param("echo 'no field DockerRootDir' >&2; exit 125", False, "", id="podman"),
    ],
)
def test_a_docker_is_one_whose_daemon_answers(
    programs: Path, program: str, live_restore: str, *, answers: bool
) -> None:
    write_program(programs, "docker", program)
    engines = facts.engine_facts("apt")
    assert (engines["docker_answers"], engines["live_restore"]) == (answers, live_restore)


@pytest.mark.parametrize(
    ("installed", "is_of_others"), [("installed", False), ("config-files", True)]
)
def test_podman_of_another_package_is_of_others(
    programs: Path, installed: str, *, is_of_others: bool
) -> None:
    write_program(programs, "podman", "echo podman version 5.4.2")
    write_program(programs, "docker", "exit 1")
    write_program(programs, "dpkg-query", f"printf {installed}")
    engines = facts.engine_facts("apt")
    assert (engines["podman"], engines["has_podman_of_others"]) == ("5.4.2", is_of_others)


def test_unit_of_a_person_is_told_by_its_user_program_and_state_folder(tmp_path: Path) -> None:
    unit = tmp_path / UNIT
    unit.write_text("[Service]\nUser=vic\nExecStart=/opt/x/bin/victoria-runner --verbose\n")
    assert facts.unit_facts(unit)["unit_user"] == "vic"
    assert facts.unit_facts(unit)["unit_program"] == "/opt/x/bin/victoria-runner"
    (tmp_path / "runner.env").write_text("VICTORIA_RUNNER_STATE_DIR=/var/lib/one\n")
    assert facts.configuration_facts(tmp_path)["unit_state_dir"] == "/var/lib/one"


def test_host_without_anything_has_nothing(tmp_path: Path, programs: Path) -> None:
    write_program(programs, "systemctl", "echo ActiveState=inactive")
    write_program(programs, "journalctl", "exit 1")
    write_program(programs, "docker", "exit 1")
    result = facts.facts(places(tmp_path / "none"))
    host, service = result["host"], result["service"]
    assert (host["account"], host["groups"], host["releases"], host["ours"]) == ("", "", [], [])
    assert (host["runner_env"], host["current"], host["has_journal"]) == ("", "", False)
    assert host["runs"] is False
    assert (service["MainPID"], service["Release"], service["Outdated"]) == (0, "", [])


def test_role_reads_only_facts_that_there_are(tmp_path: Path, programs: Path) -> None:
    write_program(programs, "systemctl", "exit 1")
    write_program(programs, "docker", "exit 1")
    host = facts.facts(places(tmp_path))["host"]
    service = facts.facts(places(tmp_path, doctor=True))["service"]
    files = [
        path for folder in ("tasks", "templates", "vars") for path in (ROLE / folder).iterdir()
    ]
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    for name, there in (("seen", host), ("unit_says", service), ("process", service)):
        asked_for = set(re.findall(rf"__victoria_runner_{name}[.](\w+)", text))
        assert asked_for - set(there) == set(), f"__victoria_runner_{name}"


def test_host_has_what_an_installation_left(tmp_path: Path, programs: Path) -> None:
    write_program(programs, "systemctl", "echo ActiveState=inactive")
    write_program(programs, "docker", "exit 1")
    for name in ("state_dir", "config_dir", "prefix/releases/one/venv/bin", "prefix/releases/two"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "state_dir" / JOURNAL_NAME).touch()
    (tmp_path / "config_dir" / "runner.env").write_text(
        'VICTORIA_RUNNER_ORCHESTRATOR_URL="https://one.example"\n'
    )
    write_program(tmp_path / "prefix/releases/one/venv/bin", "victoria-runner", "")
    for release in ("one", "two"):
        (tmp_path / "prefix/releases" / release / ".complete").touch()
    (tmp_path / "prefix" / "current").symlink_to("releases/one")
    host = facts.facts(places(tmp_path))["host"]
    assert host["has_journal"] is True
    assert host["orchestrator_url"] == "https://one.example"
    assert host["has_secret_variables"] is False
    assert (host["current"], host["releases"]) == ("releases/one", ["one"])
    assert host["ours"] == [str(tmp_path / name) for name in ("state_dir", "config_dir", "prefix")]


@pytest.mark.parametrize("name", facts.HELPERS)
def test_removal_finds_the_units_beside_the_service(
    tmp_path: Path, programs: Path, name: str
) -> None:
    write_program(programs, "systemctl", "echo inactive")
    write_program(programs, "docker", "exit 1")
    (tmp_path / name).write_text("[Unit]\n")
    host = facts.facts(places(tmp_path))["host"]
    assert str(tmp_path / name) in host["ours"]
    assert host["helpers"].startswith(f"{name} ")
    assert host["helpers"].endswith(" inactive inactive")


@pytest.mark.parametrize(
    ("content", "is_ours"),
    [
        pytest.param([], True, id="empty"),
        pytest.param(["lock"], True, id="before-the-first-start"),
        pytest.param(["runner-id", "run", "journal.sqlite3"], True, id="of-a-runner"),
        pytest.param(["lost+found"], True, id="disk"),
        pytest.param(["run", "journal.sqlite3-wal"], True, id="half-removed"),
        pytest.param(["journal.sqlite3", "runner-id", "notes"], True, id="with-notes"),
        pytest.param(["photos", "lock"], False, id="of-others"),
    ],
)
def test_state_folder_to_remove_is_that_of_a_runner(
    tmp_path: Path, programs: Path, content: list[str], *, is_ours: bool
) -> None:
    """The variable may name a folder of others, which the role has refused to use."""
    write_program(programs, "docker", "exit 1")
    state = tmp_path / "state_dir"
    state.mkdir()
    for name in content:
        (state / name).touch()
    assert (str(state) in facts.facts(places(tmp_path))["host"]["ours"]) is is_ours


def test_units_beside_the_service_that_systemd_has_not_read_are_outdated(programs: Path) -> None:
    script = 'if [ "$1" = show ]; then printf "no\\n\\nyes\\n"; else echo active; fi'
    write_program(programs, "systemctl", script)
    assert facts.helper_facts([]) == "active active outdated"


@pytest.mark.parametrize(
    ("folder", "has_worked"), [("good", True), ("good.old", True), ("", False)]
)
def test_release_that_worked_is_known_while_what_works_is_being_replaced(
    tmp_path: Path, folder: str, *, has_worked: bool
) -> None:
    """Otherwise the next play that fails would disable a service that has worked."""
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / (folder or "other") / "release").parent.mkdir(exist_ok=True)
    (tmp_path / (folder or "other") / "release").write_text("releases/one\n")
    assert facts.configuration_facts(tmp_path)["has_worked"] is has_worked


def test_home_that_root_may_not_look_into_is_a_home_without_logins(tmp_path: Path) -> None:
    """As NFS does to root."""
    too_long = tmp_path / ("x" * 300)
    assert facts.own_logins(too_long, "") == []
    assert facts.is_left_by_hand(tmp_path, too_long) is False
    assert facts.free_mib(too_long) > 0


def test_subordinate_ids_may_be_those_of_the_uid() -> None:
    ids = "one:100000:65536\n1001:300000:10\nvictoria-2:1:2\nvictoria:200000:5\nvictoria\n"
    assert facts.ranges_of("victoria", "1001", ids) == [["300000", "10"], ["200000", "5"]]
    assert facts.ranges_of("three", "none", ids) == []


def test_units_of_blocked_networks_that_systemd_has_not_read_are_outdated(
    tmp_path: Path, programs: Path
) -> None:
    """A play may be cut off between writing and loading them."""
    write_program(programs, "systemctl", "printf 'no\\n\\nyes\\n'")
    unit = tmp_path / "n.service"
    nothing = facts.networks_facts(tmp_path / "networks.nft", unit, "false")
    assert nothing == {"has_networks": False, "networks": "", "loaded_rules": ""}
    unit.write_text("[Unit]\n")
    nft = write_program(programs, "nft", "echo 'table inet x { chain rules_0123456789ab {'")
    result = facts.networks_facts(tmp_path / "networks.nft", unit, str(nft))
    assert result["networks"].endswith(" outdated")
    assert result["loaded_rules"] == "rules_0123456789ab"


def test_logins_are_those_of_the_role_or_of_the_account(tmp_path: Path) -> None:
    assert facts.own_logins(tmp_path, "") == []
    logins = tmp_path / ".docker" / "config.json"
    logins.parent.mkdir()
    logins.touch()
    assert facts.own_logins(tmp_path, "") == [str(logins)]
    (tmp_path / "registry-logins.json").touch()
    assert facts.configuration_facts(tmp_path)["secrets"] == [
        str(tmp_path / "registry-logins.json")
    ]


def test_release_that_others_may_not_run_is_not_there(tmp_path: Path) -> None:
    """Under umask 027 an earlier role installed such ones, and took them for complete."""
    program = tmp_path / "venv" / "bin" / "victoria-runner"
    program.parent.mkdir(parents=True)
    write_program(program.parent, program.name, "")
    (tmp_path / ".complete").touch()
    for folder in (tmp_path, tmp_path / "venv", program.parent):
        folder.chmod(0o755)
    assert facts.is_usable(tmp_path)
    program.parent.chmod(0o750)
    assert not facts.is_usable(tmp_path)


def test_file_is_as_expected_by_owner_mode_and_content(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    token.chmod(0o400)
    owner = pwd.getpwuid(os.getuid()).pw_name
    expected = f"{owner} 400 {hashlib.sha256(b'secret' + bytes([10])).hexdigest()}"
    assert facts.files_as({str(token): expected, "/none": expected}) == [str(token)]
    assert facts.files_as({str(token): expected.replace("400", "600")}) == []
    token.chmod(0o600)
    token.write_text("another\n")
    token.chmod(0o400)
    assert facts.files_as({str(token): expected}) == []


@pytest.mark.parametrize(
    ("line", "is_secret"),
    [
        pytest.param('VICTORIA_RUNNER_REGISTRATION_TOKEN="x"', True, id="token"),
        pytest.param('VICTORIA_RUNNER_REGISTRATION_TOKEN_FILE="/x"', False, id="file-of-it"),
        pytest.param('HTTPS_PROXY="http://me:x@proxy:3128"', True, id="proxy-with-a-password"),
        pytest.param('HTTPS_PROXY="http://proxy:3128"', False, id="proxy"),
        pytest.param(
            'VICTORIA_RUNNER_ENGINE_ENV="KEY"\nKEY="x"', True, id="variable-for-the-engine"
        ),
    ],
)
def test_diff_of_variables_is_hidden_while_secrets_are_among_them(
    line: str, *, is_secret: bool
) -> None:
    assert facts.has_secrets(f"# Written by Ansible\n{line}\n") is is_secret


PACKAGES = ["one", "two", "three"]


def test_package_that_came_with_another_is_missing_for_apt(programs: Path, tmp_path: Path) -> None:
    write_program(programs, "dpkg-query", "echo 'one installed'; echo 'two config-files'; exit 1")
    assert facts.missing_packages(PACKAGES, "apt") == ["two", "three"]
    write_program(programs, "rpm", "echo one-1-1.noarch; echo no package provides two; exit 1")
    assert facts.missing_packages(PACKAGES, "dnf5") == ["two"]
    states = tmp_path / "extended_states"
    states.write_text(
        "Package: one\nArchitecture: amd64\nAuto-Installed: 1\n\n"
        "Package: two\nArchitecture: amd64\nAuto-Installed: 0\n"
    )
    assert facts.automatic_packages(states) == {"one"}
