"""`python -m orchestrator check`: ours passes, planted faults are found, nothing is left behind.

Each rule is one test on both databases: what a rule claims of our orchestrator needs no other test.
"""

import hashlib
import json
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestrator.conformance.run import PROFILES, Finding, Verdict, check, check_all, try_rule
from orchestrator.conformance.target import PROMPT, Rule, RunnerTarget, Target
from tests.harness.private_ca import make_private_ca
from tests.orchestrator import serving, small_server
from tests.orchestrator.conftest import DATABASES, NewDatabase
from tests.orchestrator.faulty import (
    FAULTS,
    NO_DELETION,
    Fault,
    FaultyOrchestrator,
    always,
    has,
    lacks,
    lists_nothing,
)
from tests.orchestrator.serving import Json, RunningOrchestrator, refusal, rows, serve, wait_for

ROOT = Path(__file__).parents[2]
REDELIVERY_AFTER_S = 1
SETTINGS: Json = {"failures_per_minute": 10**6, "redelivery_after_s": REDELIVERY_AFTER_S}
RULES: dict[str, Rule] = {
    rule.__name__: rule for rules in PROFILES["full"].values() for rule in rules
}
OTHER_RULES_A_FAULT = 3
RUNNER = ("--profile", "runner")
TOKEN, ADMIN_KEY = serving.REGISTRATION_TOKEN, serving.ADMIN_KEY
CREDENTIALS = {"REGISTRATION_TOKEN": TOKEN, "ADMIN_API_KEY": ADMIN_KEY}
Result = tuple[int, str, str]
"""The exit code, the output and the errors of a command."""

pytestmark = pytest.mark.settings(redelivery_after_s=REDELIVERY_AFTER_S)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyOrchestrator]:
    """Serve all tests of faults, on SQLite: the faults are in front of the databases."""
    with FaultyOrchestrator(tmp_path_factory.mktemp("faulty"), **SETTINGS) as running:
        yield running


@pytest.fixture(scope="module", params=DATABASES)
def ours(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    new_database: NewDatabase,
) -> Iterator[RunningOrchestrator]:
    with (
        new_database(request.param) as url,
        serve(tmp_path_factory.mktemp("ours"), database_url=url, **SETTINGS) as running,
    ):
        yield running


