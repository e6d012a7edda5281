"""A key that is limited to patterns: within them it does what its role may, beyond them nothing."""

import importlib
import itertools
import json
import pkgutil
from dataclasses import dataclass

import httpx
import pytest
from starlette.routing import Route

from orchestrator import routes, web
from orchestrator.model import lies_within
from tests.orchestrator.serving import Json, RegisteredNode, RunningOrchestrator, ok, rows

MARK = "client-beta"
"""In whatever is another client's, and in nothing else."""
PATTERNS = ["client-acme-*"]
OPEN = {
    ("GET", "/dashboard"),
    ("GET", "/dashboard/tasks/{task_id}"),
    ("GET", "/health"),
    ("POST", "/register"),
}
"""Calls that need no key of the admin's."""
BOUNDED: dict[tuple[str, str], Json] = {
    ("GET", "/nodes"): {},
    ("GET", "/tasks"): {},
    ("GET", "/keys"): {},
    ("GET", "/keys/audit"): {"params": {"limit": 10_000}},
    ("GET", "/registration-tokens"): {},
    ("GET", "/dashboard/stats"): {},
    ("GET", "/dashboard/live"): {},
    ("POST", "/dashboard/matches"): {"json": {"target_node_name": "*"}},
    ("POST", "/tasks/cleanup"): {"params": {"days": 0}},
    ("POST", "/upload"): {"files": {"file": ("a.txt", b"a")}},
}
"""Calls that are answered, with what is within the key's patterns."""
PARTS = 5
"""Of the dashboard."""
BODIES: dict[tuple[str, str], Json] = {
    ("POST", "/tasks"): {"prompt": "p", "target_node_name": f"{MARK}-1"},
    ("POST", "/keys"): {"name": "n", "description": "d", "allowed_node_patterns": [f"{MARK}-*"]},
    ("POST", "/registration-tokens"): {"name": "n", "allowed_node_patterns": [f"{MARK}-*"]},
}
"""Bodies that reach beyond the patterns, of calls that create something."""


@dataclass(frozen=True)
class Client:
    """What one client has on the orchestrator."""

    node: RegisteredNode
    task_id: str
    """A task that its node holds."""
    key: Json
    ids: dict[str, str]
    """By the name of a path's parameter."""


def _client(orchestrator: RunningOrchestrator, name: str) -> Client:
    node = orchestrator.register(f"{name}-1")
    file = orchestrator.upload(f"{name}.txt", name.encode())["filename"]
    ended = orchestrator.assign(node, "running", target_node_id=None, target_node_name=f"{name}-*")
    node.report(ended, "success", message=name)
    task_id = orchestrator.assign(node, "running", prompt=name, files=[file])
    node.send_log(task_id, {"title": name})
    node.put_artifact(task_id, f"{name}.txt", name.encode())
    key = orchestrator.create_key(name=name, role="admin", allowed_node_patterns=[f"{name}-*"])
    token = orchestrator.create_token(f"{name}-*", name=name)
    ids = {"task_id": task_id, "node_id": node.id, "key_id": key["key_id"], "filename": file}
    ids |= {"token_id": token["token_id"], "path": f"{name}.txt"}
    return Client(node, task_id, key, ids)


def _calls() -> list[tuple[str, str]]:
    """Return each call of the application that needs a key, by method and path."""
    modules = [
        importlib.import_module(f"{package.__name__}.{module.name}")
        for package in (routes, web)
        for module in pkgutil.iter_modules(package.__path__)
    ]
    routers = [module.router for module in modules if hasattr(module, "router")]
    found = [route for router in routers for route in router.routes if isinstance(route, Route)]
    calls = {(method, route.path_format) for route in found for method in route.methods or ()}
    # The others name what is not theirs, which the audit then has.
    return sorted(calls - OPEN, key=lambda call: call not in BOUNDED)


def _answer(client: httpx.Client, call: tuple[str, str], other: Client) -> tuple[int, str]:
    method, path = call
    options = json.loads(json.dumps(BODIES[call])) if call in BODIES else None
    arguments: Json = {"json": options} if options else dict(BOUNDED.get(call, {}))
    if call == ("GET", "/dashboard/live"):
        with client.stream(method, path) as response:
            lines = (line for line in response.iter_lines() if line.startswith("data: "))
            return response.status_code, "".join(itertools.islice(lines, PARTS))
    response = client.request(method, path.format(**other.ids), **arguments)
    return response.status_code, response.text


