"""The program itself: its first start, its end, and its message when it cannot start."""

import json
import resource
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from orchestrator.errors import ConfigurationError
from orchestrator.serve import main
from orchestrator.settings import load_secrets
from tests.orchestrator.program import (
    ADMIN_KEY,
    DATABASE_URL,
    SECRETS,
    TOKEN,
    UNREACHABLE,
    Program,
    cut_words,
    refused_start,
)
from tests.orchestrator.serving import DEADLINE_S, Json, ok, rows


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


def _stored_secrets(data_dir: Path) -> list[str]:
    return [(data_dir / name).read_text().strip() for name in ("registration-token", "admin-key")]


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_secrets_are_generated_on_the_first_start_and_kept(data_dir: Path) -> None:
    with Program(data_dir, {}) as first:
        token, key = _stored_secrets(data_dir)
        assert (token[:3], key[:3]) == ("vr_", "va_")
        # A journal would keep what is printed where there is no terminal.
        assert first.lines == [
            f"REGISTRATION_TOKEN is in {data_dir}/registration-token",
            f"ADMIN_API_KEY is in {data_dir}/admin-key",
            f"dashboard: {first.url}/dashboard",
            f"listening on {first.url}",
        ]
        node = ok(first.register(token))
        assert _mode(data_dir) == 0o700
        modes = {path.name: _mode(path) for path in data_dir.iterdir() if path.is_file()}
        assert {"registration-token", "admin-key", "orchestrator.db"} <= set(modes)
        assert set(modes.values()) == {0o600}
    with Program(data_dir, {}) as second:
        assert [shown["id"] for shown in rows(second.client(key).get("/nodes"))] == [node["id"]]
        ok(second.register(token))


@pytest.mark.long
def test_terminal_shows_secrets_at_the_first_start_that_succeeds(data_dir: Path) -> None:
    with Program(data_dir, {DATABASE_URL: UNREACHABLE}, has_terminal=True) as failed:
        assert (failed.wait()[0], failed.lines) == (75, [])
    with Program(data_dir, {}, has_terminal=True) as first:
        token, key = _stored_secrets(data_dir)
        assert first.lines[:2] == [f"REGISTRATION_TOKEN={token}", f"ADMIN_API_KEY={key}"]
    with Program(data_dir, {}, has_terminal=True) as second:
        assert second.lines[:2] == [
            f"REGISTRATION_TOKEN is in {data_dir}/registration-token",
            f"ADMIN_API_KEY is in {data_dir}/admin-key",
        ]


def test_secrets_from_the_environment_are_neither_shown_nor_kept(data_dir: Path) -> None:
    with Program(data_dir) as program:
        assert len(program.lines) == 2
        ok(program.register())
        assert rows(program.client().get("/nodes"))
    assert not {"registration-token", "admin-key"} & {path.name for path in data_dir.iterdir()}


def test_empty_registration_token_disables_registration(data_dir: Path) -> None:
    with Program(data_dir, {**SECRETS, "REGISTRATION_TOKEN": ""}) as program:
        assert program.register("").status_code == program.register("any").status_code == 503


def test_log_holds_no_secret_and_no_prompt(data_dir: Path) -> None:
    with Program(data_dir, {}, "--log-level=debug") as program:
        token, admin_key = _stored_secrets(data_dir)
        node_key = ok(program.register(token))["api_key"]
        program.register("a-wrong-token")
        program.client("a-wrong-key").get("/nodes")
        admin = program.client(admin_key)
        ok(admin.post("/tasks", json={"prompt": "the-prompt"}))
        fields = {"name": "n", "description": "d", "rate_limit": 1}
        scoped = ok(admin.post("/keys", json=fields))
        path = f"/keys/{scoped['key_id']}"
        keys = [scoped["api_key"], ok(admin.post(f"{path}/rotate"))["api_key"]]
        clients = [program.client(key) for key in keys]
        codes = [client.get("/nodes").status_code for client in clients]
        for method, target in (("POST", f"{path}/revoke"), ("DELETE", path)):
            ok(admin.request(method, target))
            codes += [client.get("/nodes").status_code for client in clients]
        _, log = program.end()
    assert codes == [403, 429, 401, 401, 401, 401]
    for message in ("server started", "node registered", "task created", "request refused"):
        assert message in log
    for secret in (token, admin_key, node_key, *keys, "a-wrong-", "the-prompt"):
        assert secret not in log