@pytest.fixture
def small() -> Iterator[str]:
    """Serve the small orchestrator; yield its URL."""
    with _serving_small() as port:
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _serving_small(tls: ssl.SSLContext | None = None) -> Iterator[int]:
    task = dict(small_server.TASK)
    with ThreadingHTTPServer(("127.0.0.1", 0), small_server.Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()
    small_server.TASK.update(task)
    small_server.NODES.clear()


def _target(orchestrator: RunningOrchestrator, **options: float) -> Target:
    return Target(orchestrator.url, TOKEN, ADMIN_KEY, **options)


def _try(orchestrator: RunningOrchestrator, *names: str, **options: float) -> list[Finding]:
    with _target(orchestrator, **options) as target:
        return [try_rule(RULES[name], target) for name in names]


def _findings(target: Target, profile: str = "full") -> dict[str, Finding]:
    with target:
        return {finding.rule: finding for finding in check_all(target, profile)}


def _verdicts(findings: dict[str, Finding]) -> set[Verdict]:
    return {finding.verdict for finding in findings.values()}


def _assert_nothing_is_left(orchestrator: RunningOrchestrator) -> None:
    for path in ("/nodes", "/keys", "/registration-tokens"):
        assert rows(orchestrator.admin.get(path)) == []
    assert {task["status"] for task in orchestrator.tasks()} <= {"cancelled", "success", "error"}


@pytest.mark.parametrize("name", RULES)
def test_ours_holds_to(name: str, ours: RunningOrchestrator) -> None:
    with _target(ours) as target:
        finding = try_rule(RULES[name], target)
    assert finding.verdict is Verdict.HOLDS, finding.reason
    assert target.left_behind == []
    _assert_nothing_is_left(ours)


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_found_by_its_rules_alone(name: str, faulty: FaultyOrchestrator) -> None:
    finders = FAULTS[name].rules.split()
    names = list(RULES)
    first = min(map(names.index, finders))
    # Those that follow are about the same call, or the next.
    others = [rule for rule in names[first:] + names[:first] if rule not in finders]
    # Ours takes half of that; only where it never comes is all of it waited for.
    within_s = 2 * REDELIVERY_AFTER_S if "redelivery" in finders else 60
    with faulty.planted(FAULTS[name]):
        tried = (*finders, *others[:OTHER_RULES_A_FAULT])
        findings = _try(faulty, *tried, redelivery_within_s=within_s, known_within_s=1)
    broken = [finding.rule for finding in findings if finding.verdict is Verdict.BROKEN]
    assert broken == finders, findings


def test_rules_of_a_missing_extension_are_absent(faulty: FaultyOrchestrator) -> None:
    with faulty.planted(Fault("POST /(register|nodes/heartbeat)", response=lacks("extensions"))):
        findings = _try(faulty, "reregistration", "reregistration_of_nobody", "task_key", "output")
        findings += _try(faulty, "artifacts", "artifacts_refused", "artifacts_archive")
    with faulty.planted(Fault("POST /nodes/.+/rotate-key", response=always(404, {"detail": ""}))):
        findings += _try(faulty, "rotated_node_key")
    with faulty.planted(Fault("POST /.+/(pause|rerun|purge)", response=always(404, {}))):
        findings += _try(faulty, "pause", "rerun", "purge")
    with faulty.planted(Fault("(GET|POST) /tasks", response=lacks("waiting", "node_ended_at"))):
        findings += _try(faulty, "waiting", "cancelled_end")
    with faulty.planted(Fault("GET /tasks$", lost_header="link")):
        findings += _try(faulty, "pages")
    assert [finding.verdict for finding in findings] == [Verdict.ABSENT] * 14


def test_check_goes_on_though_keys_cannot_be_sent(faulty: FaultyOrchestrator) -> None:
    with faulty.planted(Fault("POST /register", response=has(api_key="schlüssel"))):
        findings = _findings(_target(faulty))
    assert faulty.nodes() == []
    assert findings["registration"].reason == "a key has characters that no header can carry"
    assert findings["health"].verdict is Verdict.HOLDS


@pytest.mark.long
def test_tasks_of_others_stay_and_break_no_rule(orchestrator: RunningOrchestrator) -> None:
    targets: list[Json] = [{}, {"priority": 5}, {"target_node_name": "*-gpu-*"}]
    targets += [{"target_tags": tags} for tags in ({}, {"env": "production"})]
    foreign = [orchestrator.create_task(**target) for target in targets]
    orchestrator.cancel(orchestrator.create_task()["id"])
    findings = _findings(_target(orchestrator))
    assert _verdicts(findings) == {Verdict.HOLDS, Verdict.SKIPPED}
    assert findings["cleanup"].verdict is Verdict.SKIPPED
    assert findings["no_work"].reason == "tasks of others are waiting that are for any node"
    assert findings["order"].verdict is Verdict.HOLDS
    for task in foreign:
        assert [step["status"] for step in orchestrator.task(task["id"])["history"]] == ["pending"]


def test_task_of_others_is_returned_at_once(faulty: FaultyOrchestrator) -> None:
    task_id = faulty.create_task(f"{PROMPT} of another run")["id"]
    # The list does not show what is waiting, as if it came after the look at it.
    unlisted = Fault("GET /tasks$", response=lists_nothing)
    with faulty.planted(unlisted), _target(faulty) as target:
        finding = try_rule(RULES["no_work"], target)
        assert faulty.task(task_id)["status"] == "pending"
    assert finding.verdict is Verdict.SKIPPED
    faulty.cancel(task_id)


@pytest.mark.parametrize("path", ["/register", "/keys", "/tasks"])
def test_what_a_lost_response_names_is_removed(faulty: FaultyOrchestrator, path: str) -> None:
    # The calls are carried out, and nothing of their responses arrives.
    with faulty.planted(Fault(f"POST {path}", response=always(502, None))):
        _try(faulty, "registration", "key_fields", "task_fields")
    _assert_nothing_is_left(faulty)


def test_what_cannot_be_removed_is_named(faulty: FaultyOrchestrator) -> None:
    with faulty.planted(NO_DELETION), _target(faulty) as target:
        try_rule(RULES["key_fields"], target)
    [path] = target.left_behind
    assert path.startswith("/keys/")


def _run(url: str, *options: str, **variables: str | None) -> Result:
    environment = {"REGISTRATION_TOKEN": None, "ADMIN_API_KEY": None, **variables}
    done = CliRunner().invoke(check, [url, *options], env=environment)
    return done.exit_code, done.stdout, done.stderr


def _check(orchestrator: RunningOrchestrator, *options: str, **variables: str) -> Result:
    return _run(orchestrator.url, *options, **{**CREDENTIALS, **variables})


def test_command_prints_the_rules_by_call(orchestrator: RunningOrchestrator) -> None:
    code, output, errors = _check(orchestrator)
    assert (code, errors) == (0, ""), output
    assert output.startswith("POST /register\n  holds    A registration is answered with the node")
    assert output.endswith(f"\n\n{len(RULES)} holds, 0 broken, 0 absent, 0 skipped\n")
    _assert_nothing_is_left(orchestrator)
    # The tasks that had ended were purged.
    assert orchestrator.tasks() == []


def test_broken_rule_in_json_is_exit_code_1(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_server, "CHECKSUM", "0" * 64)
    options = (*RUNNER, "--take-task", "--json")
    code, output, _ = _run(small, *options, REGISTRATION_TOKEN=small_server.TOKEN)
    assert code == 1
    document = json.loads(output)
    rules = document.pop("rules")
    checksum = hashlib.sha256(small_server.FILE).hexdigest()
    [broken] = [rule for rule in rules if rule["verdict"] == "broken"]
    assert broken.pop("claim").startswith("The node that holds a task can download its files")
    reason = f"the checksum is {'0' * 64!r}, not {checksum!r}"
    expected = {"rule": "download", "group": "GET /files/{filename}", "verdict": "broken"}
    assert broken == {**expected, "reason": reason}
    assert document == {
        "url": small,
        "profile": "runner",
        "totals": {"holds": len(rules) - 1, "broken": 1, "absent": 0, "skipped": 0},
        "left_behind": [f"/nodes/{node}" for node in small_server.NODES.values()],
    }


@pytest.mark.parametrize(
    ("variable", "sentence"),
    [
        ("ADMIN_API_KEY", "cannot use the admin key: GET /nodes is answered with 401"),
        ("REGISTRATION_TOKEN", "cannot register a node: POST /register is answered with 401"),
    ],
)
def test_wrong_credential_is_one_sentence_and_the_end(
    orchestrator: RunningOrchestrator, variable: str, sentence: str
) -> None:
    code, output, errors = _check(orchestrator, **{variable: "wrong"})
    assert (code, output, errors.count("\n")) == (78, "", 1)
    assert errors.startswith(f"Error: {sentence}")
    assert orchestrator.nodes() == orchestrator.tasks() == []


@pytest.mark.settings(failures_per_minute=1)
def test_lock_out_is_one_sentence_with_a_time(orchestrator: RunningOrchestrator) -> None:
    wrong = orchestrator.client("wrong")
    while refusal(wrong.get("/nodes"))[0] != 429:
        pass
    code, output, errors = _check(orchestrator)
    assert (code, output, errors[-3:]) == (69, "", " s\n")
    assert errors.startswith("Error: cannot go on: GET /nodes is answered with 429")


def test_private_ca_is_trusted_as_curl_trusts_it(tmp_path: Path) -> None:
    tls, ca_file = make_private_ca(tmp_path)
    with _serving_small(tls) as port:
        url, variables = f"https://127.0.0.1:{port}", {"REGISTRATION_TOKEN": "wrong"}
        errors = [
            _run(url, *RUNNER, **variables, SSL_CERT_FILE=it)[2] for it in (None, str(ca_file))
        ]
    assert f"cannot reach {url}: [SSL: CERTIFICATE_VERIFY_FAILED]" in errors[0]
    assert "POST /register is answered with 401" in errors[1]


def test_orchestrator_that_cannot_be_reached_is_one_sentence() -> None:
    url = "http://127.0.0.1:1"
    code, output, errors = _run(url, REGISTRATION_TOKEN="t", ADMIN_API_KEY="k")  # noqa: S106 - none
    assert (code, output, errors.count("\n")) == (69, "", 1)
    assert errors.startswith(f"Error: cannot reach {url}: ")


@pytest.mark.parametrize(
    ("key", "options", "word"),
    [("schlüssel", [], "--admin-key"), ("key", ["--take-task"], "--profile runner")],
)
def test_wrong_usage_is_a_usage_error(key: str, options: list[str], word: str) -> None:
    variables = {"REGISTRATION_TOKEN": "token", "ADMIN_API_KEY": key}
    code, _, errors = _run("http://127.0.0.1:1", *options, **variables)
    assert (code, word in errors, "Traceback" in errors) == (2, True, False)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_leaves_nothing(orchestrator: RunningOrchestrator, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "check", orchestrator.url],
        cwd=ROOT,
        env=CREDENTIALS,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: len(orchestrator.tasks()) > 1)
    process.send_signal(number)
    _, errors = process.communicate()
    assert (process.returncode, errors) == (130, "Error: interrupted\n")
    _assert_nothing_is_left(orchestrator)


