"""`victoria-orchestrator` for people, at the real orchestrator: every call has its command."""

import json
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import quote

import click
import httpx
import pytest

from orchestrator.cli import command
from orchestrator.client.nodes import target_matches
from orchestrator.model import NodeIdentity, Target, matches
from tests.orchestrator.people import Person
from tests.orchestrator.serving import RegisteredNode, RunningOrchestrator, ok

REPOSITORY = Path(__file__).parents[2]
NOBODY = ("--node-name", "nobody")
SECRET_OPTIONS = {"--key", "--api-key", "--url", "--token", "--admin-key"}


@pytest.fixture(autouse=True)
def config_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the login of the tests' user out of them."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for variable in ("URL", "API_KEY", "ALLOW_HTTP"):
        monkeypatch.delenv(f"VICTORIA_ORCHESTRATOR_{variable}", raising=False)
    return tmp_path / "config"


@pytest.fixture
def person(shared: RunningOrchestrator) -> Person:
    return Person(shared.url, str(shared.admin_key))


@pytest.fixture
def node(shared: RunningOrchestrator) -> RegisteredNode:
    return shared.register(f"node-{len(shared.nodes())}", tags={"env": "prod"})


def leaves(group: click.Command, *names: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if not isinstance(group, click.Group):
        yield names, group
        return
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        if found is not None and (*names, name) != ("serve",):
            yield from leaves(found, *names, name)


# Every admin call of the seed


def test_nodes_are_listed_shown_and_removed(person: Person, node: RegisteredNode) -> None:
    assert node.name in person.does("node", "list", "--tag", "env=prod")
    assert node.name not in person.does("node", "list", "--tag", "env=dev")
    assert person.reads("node", "show", node.name)["id"] == node.id
    assert "host.example" in person.does("node", "show", node.id)
    assert person.does("node", "remove", node.name, "--yes") == f"{node.name} removed\n"
    code, sentence = person.refused("node", "show", node.id)
    assert (code, sentence) == (4, f"Error: cannot show node {node.id}: there is no such node")


def test_a_node_gets_a_new_key(person: Person, node: RegisteredNode) -> None:
    person.does("node", "rotate-key", node.name)
    assert node.beat()["new_api_key"]


def test_of_two_nodes_with_one_name_none_is_chosen(
    shared: RunningOrchestrator, person: Person
) -> None:
    ids = [shared.register("twin").id for _ in range(2)]
    code, sentence = person.refused("node", "remove", "twin", "--yes")
    assert code == 4
    assert all(one in sentence for one in ids)


def test_tasks_are_created_listed_shown_and_cancelled(
    person: Person, node: RegisteredNode, shared: RunningOrchestrator
) -> None:
    task_id = person.does("task", "create", "--node", node.name, "say hello").strip()
    assert shared.task(task_id)["target_node_id"] == node.id
    assert "say hello" in person.does("task", "list", "--limit", "1")
    assert task_id in person.does("task", "list", "--all", "--status", "pending")
    shown = person.does("task", "show", task_id)
    assert f"node {node.name}" in shown
    assert "the admin key" in shown
    assert person.does("task", "cancel", task_id) == f"{task_id} cancelled\n"
    assert person.refused("task", "cancel", task_id)[0] == 4
    assert person.reads("task", "show", task_id)["status"] == "cancelled"


def test_old_tasks_are_cleaned_up(person: Person, shared: RunningOrchestrator) -> None:
    task_id = str(shared.create_task(target_node_name="nobody")["id"])
    shared.cancel(task_id)
    assert person.tries("cleanup", "--days", "0").exit_code == 2  # nobody can be asked
    assert int(person.does("cleanup", "--days", "0", "--yes").split()[0]) >= 1
    assert person.refused("task", "show", task_id)[0] == 4


def test_an_agents_session_is_shown_without_what_a_terminal_obeys(
    person: Person, node: RegisteredNode, shared: RunningOrchestrator
) -> None:
    task_id = shared.assign(node, "running")
    message = {"role": "assistant", "content": "red \x1b]0;title\x07\x1b[31m\u202eevil"}
    session = {"id": "s", "title": "A title", "messages": [{**message, "created_at": 1}]}
    node.send_log(task_id, session)
    shown = person.does("task", "logs", task_id)
    assert "A title" in shown
    assert "1970-01-0" in shown
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)
    assert person.reads("task", "logs", task_id)["messages"][0]["content"] == message["content"]


