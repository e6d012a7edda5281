"""What the documents show, as typed: Ansible itself, on this machine and without hosts."""

import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ANSIBLE = ROOT / "ansible"
HOSTS = [f"client-acme-prod-{number}" for number in range(1, 5)]
KEY = "key-of-the-vultr-api"
INSTANCES = [
    {"label": "client-acme-prod-1", "main_ip": "192.0.2.11", "tags": ["victoria-runner"]},
    {"label": "client-beta-prod-1", "main_ip": "192.0.2.21", "tags": ["victoria-runner"]},
    {"label": "mail", "main_ip": "192.0.2.99", "tags": []},
]


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def checked(*command: object, **environment: str) -> str:
    result = run(*command, **environment)
    assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result.stdout


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    return " ".join((result.stdout + result.stderr).split())


@contextmanager
def vultr(keys: list[str]) -> Iterator[str]:
    """Serve the list of instances in two pages; note the keys of the requests."""

    class Api(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            keys.append(self.headers["Authorization"])
            is_second = "cursor=more" in self.path
            page = INSTANCES[2:] if is_second else INSTANCES[:2]
            more = "" if is_second else "more"
            body = json.dumps({"instances": page, "meta": {"links": {"next": more}}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    """Return an inventory that is made as docs/fleet.md says, with its vault."""
    inventory = tmp_path / "fleet"
    shutil.copytree(ANSIBLE / "inventories" / "example", inventory)
    vault = inventory / "group_vars" / "victoria_runners" / "vault.yml"
    vault.with_name("vault.yml.example").rename(vault)
    password = tmp_path / "password"
    password.write_text("the-password-of-the-vault\n")
    checked("ansible-vault", "encrypt", vault, ANSIBLE_VAULT_PASSWORD_FILE=str(password))
    assert vault.read_text().startswith("$ANSIBLE_VAULT")
    return inventory


def listed(inventory: Path, **environment: str) -> dict[str, Any]:
    output: dict[str, Any] = json.loads(
        checked("ansible-inventory", "-i", inventory, "--list", **environment)
    )
    return output


def test_example_of_vultr_lists_the_tagged_instances(fleet: Path, tmp_path: Path) -> None:
    (fleet / "hosts.yml").unlink()
    example = ANSIBLE / "inventories" / "fleet.vultr.yml.example"
    keys: list[str] = []
    with vultr(keys) as url:
        shutil.copy(example, fleet / "fleet.vultr.yml")
        with (fleet / "fleet.vultr.yml").open("a") as file:
            file.write(f"api_endpoint: {url}\n")
        password = str(tmp_path / "password")
        inventory = listed(fleet, VULTR_API_KEY=KEY, ANSIBLE_VAULT_PASSWORD_FILE=password)
    assert keys == [f"Bearer {KEY}"] * 2
    hosts = inventory["_meta"]["hostvars"]
    # What comes from an API is not read as a template, which the list shows in this way.
    assert {name: values["ansible_host"]["__ansible_unsafe"] for name, values in hosts.items()} == {
        "client-acme-prod-1": "192.0.2.11",
        "client-beta-prod-1": "192.0.2.21",
    }
    assert set(inventory["victoria_runners"]["children"]) == {"acme", "beta", "vultr"}
    assert inventory["vultr"]["hosts"] == list(hosts)
    assert inventory["acme"]["hosts"] == ["client-acme-prod-1"]
    assert "acme" in hosts["client-acme-prod-1"]["victoria_runner_registration_token"]
    assert hosts["client-beta-prod-1"]["victoria_runner_memory"] == "3g"


def documented() -> list[str]:
    """Return every call of ansible-playbook with the example's inventory in the documents."""
    text = "\n".join((ROOT / "docs" / name).read_text() for name in ("fleet.md", "day-two.md"))
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return sorted({" ".join(line.split()) for line in lines if "ansible/inventories/fleet" in line})


@pytest.mark.parametrize("command", [line for line in documented() if "playbook" in line])
def test_documented_command_finds_its_playbook_and_its_hosts(
    command: str, fleet: Path, tmp_path: Path
) -> None:
    (tmp_path / "wheels").mkdir()
    # The password comes from a file, because nobody can type it here.
    typed = command.replace("ansible/inventories/fleet", str(fleet)).replace("--ask-vault-pass", "")
    password = str(tmp_path / "password")
    output = checked("sh", "-c", f"{typed} --list-hosts", ANSIBLE_VAULT_PASSWORD_FILE=password)
    assert "client-acme-" in output


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """Return an inventory of four names for this machine, where no play may get far."""
    inventory = tmp_path / "local"
    (inventory / "group_vars").mkdir(parents=True)
    variables = {"ansible_connection": "local", "ansible_become": False}
    hosts = dict.fromkeys(HOSTS, variables)
    (inventory / "hosts.json").write_text(json.dumps({"victoria_runners": {"hosts": hosts}}))
    return inventory


def set_variables(inventory: Path, **variables: object) -> None:
    (inventory / "group_vars" / "victoria_runners.json").write_text(json.dumps(variables))


def play(name: str, inventory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run("ansible-playbook", "-i", inventory, *options, ANSIBLE / "playbooks" / f"{name}.yml")


@pytest.mark.parametrize(
    ("batches", "options", "size"),
    [
        (None, [], 1),
        ([3, 1], [], 3),
        ("50%", ["--limit=!*-prod-1,!*-prod-2"], 1),
        ([3, 1], ["-e", "victoria_runner_batches=2"], 2),
        ([3, 1], ["-e", "victoria_runner_batches=[4]"], 4),
    ],
    ids=["default", "group-vars", "percent-of-the-limit", "number-as-text", "list-as-text"],
)
def test_batches_may_be_set_in_the_inventory_or_on_the_command_line(
    batches: object, options: list[str], size: int, local: Path
) -> None:
    # Without an orchestrator the first batch fails, and with it the play.
    set_variables(local, **({} if batches is None else {"victoria_runner_batches": batches}))
    result = play("upgrade", local, *options)
    assert len(re.findall(r"fatal: \[client-", result.stdout)) == size, result.stdout
    assert "cannot configure the runner: set victoria_runner_orchestrator_url" in one_line(result)


def test_first_host_of_the_inventory_is_upgraded_first_though_it_is_slow(local: Path) -> None:
    (local / "host_vars").mkdir()
    slow = {"ansible_connection": "{{ lookup('ansible.builtin.pipe', 'sleep 0.3; echo local') }}"}
    (local / "host_vars" / f"{HOSTS[0]}.json").write_text(json.dumps(slow))
    hosts = json.loads((local / "hosts.json").read_text())
    hosts["victoria_runners"]["hosts"][HOSTS[0]] = {"ansible_become": False}
    (local / "hosts.json").write_text(json.dumps(hosts))
    set_variables(local)
    result = play("upgrade", local)
    assert re.findall(r"fatal: \[(client-.*?)\]", result.stdout) == HOSTS[:1], result.stdout


def test_batches_that_differ_between_the_hosts_are_refused(local: Path) -> None:
    (local / "host_vars").mkdir()
    (local / "host_vars" / f"{HOSTS[0]}.json").write_text('{"victoria_runner_batches": 2}')
    set_variables(local)
    result = play("upgrade", local)
    sentence = "cannot take these hosts together: victoria_runner_batches is different on them"
    assert sentence in one_line(result)
    assert result.returncode != 0


@pytest.mark.parametrize("playbook", ["site", "decommission"])
def test_mistyped_variables_stop_the_play_before_anything_changes(
    playbook: str, local: Path
) -> None:
    set_variables(local, victoria_runner_ca=None)
    given = ("max_task=3", "tag=client=acme", "capability=a,b")
    options = [part for one in given for part in ("-e", f"victoria_runner_{one}")]
    result = play(playbook, local, f"--limit={HOSTS[0]}", *options)
    for sentence in (
        "cannot use victoria_runner_max_task: the role has no such variable",
        "the nearest is victoria_runner_max_tasks",
        "cannot use victoria_runner_tag: it is not a mapping",
        "cannot use victoria_runner_capability: it is not a list",
        "cannot use victoria_runner_ca: it is null",
    ):
        assert sentence in one_line(result)
    assert "changed=0" in result.stdout
    assert result.returncode != 0


@pytest.mark.parametrize(
    ("playbook", "reached"),
    [
        ("site", "set victoria_runner_orchestrator_url"),
        ("upgrade", "set victoria_runner_orchestrator_url"),
        ("drain", "Ensure the runner is draining"),
        ("decommission", "Ensure the runner is draining"),
    ],
)
def test_variables_may_be_made_of_facts(playbook: str, reached: str, local: Path) -> None:
    name = "{{ ansible_facts.hostname }}-{{ ansible_facts.distribution }}"
    set_variables(local, victoria_runner_name=name)
    result = play(playbook, local, f"--limit={HOSTS[0]}", "--check")
    assert reached in one_line(result)
    assert "has no attribute" not in one_line(result)


def test_mistyped_variable_of_a_host_that_is_gone_is_named_without_its_facts(local: Path) -> None:
    set_variables(local, victoria_runner_memory="{{ ansible_facts.memtotal_mb }}m")
    result = play("unregister", local, f"--limit={HOSTS[0]}", "-e", "victoria_runner_admin=x")
    sentence = "cannot use victoria_runner_admin: the role has no such variable"
    assert sentence in one_line(result)


@pytest.mark.parametrize("playbook", ["site", "unregister"])
def test_private_ca_that_is_not_there_is_named(playbook: str, local: Path) -> None:
    set_variables(
        local,
        victoria_runner_orchestrator_url="https://orchestrator.example.com",
        victoria_runner_registration_token="a-token",  # noqa: S106 - of nobody
        victoria_runner_admin_key="a-key",
        victoria_runner_ca="/no/such/ca.pem",
    )
    result = play(playbook, local, f"--limit={HOSTS[0]}", "--check")
    sentence = (
        "cannot find victoria_runner_ca /no/such/ca.pem on the controller: name its full path"
    )
    assert sentence in one_line(result)


def test_environment_variables_that_nothing_could_read_are_named(local: Path) -> None:
    """Systemd leaves out such a name without a word, and null would be the text None."""
    set_variables(
        local,
        victoria_runner_orchestrator_url="https://orchestrator.example.com",
        victoria_runner_registration_token="a-token",  # noqa: S106 - of nobody
        victoria_runner_environment={"SSL-CERT": "secret", "PATH": "/bin"},
        victoria_runner_container_environment={"EMPTY": None, "FINE": "", "fine.too": "1"},
    )
    result = play("site", local, f"--limit={HOSTS[0]}", "--check")
    assert "cannot set the environment variables EMPTY and SSL-CERT: " in one_line(result)
    assert "secret" not in result.stdout


@pytest.mark.parametrize("playbook", ["upgrade", "decommission"])
def test_play_without_a_host_that_answers_fails(playbook: str, local: Path) -> None:
    """Otherwise it would end green, and nothing would have been done."""
    (local / "host_vars").mkdir()
    unreachable = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    (local / "host_vars" / f"{HOSTS[0]}.json").write_text(json.dumps(unreachable))
    hosts = json.loads((local / "hosts.json").read_text())
    hosts["victoria_runners"]["hosts"][HOSTS[0]] = {}
    (local / "hosts.json").write_text(json.dumps(hosts))
    options = (f"--limit={HOSTS[0]}", "-e", "victoria_runner_unreachable_stops=false")
    result = play(playbook, local, *options)
    assert f"cannot connect to any host ({HOSTS[0]}); nothing has been changed" in one_line(result)
    assert result.returncode != 0


def test_role_without_its_checkout_asks_for_the_package(local: Path, tmp_path: Path) -> None:
    """As ansible-galaxy installs it: from a repository, and only the role's folder."""
    copy = tmp_path / "copy"
    role = copy / "ansible" / "roles" / "victoria_runner"
    shutil.copytree(ANSIBLE / "roles" / "victoria_runner", role)
    git = ["git", "-C", copy, "-c", "user.name=test", "-c", "user.email=test@example.com"]
    checked("git", "init", "--quiet", copy)
    checked(*git, "add", ".")
    checked(*git, "commit", "--quiet", "--message=role")
    roles = tmp_path / "alone" / "roles"
    source = f"git+file://{copy},,victoria_runner"
    checked("ansible-galaxy", "role", "install", "--roles-path", roles, source)
    playbook = tmp_path / "play.yml"
    playbook.write_text(
        "- hosts: victoria_runners\n  gather_facts: false\n  roles: [victoria_runner]\n"
    )
    set_variables(
        local,
        victoria_runner_orchestrator_url="https://orchestrator.example.com",
        victoria_runner_registration_token="a-token",  # noqa: S106 - of nobody
    )
    result = run(
        *("ansible-playbook", "-i", local, f"--limit={HOSTS[0]}", playbook),
        ANSIBLE_ROLES_PATH=str(roles),
    )
    sentence = "on the controller: set victoria_runner_package to the full path of a checkout"
    assert sentence in one_line(result)
    assert "changed=0" in result.stdout
