"""What a state folder means for the next start: doctor's report, and the runtime to use."""

import json
import os
import pwd
import re
import sqlite3
import ssl
import stat
import tempfile
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from runner.doctor import check_linger, check_user, examine
from runner.engine.cli import CliEngine
from runner.engine.inspect import read_podman_facts
from runner.errors import EXIT_CONFIGURATION, ImageMissing
from runner.identity import IdentityFile
from runner.journal.journal import JOURNAL_NAME, open_journal
from runner.model import Identity, PullPolicy, Registration
from runner.node import runtime_to_use
from runner.redaction import Secret
from runner.settings import Settings
from runner.systemd import UNIT
from runner.workspace.home import may_write
from tests.harness.private_ca import make_private_ca
from tests.harness.server import (
    PLAIN_400,
    Answer,
    http,
    json_response,
    serving,
    serving_at_once,
)
from tests.unit.another_user import NOBODY, as_another_user

JOURNALS = Path(__file__).parent / "journals"
TMP = Path(tempfile.gettempdir())
URL = "http://orchestrator.example"
KNOWN = Registration(Identity("node-1", Secret("node-key-1")), None)
SETTINGS = Settings(URL, "n", victoria_home=TMP, state_dir=TMP, registration_token=Secret(""))

pytestmark = pytest.mark.usefixtures("no_engine")


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")


