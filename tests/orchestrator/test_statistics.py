"""The fleet in numbers."""

from tests.orchestrator.serving import RunningOrchestrator, ok


def test_nodes_and_tasks_are_counted(orchestrator: RunningOrchestrator) -> None:
    idle, busy, silent, gone = (orchestrator.register(name) for name in "abcd")
    for node, status in ((idle, "idle"), (busy, "busy"), (silent, "idle"), (gone, "offline")):
        node.beat(status)
    orchestrator.silence(silent)
    for end in ("success", "error", "running", None):
        task = orchestrator.create_task(target_node_id=busy.id)
        if end is not None:
            busy.poll()
            busy.report(task["id"], end)
    orchestrator.cancel(orchestrator.create_task()["id"])
    assert ok(orchestrator.admin.get("/dashboard/stats")) == {
        "total_nodes": 4,
        "active_nodes": 2,
        "idle_nodes": 1,
        "offline_nodes": 2,
        "pending_tasks": 1,
        "running_tasks": 1,
        "completed_tasks_today": 1,
        "failed_tasks_today": 1,
    }
