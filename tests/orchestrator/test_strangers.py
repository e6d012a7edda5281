"""What a caller without a key cannot make the server do."""

import threading
import time
import tracemalloc
from pathlib import Path

from tests.orchestrator.serving import RegisteredNode, RunningOrchestrator, refusal, serve

# Small objects: as text ten megabytes, as what Python makes of it many times that.
LARGE = b'{"task_id": "t", "session": {"a": [' + b"{}," * 3_400_000 + b"{}]}}"
JSON = {"Content-Type": "application/json"}


def test_large_body_of_a_stranger_is_not_parsed_and_holds_up_nobody(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    node.beat()
    codes: list[int] = []

    def post() -> None:
        answer = orchestrator.client("a-wrong-key").post("/logs", content=LARGE, headers=JSON)
        codes.append(answer.status_code)

    tracemalloc.start()  # the server is a thread of this process
    try:
        stranger = threading.Thread(target=post)
        stranger.start()
        while stranger.is_alive():
            node.beat()
            time.sleep(0.01)
        stranger.join()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert codes == [401]
    assert peak < 60 * 1024**2, f"{peak >> 20} MiB"


def test_log_without_a_key_is_refused_as_everywhere(orchestrator: RunningOrchestrator) -> None:
    body = {"task_id": "t", "session": {}}
    assert refusal(orchestrator.client().post("/logs", json=body)) == (
        401,
        "X-API-Key is missing",
    )


def test_wrong_keys_at_the_door_of_large_bodies_are_counted(
    tmp_path: Path, database_url: str | None
) -> None:
    body = {"task_id": "t", "session": {}}
    # So few that none is forgiven while the others are made.
    with serve(tmp_path, database_url=database_url, failures_per_minute=2) as orchestrator:
        codes = [
            orchestrator.client(f"guess-{number}").post("/logs", json=body).status_code
            for number in range(5)
        ]
    assert codes == [401] * 2 + [429] * 3
