"""Rules about what admins and owners of tasks see: keys, targets, order, lists, and the rest."""

from orchestrator.check.site import (
    Broken,
    Rule,
    Site,
    answered,
    assigned_id,
    expect_equal,
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
_NAMES = (
    ("client-acme-*", "client-acme-prod-1", True),
    ("client-acme-*", "client-acme-dev-2", True),
    ("client-acme-*", "client-beta-prod-1", False),
    ("*-gpu-*", "client-acme-gpu-1", True),
    ("prod-*", "prod-server-1", True),
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


def name_targets(site: Site) -> None:
    """target_node_name is a wildcard over the node's whole name."""
    for pattern, name, is_meant in _NAMES:
        # The mark keeps the check's tasks from real nodes; it stands where it changes nothing.
        mark = unique("n")
        node = site.register(f"{mark}{name}")
        task = site.create_task(target_node_name=f"{mark}{pattern}")
        expected = task["id"] if is_meant else None
        expect_equal(f"what {name} gets for {pattern}", assigned_id(node), expected)


def tag_targets(site: Site) -> None:
    """Every pair of target_tags must be among the node's tags."""
    # By its name, too: an orchestrator that passes over tags must not give these to real nodes.
    name = unique("tags")
    node = site.register(name, tags={"client": "acme", "env": "production"})
    for tags in ({"client": "acme", "env": "test"}, {"client": "beta"}, {"zone": "eu"}):
        site.create_task(target_node_name=name, target_tags=tags)
    tags = {"client": "acme", "env": "production"}
    task = site.create_task(target_node_name=name, target_tags=tags)
    expect_equal("the task that it gets", assigned_id(node), task["id"])
    expect_equal("the one after it", assigned_id(node), None)


def all_targets_hold(site: Site) -> None:
    """Where several targets are given, all of them hold."""
    name = unique("all")
    node, other = site.register(name), site.register(name)
    task = site.create_task(target_node_id=other.id, target_node_name=name)
    expect_equal("what the node gets that only the name fits", assigned_id(node), None)
    expect_equal("what the other gets", assigned_id(other), task["id"])


def order(site: Site) -> None:
    """A higher priority goes first, and the older task within it."""
    node = site.register()
    created = [
        site.create_task(target_node_id=node.id, priority=priority)["id"]
        for priority in (0, 5, -1, 5, 0)
    ]
    wanted = [created[index] for index in (1, 3, 0, 4, 2)]
    given: list[str | None] = []
    for _ in wanted:
        given.append(assigned_id(node))
        if given[-1] is not None:
            node.report(str(given[-1]), "running")
    expect_equal("the order", given, wanted)


def list_filter(site: Site) -> None:
    """Tasks are listed by status."""
    node = site.register()
    task = site.create_task(target_node_id=node.id)
    for status, is_there in (("pending", True), ("success", False)):
        listed = answered(site.admin.get("/tasks", params={"status_filter": status}))
        found = task["id"] in [one.get("id") for one in listed]
        expect_equal(f"whether it is among those that are {status}", found, is_there)


def unknown_is_404(site: Site) -> None:
    """What is not there is 404."""
    for path in ("tasks", "nodes", "logs", "keys"):
        name = unique("nothing")
        expect_refusal(f"GET /{path}/{name}", site.admin.get(f"/{path}/{name}"), 404)


def bad_task(site: Site) -> None:
    """A task without a prompt is refused with 422."""
    expect_refusal("it", site.admin.post("/tasks", json={"priority": 1}), 400, 422)


def cancel_pending(site: Site) -> None:
    """A cancelled task is given to nobody, and what has ended cannot be cancelled."""
    node = site.register()
    task = site.create_task(target_node_id=node.id)
    answer = fields_of(site.admin.delete(f"/tasks/{task['id']}"), "status")
    expect_equal("the status", answer["status"], "cancelled")
    expect_equal("what the node gets", assigned_id(node), None)
    ended = site.task_of(node)
    fields_of(node.report(ended, "success"))
    expect_refusal("cancelling a task that ended", site.admin.delete(f"/tasks/{ended}"), 400, 409)


def removed_node(site: Site) -> None:
    """A removed node's key is refused with 401."""
    node = site.register()
    fields_of(site.admin.delete(f"/nodes/{node.id}"))
    expect_refusal("a call with its key", node.http.get("/tasks/pending"), 401)


def scoped_key(site: Site) -> None:
    """A scoped key creates tasks for the nodes that it may target, until it is revoked."""
    mark = unique("scope")
    body = {"name": mark, "description": "conformance", "allowed_node_patterns": [f"{mark}-*"]}
    key = fields_of(site.admin.post("/keys", json=body), "key_id", "api_key", "key_prefix")
    try:
        holder = site.client(key["api_key"])
        task = {"prompt": "conformance check", "target_node_name": f"{mark}-1"}
        created = fields_of(holder.post("/tasks", json=task), "id")
        fields_of(site.admin.delete(f"/tasks/{created['id']}"))
        response = holder.post("/tasks", json={**task, "target_node_name": "other-*"})
        expect_refusal("a target outside its patterns", response, 403)
        if key["api_key"] in site.admin.get("/keys").text:
            raise Broken("the list of keys shows the key itself")
        fields_of(site.admin.post(f"/keys/{key['key_id']}/revoke"))
        expect_refusal("a call with the revoked key", holder.post("/tasks", json=task), 401, 403)
    finally:
        site.admin.delete(f"/keys/{key['key_id']}")


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
    name_targets,
    tag_targets,
    all_targets_hold,
    order,
    list_filter,
    unknown_is_404,
    bad_task,
    cancel_pending,
    removed_node,
    scoped_key,
    statistics,
    cleanup,
)
