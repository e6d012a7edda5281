"""The role's module that leaves an account: what is the role's goes, what is of others stays."""

import getpass
import pwd
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2.nativetypes import NativeEnvironment

from tests.unit.role import ROLE, Programs, load, read, text_of

leave = load("library/victoria_runner_leave_account.py")
RUNNER_ID = "11111111-2222-3333-4444-555555555555"
PODMAN = """
case "$*" in
    "ps --all"*"runner-id={runner_id}") echo ours ;;
    "ps --quiet") echo {others} ;;
    "images "*) printf '%s\\n' b:1 a:latest b:1 ;;
esac
"""


class Host:
    """An account in a folder, with programs that stand for the host's."""

    def __init__(self, root: Path, programs: Programs) -> None:
        self.root, self.programs = root, programs
        account = pwd.getpwnam(getpass.getuser())
        home = root / "home"
        fields = [*account[:5], str(home), account[6]]
        self.account = pwd.struct_passwd(fields)
        (home / ".local/share/containers/storage").mkdir(parents=True)
        (root / "proc").mkdir()  # without processes: a test ends none of this machine's
        (root / "state").mkdir()
        (root / "state/runner-id").write_text(RUNNER_ID + "\n")
        self.marks = {f"{name}_mark": str(root / name) for name in ("linger", "docker")}
        for name in ("systemctl", "loginctl", "gpasswd"):
            programs.make(name)
        programs.make("runuser", 'while [ "$1" != podman ]; do shift; done; exec "$@"')
        programs.make("docker", "exit 1")
        programs.make("id", "echo victoria docker")
        self.set_others("")

    def set_others(self, container: str) -> None:
        """Let Podman show this container of others."""
        self.programs.make("podman", PODMAN.format(runner_id=RUNNER_ID, others=container))

    def leave(self, *, removes_account: bool = False) -> dict[str, Any]:
        parameters = {"state_dir": str(self.root / "state"), "runtime": "podman", **self.marks}
        return dict(
            leave.leave(self.account, parameters, removes_account=removes_account, root=self.root)
        )

    def called(self, beginning: str) -> bool:
        return any(call.startswith(beginning) for call in self.programs.calls())


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return Host(tmp_path, Programs(programs))


@pytest.mark.parametrize("address", ["https://one.example/api", "https://one.example/api/"])
def test_nodes_are_deleted_at_the_address_that_the_runner_uses(address: str) -> None:
    """An orchestrator answers 404 below a second slash, as for a node that is gone already."""
    jinja = NativeEnvironment()
    jinja.filters["regex_replace"] = lambda text, pattern, by: re.sub(pattern, by, text)
    nodes = jinja.from_string(read("vars/main.yml")["__victoria_runner_nodes_url"])
    assert nodes.render(victoria_runner_orchestrator_url=address) == "https://one.example/api/nodes"
    for name in ("gone", "unregister"):
        urls = re.findall(r"^ +url: .+", text_of(f"tasks/{name}.yml"), re.MULTILINE)
        assert ["__victoria_runner_nodes_url" in url for url in urls] == [True]


@pytest.mark.parametrize("name", ["drain", "return", "unregister"])
def test_mistyped_variable_of_an_entry_of_its_own_is_named_first(name: str) -> None:
    first = yaml.safe_load(text_of(f"tasks/{name}.yml"))[0]
    assert first["ansible.builtin.include_tasks"] == "variables.yml"


@pytest.mark.parametrize(
    ("states", "left_over"), [([], 0), (["ended"], 0), (["running", "ended"], 1)]
)
def test_host_whose_tasks_run_without_a_runner_is_not_drained(
    states: list[str], left_over: int
) -> None:
    """After a green drain an operator reboots the host."""
    check = yaml.safe_load(text_of("tasks/drained.yml"))[-1]
    jinja = NativeEnvironment()
    tasks = jinja.from_string(check["vars"]["__victoria_runner_left_over"].strip())
    says = {"tasks": [{"task_id": "one", "state": state} for state in states]}
    assert len(list(tasks.render(__victoria_runner_doctor_says=says))) == left_over
    assert list(tasks.render(__victoria_runner_doctor_says={})) == []
    playbook = (ROLE.parents[1] / "playbooks" / "drain.yml").read_text(encoding="utf-8")
    used = [
        task.get("ansible.builtin.include_role", {})
        for task in yaml.safe_load(playbook)[0]["tasks"]
    ]
    assert used[-1]["tasks_from"] == "drained.yml"


