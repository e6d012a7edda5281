"""What the dashboard is fed with: a stream of what there is to show, for admins alone."""

import json

from tests.orchestrator.serving import RegisteredNode, RunningOrchestrator, ok, refusal


def _first_event(orchestrator: RunningOrchestrator, task_id: str = "") -> str:
    path = f"/dashboard/live?task_id={task_id}"
    with orchestrator.admin.stream("GET", path) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        line = next(answer.iter_lines())
    return str(json.loads(line.removeprefix("data: ")))


def test_stream_has_nodes_tasks_keys_and_the_chosen_task(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task = orchestrator.create_task("the-prompt", recurrence="0 0 1 1 *", target_tags={"a": "b"})
    body = {"name": "the-key", "description": "d"}
    ok(orchestrator.admin.post("/keys", json=body))
    shown = _first_event(orchestrator, task["id"])
    for text in (node.name, "the-prompt", "a=b", "0 0 1 1 *", "the-key"):
        assert text in shown
    assert "Cancel it" in shown
    assert "Cancel it" not in _first_event(orchestrator, "unknown")


def test_stream_ends_when_the_server_stops(orchestrator: RunningOrchestrator) -> None:
    with orchestrator.admin.stream("GET", "/dashboard/live") as answer:
        lines = answer.iter_lines()
        next(lines)
        orchestrator.stop()
        list(lines)


def test_stream_and_preview_are_the_admins_alone(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    body = {"name": "n", "description": "d", "role": "operator"}
    scoped = ok(orchestrator.admin.post("/keys", json=body))["api_key"]
    for client in (orchestrator.client(scoped), node.http):
        assert refusal(client.get("/dashboard/live"))[0] == 403
        assert refusal(client.post("/dashboard/matches", json={}))[0] == 403
    assert refusal(orchestrator.client().get("/dashboard/live"))[0] == 401


def test_preview_counts_whom_a_target_fits(orchestrator: RunningOrchestrator) -> None:
    for name in ("client-acme-1", "client-acme-2", "client-beta-1"):
        orchestrator.register(name, tags={"n": name[-1]})
    body = {"target_node_name": "client-acme-*", "target_tags": {"n": "1"}}
    answer = orchestrator.admin.post("/dashboard/matches", json=body)
    assert ok(answer) == {"matching": 1, "total": 3}


def test_page_needs_no_key_and_allows_nothing_from_elsewhere(
    orchestrator: RunningOrchestrator,
) -> None:
    first, second = (orchestrator.client().get("/dashboard") for _ in range(2))
    assert first.status_code == 200
    policy = first.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    # The nonce is good for one answer.
    assert policy != second.headers["Content-Security-Policy"]
    assert "http" not in first.text.replace(orchestrator.url, "")
