"""The program itself: its first start, its end, and its message when it cannot start."""

import json
import os
import pty
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.orchestrator.serving import DEADLINE_S, Json, ok

REPOSITORY = Path(__file__).parents[2]
TOKEN = {"REGISTRATION_TOKEN": "token-from-outside"}
ADMIN = {"ADMIN_API_KEY": "key-from-outside"}


class Program:
    """`python -m orchestrator` on a free port; its standard output is a pipe or a terminal."""

    def __init__(
        self,
        data_dir: Path,
        environment: Mapping[str, str],
        *options: str,
        has_terminal: bool = False,
    ) -> None:
        command = [sys.executable, "-m", "orchestrator", "--port=0", f"--data-dir={data_dir}"]
        self._log = data_dir.with_name("orchestrator.log").open("w+")
        reading, writing = pty.openpty() if has_terminal else os.pipe()
        self.process = subprocess.Popen(
            [*command, *options],
            cwd=REPOSITORY,
            env={"PATH": os.environ["PATH"], **environment},
            stdout=writing,
            stderr=self._log,
        )
        os.close(writing)
        self._output = os.fdopen(reading, "r")
        self.lines = list(self._lines_of_start())
        """Its lines on standard output, down to the one with its address."""
        self.url = self.lines[-1].removeprefix("listening on ") if self.lines else ""

    def _lines_of_start(self) -> Iterator[str]:
        with suppress(OSError):  # a terminal whose other end is closed
            while line := self._output.readline():
                yield line.rstrip("\n")
                if line.startswith("listening on "):
                    return

    def end(self) -> tuple[int, str]:
        """Wait for its end; return the exit code and its log."""
        code = self.process.wait(DEADLINE_S)
        self._output.close()
        self._log.seek(0)
        log = self._log.read()
        self._log.close()
        return code, log


@contextmanager
def _running(
    data_dir: Path,
    environment: Mapping[str, str] | None = None,
    *options: str,
    has_terminal: bool = False,
) -> Iterator[Program]:
    program = Program(data_dir, environment or {}, *options, has_terminal=has_terminal)
    try:
        yield program
    finally:
        if program.process.poll() is None:
            program.process.terminate()
            program.end()


def _register(url: str, token: str) -> httpx.Response:
    return httpx.post(
        f"{url}/register",
        headers={"X-Registration-Token": token},
        json={"hostname": "h", "os_type": "linux"},
        timeout=DEADLINE_S,
        trust_env=False,
    )


def _admin(url: str, key: str, path: str = "/nodes") -> httpx.Response:
    headers = {"X-API-Key": key}
    return httpx.get(f"{url}{path}", headers=headers, timeout=DEADLINE_S, trust_env=False)


def _client(
    url: str, headers: Mapping[str, str] | None = None, *, follow_redirects: bool = False
) -> httpx.Client:
    return httpx.Client(
        base_url=url,
        headers=headers,
        timeout=DEADLINE_S,
        trust_env=False,
        follow_redirects=follow_redirects,
    )


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def _kept(data_dir: Path) -> tuple[str, str]:
    token, key = data_dir / "registration-token", data_dir / "admin-key"
    return token.read_text().strip(), key.read_text().strip()


