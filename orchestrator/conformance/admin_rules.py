"""Rules about who may call, and what admins see: nodes, statistics, and the rest."""

from orchestrator.conformance.site import (
    NODE_FIELDS,
    Broken,
    Rule,
    Site,
    answered,
    expect_equal,
    expect_fields,
    expect_refusal,
    fields_of,
    unique,
)

_GUARDED = (
    ("GET", "/nodes"),
    ("GET", "/tasks"),
    ("POST", "/tasks"),
    ("GET", "/tasks/pending"),
    ("POST", "/nodes/heartbeat"),
    ("POST", "/status"),
    ("POST", "/logs"),
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


def health(site: Site) -> None:
    """The health check needs no key."""
    fields_of(site.client().get("/health"), "status", "version", "timestamp")


def key_needed(site: Site) -> None:
    """Every other call without a key, or with an unknown one, is refused with 401."""
    nobody, stranger = site.client(), site.client(unique("key"))
    for method, path in _GUARDED:
        what = f"{method} {path}"
        body: dict[str, str] | None = {} if method == "POST" else None
        expect_refusal(f"{what} without a key", nobody.request(method, path, json=body), 401)
    # Few, since an orchestrator may slow down whoever guesses.
    for method, path in _GUARDED[:2]:
        response = stranger.request(method, path)
        expect_refusal(f"{method} {path} with an unknown key", response, 401)


def node_is_no_admin(site: Site) -> None:
    """A node's key cannot do what the admin's can, and is refused with 403."""
    node = site.register()
    for path in ("/nodes", "/tasks", "/keys"):
        expect_refusal(f"GET {path} with a node's key", node.http.get(path), 403)
    response = node.http.post("/tasks", json={"prompt": "p"})
    expect_refusal("POST /tasks with a node's key", response, 403)


def admin_is_no_node(site: Site) -> None:
    """The admin's key cannot take work."""
    expect_refusal("GET /tasks/pending with it", site.admin.get("/tasks/pending"), 401, 403)


def nodes_listed(site: Site) -> None:
    """Nodes are listed, and shown one by one, with all their fields and without their keys."""
    node = site.register()
    response = site.admin.get("/nodes")
    listed = [one for one in answered(response) if one.get("id") == node.id]
    expect_equal("how often a node is on the list", len(listed), 1)
    expect_fields("the node on the list", listed[0], *NODE_FIELDS)
    shown = site.admin.get(f"/nodes/{node.id}")
    expect_equal("the id of the one shown", fields_of(shown, *NODE_FIELDS)["id"], node.id)
    if node.api_key in response.text + shown.text:
        raise Broken("its key is shown again")


def unknown_is_404(site: Site) -> None:
    """What is not there is 404."""
    for path in ("tasks", "nodes", "logs", "keys"):
        name = unique("nothing")
        expect_refusal(f"GET /{path}/{name}", site.admin.get(f"/{path}/{name}"), 404)


def removed_node(site: Site) -> None:
    """A removed node's key is refused with 401."""
    node = site.register()
    fields_of(site.admin.delete(f"/nodes/{node.id}"))
    expect_refusal("a call with its key", node.http.get("/tasks/pending"), 401)


def statistics(site: Site) -> None:
    """The dashboard's statistics have all their numbers."""
    fields_of(site.admin.get("/dashboard/stats"), *_STATISTICS)


def cleanup(site: Site) -> None:
    """A cleanup says how many tasks it deleted."""
    # So long ago that nothing is.
    response = site.admin.post("/tasks/cleanup", params={"days": 36_500})
    fields_of(response, "deleted_count")


ADMIN_RULES: tuple[Rule, ...] = (
    health,
    key_needed,
    node_is_no_admin,
    admin_is_no_node,
    nodes_listed,
    unknown_is_404,
    removed_node,
    statistics,
    cleanup,
)