def test_keys_are_created_listed_shown_rotated_revoked_and_deleted(
    person: Person, shared: RunningOrchestrator
) -> None:
    options = ("--role", "operator", "--nodes", "acme-*", "--expires-in-days", "3")
    created = person.tries("key", "create", "of-ci", *options)
    secret = created.stdout.strip()
    assert shared.client(secret).get("/tasks").status_code == httpx.codes.OK
    (listed,) = [one for one in person.reads("key", "list") if one["name"] == "of-ci"]
    key_id = listed["key_id"]
    assert key_id in created.stderr
    assert listed["allowed_node_patterns"] == ["acme-*"]
    assert "acme-*" in person.does("key", "list")
    assert "operator" in person.does("key", "show", key_id)
    rotated = person.does("key", "rotate", key_id, "--grace-period-hours", "0").strip()
    assert shared.client(secret).get("/tasks").status_code == 401
    person.does("key", "revoke", key_id, "--cancel-tasks")
    assert shared.client(rotated).get("/tasks").status_code == 401
    person.does("key", "delete", key_id, "--yes")
    assert person.refused("key", "show", key_id)[0] == 4
    assert key_id in person.does("audit", "--key-id", key_id, "--hours", "1", "--limit", "9")


def test_registration_tokens_are_created_listed_shown_and_deleted(
    person: Person, shared: RunningOrchestrator
) -> None:
    options = ("--nodes", "client-*", "--max-uses", "2", "--expires-at", "2100-01-01")
    secret = person.does("token", "create", "of-client", *options).strip()
    assert ok(shared.try_to_register("client-1", secret))["name"] == "client-1"
    (listed,) = [one for one in person.reads("token", "list") if one["name"] == "of-client"]
    assert "1 of 2" in person.does("token", "list")
    assert "client-*" in person.does("token", "show", listed["token_id"])
    person.does("token", "delete", listed["token_id"], "--yes")
    assert person.refused("token", "show", listed["token_id"])[0] == 4


def test_numbers_health_and_audit_are_shown(person: Person, shared: RunningOrchestrator) -> None:
    assert "pending tasks" in person.does("stats")
    assert person.reads("health")["status"] == "healthy"
    assert shared.url in person.does("health")
    assert "GET /dashboard/stats" in person.does("audit")


# Creating a task


@pytest.mark.parametrize("source", ["argument", "file", "stdin", "dash", "file dash"])
def test_the_prompt_is_an_argument_a_file_or_standard_input(
    source: str, person: Person, shared: RunningOrchestrator, tmp_path: Path
) -> None:
    prompt = "--not an option\nnaïve 数据 🚀"
    file = tmp_path / "prompt.txt"
    file.write_text(f"{prompt}\n", encoding="utf-8")
    arguments = {
        "argument": ["--", prompt],
        "file": ["--prompt-file", str(file)],
        "stdin": [],
        "dash": ["-"],
        "file dash": ["--prompt-file", "-"],
    }[source]
    stdin = "" if source in {"argument", "file"} else f"{prompt}\n"
    task_id = person.does("task", "create", *NOBODY, *arguments, stdin=stdin).strip()
    assert shared.task(task_id)["prompt"] == prompt


@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [
        ([], " \n"),
        (["a", "--prompt-file", "-"], "b"),
        ([], b"\xff"),
        (["a", "--tag", "without"], ""),
        (["a", "--at", "tomorrow"], ""),
        (["a", "--timeout", "soon"], ""),
        (["a", "--file", "/nowhere"], ""),
    ],
    ids=["empty", "two", "not UTF-8", "tag", "time", "duration", "file"],
)
def test_a_mistake_in_a_task_is_one_of_usage(
    arguments: list[str], stdin: str | bytes, person: Person
) -> None:
    assert person.tries("task", "create", *arguments, stdin=stdin).exit_code == 2


def test_a_task_has_what_its_options_say(person: Person, shared: RunningOrchestrator) -> None:
    task_id = person.does(
        *("task", "create", "do it", "--node-name", "client-*", "--tag", "env=prod", "--tag"),
        *("a=b=c", "--priority", "-3", "--timeout", "2h", "--repeat", "@daily"),
        *("--at", "2100-01-02T03:04Z"),
    ).strip()
    task = shared.task(task_id)
    assert task["target_node_name"] == "client-*"
    assert task["target_tags"] == {"env": "prod", "a": "b=c"}
    assert (task["priority"], task["timeout_seconds"]) == (-3, 7200)
    assert task["recurrence"] == "@daily"
    due = datetime.fromisoformat(task["scheduled_for"].replace("Z", "+00:00"))
    assert due == datetime(2100, 1, 2, 3, 4, tzinfo=timezone.utc)


