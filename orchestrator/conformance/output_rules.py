"""Rules about the output of tasks (extension `output`)."""

import json

import httpx

from orchestrator.conformance.expect import (
    Broken,
    Json,
    call_of,
    expect_accepted,
    expect_equal,
    expect_refusal,
    fields_of,
)
from orchestrator.conformance.node_rules import require_extension
from orchestrator.conformance.target import Held, Node, Rule, Target

_FIRST, _SECOND = "grüß dich\n", "\x1b[32m…\x1b[0m\n"
_LENGTH, _WHOLE = len(_FIRST.encode()), len((_FIRST + _SECOND).encode())


def output(target: Target) -> None:
    """Output is stored as it was sent; a repeat changes nothing, and another offset is 409."""
    held = _hold(target)
    for what in ("the chunk", "the same chunk"):
        body = fields_of(_send(held.node, held, 0, _FIRST), "length", "interval_seconds")
        expect_equal(f"the length after {what}", body["length"], _LENGTH)
    response = _send(held.node, held, _LENGTH + 1, "a gap")
    expect_refusal("a chunk at another offset", response, 409)
    expect_equal("the length in that response", response.json().get("length"), _LENGTH)
    expect_accepted("the status success", held.report("success"))
    expect_accepted("a chunk after the end", _send(held.node, held, _LENGTH, _SECOND, done=True))
    for offset, text in ((0, _FIRST + _SECOND), (_LENGTH, _SECOND)):
        shown = target.admin.get(_path(held), params={"offset": offset})
        expect_accepted("the output", shown)
        expect_equal(f"the output from {offset} on", shown.content.decode(), text)
        headers = {"X-Output-Offset": offset, "X-Output-Length": _WHOLE, "X-Output-Done": "true"}
        for name, value in headers.items():
            expect_equal(name, shown.headers.get(name), str(value))


def output_of_others(target: Target) -> None:
    """Output is sent by the node that has the task, not by others and not with the task's key."""
    held = _hold(target)
    response = _send(target.idle_node(), held, 0, "forged")
    expect_refusal("output from another node", response, 403, 404)
    task_key = held.assignment.get("task_api_key")
    if task_key is not None:
        response = _send(target.with_key(held.node, str(task_key)), held, 0, "forged")
        expect_refusal("output with the task's key", response, 401, 403)
    expect_refusal("reading it with the node's key", held.node.http.get(_path(held)), 401, 403)


def output_events(target: Target) -> None:
    """A stream of events shows the output after Last-Event-ID, and the end of the task."""
    held = _hold(target)
    _send(held.node, held, 0, _FIRST)
    held.report("success", message="all is well")
    _send(held.node, held, _LENGTH, _SECOND, done=True)
    headers = {"Accept": "text/event-stream", "Last-Event-ID": str(_LENGTH)}
    response = target.admin.get(_path(held), headers=headers)
    expect_accepted("the stream", response)
    events = _events(response)
    chunk = {"event": "output", "id": str(_WHOLE), "data": {"offset": _LENGTH, "text": _SECOND}}
    expect_equal("the events before the last", events[:-1], [chunk])
    expect_equal("the last event", events[-1].get("event"), "end")
    expect_equal("the status in it", events[-1]["data"].get("status"), "success")


def _hold(target: Target) -> Held:
    held = target.hold()
    require_extension("output", held.node, "the output of tasks stays on their hosts")
    expect_accepted("the status running", held.report("running"))
    return held


def _path(held: Held) -> str:
    return f"/tasks/{held.task_id}/output"


def _send(node: Node, held: Held, offset: int, text: str, *, done: bool = False) -> httpx.Response:
    body = {"offset": offset, "text": text, "done": done}
    return node.http.post(_path(held), json=body)


def _events(response: httpx.Response) -> list[Json]:
    events = []
    for block in response.text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line[:1] != ":")
        if "data" in fields:
            events.append({**fields, "data": json.loads(fields["data"])})
    if not events:
        raise Broken(f"{call_of(response)} has no events")
    return events


OUTPUT_RULES: dict[str, tuple[Rule, ...]] = {
    "output of tasks": (output, output_of_others, output_events),
}