def test_runner_profile_holds_on_a_server_of_six_calls(small: str) -> None:
    target = RunnerTarget(small, small_server.TOKEN, take_task=True)
    findings = _findings(target, "runner")
    assert _verdicts(findings) == {Verdict.HOLDS}, findings
    assert small_server.TASK["status"] == "success"


def test_runner_profile_takes_no_task_unless_it_may(small: str) -> None:
    findings = _findings(RunnerTarget(small, small_server.TOKEN), "runner")
    assert _verdicts(findings) == {Verdict.HOLDS, Verdict.SKIPPED}
    advice = "it needs a task: queue one that has a file, and add --take-task"
    assert findings["assignment"].reason == advice
    assert small_server.TASK["node"] is None


def test_runner_profile_that_is_cut_short_ends_the_task_that_it_took(small: str) -> None:
    with RunnerTarget(small, small_server.TOKEN, take_task=True) as target:
        assert try_rule(RULES["job_or_task"], target).verdict is Verdict.HOLDS
        assert small_server.TASK["status"] == "running"
    assert small_server.TASK["status"] == "error"


def test_runner_profile_finds_what_is_broken(small: str) -> None:
    task = dict(small_server.TASK)
    with RunnerTarget(small, small_server.TOKEN, take_task=True, redelivery_within_s=0) as target:
        assert try_rule(RULES["assignment"], target).verdict is Verdict.HOLDS
        # It forgets which node has the task.
        small_server.TASK.update(task)
        for name in ("once_only", "no_work", "redelivery", "download", "job_or_task"):
            assert try_rule(RULES[name], target).verdict is Verdict.BROKEN, name


def test_runner_profile_needs_no_admin_key_of_ours(orchestrator: RunningOrchestrator) -> None:
    file = orchestrator.upload("sales Übersicht.csv", b"north,7")
    task_id = orchestrator.create_task(files=[file["filename"]])["id"]
    options = (*RUNNER, "--take-task", "--json")
    code, output, errors = _check(orchestrator, *options, ADMIN_API_KEY="")
    document = json.loads(output)
    verdicts = {rule["verdict"] for rule in document["rules"]}
    assert (code, errors, verdicts) == (0, "", {"holds"})
    assert orchestrator.task(task_id)["status"] == "success"
    nodes = {f"/nodes/{node['id']}": node["status"] for node in orchestrator.nodes()}
    assert nodes == dict.fromkeys(document["left_behind"], "offline")
    # With the admin's key no nodes are left behind.
    assert _check(orchestrator, *RUNNER)[0] == 0
    assert {f"/nodes/{node['id']}" for node in orchestrator.nodes()} == set(nodes)
