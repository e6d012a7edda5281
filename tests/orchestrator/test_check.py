"""`python -m orchestrator check`: ours passes, planted faults are found, nothing is left.

Each rule is one test on both databases: what a rule claims of our orchestrator needs no other test.
"""

import hashlib
import json
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from fastapi import FastAPI
from psycopg import sql
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.conformance.run import PROFILES, Finding, Verdict, check, check_all, try_rule
from orchestrator.conformance.target import PROMPT, Rule, RunnerTarget, Target
from tests.orchestrator import small_server
from tests.orchestrator.serving import Json, RunningOrchestrator, refusal, serve, wait_for

ROOT = Path(__file__).parents[2]
REDELIVERY_AFTER_S = 1
RULES: dict[str, Rule] = {
    rule.__name__: rule for rules in PROFILES["full"].values() for rule in rules
}
OTHER_RULES_A_FAULT = 3


@dataclass(frozen=True)
class Fault:
    """What is changed in calls whose path begins so, and the rules that must find it."""

    path: str
    found_by: set[str]
    request: Callable[[Json], Json] = lambda body: body
    """Changes the body that comes in."""
    answer: Callable[[int, Any], tuple[int, Any]] = lambda status, body: (status, body)
    """Changes what goes out."""
    lost_header: bytes = b""
    """Leaves this out of what goes out."""
    ignored_header: bytes = b""
    """Leaves this out of what comes in."""
    method: str | None = None
    also: str = ""
    """One more path."""


def _without(*names: str) -> Callable[[Json], Json]:
    return lambda body: {name: value for name, value in body.items() if name not in names}


def _for_all_names(body: Json) -> Json:
    name = str(body.get("target_node_name") or "")
    return {**body, "target_node_name": name.partition("-")[0] + "*"} if "*" in name else body


def _only_task_id(body: Json) -> Json:
    return body if "task_id" in body else {"status": "nonsense"}


def _overwritten(status: int, body: Any) -> tuple[int, Any]:  # noqa: ANN401 - any JSON
    steps = (body or {}).get("history", [])
    is_first = any(step["message"] == "first" for step in steps)
    return status, {**body, "status": "error", "result": None} if is_first else body


def _never_cancelled(status: int, body: Any) -> tuple[int, Any]:  # noqa: ANN401 - any JSON
    body.pop("cancelled_task_ids", None)
    return status, {**body, "status": "running"} if body.get("status") == "cancelled" else body


def _few_task_fields(status: int, body: Any) -> tuple[int, Any]:  # noqa: ANN401 - any JSON
    fields = {"id", "status", "result", "detail", "history", "deleted_count"}
    if not isinstance(body, dict) or "task_id" in body:
        return status, body
    return status, {name: value for name, value in body.items() if name in fields}


def _lists_nothing(status: int, body: Any) -> tuple[int, Any]:  # noqa: ANN401 - any JSON
    return status, [] if isinstance(body, list) else body


def _no_rotation(status: int, body: Any) -> tuple[int, Any]:  # noqa: ANN401 - any JSON
    is_rotated = isinstance(body, dict) and "grace_period_hours" in body
    return (500, {"detail": "no"}) if is_rotated else (status, body)


def _accepted(code: int) -> Callable[[int, Any], tuple[int, Any]]:
    return lambda status, body: (200, {"id": "none"}) if status == code else (status, body)


class _Once:
    """Assigns each task once."""

    def __init__(self) -> None:
        self._assigned: set[str] = set()

    def __call__(self, status: int, body: Any) -> tuple[int, Any]:  # noqa: ANN401 - any JSON
        """Return null for a task that was assigned before."""
        if status != 200 or not body:
            return status, body
        if body["task_id"] in self._assigned:
            return status, None
        self._assigned.add(body["task_id"])
        return status, body