def test_files_come_to_the_node_as_they_are(
    person: Person, node: RegisteredNode, tmp_path: Path
) -> None:
    content = {"Übersicht 1; 'a'.csv": b"a;b\n" * 1000, "empty": b""}
    arguments = []
    for name, raw in content.items():
        (tmp_path / name).write_bytes(raw)
        arguments += ["--file", str(tmp_path / name)]
    person.does("task", "create", "add it up", "--node", node.id, *arguments)
    assignment = node.poll() or {}
    assert assignment["original_names"] == list(content)
    for filename, raw in zip(assignment["files"], content.values(), strict=True):
        assert node.http.get(f"/files/{quote(filename)}").content == raw


def test_the_matching_nodes_are_shown_first(person: Person, shared: RunningOrchestrator) -> None:
    for number in range(7):
        shared.register(f"preview-{number}", tags={"kind": "preview"})
    options = ("--node-name", "preview-*", "--tag", "kind=preview")
    before = len(shared.tasks())
    shown = person.tries("task", "create", "x", *options, "--dry-run").stderr
    assert shown.startswith("matches 7 of ")
    assert "preview-4 and 2 more (7 idle)" in shown
    assert len(shared.tasks()) == before
    shown = person.tries("task", "create", "x", "--node-name", "nothing-*", "--dry-run").stderr
    assert shown.startswith("matches none of ")


def test_a_key_that_may_not_list_nodes_creates_tasks(shared: RunningOrchestrator) -> None:
    key = shared.create_key()["api_key"]
    shown = Person(shared.url, key).tries("task", "create", "x", *NOBODY)
    assert shown.exit_code == 0
    (line,) = shown.stderr.splitlines()
    assert line.startswith("it waits: "), "as the orchestrator says; there is no preview"


@pytest.mark.parametrize("name", ["client-acme-prod-1", "client-beta-prod-1", "a.b", "x\ny", ""])
@pytest.mark.parametrize(
    "pattern", ["client-acme-*", "*-prod-*", "*", "a.b", "a*b", "x**y", "", "[a]"]
)
def test_the_preview_matches_as_the_orchestrator_does(pattern: str, name: str) -> None:
    node = {"id": "i", "name": name, "tags": {"env": "prod"}}
    identity = NodeIdentity("i", name, {"env": "prod"})
    for tags in ({}, {"env": "prod"}, {"env": "dev"}, {"gpu": ""}):
        for node_id in (None, "i", "j"):
            expected = matches(Target(node_id, pattern, tags), identity)
            assert target_matches(node, node_id, pattern, tags) == expected


# Watching


@pytest.mark.parametrize(("status", "exit_code"), [("success", 0), ("error", 1), ("cancelled", 3)])
def test_watch_shows_the_steps_and_exits_by_outcome(
    status: str, exit_code: int, person: Person, node: RegisteredNode, shared: RunningOrchestrator
) -> None:
    task_id = shared.assign(node, "running")
    node.report(task_id, "analyzing", message="half of it\x1b[2J", progress=50)
    # Without the end of the output, its rest would be waited for.
    ok(node.http.post(f"/tasks/{task_id}/output", json={"offset": 0, "text": "", "done": True}))
    if status == "cancelled":
        shared.cancel(task_id)
    else:
        node.report(task_id, status, message="that was it")
    watched = person.tries("task", "watch", task_id)
    assert watched.exit_code == exit_code, watched.output
    assert "analyzing: half of it" in watched.stderr
    assert "\x1b" not in watched.output
    assert watched.stderr.splitlines()[-1].startswith(status)


# Access


def test_login_writes_a_file_for_its_owner_only_and_the_rest_uses_it(
    shared: RunningOrchestrator, config_home: Path
) -> None:
    nobody = Person("", "")
    assert nobody.tries("stats").exit_code == 78
    done = nobody.tries("login", stdin=f"{shared.url}/\n{shared.admin_key}\n")
    assert done.exit_code == 0, done.output
    path = config_home / "victoria-orchestrator" / "login.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert str(shared.admin_key) not in done.output
    assert "pending tasks" in nobody.does("stats")
    path.chmod(0o640)
    code, sentence = nobody.refused("stats")
    assert code == 78
    assert "chmod 600" in sentence