def test_log_is_json_if_asked_for(data_dir: Path) -> None:
    with Program(data_dir, SECRETS, "--log-format=json") as program:
        ok(program.register())
        _, log = program.end()
    messages = ["server started", "node registered", "server stopping", "server stopped"]
    assert [json.loads(line)["message"] for line in log.splitlines()] == messages


@pytest.mark.parametrize(
    ("variables", "client", "scheme"),
    [
        ({"FORWARDED_ALLOW_IPS": ""}, "127.0.0.1", "http"),
        ({"FORWARDED_ALLOW_IPS": "192.0.2.1"}, "127.0.0.1", "http"),
        ({"FORWARDED_ALLOW_IPS": "192.0.2.1,127.0.0.1"}, "203.0.113.9", "https"),
        ({"VICTORIA_ORCHESTRATOR_FORWARDED_ALLOW_IPS": "127.0.0.1"}, "203.0.113.9", "https"),
    ],
    ids=["empty", "another", "two", "own variable"],
)
def test_only_named_proxies_are_believed(
    data_dir: Path, variables: dict[str, str], client: str, scheme: str
) -> None:
    forwarded = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}
    with Program(data_dir, SECRETS | variables) as program:
        node = program.client(ok(program.register())["api_key"], **forwarded)
        admin = program.client(**forwarded)
        ok(admin.post("/tasks", json={"prompt": "p"}))
        assignment = ok(node.get("/tasks/pending"))
        entries = ok(admin.get("/keys/audit"))["entries"]
        log = program.end()[1]
    assert assignment["orchestrator_url"].partition(":")[0] == scheme
    assert log.count("a proxy with TLS seems to be in front") == (scheme == "http")
    assert {entry["client"] for entry in entries} == {client}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_held_polls_and_server(data_dir: Path, number: signal.Signals) -> None:
    with Program(data_dir) as program, ThreadPoolExecutor(3) as pool:

        def poll(node: Json) -> object:
            return program.client(node["api_key"], Prefer="wait=60").get("/tasks/pending").json()

        nodes = [ok(program.register()) for _ in range(3)]
        polls = [pool.submit(poll, node) for node in nodes]
        # From outside nothing shows that a poll is held. One that came too late finds no server;
        # test_waiting has the sure case.
        rows(program.client().get("/nodes"))
        code, log = program.end(number)
        assert (code, "Traceback" in log) == (0, False)
        assert f"server stopped reason={number.name} ran_s=" in log
        assert all(future.exception(DEADLINE_S) or future.result() is None for future in polls)


@pytest.mark.long
def test_client_that_does_not_take_its_download_does_not_hold_up_the_end(data_dir: Path) -> None:
    with Program(data_dir) as program:
        node = program.client(ok(program.register())["api_key"])
        admin = program.client()
        files = {"file": ("large.bin", bytes(64 << 20))}
        name = ok(admin.post("/upload", files=files))["filename"]
        ok(admin.post("/tasks", json={"prompt": "hello", "files": [name]}))
        ok(node.get("/tasks/pending"))
        with node.stream("GET", f"/files/{name}") as response:
            assert response.status_code == httpx.codes.OK
            assert program.end()[0] == 0


def test_killed_server_loses_nothing(data_dir: Path, database_url: str | None) -> None:
    environment = SECRETS | ({DATABASE_URL: database_url} if database_url else {})
    with Program(data_dir, environment) as program:
        node = ok(program.register())
        program.end(signal.SIGKILL)
    with Program(data_dir, environment) as program:
        assert [shown["id"] for shown in rows(program.client().get("/nodes"))] == [node["id"]]


def test_guessable_token_and_few_open_files_are_warnings(data_dir: Path) -> None:
    limited = ("bash", "-c", 'ulimit -Sn 400; ulimit -Hn 500; exec "$@"', "bash")
    variables = {"REGISTRATION_TOKEN": "secret", "ADMIN_API_KEY": "twenty-three-characters"}
    with Program(data_dir, variables, prefix=limited) as program:
        ok(program.register("secret"))
        assert resource.prlimit(program.process.pid, resource.RLIMIT_NOFILE) == (500, 500)
        _, log = program.end()
    sentence = "WARNING REGISTRATION_TOKEN and ADMIN_API_KEY could be guessed: use 24 characters or"
    assert log.count(sentence) == log.count("could be guessed") == 1
    assert "WARNING at most 200 nodes can be connected: this process may have 500 files" in log


