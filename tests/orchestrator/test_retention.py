"""A cleanup deletes what is old, with all that belongs to it, and nothing that is needed."""

from pathlib import Path

import pytest

from tests.orchestrator.serving import RegisteredNode, RunningOrchestrator, ok, refusal

pytestmark = pytest.mark.both_databases


def _clean_up(orchestrator: RunningOrchestrator, **params: int) -> int:
    count: int = ok(orchestrator.admin.post("/tasks/cleanup", params=params))["deleted_count"]
    return count


def _stored(orchestrator: RunningOrchestrator) -> list[Path]:
    return list((orchestrator.settings.data_dir / "files").iterdir())


def test_ended_tasks_go_with_history_log_and_files(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    file = orchestrator.upload("a.txt", b"a")["filename"]
    ended = orchestrator.assign(node, prompt="the-ended-prompt", files=[file])
    node.send_log(ended, {"title": "the-log"})
    node.report(ended, "success", message="the-message")
    waiting = orchestrator.create_task()
    assert _clean_up(orchestrator, days=0) == 1
    assert [task["id"] for task in orchestrator.tasks()] == [waiting["id"]]
    assert refusal(orchestrator.admin.get(f"/logs/{ended}"))[0] == 404
    assert _stored(orchestrator) == []
    stored = orchestrator.stored()
    for text in ("the-ended-prompt", "the-log", "the-message", file):
        assert text not in stored


def test_week_is_kept_by_default(orchestrator: RunningOrchestrator) -> None:
    orchestrator.cancel(orchestrator.create_task()["id"])
    orchestrator.upload("unused.txt", b"a")
    assert _clean_up(orchestrator) == 0
    assert len(orchestrator.tasks()) == len(_stored(orchestrator)) == 1


def test_only_files_that_a_task_needs_stay(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    needed = orchestrator.upload("a.txt", b"content")["filename"]
    unused = orchestrator.upload("b.txt", b"b")["filename"]
    orchestrator.cancel(orchestrator.create_task(files=[needed])["id"])
    orchestrator.create_task(files=[needed])
    assert _clean_up(orchestrator, days=0) == 1
    node.poll()
    assert node.http.get(f"/files/{needed}").content == b"content"
    assert len(_stored(orchestrator)) == 1
    response = orchestrator.admin.post("/tasks", json={"prompt": "p", "files": [unused]})
    assert refusal(response)[0] == 422


@pytest.mark.parametrize("days", ["-1", "40000", "week"])
def test_invalid_number_of_days_is_422(shared: RunningOrchestrator, days: str) -> None:
    assert refusal(shared.admin.post("/tasks/cleanup", params={"days": days}))[0] == 422