def test_state_folder_of_others_is_not_removed() -> None:
    (removal,) = [
        task["ansible.builtin.command"]["argv"]
        for task in yaml.safe_load(text_of("tasks/absent.yml"))
        if task.get("ansible.builtin.command", {}).get("argv", [])[:1] == ["rm"]
    ]
    assert "{{ victoria_runner_state_dir }}" not in removal
    assert "{{ __victoria_runner_state_dir_in_use }}" not in removal
    assert any("if __victoria_runner_seen.is_state_dir_ours" in path for path in removal)


def test_own_containers_go_and_images_are_named(host: Host) -> None:
    result = host.leave()
    assert result["removed"] == ["container ours"]
    assert result["images"] == ["a:latest", "b:1"]
    assert result["storage"] == f"{host.account.pw_dir}/.local/share/containers"
    assert host.called("podman rm --force ours")


def test_storage_is_named_when_podman_can_no_longer_list_its_images(host: Host) -> None:
    """As in the second run of a removal that was killed after the first had ended lingering."""
    host.programs.make("systemctl", "exit 3")
    result = host.leave()
    assert result["images"] == []
    assert result["storage"] == str(Path(host.account.pw_dir) / ".local/share/containers")
    host.programs.make("systemctl")
    host.programs.make("podman")
    assert host.leave()["storage"] == ""


def test_lingering_of_before_stays(host: Host) -> None:
    host.leave()
    assert not host.called("systemctl stop")


def test_lingering_by_the_role_ends(host: Host) -> None:
    Path(host.marks["linger_mark"]).touch()
    assert f"user@{host.account.pw_uid}.service" in host.leave()["removed"]
    assert host.called(f"systemctl stop user@{host.account.pw_uid}.service")


@pytest.mark.parametrize("kind", ["container", "service"])
def test_lingering_that_something_else_needs_stays(host: Host, kind: str) -> None:
    Path(host.marks["linger_mark"]).touch()
    if kind == "container":
        host.set_others("theirs")
    else:
        wants = Path(host.account.pw_dir, ".config/systemd/user/default.target.wants")
        wants.mkdir(parents=True)
        (wants / "other.service").touch()
    assert host.leave()["removed"] == ["container ours"]
    assert not host.called("systemctl stop")


def test_account_that_is_removed_keeps_nothing(host: Host) -> None:
    host.set_others("theirs")
    result = host.leave(removes_account=True)
    assert f"user@{host.account.pw_uid}.service" in result["removed"]
    assert result["images"] == []


def test_group_docker_is_left_if_the_role_had_joined_it(host: Host) -> None:
    host.leave()
    assert not host.called("gpasswd")
    mark = Path(host.marks["docker_mark"])
    mark.touch()
    assert "membership in the group docker" in host.leave()["removed"]
    assert host.called(f"gpasswd --delete {host.account.pw_name} docker")
    assert not mark.exists()


def test_docker_that_the_runner_needs_but_does_not_answer_is_named(host: Host) -> None:
    parameters = {"state_dir": str(host.root / "state"), "runtime": "docker", **host.marks}
    host.programs.make("docker", "echo 'cannot connect to the daemon' >&2; exit 1")
    with pytest.raises(leave.Failed, match="cannot use docker: cannot connect to the daemon"):
        leave.leave(host.account, parameters, removes_account=False)


@pytest.mark.parametrize(
    ("account", "home", "is_ours"),
    [
        pytest.param("", "/home/victoria", False, id="none"),
        pytest.param("victoria:x:3000:3000::/srv/vic:/bin/sh", "/srv/vic", False, id="of-before"),
        pytest.param("victoria:x:1000:1000:MARK:/home/v:/bin/bash", "/home/v", True, id="ours"),
    ],
)
def test_account_that_was_there_before_keeps_its_home_and_stays(
    account: str, home: str, *, is_ours: bool
) -> None:
    expressions = read("vars/main.yml")
    mark = expressions["__victoria_runner_account_mark"]
    values: dict[str, Any] = {
        "victoria_runner_user": "victoria",
        "__victoria_runner_account_mark": mark,
        "__victoria_runner_seen": {"account": account.replace("MARK", mark)},
    }
    jinja = NativeEnvironment()
    jinja.filters["split"] = str.split
    for name in ("account", "account_home", "is_account_ours"):
        template = jinja.from_string(expressions[f"__victoria_runner_{name}"].strip())
        values[f"__victoria_runner_{name}"] = template.render(**values)
    assert values["__victoria_runner_account_home"] == home
    assert values["__victoria_runner_is_account_ours"] is is_ours
    assert expressions["__victoria_runner_look"]["host"] == {"account": ""}