def test_secrets_are_generated_on_the_first_start_and_kept(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with _running(data_dir) as first:
        token, key = _kept(data_dir)
        # A journal would keep what is printed where there is no terminal.
        assert first.lines == [
            f"REGISTRATION_TOKEN is in {data_dir}/registration-token",
            f"ADMIN_API_KEY is in {data_dir}/admin-key",
            f"dashboard: {first.url}/dashboard",
            f"listening on {first.url}",
        ]
        node = ok(_register(first.url, token))
        assert _mode(data_dir) == 0o700
        modes = {path.name: _mode(path) for path in data_dir.iterdir() if path.is_file()}
        assert {"registration-token", "admin-key", "orchestrator.db"} <= set(modes)
        assert set(modes.values()) == {0o600}
    with _running(data_dir) as second:
        assert [shown["id"] for shown in _admin(second.url, key).json()] == [node["id"]]
        assert _register(second.url, token).status_code == 200


def test_terminal_shows_secrets_once(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with _running(data_dir, has_terminal=True) as first:
        token, key = _kept(data_dir)
        assert first.lines == [
            f"REGISTRATION_TOKEN={token}",
            f"ADMIN_API_KEY={key}",
            f"dashboard: {first.url}/dashboard",
            f"listening on {first.url}",
        ]
    with _running(data_dir, has_terminal=True) as second:
        assert second.lines == [
            f"REGISTRATION_TOKEN is in {data_dir}/registration-token",
            f"ADMIN_API_KEY is in {data_dir}/admin-key",
            f"dashboard: {second.url}/dashboard",
            f"listening on {second.url}",
        ]


def test_start_that_fails_does_not_use_up_the_showing(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    url = "postgresql://user@127.0.0.1:1/name"
    database = {"VICTORIA_ORCHESTRATOR_DATABASE_URL": url}
    failed = Program(data_dir, database, has_terminal=True)
    assert failed.end()[0] == 75
    assert failed.lines == []
    with _running(data_dir, has_terminal=True) as program:
        assert f"ADMIN_API_KEY={_kept(data_dir)[1]}" in program.lines


def test_root_leads_to_the_dashboard(tmp_path: Path) -> None:
    with (
        _running(tmp_path / "data", TOKEN | ADMIN) as program,
        _client(program.url, follow_redirects=True) as browser,
    ):
        page = browser.get("/")
        assert str(page.url) == program.lines[0].removeprefix("dashboard: ")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")


def test_secrets_from_the_environment_are_neither_shown_nor_kept(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with _running(data_dir, TOKEN | ADMIN) as program:
        assert len(program.lines) == 2
        assert _register(program.url, TOKEN["REGISTRATION_TOKEN"]).status_code == 200
        assert _admin(program.url, ADMIN["ADMIN_API_KEY"]).status_code == 200
    assert not (data_dir / "registration-token").exists()
    assert not (data_dir / "admin-key").exists()


def test_empty_registration_token_disables_registration(tmp_path: Path) -> None:
    with _running(tmp_path / "data", {"REGISTRATION_TOKEN": "", **ADMIN}) as program:
        assert _register(program.url, "").status_code == 503
        assert _register(program.url, "any").status_code == 503


def test_log_holds_no_secret_and_no_prompt(tmp_path: Path) -> None:
    with _running(tmp_path / "data", {}, "--log-level=debug") as program:
        token, key = _kept(tmp_path / "data")
        node_key = ok(_register(program.url, token))["api_key"]
        _register(program.url, "a-wrong-token")
        _admin(program.url, "a-wrong-key")
        with _client(program.url, {"X-API-Key": key}) as admin:
            admin.post("/tasks", json={"prompt": "the-prompt"})
        program.process.terminate()
        _, log = program.end()
    for message in ("server started", "node registered", "task created", "request refused"):
        assert message in log
    for secret in (token, key, node_key, "a-wrong-token", "a-wrong-key", "the-prompt"):
        assert secret not in log


def test_log_is_text_or_json_with_one_event_on_each_line(tmp_path: Path) -> None:
    logs = []
    for options in ((), ("--log-format=json",)):
        with _running(tmp_path / "data", TOKEN | ADMIN, *options) as program:
            ok(_register(program.url, TOKEN["REGISTRATION_TOKEN"]))
            program.process.terminate()
            logs.append(program.end()[1].splitlines())
    text, as_json = logs
    line = re.compile(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO (server|node) [a-z]+( \w+=\S+)*"
    )
    assert all(line.fullmatch(one) for one in text), text
    events = [json.loads(one) for one in as_json]
    assert [event["message"] for event in events] == [
        "server started",
        "node registered",
        "server stopping",
        "server stopped",
    ]
    assert len(text) == len(events)


@pytest.mark.parametrize(
    ("environment", "client", "scheme"),
    [
        ({}, "127.0.0.1", "http"),
        ({"FORWARDED_ALLOW_IPS": ""}, "127.0.0.1", "http"),
        ({"FORWARDED_ALLOW_IPS": "192.0.2.1"}, "127.0.0.1", "http"),
        ({"FORWARDED_ALLOW_IPS": "192.0.2.1,127.0.0.1"}, "203.0.113.9", "https"),
        ({"VICTORIA_ORCHESTRATOR_FORWARDED_ALLOW_IPS": "127.0.0.1"}, "203.0.113.9", "https"),
    ],
)
def test_only_a_proxy_that_is_named_tells_who_calls(
    tmp_path: Path, environment: dict[str, str], client: str, scheme: str
) -> None:
    with _running(tmp_path / "data", TOKEN | ADMIN | environment) as program:
        key = ok(_register(program.url, TOKEN["REGISTRATION_TOKEN"]))["api_key"]
        forwarded = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}
        admin = {"X-API-Key": ADMIN["ADMIN_API_KEY"], **forwarded}
        node = {"X-API-Key": key, **forwarded}
        with _client(program.url) as http:
            ok(http.post("/tasks", json={"prompt": "p"}, headers=admin))
            assignment = ok(http.get("/tasks/pending", headers=node))
            entries = ok(http.get("/keys/audit", headers=admin))["entries"]
    assert assignment["orchestrator_url"].partition(":")[0] == scheme
    assert {entry["client"] for entry in entries} == {client}


def test_log_holds_no_key_though_it_is_made_used_and_rotated(tmp_path: Path) -> None:
    with _running(tmp_path / "data", TOKEN | ADMIN, "--log-level=debug") as program:
        with _client(program.url, {"X-API-Key": ADMIN["ADMIN_API_KEY"]}) as admin:
            made = ok(admin.post("/keys", json={"name": "n", "description": "d", "rate_limit": 1}))
            path = f"/keys/{made['key_id']}"
            rotated = ok(admin.post(f"{path}/rotate"))
            secrets = [made["api_key"], rotated["api_key"]]
            codes = [_admin(program.url, secret).status_code for secret in secrets]
            ok(admin.post(f"{path}/revoke"))
            codes += [_admin(program.url, secret).status_code for secret in secrets]
            ok(admin.delete(path))
            codes += [_admin(program.url, secret).status_code for secret in secrets]
        program.process.terminate()
        _, log = program.end()
    assert codes == [403, 429, 401, 401, 401, 401]
    assert "key rotated" in log
    for secret in (*secrets, *TOKEN.values(), *ADMIN.values()):
        assert secret not in log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_cleanly_though_polls_are_held(
    tmp_path: Path, number: signal.Signals
) -> None:
    with _running(tmp_path / "data", TOKEN | ADMIN) as program, ThreadPoolExecutor(3) as pool:

        def poll(node: Json) -> object:
            headers = {"X-API-Key": node["api_key"], "Prefer": "wait=60"}
            url = f"{program.url}/tasks/pending"
            return httpx.get(url, headers=headers, timeout=90, trust_env=False).json()

        nodes = [ok(_register(program.url, TOKEN["REGISTRATION_TOKEN"])) for _ in range(3)]
        held = [pool.submit(poll, node) for node in nodes]
        # From outside nothing shows that a poll is held. One that came too late finds no server;
        # test_waiting has the sure case.
        _admin(program.url, ADMIN["ADMIN_API_KEY"])
        program.process.send_signal(number)
        code, log = program.end()
        assert code == 0
        assert "Traceback" not in log
        for poll_answer in held:
            assert poll_answer.exception(DEADLINE_S) or poll_answer.result() is None


def test_client_that_does_not_take_its_download_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with _running(tmp_path / "data", TOKEN | ADMIN) as program:
        node = ok(_register(program.url, TOKEN["REGISTRATION_TOKEN"]))
        with _client(program.url, {"X-API-Key": ADMIN["ADMIN_API_KEY"]}) as admin:
            upload = admin.post("/upload", files={"file": ("large.bin", bytes(64 << 20))})
            name = ok(upload)["filename"]
            ok(admin.post("/tasks", json={"prompt": "hello", "files": [name]}))
        key = {"X-API-Key": node["api_key"]}
        with _client(program.url, key) as client:
            ok(client.get("/tasks/pending"))
        with (
            _client(program.url, key) as client,
            client.stream("GET", f"/files/{name}") as response,
        ):
            assert response.status_code == httpx.codes.OK
            program.process.terminate()
            code, _ = program.end()
    assert code == 0


def test_killed_server_loses_nothing(tmp_path: Path, database_url: str | None) -> None:
    data_dir = tmp_path / "data"
    place = {"VICTORIA_ORCHESTRATOR_DATABASE_URL": database_url} if database_url else {}
    with _running(data_dir, TOKEN | ADMIN | place) as program:
        node = ok(_register(program.url, TOKEN["REGISTRATION_TOKEN"]))
        program.process.kill()
        program.end()
    with _running(data_dir, TOKEN | ADMIN | place) as program:
        shown = _admin(program.url, ADMIN["ADMIN_API_KEY"]).json()
        assert [one["id"] for one in shown] == [node["id"]]


def test_as_many_files_may_be_open_as_the_system_allows(tmp_path: Path) -> None:
    _, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    with _running(tmp_path / "data", TOKEN | ADMIN) as program:
        taken = resource.prlimit(program.process.pid, resource.RLIMIT_NOFILE)
    assert taken == (allowed, allowed)


def test_few_open_files_are_one_sentence_that_says_for_how_many_nodes_they_do() -> None:
    call = "from orchestrator.server import open_as_many_as_allowed as o; o()"
    done = subprocess.run(
        ["bash", "-c", f"ulimit -n 500; exec {sys.executable} -c '{call}'"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    assert done.stderr.startswith("at most 200 nodes can be connected: this process may have 500")


def _fails(tmp_path: Path, environment: Mapping[str, str], *options: str) -> tuple[int, str]:
    program = Program(tmp_path / "data", environment, *options)
    code, log = program.end()
    assert program.lines == []
    assert "Traceback" not in log
    return code, log.strip().splitlines()[-1]


def test_port_that_is_taken_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, sentence = _fails(tmp_path, TOKEN | ADMIN, f"--port={port}")
    assert code == 78
    expected = rf"Error: cannot listen on 127\.0\.0\.1 port {port}: address already in use"
    assert re.fullmatch(expected, sentence)


def test_second_server_on_one_folder_refuses_in_one_sentence(tmp_path: Path) -> None:
    with _running(tmp_path / "data", TOKEN | ADMIN):
        code, sentence = _fails(tmp_path, TOKEN | ADMIN)
        assert code == 78
        assert "another orchestrator is using it" in sentence
    with _running(tmp_path / "data", TOKEN | ADMIN):
        pass  # the folder is free again


@pytest.mark.parametrize("database_url", [None, "mysql://x", "postgresql://u@127.0.0.1:1/n"])
def test_server_that_is_refused_makes_no_secrets(tmp_path: Path, database_url: str | None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = f"--port={taken.getsockname()[1]}"
        place = {"VICTORIA_ORCHESTRATOR_DATABASE_URL": database_url} if database_url else {}
        code, _ = _fails(tmp_path, place, port)
    assert code == 78
    assert {path.name for path in (tmp_path / "data").iterdir()} <= {"lock"}


def test_host_that_is_not_here_is_one_sentence(tmp_path: Path) -> None:
    code, sentence = _fails(tmp_path, TOKEN | ADMIN, "--host=192.0.2.1")
    assert code == 78
    assert sentence.startswith("Error: cannot listen on 192.0.2.1 port 0: ")


@pytest.mark.parametrize("place", ["data/below", "data"])
def test_data_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path, place: str) -> None:
    (tmp_path / "data").write_text("a file is in its way")
    code, sentence = _fails(tmp_path, TOKEN | ADMIN, f"--data-dir={tmp_path / place}")
    assert code in {2, 78}
    assert str(tmp_path / place) in sentence


def test_database_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "orchestrator.db").write_text("no database" * 100)
    code, sentence = _fails(tmp_path, TOKEN | ADMIN)
    assert code == 78
    assert sentence.startswith("Error: cannot open database ")


def test_database_that_does_not_answer_is_one_sentence_without_its_password(
    tmp_path: Path,
) -> None:
    url = "postgresql://user:the-password@127.0.0.1:1/name"
    code, sentence = _fails(tmp_path, {**TOKEN, **ADMIN, "VICTORIA_ORCHESTRATOR_DATABASE_URL": url})
    assert code == 75
    place = "postgresql://user:***@127.0.0.1:1/name"
    assert sentence.startswith(f"Error: cannot open database {place}: ")
    assert "the-password" not in sentence


@pytest.mark.parametrize("name", ["registration-token", "admin-key"])
def test_secret_file_that_is_empty_is_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).touch()
    known = ADMIN if name == "registration-token" else TOKEN
    code, sentence = _fails(tmp_path, known)
    assert code == 78
    assert sentence.endswith(f"{name} is empty: remove it to have a new one generated")


def test_empty_admin_key_is_one_sentence(tmp_path: Path) -> None:
    code, sentence = _fails(tmp_path, {**TOKEN, "ADMIN_API_KEY": ""})
    assert (code, sentence) == (
        78,
        "Error: ADMIN_API_KEY is empty: give it a value or unset it",
    )


def test_admin_key_that_can_be_guessed_is_one_sentence(tmp_path: Path) -> None:
    code, sentence = _fails(tmp_path, {**TOKEN, "ADMIN_API_KEY": "fifteen-letters"})
    assert code == 78
    assert sentence.startswith("Error: ADMIN_API_KEY is shorter than 16 characters")


def test_registration_token_that_can_be_guessed_is_a_warning(tmp_path: Path) -> None:
    with _running(tmp_path / "data", {"REGISTRATION_TOKEN": "secret", **ADMIN}) as program:
        assert _register(program.url, "secret").status_code == 200
        program.process.terminate()
        _, log = program.end()
    assert "WARNING REGISTRATION_TOKEN could be guessed: use 16 characters or more" in log


@pytest.mark.parametrize(
    "option", ["--port=70000", "--heartbeat-timeout=0", "--unknown", "--public-url=foo"]
)
def test_bad_option_is_a_usage_error(tmp_path: Path, option: str) -> None:
    assert _fails(tmp_path, TOKEN | ADMIN, option)[0] == 2
