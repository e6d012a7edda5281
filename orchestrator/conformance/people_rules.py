"""Rules about extensions for people: pages and filters of lists, pause, rerun, purge, and why."""

import httpx

from orchestrator.conformance.expect import (
    Absent,
    Broken,
    Json,
    expect_accepted,
    expect_equal,
    expect_refusal,
    fields_of,
    json_of,
)
from orchestrator.conformance.target import Rule, Target


def pages(target: Target) -> None:
    """With a limit, Link has the next page of a list, until every row was there once."""
    ids = [target.create_task()["id"] for _ in range(3)]
    response = target.admin.get("/tasks", params={"status_filter": "pending", "limit": 2})
    if "next" not in response.links:
        raise Absent("GET /tasks with a limit has no Link to a next page")
    expect_equal("the number of tasks on a page of two", len(json_of(response)), 2)
    seen = [task["id"] for task in json_of(response)]
    while "next" in response.links and not set(ids) <= set(seen):
        # A path, or a whole URL.
        response = target.admin.get(response.request.url.join(response.links["next"]["url"]))
        seen += [task["id"] for task in json_of(response)]
    expect_equal(
        "what the pages have of three tasks", [one for one in seen if one in ids], ids[::-1]
    )
    expect_equal("the rows that came twice", len(seen) - len(set(seen)), 0)


def filters(target: Target) -> None:
    """Tasks are filtered by tag, text, creator, time and node."""
    mark = target.unique("filter")
    task = target.create_task(target_tags={"mark": mark})
    expect_listed(target, task, {"tag": f"mark={mark}"}, {"tag": f"mark={mark[:-1]}"})
    other = target.create_task(prompt=f"{task['prompt']} {mark}")
    expect_listed(target, other, {"text": mark.upper()}, {"text": f"{mark}%"})
    expect_listed(target, task, {"created_by": task["created_by"]}, {"created_by": other["id"]})
    at = task["created_at"]
    expect_listed(target, task, {"created_after": at}, {"created_before": at})
    node = target.register()
    held = target.assign(node)
    expect_listed(target, target.task(held.task_id), {"node": node.name}, {"node": mark})


def expect_listed(
    target: Target, task: Json, by: dict[str, str], by_another: dict[str, str]
) -> None:
    """Raise Broken if a task is not listed by one filter, or is by the other; or raise Absent."""
    without = _ids(target.admin.get("/tasks", params=by_another))
    if task["id"] in without:
        raise Absent(f"GET /tasks does not know the filter {', '.join(by_another)}")
    if task["id"] not in _ids(target.admin.get("/tasks", params=by)):
        raise Broken(f"a task is not listed by its {', '.join(by)}")


def unknown_parameter(target: Target) -> None:
    """A parameter that a list does not know is refused with 422."""
    for path in ("/tasks", "/nodes"):
        response = target.admin.get(path, params={"conformance": "x"})
        if response.is_success:
            raise Absent(f"GET {path} ignores parameters that it does not know")
        expect_refusal(f"GET {path} with an unknown parameter", response, 422)


def waiting(target: Target) -> None:
    """A pending task says why it waits, at its creation as well, and an assigned one does not."""
    task = target.create_task()
    if "waiting" not in task:
        raise Absent("a pending task does not say why it waits")
    for what, view in (("the new task", task), ("the task by its id", target.task(task["id"]))):
        if not isinstance(view.get("waiting"), str) or not view["waiting"]:
            raise Broken(f"{what} does not say why it waits")
    held = target.assign(target.register())
    expect_equal("waiting of an assigned task", target.task(held.task_id).get("waiting"), None)


def names(target: Target) -> None:
    """A node's name with control or direction characters is refused with 422."""
    for mark in ("\n", "\x1b", "\u202e"):
        name = f"{target.unique('node')}{mark}x"
        response = target.try_to_register(target.registration_token, name, {})
        if response.is_success:
            raise Absent("nodes may have any name")
        expect_refusal(f"the name {name!r}", response, 400, 422)


def pause(target: Target) -> None:
    """A paused node gets no task until it is resumed, and goes on with those that it has."""
    node = target.register()
    held = target.assign(node)
    expect_accepted("the status running", held.report("running"))
    response = _call(target, f"/nodes/{node.id}/pause", "a node cannot be paused")
    expect_equal("paused", fields_of(response, "paused")["paused"], expected=True)
    task = target.create_task(target_node_id=node.id)
    target.expect_no_task("what a paused node gets", node)
    expect_accepted("the status success of its task", held.report("success"))
    response = target.admin.post(f"/nodes/{node.id}/resume")
    expect_equal("paused after resume", fields_of(response, "paused")["paused"], expected=False)
    expect_equal("what the node gets then", target.assigned_id(node), task["id"])


def rerun(target: Target) -> None:
    """A task that has ended is run again as a new task of the same content; another is 409."""
    held = target.assign(target.register(), timeout_seconds=77)
    path = f"/tasks/{held.task_id}/rerun"
    response = _call(target, path, "a task cannot be run again")
    expect_refusal("running a task again that has not ended", response, 409)
    expect_accepted("the status error", held.report("error"))
    copy = target.rerun(held.task_id)
    expect_equal("rerun_of", copy.get("rerun_of"), held.task_id)
    if copy["id"] == held.task_id:
        raise Broken("it is the same task")
    task = target.task(held.task_id)
    for name in ("prompt", "target_node_id", "priority", "timeout_seconds", "files"):
        expect_equal(f"{name} of the new task", copy.get(name), task.get(name))
    expect_equal("what the node gets", target.assigned_id(held.node), copy["id"])


def purge(target: Target) -> None:
    """A task that has ended can be deleted, one that runs cannot, and is refused with 409."""
    held = target.assign(target.register())
    expect_accepted("the status running", held.report("running"))
    path = f"/tasks/{held.task_id}/purge"
    response = _call(target, path, "a task cannot be purged")
    expect_refusal("purging a task that runs", response, 409)
    expect_accepted("the status success", held.report("success"))
    fields_of(target.admin.post(path))
    response = target.admin.get(f"/tasks/{held.task_id}")
    expect_refusal("a task that was purged", response, 404)


def cancelled_end(target: Target) -> None:
    """A cancelled task shows when its node has reported its end, and not before."""
    held = target.assign(target.register())
    expect_accepted("the status running", held.report("running"))
    fields_of(target.admin.delete(f"/tasks/{held.task_id}"))
    if target.task(held.task_id).get("node_ended_at") is not None:
        raise Broken("it is shown before the node has reported it")
    expect_accepted("the status error of a cancelled task", held.report("error"))
    if not target.task(held.task_id).get("node_ended_at"):
        raise Absent("a cancelled task does not show when its container is gone")


def _call(target: Target, path: str, missing: str) -> httpx.Response:
    response = target.admin.post(path)
    # 404 of ours would be one of a task or a node that exists.
    if response.status_code in {404, 405}:
        raise Absent(missing)
    return response


def _ids(response: httpx.Response) -> list[str]:
    if response.status_code in {400, 422}:
        raise Absent(f"GET /tasks refuses the filters {response.request.url.query.decode()}")
    return [task["id"] for task in json_of(response)]


PEOPLE_RULES: dict[str, tuple[Rule, ...]] = {
    "lists": (pages, filters, unknown_parameter),
    "people": (waiting, names, pause, rerun, purge, cancelled_end),
}