class _LateStatus:
    """Fails on each status of a task that has ended."""

    def __init__(self) -> None:
        self._ended: set[str] = set()

    def __call__(self, status: int, body: Any) -> tuple[int, Any]:  # noqa: ANN401 - any JSON
        """Return 500 for the second end of a task."""
        if body.get("status") != "success":
            return status, body
        if body["task_id"] in self._ended:
            return 500, body
        self._ended.add(body["task_id"])
        return status, body


FAULTS = {
    "a log may have any size": Fault("/logs", {"large_log"}, answer=_accepted(413)),
    "any node may report on a task": Fault("/status", {"tasks_of_others"}, answer=_accepted(403)),
    "any status is accepted": Fault(
        "/status", {"unknown_status", "bad_progress"}, answer=_accepted(422)
    ),
    "files are there for all nodes": Fault("/files/", {"files_of_others"}, answer=_accepted(404)),
    "a node's key is an admin's": Fault(
        "/nodes", {"node_is_not_admin"}, answer=_accepted(403), method="GET"
    ),
    "the admin may take work": Fault(
        "/tasks/pending", {"admin_is_not_node"}, answer=_accepted(403)
    ),
    "any task is accepted": Fault(
        "/tasks", {"bad_task", "recurrence"}, answer=_accepted(422), method="POST"
    ),
    "what has ended can be cancelled": Fault(
        "/tasks/", {"cancel_pending"}, answer=_accepted(409), method="DELETE"
    ),
    "keys never end": Fault(
        "/tasks",
        {"scoped_key", "rotation", "key_deletion", "key_needed"},
        answer=_accepted(401),
        method="POST",
    ),
    "any key exists": Fault(
        "/keys/", {"unknown_is_404", "key_deletion"}, answer=_accepted(404), method="GET"
    ),
    "health has no version": Fault("/health", {"health"}, answer=lambda *_: (200, {})),
    "a cleanup says nothing": Fault("/tasks/cleanup", {"cleanup"}, answer=lambda *_: (200, {})),
    "a wrong token is answered 200": Fault(
        "/register",
        {"wrong_token"},
        answer=lambda status, body: (200, body) if status == 401 else (status, body),
    ),
    "a key beside the token is ignored": Fault(
        "/register", {"reregistration", "reregistration_of_nobody"}, ignored_header=b"x-api-key"
    ),
    "a node that registers again keeps its tags": Fault(
        "/register", {"reregistration", "tag_targets"}, request=_without("tags")
    ),
    "a node that was removed may register again": Fault(
        "/register",
        {"reregistration_of_nobody"},
        answer=lambda status, body: (200, {"id": "some-id"}) if status == 410 else (status, body),
    ),
    "heartbeats name other extensions": Fault(
        "/nodes/heartbeat",
        {"reregistration", "reregistration_of_nobody"},
        answer=lambda status, body: (status, {**body, "extensions": ["another"]}),
    ),
    "an unknown key is 403": Fault(
        "/",
        {"wrong_token", "node_key_needed", "key_needed", "removed_node", "key_deletion"},
        answer=lambda status, body: (403 if status == 401 else status, body),
    ),
    "no work is an empty object": Fault(
        "/tasks/pending",
        {"no_work", "not_before_its_time"},
        answer=lambda status, body: (status, {} if body is None else body),
    ),
    "the assignment lacks its time limit": Fault(
        "/tasks/pending",
        {"timeout"},
        answer=lambda status, body: (status, body and _without("timeout_seconds")(body)),
    ),
    "the assignment lacks its prompt": Fault(
        "/tasks/pending",
        {"assignment"},
        answer=lambda status, body: (status, body and _without("prompt")(body)),
    ),
    "heartbeats are not answered with 200": Fault(
        "/nodes/heartbeat",
        {
            "heartbeat",
            "heartbeat_status",
            "cancelled",
            "reregistration",
            "reregistration_of_nobody",
        },
        answer=lambda status, body: (202 if status == 200 else status, body),
    ),
    "registered nodes lack most fields": Fault(
        "/register",
        {"registered_fields"},
        answer=lambda status, body: (status, _without("hostname", "registered_at")(body)),
    ),
    "a late status is an error": Fault(
        "/status",
        {"end", "first_end_wins"},
        answer=_LateStatus(),
    ),
    "uploads have another checksum": Fault(
        "/upload", {"upload"}, answer=lambda status, body: (status, {**body, "checksum": "0" * 64})
    ),
    "logs lose their title": Fault(
        "/logs/",
        {"stored_log"},
        answer=lambda status, body: (status, _without("title")(body)),
        method="GET",
    ),
    "the name is taken for a prefix": Fault(
        "/tasks", {"name_targets"}, request=_for_all_names, method="POST"
    ),
    "tags are ignored": Fault(
        "/tasks",
        {"tag_targets", "task_fields"},
        request=_without("target_tags"),
        method="POST",
    ),
    "priority is ignored": Fault(
        "/tasks", {"order", "task_fields"}, request=_without("priority"), method="POST"
    ),
    "job_id is not known": Fault("/status", {"job_or_task"}, request=_only_task_id),
    "the last end counts": Fault("/tasks/", {"first_end_wins"}, answer=_overwritten, method="GET"),
    "nodes do not learn of a cancelled task": Fault(
        "/status", {"cancelled"}, answer=_never_cancelled, also="/nodes/heartbeat"
    ),
    "the statistics are a list": Fault(
        "/dashboard/stats",
        {"statistics"},
        answer=lambda status, body: (status, [] if status == 200 else body),
    ),
    "the list of nodes is empty": Fault(
        "/nodes", {"nodes_listed"}, answer=_lists_nothing, method="GET"
    ),
    "tasks lack most fields": Fault(
        "/tasks", {"task_fields", "recurrence"}, answer=_few_task_fields
    ),
    "recurrence is ignored": Fault(
        "/tasks", {"recurrence"}, request=_without("recurrence"), method="POST"
    ),
    "any progress is taken": Fault(
        "/status",
        {"bad_progress"},
        request=lambda body: {**body, "progress": 50} if "progress" in body else body,
    ),
    "an assignment goes out once": Fault("/tasks/pending", {"redelivery"}, answer=_Once()),
    "keys lack their limits": Fault(
        "/keys",
        {"key_fields"},
        answer=lambda status, body: (
            status,
            _without("permissions", "rate_limit", "expires_at", "enabled")(body),
        ),
        method="POST",
    ),
    "a key's rate is ignored": Fault(
        "/keys", {"key_fields", "rate_limit"}, request=_without("rate_limit"), method="POST"
    ),
    "there is no Retry-After": Fault("/tasks", {"rate_limit"}, lost_header=b"retry-after"),
    "keys are not rotated": Fault("/keys/", {"rotation"}, answer=_no_rotation),
    "keys are not deleted": Fault(
        "/keys/",
        {"key_deletion"},
        answer=lambda *_: (405, {"detail": "no"}),
        method="DELETE",
    ),
    "the audit is empty": Fault(
        "/keys/audit",
        {"audit"},
        answer=lambda status, body: (status, {**body, "entries": [], "total": 0}),
    ),
}
"""By what is wrong."""


