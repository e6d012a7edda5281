"""The output of tasks: sent in chunks, each byte once, and read whole or as it comes."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta

import httpx
import pytest
from sqlalchemy import Update, func, select, update

from orchestrator.budgets import OpenStreams, OutputPace
from orchestrator.db.database import CONNECTIONS
from orchestrator.db.output import HEAD_BYTES, TAIL_BYTES
from orchestrator.db.tables import OutputPart, Task, TaskOutput
from orchestrator.errors import TooMany
from orchestrator.model import utc_now
from tests.orchestrator.serving import (
    Json,
    RegisteredNode,
    RunningOrchestrator,
    ok,
    refusal,
    wait_for,
)

Events = Iterator[tuple[str, str, Json]]
"""The kind of each event, its id and its data."""


def _try_to_send(node: RegisteredNode, task_id: str, offset: int, text: str) -> httpx.Response:
    body = {"offset": offset, "text": text}
    return node.http.post(f"/tasks/{task_id}/output", json=body)


def _send(
    node: RegisteredNode, task_id: str, offset: int, text: str, *, done: bool | None = None
) -> int:
    body = {"offset": offset, "text": text, "done": done}
    return int(ok(node.http.post(f"/tasks/{task_id}/output", json=body))["length"])


def _read(
    orchestrator: RunningOrchestrator, task_id: str, offset: int = 0
) -> tuple[bytes, int, int, str]:
    """Return the text, and what the headers say of its offset, the length and the end."""
    response = orchestrator.admin.get(f"/tasks/{task_id}/output", params={"offset": offset})
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
    headers = response.headers
    first, length = int(headers["X-Output-Offset"]), int(headers["X-Output-Length"])
    return response.content, first, length, headers["X-Output-Done"]


@contextmanager
def _watching(
    orchestrator: RunningOrchestrator, task_id: str, offset: int = 0, last_id: str | None = None
) -> Iterator[Events]:
    headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last_id} if last_id else {})}
    path = f"/tasks/{task_id}/output?offset={offset}"
    with orchestrator.admin.stream("GET", path, headers=headers) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        yield _events(response)


def _events(response: httpx.Response) -> Events:
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        name, _, value = line.partition(": ")
        if name:
            fields[name] = value
        elif "data" in fields:
            yield fields["event"], fields.get("id", ""), json.loads(fields.pop("data"))
            fields = {}


def _of_task(task_id: str, **values: object) -> Update:
    return update(Task).where(Task.id == task_id).values(**values)


@pytest.mark.both_databases
def test_output_is_each_byte_once_whatever_is_repeated(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id = orchestrator.assign(node, "running")
    assert _read(orchestrator, task_id) == (b"", 0, 0, "false")
    texts = ["grüß dich\n", "\0\x1b[31mred\x1b[0m\r", "日本😀"]
    length = 0
    for text in texts:
        for _ in range(2):  # the second as after a lost response
            after = _send(node, task_id, length, text)
        length = after
    assert _send(node, task_id, 0, texts[0]) == length
    assert _send(node, task_id, length, "") == length
    whole = "".join(texts).encode()
    assert _read(orchestrator, task_id) == (whole, 0, len(whole), "false")
    assert _read(orchestrator, task_id, 12) == (whole[12:], 12, length, "false")
    # In the middle of a character the next one is the first.
    assert _read(orchestrator, task_id, length - 2) == (b"", length, length, "false")
    assert _read(orchestrator, task_id, length - 6) == ("😀".encode(), length - 4, length, "false")
    assert _read(orchestrator, task_id, 10**9) == (b"", length, length, "false")
    for offset, text in ((length + 1, "x"), (length - 1, "xx"), (length + 1, "")):
        response = _try_to_send(node, task_id, offset, text)
        assert (response.status_code, response.json()["length"]) == (409, length)
    assert f"at offset {length + 1}: {length} bytes are held" in response.json()["detail"]
    node.report(task_id, "success")
    end = _send(node, task_id, length, "the end", done=True)
    assert _send(node, task_id, length, "the end", done=True) == end
    assert _read(orchestrator, task_id) == (whole + b"the end", 0, end, "true")
    response = _try_to_send(node, task_id, end, "more")
    assert (response.status_code, response.json()["length"]) == (409, end)
    assert _read(orchestrator, task_id)[2] == end


def test_repeat_may_be_what_ends_the_output(shared: RunningOrchestrator) -> None:
    node = shared.register()
    task_id = shared.assign(node, "running")
    _send(node, task_id, 0, "text")
    _send(node, task_id, 0, "te", done=True)
    assert _read(shared, task_id)[3] == "false"
    _send(node, task_id, 4, "", done=True)
    assert _read(shared, task_id) == (b"text", 0, 4, "true")


@pytest.mark.both_databases
def test_of_long_output_head_and_tail_are_stored_with_a_mark_between(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id = orchestrator.assign(node, "running")
    # No chunk and no part ends where a character does by chance.
    chunk = "日本x" * 42_000
    whole = chunk.encode() * 42
    length = 0
    for _ in range(42):
        length = _send(node, task_id, length, chunk)
    text, offset, known, _ = _read(orchestrator, task_id)
    assert (offset, known) == (0, len(whole))
    head, _, rest = text.decode().partition("\n[")
    omitted, _, tail = rest.partition(" bytes of output are not stored]\n")
    assert HEAD_BYTES - 4 < len(head.encode()) <= HEAD_BYTES
    assert TAIL_BYTES - 33_000 < len(tail.encode()) <= TAIL_BYTES
    assert int(omitted) == len(whole) - len((head + tail).encode())
    assert whole.startswith(head.encode())
    assert whole.endswith(tail.encode())
    from_gap = _read(orchestrator, task_id, HEAD_BYTES + 10)
    assert from_gap[1] == len(whole) - len(tail.encode())
    assert from_gap[0].endswith(tail.encode())
    with _watching(orchestrator, task_id, HEAD_BYTES - 40_000) as events:
        shown = [next(events) for _ in range(4)]
    gap = next(data for _, _, data in shown if "are not stored" in data["text"])
    assert gap["offset"] == len(head.encode())
    with orchestrator.database() as database, database.reading() as session:
        stored = session.scalar(select(func.sum(func.length(OutputPart.data))))
    assert stored <= HEAD_BYTES + TAIL_BYTES


def test_only_the_node_that_has_the_task_sends_its_output(shared: RunningOrchestrator) -> None:
    node, other = shared.register(), shared.register("other")
    task_id = shared.assign(node, "running")
    pending = shared.create_task(target_node_id=node.id)["id"]
    task_key = str((node.poll() or {})["task_api_key"])
    body = {"offset": 0, "text": "forged"}
    for client, of_task, code in (
        (other.http, task_id, 403),
        (node.http, "unknown", 404),
        (shared.admin, task_id, 403),
        (shared.client(), task_id, 401),
        (shared.client(task_key), pending, 403),
    ):
        assert refusal(client.post(f"/tasks/{of_task}/output", json=body))[0] == code
    assert _read(shared, task_id)[2] == 0


def test_output_is_read_by_those_who_read_the_task(shared: RunningOrchestrator) -> None:
    node = shared.register("client-acme-1")
    operator = shared.client(shared.create_key(role="operator")["api_key"])
    body = {"prompt": "p", "target_node_id": node.id}
    own = ok(operator.post("/tasks", json=body))["id"]
    others = shared.create_task(target_node_name="nobody")["id"]
    limited = {"role": "admin", "allowed_node_patterns": ["client-acme-*"]}
    acme = shared.client(shared.create_key(**limited)["api_key"])
    submitter = shared.client(shared.create_key(role="submitter")["api_key"])
    for accept in ("text/plain", "text/event-stream"):
        headers = {"Accept": accept}
        for client, task_id, code in (
            (operator, others, 404),
            (acme, others, 404),
            (submitter, own, 403),
            (node.http, own, 403),
            (shared.client(), own, 401),
        ):
            response = client.get(f"/tasks/{task_id}/output", headers=headers)
            assert refusal(response)[0] == code
    for client in (operator, acme):
        assert client.get(f"/tasks/{own}/output").status_code == 200
    assert shared.audit(action="output:read")[-1]["detail"] == f"GET /tasks/{own}/output"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ('{"text": "x"}', "offset is missing"),
        ('{"offset": -1, "text": "x"}', "offset must be at least 0"),
        ('{"offset": "0", "text": "x"}', "offset must be a number"),
        ('{"offset": 0}', "text is missing"),
        ('{"offset": 0, "text": "\\ud800"}', "text"),
        ('{"offset": 0, "text": "x", "done": "no"}', "done must be true or false"),
    ],
)
def test_malformed_chunk_is_422(shared: RunningOrchestrator, body: str, sentence: str) -> None:
    headers = {"Content-Type": "application/json"}
    response = shared.register().http.post("/tasks/any/output", content=body, headers=headers)
    assert (response.status_code, refusal(response)[1][: len(sentence)]) == (422, sentence)


@pytest.mark.both_databases
def test_stream_shows_output_as_it_comes_and_the_end(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id = orchestrator.assign(node, "running")
    assert _try_to_send(node, task_id, 0, "grüß\n").json()["interval_seconds"] == 5
    with _watching(orchestrator, task_id) as events:
        assert next(events) == ("output", "7", {"offset": 0, "text": "grüß\n"})
        # Its node is asked to send more often.
        wait_for(lambda: _try_to_send(node, task_id, 7, "").json()["interval_seconds"] == 2)
        _send(node, task_id, 7, "dich")
        assert next(events) == ("output", "11", {"offset": 7, "text": "dich"})
        node.report(task_id, "success", message="all is well")
        _send(node, task_id, 11, "!", done=True)
        assert next(events) == ("output", "12", {"offset": 11, "text": "!"})
        assert list(events) == [("end", "", {"status": "success", "message": "all is well"})]
    with _watching(orchestrator, task_id, last_id="7") as events:
        assert [data.get("text") for _, _, data in events] == ["dich", "!", None]


def test_stream_ends_though_the_node_sends_no_rest(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    lost, cancelled = orchestrator.assign(node, "running"), orchestrator.create_task()["id"]
    orchestrator.cancel(cancelled)
    node.report(lost, "error", message="out of memory")
    with _watching(orchestrator, cancelled) as events:
        assert list(events) == [("end", "", {"status": "cancelled"})]
    # The rest of the output may still be on its way.
    with _watching(orchestrator, lost) as events:
        _send(node, lost, 0, "the rest")
        assert next(events)[2]["text"] == "the rest"
        orchestrator.change(_of_task(lost, node_ended_at=utc_now() - timedelta(minutes=1)))
        assert list(events) == [("end", "", {"status": "error", "message": "out of memory"})]


@pytest.mark.both_databases
def test_output_goes_with_its_task(orchestrator: RunningOrchestrator, node: RegisteredNode) -> None:
    task_id = orchestrator.assign(node, "running")
    _send(node, task_id, 0, "text")
    with _watching(orchestrator, task_id) as events:
        assert next(events)[2]["text"] == "text"
        node.report(task_id, "success")
        assert ok(orchestrator.admin.post("/tasks/cleanup?days=0")) == {"deleted_count": 1}
        assert list(events) == []
    with orchestrator.database() as database, database.reading() as session:
        for table in (OutputPart, TaskOutput):
            assert session.scalar(select(func.count()).select_from(table)) == 0


def test_output_of_an_assignment_that_did_not_start_is_discarded(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    other = orchestrator.register("other")
    task_id = orchestrator.create_task()["id"]
    assert node.poll_id() == task_id
    _send(node, task_id, 0, "too early")
    ok(orchestrator.admin.delete(f"/nodes/{node.id}"))
    assert other.poll_id() == task_id
    assert _send(other, task_id, 0, "first") == 5
    assert _read(orchestrator, task_id)[0] == b"first"


def test_stream_ends_when_the_server_stops(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id = orchestrator.assign(node, "running")
    _send(node, task_id, 0, "text")
    with _watching(orchestrator, task_id) as events:
        next(events)
        orchestrator.stop()
        assert list(events) == []


def test_output_that_waits_for_the_database_holds_up_no_other_call(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_ids = [orchestrator.assign(node) for _ in range(CONNECTIONS + 2)]
    with ThreadPoolExecutor(len(task_ids)) as pool:
        with orchestrator.database() as database, database.writing() as session:
            session.execute(select(1))  # begins, and so locks the database
            sent = [pool.submit(_send, node, task_id, 0, "x") for task_id in task_ids]
            for _ in range(20):
                ok(orchestrator.client().get("/health", timeout=10))
                time.sleep(0.02)  # until the calls have come in
            assert not any(one.done() for one in sent)
        assert [one.result() for one in sent] == [1] * len(task_ids)


def test_interval_grows_with_the_number_of_tasks_and_is_shorter_for_those_watched() -> None:
    now = 0.0
    pace = OutputPace(lambda: now)

    def intervals() -> tuple[int, int]:
        return pace.interval_s(is_watched=False), pace.interval_s(is_watched=True)

    assert intervals() == (5, 2)
    for count, expected in ((200, (5, 2)), (600, (15, 6)), (5000, (30, 12))):
        for number in range(count):
            pace.note(str(number), is_done=False)
        assert intervals() == expected
    for number in range(4600):
        pace.note(str(number), is_done=True)
    assert intervals() == (10, 4)
    now = 61
    pace.note("another", is_done=False)
    assert intervals() == (5, 2)


def test_open_streams_of_a_key_are_limited() -> None:
    streams = OpenStreams("streams of output", limit=1)
    streams.check("a")
    with streams.hold("a"):
        with pytest.raises(TooMany, match="1 streams of output open"):
            streams.check("a")
        streams.check("b")
    streams.check("a")
    assert len(streams) == 0