@pytest.mark.parametrize(
    ("url", "workers", "sentence"),
    [
        (UNREACHABLE, 1, "cannot listen on 127.0.0.1 port PORT: address already in use"),
        (UNREACHABLE, 2, "cannot listen on 127.0.0.1 port PORT: address already in use"),
        ("", 2, "cannot start several workers on SQLite: set --database-url, or --workers 1"),
        ("mysql://x", 1, "cannot use a database of kind mysql: give a postgresql:// URL"),
        ("nonsense", 1, "cannot read the database URL"),
    ],
)
def test_refusal_makes_no_secrets(data_dir: Path, url: str, workers: int, sentence: str) -> None:
    environment = {DATABASE_URL: url} if url else {}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        options = (f"--port={port}", f"--workers={workers}")
        code, message = refused_start(data_dir, environment, *options)
    assert code == 78
    assert message.startswith("Error: " + sentence.replace("PORT", port))
    assert {path.name for path in data_dir.glob("*")} <= {"lock"}


@pytest.mark.parametrize("width", [40, 80, 97])
def test_help_cuts_no_word(width: int) -> None:
    assert cut_words(main, width) == []


def test_in_the_journal_a_mistake_on_the_command_line_is_one_entry_and_an_error(
    data_dir: Path,
) -> None:
    script = 'JOURNAL_STREAM=$(stat --dereference --format %d:%i /proc/self/fd/2) exec "$0" "$@"'
    with Program(data_dir, {}, "--worker=2", prefix=("sh", "-c", script)) as program:
        code, log = program.wait()
    assert (code, log.count("\n")) == (2, 1), log
    assert log.startswith("<3>Error: No such option")


def test_second_server_on_one_folder_refuses_in_one_sentence(data_dir: Path) -> None:
    with Program(data_dir):
        code, message = refused_start(data_dir, SECRETS)
    assert (code, "another orchestrator is using it" in message) == (78, True)
    with Program(data_dir) as program:  # the folder is free again
        assert program.url


@pytest.mark.parametrize(
    ("variables", "option", "code", "message"),
    [
        ({}, "--host=192.0.2.1", 78, "cannot listen on 192.0.2.1 port 0: "),
        ({}, "--data-dir=FOLDER/file/below", 78, "cannot use data folder FOLDER/file/below: "),
        ({}, "--data-dir=FOLDER", 78, "cannot open database FOLDER/orchestrator.db: "),
        (
            {DATABASE_URL: UNREACHABLE},
            "--port=0",
            75,
            "cannot open database postgresql://user:***@",
        ),
        ({"ADMIN_API_KEY": ""}, "--port=0", 78, "ADMIN_API_KEY is empty: give it a value or"),
    ],
    ids=["host", "data folder", "database file", "database server", "admin key"],
)
def test_start_that_fails_is_one_sentence(
    tmp_path: Path, variables: dict[str, str], option: str, code: int, message: str
) -> None:
    for name in ("file", "orchestrator.db"):
        (tmp_path / name).write_text("not a database" * 100)
    option, message = (text.replace("FOLDER", str(tmp_path)) for text in (option, message))
    actual, line = refused_start(tmp_path / "data", SECRETS | variables, option)
    assert (actual, "the-password" in line) == (code, False)
    assert line.startswith(f"Error: {message}")


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"ADMIN_API_KEY": ADMIN_KEY}, "registration-token is empty: remove it to have a new one"),
        ({"REGISTRATION_TOKEN": TOKEN}, "admin-key is empty: remove it to have a new one"),
        ({**SECRETS, "ADMIN_API_KEY": "fifteen-letters"}, "ADMIN_API_KEY is shorter than 16"),
    ],
    ids=["empty token file", "empty key file", "key that can be guessed"],
)
def test_bad_secret_is_refused(tmp_path: Path, environment: dict[str, str], sentence: str) -> None:
    for name in ("registration-token", "admin-key"):
        (tmp_path / name).touch()
    with pytest.raises(ConfigurationError, match=sentence):
        load_secrets(tmp_path, environment)


@pytest.mark.parametrize(
    "option",
    [
        "--port=70000",
        "--heartbeat-timeout=0",
        "--unknown",
        "--public-url=foo",
        "--data-dir=/etc/passwd",
    ],
)
def test_bad_option_is_a_usage_error(option: str) -> None:
    done = CliRunner().invoke(main, [option])
    assert (done.exit_code, done.stderr.splitlines()[-1][:7]) == (2, "Error: ")