@pytest.fixture(scope="module")
def private_ca(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """Return what a server on 127.0.0.1 serves with, and its CA."""
    return make_private_ca(tmp_path_factory.mktemp("ca"))


def doctor(
    *,
    as_json: bool = False,
    fetches: bool = False,
    **changed: Any,  # noqa: ANN401 - any setting
) -> tuple[int, list[str]]:
    lines: list[str] = []
    settings = replace(SETTINGS, **changed)
    how = {"as_json": as_json, "fetches": fetches}
    return anyio.run(partial(examine, settings, lines.append, **how)), lines


def test_folder_that_may_not_be_entered_is_one_sentence() -> None:
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        closed = Path(made) / "closed"
        closed.mkdir(mode=0o000)
        with as_another_user():
            code, lines = doctor(state_dir=closed / "state", victoria_home=closed / "home")
        closed.chmod(0o700)

    assert code == EXIT_CONFIGURATION
    output = "\n".join(lines)
    journal = f"{closed}/state/journal.sqlite3: permission denied; run as"
    assert f"FAIL journal: cannot read {journal}" in output
    for option in ("--state-dir", "--victoria-home"):
        assert f"FAIL {option}: cannot write in {closed}: run as its owner" in output


def test_env_file_is_checked(tmp_path: Path) -> None:
    env_file = tmp_path / "env"
    env_file.write_text("A=1\nB='${HOME}' # so\n")
    _, lines = doctor(env_file=env_file)
    assert f"ok   --env-file: {env_file} sets 2 variables" in lines
    warning = f"warn --env-file: {env_file}: line 2: ${{HOME}} is not set above this line and"
    assert any(line.startswith(warning) for line in lines)
    env_file.write_text("A\n")
    code, lines = doctor(env_file=env_file)
    failure = f"FAIL --env-file: cannot use --env-file {env_file}: line 1 is not NAME=VALUE"
    assert code != 0
    assert any(line.startswith(failure) for line in lines)


def test_file_in_the_place_of_a_folder_is_named_as_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, lines = doctor(state_dir=tmp_path / "file" / "state")
    assert code != 0
    sentence = f"FAIL --state-dir: {tmp_path / 'file'} is not a folder; choose another, or move it"
    assert any(line.startswith(sentence) for line in lines), lines


@pytest.mark.parametrize("name", ["tasks", ".crush"])
def test_obstacle_in_the_home_is_found_and_left_in_place(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    _, lines = doctor(victoria_home=tmp_path)
    sentence = f"cannot use {tmp_path / name}: it is not a folder; the runner moves it aside before"
    assert any(line.startswith(f"FAIL --victoria-home: {sentence}") for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("is_rootless", "granted", "has_user_ids"),
    [(True, 1, False), (True, 2, True), (False, 0, True)],
    ids=["none granted", "granted", "as root"],
)
def test_podman_without_user_ids_is_recognised(
    *, is_rootless: bool, granted: int, has_user_ids: bool
) -> None:
    map_ = [{"container_id": 0, "host_id": 1000, "size": 1}] * granted or None
    host = {"security": {"rootless": is_rootless}, "idMappings": {"uidmap": map_, "gidmap": map_}}
    about = {"version": {"Version": "5.0.0"}, "host": {**host, "cgroupManager": "systemd"}}
    assert read_podman_facts(about).has_user_ids is has_user_ids


@pytest.mark.parametrize(
    ("is_rootless", "controllers", "can_limit_processes"),
    [(True, ["memory"], False), (True, ["memory", "pids"], True), (False, [], True)],
    ids=["not delegated", "delegated", "as root"],
)
def test_podman_that_cannot_limit_processes_is_recognised(
    *, is_rootless: bool, controllers: list[str], can_limit_processes: bool
) -> None:
    host = {"security": {"rootless": is_rootless}, "cgroupControllers": controllers}
    about = {"version": {"Version": "5.0.0"}, "host": {**host, "cgroupManager": "systemd"}}
    assert read_podman_facts(about).can_limit_processes is can_limit_processes


@pytest.mark.parametrize(
    ("user", "is_rootless", "mode", "can_write"),
    [
        *[(user, True, 0o700, True) for user in ("", "0", "root", "0:0", "root:0")],
        ("1000", False, 0o700, True),
        ("1000:50", True, 0o700, False),
        ("1001", False, 0o755, False),
        ("1001", True, 0o777, True),
        ("1001", False, 0o770, None),
        ("victoria", False, 0o700, None),
    ],
)
def test_user_of_an_image_may_write_in_the_home_by_its_mode(
    user: str, mode: int, *, is_rootless: bool, can_write: bool | None
) -> None:
    home = os.stat_result((stat.S_IFDIR | mode, 0, 0, 2, 1000, 1000, 0, 0, 0, 0))
    assert may_write(home, user, is_rootless=is_rootless) is can_write


NOT_OURS = "what tasks leave belongs to another user: docker reads the agent's log and removes it"
FAKE_DOCKER = """\
#!/bin/sh
case "$1" in
  info) echo '{"ServerVersion": "28", "SecurityOptions": [], "CgroupDriver": "systemd"}' ;;
  image) echo 4711 ;;
esac
"""


def test_owner_of_what_tasks_leave_and_a_user_of_the_image_who_cannot_write_are_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder, home = Path(made), Path(made) / "home"
        folder.chmod(0o755)
        home.mkdir(mode=0o700)
        (folder / "docker").write_text(FAKE_DOCKER)
        (folder / "docker").chmod(0o755)
        monkeypatch.setenv("PATH", made, prepend=os.pathsep)
        with as_another_user():
            code, lines = doctor(container_runtime="docker", victoria_home=home)
        assert code == EXIT_CONFIGURATION
        assert f"ok   files: {NOT_OURS}" in lines
        sentence = f"containers run as the image's user 4711, who cannot write in {home}: add"
        assert any(line.startswith(f"FAIL image user: {sentence}") for line in lines)
        overridden = ("--user=0:0",)
        _, lines = doctor(container_runtime="docker", victoria_home=home, run_args=overridden)
        assert not any(" image user: " in line for line in lines)


def test_text_of_an_orchestrator_controls_no_terminal_and_forges_no_line() -> None:
    lines: list[str] = []

    async def examine_hostile() -> None:
        async with serving() as server:
            server.answer(json_response({"version": "1\x1b]0;title\x07\nok   forged: line\u202e"}))
            settings = replace(SETTINGS, orchestrator_url=server.url)
            await examine(settings, lines.append, as_json=False)

    anyio.run(examine_hostile)
    assert any("ok   forged" in line for line in lines)
    assert [line for line in lines if not line.isprintable() or line.startswith("ok   f")] == []


def test_doctor_of_another_user_than_the_runners_is_refused(tmp_path: Path) -> None:
    own = pwd.getpwuid(os.geteuid()).pw_name
    settings = replace(SETTINGS, state_dir=tmp_path)
    assert check_user(settings, []).sentence == own
    (tmp_path / UNIT).write_text("[Service]\nType=notify\nUser=somebody\n")
    foreign = check_user(settings, [tmp_path / "none", tmp_path])
    assert foreign.exit_code == EXIT_CONFIGURATION
    assert foreign.sentence.startswith(f"this is {own}, and {UNIT} runs as somebody, whose rights")

    write_journal(tmp_path, "ordinary")
    assert check_user(settings, [tmp_path]).ok, "this user has a runner of its own"
    if os.geteuid() == 0:
        os.chown(tmp_path / JOURNAL_NAME, NOBODY, NOBODY)
        nobody = pwd.getpwuid(NOBODY).pw_name
        assert f"{tmp_path} belongs to {nobody}, whose" in check_user(settings, []).sentence


@pytest.mark.parametrize(
    ("error", "proxy", "refusal"),
    [
        ("no such manifest: registry.example/x:1", "", "no such manifest: registry.example/x:1"),
        ("http: server gave HTTP response to HTTPS client", "", None),
        ("dial tcp: lookup registry.example: no such host", "http://proxy:3128", None),
    ],
    ids=["unknown", "trusted by the daemon", "proxy of the daemon"],
)
def test_docker_is_believed_where_its_client_asks_as_its_daemon_does(
    tmp_path: Path, error: str, proxy: str, refusal: str | None
) -> None:
    program = tmp_path / "docker"
    info = f"if [ $1 = info ]; then echo '{proxy}'; exit; fi"
    program.write_text(f"#!/bin/sh\n{info}\necho '{error}' >&2; exit 1\n")
    program.chmod(0o755)
    engine = CliEngine("docker", str(program), {"PATH": "/nowhere"})
    if refusal is None:
        assert not anyio.run(engine.can_fetch, "registry.example/x:1")
        return
    with pytest.raises(ImageMissing, match=f"^cannot find the image .* registry: {refusal}"):
        anyio.run(engine.can_fetch, "registry.example/x:1")


def test_image_for_one_architecture_is_in_its_registry_though_podman_shows_only_lists(
    tmp_path: Path,
) -> None:
    program = tmp_path / "podman"
    error = 'parsing manifest blob "{}" as a "t": Treating single images as manifest lists is not'
    program.write_text(f"#!/bin/sh\necho 'Error: {error} implemented' >&2; exit 125\n")
    program.chmod(0o755)
    engine = CliEngine("podman", str(program), {"PATH": "/nowhere"})
    assert anyio.run(engine.can_fetch, "registry.example/x:1")


INFO = """if [ $1 = info ]; then
echo '{"host": {"cgroupManager": "systemd", "security": {"rootless": true}},'
echo '"version": {"Version": "5.4.2"}}'; exit; fi
"""
HERE = "if [ $1 = image ]; then echo id amd64; exit; fi\n"
NOT_HERE = "if [ $1 = image ]; then echo 'Error: image not known' >&2; exit 125; fi\n"
REFUSED = "echo 'Error: unauthorized: authentication required' >&2; exit 125\n"
AWAY = "echo 'Error: dial tcp: connection refused' >&2; exit 125\n"


@pytest.mark.parametrize(
    ("script", "pull", "mark", "sentence"),
    [
        pytest.param(HERE, "newer", "ok", "x:1 is here", id="fetched"),
        pytest.param(HERE + AWAY, "never", "ok", "x:1 is here", id="not-asked-for"),
        pytest.param(NOT_HERE, "never", "FAIL", "cannot find the image", id="may-not-be-fetched"),
        pytest.param(NOT_HERE + AWAY, "newer", "FAIL", "connection refused", id="out-of-reach"),
        pytest.param(HERE + AWAY, "newer", "warn", "tasks use the one on", id="an-older-is-here"),
        pytest.param(HERE + REFUSED, "newer", "FAIL", "podman login", id="login-is-refused"),
        pytest.param(HERE + REFUSED, "missing", "ok", "x:1 is here", id="not-asked-for-if-here"),
    ],
)
def test_image_is_fetched_as_for_a_task(  # noqa: PLR0913, PLR0917 - a row of the table
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    pull: str,
    mark: str,
    sentence: str,
) -> None:
    program = tmp_path / "podman"
    program.write_text(f"#!/bin/sh\n{INFO}{script}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    image = "registry.example/x:1"
    _, lines = doctor(
        fetches=True, container_image=image, pull=PullPolicy(pull), container_runtime="podman"
    )
    (line,) = [line for line in lines if " image: " in line]
    assert line.startswith(mark)
    assert sentence in line


def test_complaint_without_which_tasks_run_is_marked_as_not_blocking(tmp_path: Path) -> None:
    identity = tmp_path / "identity.json"
    identity.write_text("{}")
    identity.chmod(0o644)
    _, (report,) = doctor(as_json=True, state_dir=tmp_path)
    checks = {check["what"]: check for check in json.loads(report)["checks"]}
    assert [checks["engine"]["ok"], checks["engine"]["blocking"]] == [False, True]
    assert [checks["identity file"]["ok"], checks["identity file"]["blocking"]] == [False, False]
    assert [checks["python"]["ok"], checks["python"]["blocking"]] == [True, False]


def test_rootless_containers_need_lingering(tmp_path: Path) -> None:
    own = pwd.getpwuid(os.geteuid()).pw_name
    missing = check_linger(tmp_path)
    assert missing.exit_code == EXIT_CONFIGURATION
    assert missing.sentence.endswith(f"lingering is off; run `sudo loginctl enable-linger {own}`")
    (tmp_path / own).touch()
    assert check_linger(tmp_path).ok


def write_journal(state_dir: Path, name: str) -> None:
    with closing(sqlite3.connect(state_dir / JOURNAL_NAME)) as journal:
        journal.executescript((JOURNALS / f"{name}.sql").read_text())


def test_open_tasks_and_the_node_are_shown_without_its_key(tmp_path: Path) -> None:
    write_journal(tmp_path, "ordinary")
    for url in (URL, ""):
        _, lines = doctor(state_dir=tmp_path, orchestrator_url=url)
        assert lines[0] == "ok   journal: 4 open tasks"
    code, lines = doctor(state_dir=tmp_path, orchestrator_url="https://other.example")
    assert code == EXIT_CONFIGURATION
    assert lines[0].startswith("FAIL journal: cannot use --orchestrator-url https://other.exam")
    _, (report,) = doctor(as_json=True, state_dir=tmp_path)
    assert '"node_id": "node-1"' in report
    assert "node-key-1" not in report


NO_KEYS = "the orchestrator has no keys for tasks (extension task-key)"


HEALTHY = json_response({"version": "1", "timestamp": "2020-01-01T00:00:00Z"})
WRONG = json_response({"detail": "invalid registration token"}, 401)
INVALID = json_response({"detail": "hostname is missing"}, 422)
PORT = re.compile(r"(?<=127\.0\.0\.1:)\d+")


def answered(*answers: Answer, known: Registration | None = None, **changed: Any) -> list[str]:  # noqa: ANN401 - any setting
    """Return doctor's lines at an orchestrator with these responses; PORT stands for its port."""
    lines: list[str] = []

    async def examine_at_server() -> None:
        async with serving() as server:
            server.answer(*answers)
            url = changed.pop("scheme", "http") + server.url.removeprefix("http")
            settings = replace(SETTINGS, **{"orchestrator_url": url, **changed})
            if known is not None:
                journal, _ = open_journal(settings.state_dir, "now")
                await journal.store_registration(known, url, 1.0)
                journal.close_file()
            await examine(settings, lines.append, as_json=False)

    anyio.run(examine_at_server)
    return [PORT.sub("PORT", line) for line in lines]


AT = "http://127.0.0.1:PORT"


@pytest.mark.parametrize(
    ("answer", "changed", "line"),
    [
        (json_response({"detail": "Not Found"}, 404), {}, f"{AT} answers, but not as an orches"),
        (http(200, b"<html>", {"Content-Type": "text/html"}), {}, f"{AT} answers, but not as an"),
        (
            http(502),
            {},
            f"{AT} answers with HTTP 502: the orchestrator, or a proxy in front of it,",
        ),
        (
            HEALTHY,
            {"orchestrator_url": "http://nowhere.invalid"},
            "http://nowhere.invalid cannot be reached: cannot resolve its name:",
        ),
        (HEALTHY, {"orchestrator_url": ""}, "no --orchestrator-url"),
    ],
    ids=["404", "page", "502", "no such name", "no URL"],
)
def test_response_of_an_address_is_described_as_what_it_is(
    answer: Answer, changed: dict[str, Any], line: str
) -> None:
    lines = answered(answer, **changed)
    assert any(shown.startswith(f"FAIL orchestrator: {line}") for shown in lines), lines


def test_problem_of_tls_is_a_response_too_with_advice(
    private_ca: tuple[ssl.SSLContext, Path],
) -> None:
    context, ca = private_ca
    lines: list[str] = []

    async def examine_at_servers() -> None:
        async with serving(context) as server, serving_at_once(PLAIN_400) as port:
            at_other_name = server.url.replace("127.0.0.1", "localhost")
            for url, ca_file in (
                (server.url, None),
                (at_other_name, ca),
                (f"https://127.0.0.1:{port}", None),
            ):
                settings = replace(SETTINGS, orchestrator_url=url, ca_file=ca_file)
                await examine(settings, lines.append, as_json=False)

    anyio.run(examine_at_servers)
    unknown, other, plain = (line for line in lines if line.startswith("FAIL orchestrator: "))
    assert " answers, and its TLS certificate is not trusted: " in unknown
    assert unknown.endswith("; give the CA by --ca-file")
    assert other.endswith("; give the name in the certificate as --orchestrator-url")
    assert " answers, but not with TLS (TLS failed: WRONG_VERSION_NUMBER); check" in plain


@pytest.mark.parametrize(
    ("answer", "is_registered", "line"),
    [
        (WRONG, False, "FAIL registration token: the orchestrator refuses it: HTTP 401: invalid"),
        (WRONG, True, "warn registration token: the orchestrator refuses it: HTTP 401: invalid"),
        (INVALID, False, "ok   registration token: the orchestrator does not refuse it"),
        (json_response({"detail": "x"}, 503), False, "FAIL registration token: cannot be tried"),
        (None, False, "FAIL registration token: no --registration-token-file: the runner needs"),
    ],
    ids=["wrong", "wrong, and registered", "right", "registration is disabled", "none"],
)
def test_token_is_tried_without_registering(
    tmp_path: Path, answer: Answer | None, line: str, *, is_registered: bool
) -> None:
    token = Secret("" if answer is None else "the-token")
    known = KNOWN if is_registered else None
    answers = (HEALTHY, answer or INVALID)
    lines = answered(*answers, known=known, state_dir=tmp_path, registration_token=token)
    assert any(shown.startswith(line) for shown in lines), lines


def test_identity_file_is_checked_and_its_key_is_not_shown(tmp_path: Path) -> None:
    def line() -> str:
        _, lines = doctor(state_dir=tmp_path)
        (found,) = (line for line in lines if " identity file: " in line)
        return found

    assert line().startswith("ok   identity file: none yet")
    file = IdentityFile(tmp_path)
    file.store(URL, KNOWN)
    assert line() == f"ok   identity file: {file.path} can be read by its owner only"
    file.path.chmod(0o640)
    assert line().startswith(f"FAIL identity file: {file.path} has a key in it, and others may")
    file.path.write_text("node-key-1")
    damaged = "it is damaged; restart the runner, which writes it again"
    assert line() == f"FAIL identity file: cannot read {file.path}: {damaged}"


@pytest.mark.parametrize(
    ("extensions", "is_required", "line"),
    [
        ("task-key pace", True, "ok   task keys: each task has a key of its own"),
        ("pace", False, f"ok   task keys: {NO_KEYS}: containers get this node's key"),
        ("pace", True, f"FAIL task keys: {NO_KEYS}: every task is rejected"),
    ],
    ids=["extension", "no extension", "required"],
)
def test_orchestrator_without_keys_for_tasks_is_a_hint_unless_they_are_required(
    tmp_path: Path, extensions: str, line: str, *, is_required: bool
) -> None:
    journal, _ = open_journal(tmp_path, "now")
    registration = replace(KNOWN, extensions=frozenset(extensions.split()))
    anyio.run(journal.store_registration, registration, URL, 1.0)
    journal.close_file()
    _, lines = doctor(state_dir=tmp_path, require_task_key=is_required)
    assert any(shown.startswith(line) for shown in lines), lines


@pytest.mark.parametrize(
    ("journal", "option", "runtime"),
    [
        ("elsewhere", "auto", "docker"),
        ("ordinary", "auto", "podman"),
        ("ordinary", "docker", "docker"),
        (None, "auto", "auto"),
    ],
    ids=["tasks on docker", "tasks on podman", "named by the operator", "no journal"],
)
def test_auto_is_the_open_tasks_runtime(
    tmp_path: Path, journal: str | None, option: str, runtime: str
) -> None:
    if journal is not None:
        write_journal(tmp_path, journal)
    settings = replace(SETTINGS, state_dir=tmp_path, container_runtime=option)
    assert anyio.run(runtime_to_use, settings) == runtime
