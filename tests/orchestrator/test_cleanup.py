"""What is old goes, with all that belongs to it; what is needed stays."""

from pathlib import Path

import pytest

from tests.orchestrator.serving import RegisteredNode, RunningOrchestrator, ok, refusal


def _clean_up(orchestrator: RunningOrchestrator, days: int | None = None) -> int:
    params = {} if days is None else {"days": days}
    count: int = ok(orchestrator.admin.post("/tasks/cleanup", params=params))["deleted_count"]
    return count


def _stored(orchestrator: RunningOrchestrator) -> list[Path]:
    return list((orchestrator.settings.data_dir / "files").iterdir())


def test_tasks_that_ended_go_with_history_log_and_files(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    file = orchestrator.upload("a.txt", b"a")["filename"]
    ended = orchestrator.create_task("the-ended-prompt", files=[file])
    node.poll()
    ok(node.http.post("/logs", json={"task_id": ended["id"], "session": {"title": "the-log"}}))
    node.report(ended["id"], "success", message="the-message")
    waiting = orchestrator.create_task()
    assert _clean_up(orchestrator, days=0) == 1
    assert [task["id"] for task in orchestrator.tasks()] == [waiting["id"]]
    assert refusal(orchestrator.admin.get(f"/logs/{ended['id']}"))[0] == 404
    assert _stored(orchestrator) == []
    stored = orchestrator.stored()
    for text in ("the-ended-prompt", "the-log", "the-message", file):
        assert text not in stored


def test_week_is_kept_by_default(orchestrator: RunningOrchestrator) -> None:
    orchestrator.cancel(orchestrator.create_task()["id"])
    orchestrator.upload("unused.txt", b"a")
    assert _clean_up(orchestrator) == 0
    assert len(orchestrator.tasks()) == len(_stored(orchestrator)) == 1


def test_file_that_another_task_needs_stays(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    file = orchestrator.upload("a.txt", b"content")["filename"]
    orchestrator.cancel(orchestrator.create_task(files=[file])["id"])
    orchestrator.create_task(files=[file])
    assert _clean_up(orchestrator, days=0) == 1
    node.poll()
    assert node.http.get(f"/files/{file}").content == b"content"


def test_file_that_no_task_ever_named_goes(orchestrator: RunningOrchestrator) -> None:
    file = orchestrator.upload("a.txt", b"a")["filename"]
    assert _clean_up(orchestrator, days=0) == 0
    assert _stored(orchestrator) == []
    response = orchestrator.admin.post("/tasks", json={"prompt": "p", "files": [file]})
    assert refusal(response)[0] == 422


@pytest.mark.parametrize("days", ["-1", "40000", "week"])
def test_days_that_are_none_are_422(orchestrator: RunningOrchestrator, days: str) -> None:
    response = orchestrator.admin.post("/tasks/cleanup", params={"days": days})
    assert refusal(response)[0] == 422