def test_login_takes_the_key_from_a_file(shared: RunningOrchestrator, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{shared.admin_key}\n")
    Person(shared.url, "").does("login", "--key-file", str(tmp_path / "key"))
    assert "pending tasks" in Person("", "").does("stats")


def test_login_with_a_wrong_key_stores_nothing(
    shared: RunningOrchestrator, config_home: Path
) -> None:
    code, sentence = Person(shared.url, "").refused("login", stdin="wrong\n")
    assert code == 77
    assert "another key" in sentence
    assert not config_home.exists()


def test_a_stored_key_is_sent_to_its_orchestrator_only(shared: RunningOrchestrator) -> None:
    Person("", "").does("login", stdin=f"{shared.url}\n{shared.admin_key}\n")
    code, sentence = Person("http://127.0.0.1:1", "").refused("stats")
    assert code == 78
    assert "VICTORIA_ORCHESTRATOR_API_KEY" in sentence


@pytest.mark.parametrize(
    "url",
    [
        "example.com",
        "http://example.com",
        "https://user:pw@example.com",
        "https://[",
        "ftp://x",
        "https://x/?a",
    ],
)
def test_an_url_that_is_none_or_would_show_the_key_is_refused(url: str) -> None:
    code, sentence = Person(url).refused("stats")
    assert code == 78
    assert sentence.startswith("Error: cannot use the URL: ")
    assert "pw" not in sentence


def test_without_an_orchestrator_the_exit_code_is_69() -> None:
    code, sentence = Person("http://127.0.0.1:1").refused("stats")
    assert code == 69
    assert sentence.startswith("Error: cannot reach http://127.0.0.1:1: ")


def test_no_command_takes_a_secret_or_the_url_as_an_argument() -> None:
    for names, leaf in leaves(command):
        if names[0] != "check":  # also for orchestrators of others; its variables are documented
            assert not SECRET_OPTIONS & {one for param in leaf.params for one in param.opts}, names


def test_every_command_prints_json() -> None:
    without = {("login",), ("completion",), ("move-to-postgresql",)}
    for names, leaf in leaves(command):
        options = {one for param in leaf.params for one in param.opts}
        assert ("--json" in options) == (names not in without), names


# The program


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-X", "importtime", "-m", "orchestrator", *arguments]
    variables = {"PATH": "/usr/bin:/bin", **environment}
    return subprocess.run(
        program, capture_output=True, text=True, cwd=REPOSITORY, env=variables, check=False
    )


def test_help_imports_neither_the_server_nor_what_commands_need() -> None:
    done = run("--help")
    assert "task " in done.stdout
    assert "move-to-postgresql" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "orchestrator.cli" in imported
    assert not imported & {"fastapi", "sqlalchemy", "uvicorn", "pydantic", "httpx", "rich"}


@pytest.mark.parametrize("width", [40, 80, 120])
def test_help_of_every_command_cuts_no_word(width: int) -> None:
    for names, leaf in leaves(command):
        shown = Person("").does(*names, "--help", COLUMNS=str(width))
        assert not re.search(r"\w-$", shown, re.MULTILINE), shown
        words = set(re.split(r"[\s\[\]()]+", shown))
        texts = " ".join(str(one.help) for one in leaf.params if isinstance(one, click.Option))
        assert set(re.split(r"[\s\[\]()]+", texts)) <= words


def test_serve_is_the_server() -> None:
    done = Person("").tries("serve", "--port", "70000")
    assert done.exit_code == 2
    assert re.match(r"Usage: .+ serve \[OPTIONS\]", done.stderr)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed_for_each_shell(shell: str) -> None:
    script = Person("").does("completion", shell)
    assert f"_VICTORIA_ORCHESTRATOR_COMPLETE={shell}_complete" in script


def test_commands_and_options_are_completed() -> None:
    def completed(words: str, count: int) -> list[str]:
        code = "from orchestrator.cli import main; main()"
        variables = {
            "_VICTORIA_ORCHESTRATOR_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(count),
        }
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            env=variables,
            check=True,
        )
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert completed("victoria-orchestrator task c", 2) == ["create", "cancel"]
    assert completed("victoria-orchestrator task list --created", 3) == ["--created-by"]


def test_json_of_a_pipe_has_the_text_as_it_is(person: Person, shared: RunningOrchestrator) -> None:
    prompt = "naïve \x1b[31m 数据"
    task_id = shared.create_task(prompt, target_node_name="nobody")["id"]
    assert json.loads(person.does("task", "show", str(task_id), "--json"))["prompt"] == prompt