class Planted:
    """ASGI middleware with the fault that the orchestrator has at the moment."""

    def __init__(self, app: ASGIApp, orchestrator: "FaultyOrchestrator") -> None:
        self._app = app
        self._orchestrator = orchestrator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Change what comes in and what goes out."""
        fault = self._orchestrator.fault
        is_affected = scope["type"] == "http" and scope["path"].startswith(fault.path)
        is_affected = is_affected or scope.get("path") == fault.also
        if not is_affected or fault.method not in {None, scope["method"]}:
            await self._app(scope, receive, send)
            return
        unread = [await _whole(receive, fault.request)]
        sent: list[Message] = []

        async def receive_changed() -> Message:
            return unread.pop() if unread else await receive()

        async def keep(message: Message) -> None:
            sent.append(message)

        dropped = {b"content-length", fault.ignored_header}
        headers = [pair for pair in scope["headers"] if pair[0] not in dropped]
        await self._app({**scope, "headers": headers}, receive_changed, keep)
        await _send_changed(sent, fault, send)


async def _whole(receive: Receive, change: Callable[[Json], Json]) -> Message:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    if body[:1] == b"{":
        body = json.dumps(change(json.loads(body))).encode()
    return {"type": "http.request", "body": body, "more_body": False}


async def _send_changed(sent: list[Message], fault: Fault, send: Send) -> None:
    start = sent[0]
    body = b"".join(message.get("body", b"") for message in sent[1:])
    dropped = {b"content-length", fault.lost_header}
    headers = [pair for pair in start["headers"] if pair[0] not in dropped]
    status = start["status"]
    if body[:1] in {b"{", b"[", b"n"}:
        status, changed = fault.answer(status, json.loads(body))
        body = json.dumps(changed).encode()
    headers.append((b"content-length", str(len(body)).encode()))
    await send({**start, "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class FaultyOrchestrator(RunningOrchestrator):
    """Ours, with one fault planted at a time."""

    fault = Fault("/", set())

    def application(self) -> FastAPI:
        """Build it with the fault in front of it."""
        app = super().application()
        app.add_middleware(Planted, orchestrator=self)
        return app


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyOrchestrator]:
    """Serve all tests of faults, on SQLite: the faults are in front of the databases."""
    with FaultyOrchestrator(
        tmp_path_factory.mktemp("faulty"),
        failures_per_minute=10**6,
        redelivery_after_s=REDELIVERY_AFTER_S,
    ) as running:
        yield running


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def ours(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningOrchestrator]:
    """Serve all rules on one database."""
    settings: Json = {"failures_per_minute": 10**6, "redelivery_after_s": REDELIVERY_AFTER_S}
    data = tmp_path_factory.mktemp(request.param)
    if request.param == "sqlite":
        with serve(data, **settings) as running:
            yield running
        return
    server = request.getfixturevalue("postgresql_server")
    with _new_database(server) as url, serve(data, database_url=url, **settings) as running:
        yield running


@contextmanager
def _new_database(server: str) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield server.rpartition("/")[0] + f"/{name}"
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def orchestrator(tmp_path: Path) -> Iterator[RunningOrchestrator]:
    """Serve one test alone."""
    with serve(tmp_path / "data", redelivery_after_s=REDELIVERY_AFTER_S) as running:
        yield running


@pytest.fixture
def small() -> Iterator[str]:
    """Serve the small orchestrator; return its URL."""
    task = dict(small_server.TASK)
    server = ThreadingHTTPServer(("127.0.0.1", 0), small_server.Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()
    small_server.TASK.update(task)
    small_server.NODES.clear()


def _target(orchestrator: RunningOrchestrator, **options: float) -> Target:
    token = str(orchestrator.registration_token)
    return Target(orchestrator.url, token, orchestrator.admin_key, **options)


def _findings(target: Target, profile: str = "full") -> dict[str, Finding]:
    with target:
        return {finding.rule: finding for finding in check_all(target, profile)}


@pytest.mark.parametrize("name", RULES)
def test_ours_holds_to(name: str, ours: RunningOrchestrator) -> None:
    with _target(ours) as target:
        finding = try_rule(RULES[name], target)
    assert finding.verdict is Verdict.HOLDS, finding.reason
    assert target.left_behind == []
    assert ours.nodes() == []
    assert ours.admin.get("/keys").json() == []
    assert {task["status"] for task in ours.tasks()} <= {"cancelled", "success", "error"}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_found_by_its_rules_and_not_by_others(
    name: str, faulty: FaultyOrchestrator
) -> None:
    fault = FAULTS[name]
    names = list(RULES)
    first = min(names.index(rule) for rule in fault.found_by)
    # Those that follow are about the same call, or the next.
    others = [rule for rule in names[first:] + names[:first] if rule not in fault.found_by]
    # Ours takes half of that; only where it never comes is all of it waited for.
    within_s = 2 * REDELIVERY_AFTER_S if "redelivery" in fault.found_by else 60
    faulty.fault = fault
    with _target(faulty, redelivery_within_s=within_s) as target:
        findings = [
            try_rule(RULES[rule], target)
            for rule in (*sorted(fault.found_by), *others[:OTHER_RULES_A_FAULT])
        ]
    faulty.fault = Fault("/", set())
    broken = {one.rule for one in findings if one.verdict is Verdict.BROKEN}
    assert broken == fault.found_by, findings


def test_rules_about_an_extension_are_absent_where_it_is_not_named(
    faulty: FaultyOrchestrator,
) -> None:
    faulty.fault = Fault(
        "/register",
        set(),
        answer=lambda status, body: (status, _without("extensions")(body)),
        also="/nodes/heartbeat",
    )
    for name in ("reregistration", "reregistration_of_nobody"):
        with _target(faulty) as target:
            assert try_rule(RULES[name], target).verdict is Verdict.ABSENT
    faulty.fault = Fault("/", set())


def test_check_goes_on_though_keys_cannot_be_sent(faulty: FaultyOrchestrator) -> None:
    faulty.fault = Fault(
        "/register",
        set(),
        answer=lambda status, body: (status, {**body, "api_key": "schlüssel"}),
    )
    findings = _findings(_target(faulty))
    faulty.fault = Fault("/", set())
    assert faulty.nodes() == []
    assert findings["registration"].reason == "a key has characters that no header can carry"
    assert findings["health"].verdict is Verdict.HOLDS


def test_tasks_of_others_are_neither_taken_nor_counted_against_the_orchestrator(
    orchestrator: RunningOrchestrator,
) -> None:
    foreign = [
        orchestrator.create_task(),
        orchestrator.create_task(priority=5),
        orchestrator.create_task(target_node_name="*"),
        orchestrator.create_task(target_tags={}),
        orchestrator.create_task(target_node_name="*-gpu-*"),
        orchestrator.create_task(target_tags={"env": "production"}),
    ]
    findings = _findings(_target(orchestrator))
    verdicts = {finding.verdict for finding in findings.values()}
    assert verdicts == {Verdict.HOLDS, Verdict.SKIPPED}
    assert findings["no_work"].verdict is Verdict.SKIPPED
    assert findings["no_work"].reason == "tasks of others are waiting that are for any node"
    assert findings["order"].verdict is Verdict.HOLDS
    for task in foreign:
        assert [step["status"] for step in orchestrator.task(task["id"])["history"]] == ["pending"]


def test_task_of_others_that_is_assigned_all_the_same_is_pending_again_at_once(
    faulty: FaultyOrchestrator,
) -> None:
    # The list does not show what is waiting, as if it came after the look at it.
    faulty.fault = Fault("/tasks", set(), answer=_lists_nothing, method="GET")
    task = faulty.create_task(f"{PROMPT} of another run")
    with _target(faulty) as target:
        finding = try_rule(RULES["no_work"], target)
        assert faulty.task(task["id"])["status"] == "pending"
    faulty.fault = Fault("/", set())
    assert finding.verdict is Verdict.SKIPPED
    faulty.cancel(task["id"])


def test_cleanup_is_not_tried_where_it_could_delete_tasks_of_others(
    orchestrator: RunningOrchestrator,
) -> None:
    task = orchestrator.create_task()
    orchestrator.cancel(task["id"])
    with _target(orchestrator) as target:
        assert try_rule(RULES["cleanup"], target).verdict is Verdict.SKIPPED


def test_what_a_lost_response_would_have_named_is_removed(faulty: FaultyOrchestrator) -> None:
    # The calls are carried out, and nothing of their responses arrives.
    for path in ("/register", "/keys", "/tasks"):
        faulty.fault = Fault(path, set(), answer=lambda *_: (502, None), method="POST")
        with _target(faulty) as target:
            for rule in ("registration", "key_fields", "task_fields"):
                try_rule(RULES[rule], target)
            faulty.fault = Fault("/", set())
        assert faulty.nodes() == faulty.admin.get("/keys").json() == []
        assert {task["status"] for task in faulty.tasks()} <= {"cancelled", "success", "error"}


def _environment(orchestrator: RunningOrchestrator) -> dict[str, str]:
    return {
        "REGISTRATION_TOKEN": str(orchestrator.registration_token),
        "ADMIN_API_KEY": orchestrator.admin_key,
    }


def _run(url: str, *options: str, **variables: str) -> tuple[int, str, str]:
    environment: dict[str, str | None] = {"REGISTRATION_TOKEN": None, "ADMIN_API_KEY": None}
    done = CliRunner().invoke(check, [url, *options], env={**environment, **variables})
    return done.exit_code, done.stdout, done.stderr


def _check(
    orchestrator: RunningOrchestrator, *options: str, **variables: str
) -> tuple[int, str, str]:
    return _run(orchestrator.url, *options, **{**_environment(orchestrator), **variables})


def test_command_prints_the_rules_by_call_and_exits_with_0(
    orchestrator: RunningOrchestrator,
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "check", orchestrator.url],
        cwd=ROOT,
        env=_environment(orchestrator),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.startswith(
        "POST /register\n  holds    A registration is answered with the node"
    )
    assert done.stdout.endswith(f"\n\n{len(RULES)} holds, 0 broken, 0 absent, 0 skipped\n")
    assert orchestrator.nodes() == orchestrator.admin.get("/keys").json() == []
    assert all(task["prompt"].startswith(PROMPT) for task in orchestrator.tasks())


def test_json_is_one_document_and_the_command_exits_with_1_if_a_rule_is_broken(
    small: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_server, "CHECKSUM", "0" * 64)
    options = ("--profile", "runner", "--take-task", "--json")
    code, output, _ = _run(small, *options, REGISTRATION_TOKEN=small_server.TOKEN)
    assert code == 1
    document = json.loads(output)
    assert document["url"] == small
    assert document["profile"] == "runner"
    assert document["totals"] == {
        "holds": len(document["rules"]) - 1,
        "broken": 1,
        "absent": 0,
        "skipped": 0,
    }
    assert [one for one in document["rules"] if one["verdict"] == "broken"] == [
        {
            "rule": "download",
            "group": "GET /files/{filename}",
            "claim": "The node that holds a task can download its files, and their checksums are"
            " right",
            "verdict": "broken",
            "reason": f"the checksum is {'0' * 64!r}, not"
            f" {hashlib.sha256(small_server.FILE).hexdigest()!r}",
        }
    ]
    assert document["left_behind"] == [f"/nodes/{node}" for node in small_server.NODES.values()]


def test_what_cannot_be_removed_is_named(faulty: FaultyOrchestrator) -> None:
    faulty.fault = FAULTS["keys are not deleted"]
    with _target(faulty) as target:
        try_rule(RULES["key_fields"], target)
    faulty.fault = Fault("/", set())
    (path,) = target.left_behind
    assert path.startswith("/keys/")


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"ADMIN_API_KEY": "wrong"}, "cannot use the admin key: GET /nodes is answered with 401"),
        (
            {"REGISTRATION_TOKEN": "wrong"},
            "cannot register a node: POST /register is answered with 401",
        ),
    ],
)
def test_wrong_credential_is_one_sentence_and_nothing_else_is_tried(
    orchestrator: RunningOrchestrator, variables: dict[str, str], sentence: str
) -> None:
    code, output, errors = _check(orchestrator, **variables)
    assert (code, output) == (78, "")
    assert errors.startswith(f"Error: {sentence}")
    assert errors.count("\n") == 1
    assert orchestrator.nodes() == orchestrator.tasks() == []


def test_node_key_in_place_of_the_admin_key_is_one_sentence(
    orchestrator: RunningOrchestrator,
) -> None:
    node = orchestrator.register()
    code, output, errors = _check(orchestrator, ADMIN_API_KEY=node.api_key)
    assert (code, output) == (78, "")
    assert errors.startswith("Error: cannot use the admin key: GET /nodes is answered with 403")


def test_disabled_registration_is_one_sentence(tmp_path: Path) -> None:
    with serve(tmp_path, registration_token=None) as orchestrator:
        code, output, errors = _check(orchestrator, REGISTRATION_TOKEN="any")  # noqa: S106 - none
    assert (code, output) == (78, "")
    assert errors.startswith("Error: cannot register a node: POST /register is answered with 503")


def test_address_that_is_locked_out_is_one_sentence_with_a_time(tmp_path: Path) -> None:
    with serve(tmp_path, failures_per_minute=1) as orchestrator:
        wrong = orchestrator.client("wrong")
        while refusal(wrong.get("/nodes"))[0] != 429:
            pass
        code, output, errors = _check(orchestrator)
    assert (code, output) == (69, "")
    assert errors.startswith("Error: cannot go on: GET /nodes is answered with 429")
    assert errors.endswith(" s\n")


def test_orchestrator_that_cannot_be_reached_is_one_sentence(
    orchestrator: RunningOrchestrator,
) -> None:
    code, output, errors = _run("http://127.0.0.1:1", **_environment(orchestrator))
    assert (code, output) == (69, "")
    assert errors.startswith("Error: cannot reach http://127.0.0.1:1: ")
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "variables", "word"),
    [
        ((), {"ADMIN_API_KEY": "schlüssel"}, "--admin-key"),
        ((), {"ADMIN_API_KEY": ""}, "--admin-key"),
        (("--take-task",), {}, "--profile runner"),
    ],
)
def test_wrong_usage_is_a_usage_error(
    orchestrator: RunningOrchestrator, options: tuple[str], variables: dict[str, str], word: str
) -> None:
    code, _, errors = _check(orchestrator, *options, **variables)
    assert code == 2
    assert word in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_check_leaves_nothing(
    orchestrator: RunningOrchestrator, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "check", orchestrator.url],
        cwd=ROOT,
        env=_environment(orchestrator),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: len(orchestrator.tasks()) > 1)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors == "Error: interrupted\n"
    assert orchestrator.nodes() == orchestrator.admin.get("/keys").json() == []
    assert {task["status"] for task in orchestrator.tasks()} <= {"cancelled", "success", "error"}


def test_runner_profile_holds_on_a_server_of_six_calls(small: str) -> None:
    findings = _findings(RunnerTarget(small, small_server.TOKEN, take_task=True), "runner")
    assert {finding.verdict for finding in findings.values()} == {Verdict.HOLDS}, findings
    assert {finding.group for finding in findings.values()} == {
        "POST /register",
        "POST /nodes/heartbeat",
        "GET /tasks/pending",
        "GET /files/{filename}",
        "POST /status",
        "POST /logs",
        "authentication",
    }
    assert small_server.TASK["status"] == "success"


def test_runner_profile_takes_no_task_unless_it_may(small: str) -> None:
    findings = _findings(RunnerTarget(small, small_server.TOKEN), "runner")
    assert {finding.verdict for finding in findings.values()} == {Verdict.HOLDS, Verdict.SKIPPED}
    assert findings["assignment"].reason == (
        "it needs a task: queue one that has a file, and add --take-task"
    )
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
    task = orchestrator.create_task(files=[file["filename"]])
    options = ("--profile", "runner", "--take-task", "--json")
    code, output, errors = _check(orchestrator, *options, ADMIN_API_KEY="")
    assert (code, errors) == (0, "")
    document = json.loads(output)
    assert {one["verdict"] for one in document["rules"]} == {"holds"}
    assert orchestrator.task(task["id"])["status"] == "success"
    nodes = {f"/nodes/{node['id']}": node["status"] for node in orchestrator.nodes()}
    assert nodes == dict.fromkeys(document["left_behind"], "offline")


def test_runner_profile_removes_its_nodes_with_the_admin_key(
    orchestrator: RunningOrchestrator,
) -> None:
    code, output, _ = _check(orchestrator, "--profile", "runner")
    assert code == 0, output
    assert orchestrator.nodes() == []
