"""Rules about who may call, and what admins see: nodes, statistics, and the rest."""

from orchestrator.conformance.expect import (
    Broken,
    Skipped,
    expect_equal,
    expect_fields,
    expect_refusal,
    fields_of,
    json_of,
)
from orchestrator.conformance.target import NODE_FIELDS, PROMPT, Rule, Target

_OF_ADMINS = (
    ("GET", "/nodes"),
    ("GET", "/tasks"),
    ("POST", "/tasks"),
    ("POST", "/upload"),
    ("GET", "/keys"),
    ("GET", "/keys/audit"),
    ("GET", "/dashboard/stats"),
)
_STATISTICS = (
    "total_nodes",
    "active_nodes",
    "idle_nodes",
    "offline_nodes",
    "pending_tasks",
    "running_tasks",
    "completed_tasks_today",
    "failed_tasks_today",
)
_ENDED = ("success", "error", "cancelled")


def health(target: Target) -> None:
    """The health check needs no key."""
    fields_of(target.client().get("/health"), "status", "version", "timestamp")


def key_needed(target: Target) -> None:
    """A call of an admin without a key, or with an unknown one, is refused with 401."""
    anonymous, stranger = target.client(), target.client(target.unique("key"))
    for method, path in _OF_ADMINS:
        body: dict[str, str] | None = {} if method == "POST" else None
        response = anonymous.request(method, path, json=body)
        expect_refusal(f"{method} {path} without a key", response, 401)
    # One alone, since an orchestrator may slow down those who guess.
    expect_refusal("GET /nodes with an unknown key", stranger.get("/nodes"), 401)


def node_is_not_admin(target: Target) -> None:
    """A node's key cannot do what the admin's can, and is refused with 403."""
    node = target.register()
    for path in ("/nodes", "/tasks", "/keys"):
        expect_refusal(f"GET {path} with a node's key", node.http.get(path), 403)
    response = target.try_to_create(node.http)
    expect_refusal("POST /tasks with a node's key", response, 403)


def admin_is_not_node(target: Target) -> None:
    """The admin's key cannot take work."""
    target.require_no_foreign_work(target.register())
    expect_refusal("GET /tasks/pending with it", target.admin.get("/tasks/pending"), 401, 403)


def nodes_listed(target: Target) -> None:
    """Nodes are listed, and returned one by one, with all their fields and without their keys."""
    node = target.register()
    response = target.admin.get("/nodes")
    listed = [one for one in json_of(response) if one.get("id") == node.id]
    expect_equal("how often a node is on the list", len(listed), 1)
    expect_fields("the node on the list", listed[0], *NODE_FIELDS)
    by_id = target.admin.get(f"/nodes/{node.id}")
    expect_equal("the id of the node", fields_of(by_id, *NODE_FIELDS)["id"], node.id)
    if node.api_key in response.text + by_id.text:
        raise Broken("its key is shown again")


def unknown_is_404(target: Target) -> None:
    """What does not exist is 404."""
    for path in ("tasks", "nodes", "logs", "keys"):
        name = target.unique("nothing")
        expect_refusal(f"GET /{path}/{name}", target.admin.get(f"/{path}/{name}"), 404)


def removed_node(target: Target) -> None:
    """A removed node's key is refused with 401."""
    node = target.register()
    fields_of(target.admin.delete(f"/nodes/{node.id}"))
    expect_refusal("a heartbeat with its key", node.heartbeat(), 401)


def statistics(target: Target) -> None:
    """The dashboard's statistics have all their numbers."""
    fields_of(target.admin.get("/dashboard/stats"), *_STATISTICS)


def cleanup(target: Target) -> None:
    """A cleanup returns how many tasks it deleted."""
    for task in json_of(target.admin.get("/tasks")):
        if task.get("status") in _ENDED and not str(task.get("prompt")).startswith(PROMPT):
            raise Skipped("tasks of others have ended, and a cleanup that is wrong deletes them")
    # Of a time before which nothing has ended.
    response = target.admin.post("/tasks/cleanup", params={"days": 36_500})
    fields_of(response, "deleted_count")


ADMIN_RULES: dict[str, tuple[Rule, ...]] = {
    "nodes": (nodes_listed, removed_node),
    "authorization": (key_needed, node_is_not_admin, admin_is_not_node, unknown_is_404),
    "service": (health, statistics, cleanup),
}