def test_limited_admin_key_reaches_nothing_of_another_client(
    orchestrator: RunningOrchestrator,
) -> None:
    own, other = (_client(orchestrator, name) for name in ("client-acme", MARK))
    holder = orchestrator.client(own.key["api_key"])
    unused = orchestrator.upload("unused.txt", b"a")["filename"]
    calls = _calls()
    assert set(BOUNDED) | set(BODIES) <= set(calls)
    for call in calls:
        code, text = _answer(holder, call, other)
        if call in BOUNDED:
            assert (code, call) == (200, call)
            for secret in (MARK, *other.ids.values()):
                assert secret not in text, call
        else:
            assert code in {403, 404}, (call, code, text)
    body = {"prompt": "p", "target_node_name": "client-acme-1", "files": [other.ids["filename"]]}
    assert holder.post("/tasks", json=body).status_code == 422
    orchestrator.create_task(files=[unused])
    # Nothing was changed either: its tasks run, and its file, key and token work.
    assert orchestrator.task(other.task_id)["status"] == "running"
    assert [task["prompt"] for task in orchestrator.tasks() if task["prompt"] == "do it"]
    assert other.node.http.get(f"/files/{other.ids['filename']}").text == MARK
    assert ok(orchestrator.client(other.key["api_key"]).get("/dashboard/stats"))["total_nodes"] == 1


@pytest.mark.both_databases
def test_limited_admin_key_does_what_it_may_within_its_patterns(
    orchestrator: RunningOrchestrator,
) -> None:
    own, _ = (_client(orchestrator, name) for name in ("client-acme", MARK))
    holder = orchestrator.client(own.key["api_key"])
    stats = ok(holder.get("/dashboard/stats"))
    counts = ("total_nodes", "running_tasks", "completed_tasks_today")
    assert [stats[name] for name in counts] == [1, 1, 1]
    assert ok(holder.post("/dashboard/matches", json={})) == {"matching": 1, "total": 1}
    for path, ids in (("nodes", "id"), ("keys", "key_id"), ("registration-tokens", "token_id")):
        [row] = rows(holder.get(f"/{path}"))
        assert ok(holder.get(f"/{path}/{row[ids]}"))[ids] == row[ids]
    untargeted = orchestrator.create_task()["id"]
    mine = ok(holder.post("/tasks", json={"prompt": "p", "target_node_id": own.node.id}))["id"]
    seen = [task["id"] for task in rows(holder.get("/tasks"))]
    assert (len(seen), mine in seen, untargeted in seen) == (3, True, False)
    assert ok(holder.get(f"/logs/{own.task_id}"))["title"] == "client-acme"
    artifact = holder.get(f"/tasks/{own.task_id}/artifacts/client-acme.txt")
    assert artifact.content == b"client-acme"
    assert ok(holder.delete(f"/tasks/{own.task_id}"))["status"] == "cancelled"
    own.node.report(own.task_id, "error", message="cancelled")
    assert ok(holder.post("/tasks/cleanup?days=0")) == {"deleted_count": 2}
    actions = {entry["action"] for entry in ok(holder.get("/keys/audit"))["entries"]}
    assert {"key:created", "token:created", "tasks:cleanup"} <= actions
    ok(holder.delete(f"/nodes/{own.node.id}"))
    # Its node is gone, and the task that targets it is still its own.
    assert [task["id"] for task in rows(holder.get("/tasks"))] == [mine]


@pytest.mark.both_databases
def test_database_compares_patterns_as_the_model_does(orchestrator: RunningOrchestrator) -> None:
    names = ["a-1", "A-1", "a_1", "a%1", "a?1", "a[1]", "a\\1", "a*", "*", "ä-1", "b", "a"]
    for name in names:
        orchestrator.register(name)
        orchestrator.create_task(target_node_name=name)
    for pattern in ("a-*", "a_*", "a%*", "a?1", "a[1]", "a\\*", "ä*", "*1", "a", "A*", "*-*"):
        key = orchestrator.create_key(role="admin", allowed_node_patterns=[pattern])
        holder = orchestrator.client(key["api_key"])
        nodes = [node["name"] for node in rows(holder.get("/nodes"))]
        targets = [task["target_node_name"] for task in reversed(rows(holder.get("/tasks")))]
        expected = [name for name in names if lies_within(name, [pattern])]
        assert (nodes, targets) == (expected, expected), pattern
