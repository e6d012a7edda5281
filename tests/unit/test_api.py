"""The client sends what the API asks for, trusts no response, and classifies every failure."""

from __future__ import annotations

import gzip
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import TYPE_CHECKING, TypeAlias

import anyio
import pytest
from anyio.abc import ByteStream, SocketAttribute, SocketStream
from hypothesis import given
from hypothesis import strategies as st

from runner import __version__
from runner.api.address import check_orchestrator_url
from runner.api.client import HeartbeatResponse, OrchestratorClient
from runner.api.http import MAX_RESPONSE_BYTES, SLOWEST_UPLOAD_BYTES_PER_S, HttpClient
from runner.errors import ConfigurationError, Refused, Unauthorised, Unavailable
from runner.model import Identity, Registration, TaskStatus, log_body, status_body
from runner.redaction import Secret
from runner.timing import DEFAULT_TIMINGS, Timings
from tests.harness.server import (
    JSON,
    Answer,
    ScriptedServer,
    endless,
    http,
    json_response,
    nobody_listening,
    raw,
    serving,
    stalled,
    trickle,
    zeros,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

pytestmark = pytest.mark.anyio

Call: TypeAlias = Callable[[OrchestratorClient, Identity], Awaitable[object]]

NODE_ID = "6f1c2a34-0000-4000-8000-0123456789ab"
TOKEN = Secret("registration-token")
NODE: dict[str, object] = {"name": "n-1", "hostname": "h", "os_type": "linux"}


async def _download(client: OrchestratorClient, identity: Identity) -> bytes:
    async with client.download(identity, "a") as download:
        return b"".join([chunk async for chunk in download.chunks])


CALLS: dict[str, Call] = {
    "register": lambda client, _: client.register(TOKEN, NODE),
    "heartbeat": lambda client, identity: client.heartbeat(identity, {"status": "idle"}),
    "next task": lambda client, identity: client.next_task(identity, 25),
    "claim": lambda client, identity: client.claim(identity, "t-1", "starting", 0),
    "status": lambda client, identity: client.send_status(identity, {"status": "success"}),
    "log": lambda client, identity: client.send_log(identity, {"session": {}}),
    "download": _download,
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
every_json_call = pytest.mark.parametrize(
    "call",
    [CALLS["register"], CALLS["heartbeat"], CALLS["next task"], CALLS["claim"]],
    ids=["register", "heartbeat", "next task", "claim"],
)
BOMB = gzip.compress(b"{}" + b" " * (4 * MAX_RESPONSE_BYTES), compresslevel=1)
"""Valid JSON, once it has become four times as long as a response may be."""


# What is asked


async def test_registration_sends_the_token_and_the_node(
    orchestrator: OrchestratorClient, server: ScriptedServer
) -> None:
    server.answer(json_response({"id": NODE_ID, "api_key": "k"}))

    await orchestrator.register(TOKEN, NODE)

    request = server.requests[0]
    assert (request.method, request.target) == ("POST", "/register")
    assert request.headers["x-registration-token"] == "registration-token"
    assert "x-api-key" not in request.headers
    assert request.json() == NODE


async def test_registration_gives_the_identity(
    orchestrator: OrchestratorClient, server: ScriptedServer
) -> None:
    server.answer(json_response({"id": NODE_ID, "api_key": "k", "name": "n-1"}))

    registration = await orchestrator.register(TOKEN, NODE)

    assert registration == Registration(Identity(NODE_ID, Secret("k")), NODE)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"id": NODE_ID},
        {"api_key": "k"},
        {"id": 7, "api_key": "k"},
        {"id": NODE_ID, "api_key": None},
        {"id": NODE_ID, "api_key": ""},
        {"id": NODE_ID, "api_key": "k\r\nX-Evil: 1"},
        {"id": NODE_ID, "api_key": "schlüssel"},
        {"id": "\ud800", "api_key": "k"},
    ],
)
async def test_registration_without_a_usable_identity_is_no_registration(
    orchestrator: OrchestratorClient, server: ScriptedServer, answer: object
) -> None:
    server.answer(json_response(answer))

    with pytest.raises(Unavailable, match="has no usable id or api_key"):
        await orchestrator.register(TOKEN, NODE)


async def test_registration_of_a_known_node_carries_its_key_beside_the_token(
    orchestrator: OrchestratorClient, identity: Identity, server: ScriptedServer
) -> None:
    server.answer(json_response({"id": NODE_ID, "api_key": "node-key-1234"}))

    assert (await orchestrator.register(TOKEN, NODE, identity)).identity == identity

    request = server.requests[0]
    assert request.headers["x-registration-token"] == "registration-token"
    assert request.headers["x-api-key"] == "node-key-1234"


@pytest.mark.parametrize(
    ("named", "extensions"),
    [
        (["reregister", "pace"], {"reregister", "pace"}),
        (["reregister", 7, None, "with space", ""], {"reregister"}),
        ("reregister", set()),
        (None, set()),
    ],
)
async def test_extensions_are_read_from_registrations_and_heartbeats(
    orchestrator: OrchestratorClient,
    identity: Identity,
    server: ScriptedServer,
    named: object,
    extensions: set[str],
) -> None:
    server.answer(json_response({"id": NODE_ID, "api_key": "k", "extensions": named}))

    assert (await orchestrator.register(TOKEN, NODE)).extensions == extensions
    assert (await orchestrator.heartbeat(identity, {})).extensions == extensions


async def test_heartbeat_carries_key_and_node_id(
    orchestrator: OrchestratorClient, identity: Identity, server: ScriptedServer
) -> None:
    server.answer(json_response({}))

    await orchestrator.heartbeat(identity, {"status": "busy", "current_task_id": "t-1"})

    request = server.requests[0]
    assert (request.method, request.target) == ("POST", "/nodes/heartbeat")
    assert request.headers["x-api-key"] == "node-key-1234"
    assert request.json() == {"node_id": NODE_ID, "status": "busy", "current_task_id": "t-1"}


async def test_field_without_a_value_is_left_out_of_every_body(
    orchestrator: OrchestratorClient, identity: Identity, server: ScriptedServer
) -> None:
    server.answer(json_response({}))
    message = {"id": "m-1", "content": "", "model": None, "finished_at": None}

    await orchestrator.heartbeat(identity, {"status": "offline", "current_task_id": None})
    await orchestrator.send_status(identity, status_body("t-1", TaskStatus.RUNNING, None, 0))
    await orchestrator.send_log(identity, log_body("t-1", {"messages": [message]}))

    heartbeat, status, log = (request.json() for request in server.requests)
    assert heartbeat == {"node_id": NODE_ID, "status": "offline"}
    assert isinstance(status, dict)
    assert "message" not in status
    assert isinstance(log, dict)
    assert log["session"] == {"messages": [{"id": "m-1", "content": ""}]}


async def test_heartbeat_brings_the_tasks_that_were_cancelled(
    orchestrator: OrchestratorClient, identity: Identity, server: ScriptedServer
) -> None:
    server.answer(json_response({"cancelled_task_ids": ["t-1", "t-2"]}))

    response = await orchestrator.heartbeat(identity, {})

    assert response.cancelled == {"t-1", "t-2"}


@pytest.mark.parametrize(
    "answer", [None, {}, [], "ok", {"cancelled_task_ids": "t-1"}, {"cancelled_task_ids": [None, 1]}]
)
async def test_heartbeat_to_an_orchestrator_that_knows_no_cancelling_cancels_nothing(
    orchestrator: OrchestratorClient, identity: Identity, server: ScriptedServer, answer: object
) -> None:
    server.answer(json_response(answer))

    response = await orchestrator.heartbeat(identity, {})

    assert response == HeartbeatResponse(frozenset(), frozenset())


async def test_request_for_work_prefers_to_be_held(
    orchestrator: OrchestratorClient, identity: Identity, server: ScriptedServer
) -> None:
    server.answer(json_response(None))

    await orchestrator.next_task(identity, 25)

    request = server.requests[0]
    assert (request.method, request.target) == ("GET", "/tasks/pending")
    assert request.headers["prefer"] == "wait=25"
    assert request.headers["x-api-key"] == "node-key-1234"


@pytest.mark.parametrize(
    ("headers", "was_held"),
    [
        ({"Preference-Applied": "wait=25"}, True),
        ({"preference-applied": "Wait=5, return=minimal"}, True),
        ({"Preference-Applied": "respond-async"}, False),
        ({}, False),
    ],
)
async def test_held_request_is_told_by_preference_applied(
    orchestrator: OrchestratorClient,
    identity: Identity,
    server: ScriptedServer,
    headers: dict[str, str],
    was_held: bool,  # noqa: FBT001 - a column of the table
) -> None:
    server.answer(json_response(None, headers=headers))

    assert (await orchestrator.next_task(identity, 25)).was_held is was_held


async def test_assignment_comes_as_it_was_sent(
    orchestrator: OrchestratorClient, identity: Identity, server: ScriptedServer
) -> None:
    server.answer(json_response({"task_id": "t-1", "unheard": [1]}))

    offer = await orchestrator.next_task(identity, 25)

    assert offer.assignment == {"task_id": "t-1", "unheard": [1]}


@pytest.mark.parametrize(
    "answer",
    [
        json_response(None),
        http(200),
        http(204),
        http(200, b" \n"),
        http(200, b"", {"Content-Type": "text/html"}),
    ],
    ids=["null", "empty", "no content", "blank", "empty page"],
)
async def test_null_or_nothing_is_no_work(
    orchestrator: OrchestratorClient, identity: Identity, server: ScriptedServer, answer: Answer
) -> None:
    server.answer(answer)

    assert (await orchestrator.next_task(identity, 25)).assignment is None


@pytest.mark.parametrize(
    ("send", "path"),
    [(OrchestratorClient.send_status, "/status"), (OrchestratorClient.send_log, "/logs")],
)
async def test_report_is_posted_as_the_caller_wrote_it(
    orchestrator: OrchestratorClient,
    identity: Identity,
    server: ScriptedServer,
    send: Callable[[OrchestratorClient, Identity, Mapping[str, object]], Awaitable[object]],
    path: str,
) -> None:
    server.answer(json_response({}))
    body = {"job_id": "t-1", "task_id": "t-1", "message": "50 % für heute 🚀" * 10_000}

    await send(orchestrator, identity, body)

    request = server.requests[0]
    assert (request.method, request.target) == ("POST", path)
    assert request.headers["x-api-key"] == "node-key-1234"
    assert request.headers["content-type"] == "application/json"
    assert request.json() == body


async def test_claim_reports_the_task_as_running(
    orchestrator: OrchestratorClient, identity: Identity, server: ScriptedServer
) -> None:
    server.answer(json_response({"task_id": "t-1", "status": "running"}))

    assert await orchestrator.claim(identity, "t-1", "container is starting", 0) is None

    assert server.requests[0].target == "/status"
    assert server.requests[0].json() == {
        "job_id": "t-1",
        "task_id": "t-1",
        "status": "running",
        "message": "container is starting",
        "timestamp": "1970-01-01T00:00:00+00:00",
    }


async def test_claim_returns_the_final_status_that_the_task_has_already(
    orchestrator: OrchestratorClient, identity: Identity, server: ScriptedServer
) -> None:
    server.answer(json_response({"task_id": "t-1", "status": "error"}))

    assert await orchestrator.claim(identity, "t-1", "starting", 0) is TaskStatus.ERROR


@pytest.mark.parametrize(
    ("response", "status"),
    [
        ({"status": "cancelled"}, TaskStatus.CANCELLED),
        ({"status": "success"}, None),  # of the request, perhaps
        ({"status": "success", "task_id": "t-1"}, TaskStatus.SUCCESS),
        ({"status": "error", "job_id": "t-1"}, TaskStatus.ERROR),
        ({"status": "success", "task_id": "t-2"}, None),
        ({"status": "success", "task_id": ["t-1"]}, None),
        ({"status": "running", "task_id": "t-1"}, None),
        ({"status": "paused", "task_id": "t-1"}, None),
        ({"status": 3}, None),
        ({"status": {}}, None),
        ({}, None),
        (None, None),
        (["status"], None),
    ],
)
async def test_report_returns_the_final_status_that_the_response_has(
    orchestrator: OrchestratorClient,
    identity: Identity,
    server: ScriptedServer,
    response: object,
    status: TaskStatus | None,
) -> None:
    server.answer(json_response(response))

    assert await orchestrator.send_status(identity, {"task_id": "t-1"}) is status


async def test_health_needs_no_key(
    orchestrator: OrchestratorClient, server: ScriptedServer
) -> None:
    server.answer(json_response({"status": "ok", "version": "1.1.2"}))

    assert (await orchestrator.health())["version"] == "1.1.2"
    assert "x-api-key" not in server.requests[0].headers


async def test_every_request_says_which_runner_it_is_and_asks_for_plain_json(
    orchestrator: OrchestratorClient, server: ScriptedServer
) -> None:
    server.answer(json_response({}))

    await orchestrator.health()

    headers = server.requests[0].headers
    assert headers["user-agent"] == f"victoria-runner/{__version__}"
    assert headers["accept"] == "application/json"
    assert headers["accept-encoding"] == "identity"


async def test_orchestrator_may_live_below_a_path(
    server: ScriptedServer, identity: Identity
) -> None:
    server.answer(json_response(None))

    async with OrchestratorClient(f"{server.url}/victoria/api") as client:
        await client.next_task(identity, 25)

    assert server.requests[0].target == "/victoria/api/tasks/pending"


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("two words", "/files/two%20words"),
        ("Übersicht", "/files/%C3%9Cbersicht"),
        ("#1", "/files/%231"),
        ("50%", "/files/50%25"),
        ("%2e%2e", "/files/%252e%252e"),
        ("what?", "/files/what%3F"),
        ("a:b", "/files/a%3Ab"),
        ("//evil.example", "/files/%2F%2Fevil.example"),
    ],
)
async def test_name_of_a_file_is_encoded(
    orchestrator: OrchestratorClient,
    identity: Identity,
    server: ScriptedServer,
    name: str,
    target: str,
) -> None:
    server.answer(http(200, b"x"))

    async with orchestrator.download(identity, name):
        pass

    assert server.requests[0].target == target


async def test_download_streams_what_is_sent_and_tells_its_size(
    orchestrator: OrchestratorClient, identity: Identity, server: ScriptedServer
) -> None:
    server.answer(zeros(3_000_000))
    sizes: list[int] = []

    async with orchestrator.download(identity, "a") as download:
        sizes += [len(chunk) async for chunk in download.chunks]

    assert download.size == 3_000_000
    assert sum(sizes) == 3_000_000
    assert len(sizes) > 1


async def test_download_of_untold_size_says_so(
    orchestrator: OrchestratorClient, identity: Identity, server: ScriptedServer
) -> None:
    server.answer(raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"))

    async with orchestrator.download(identity, "a") as download:
        content = b"".join([chunk async for chunk in download.chunks])

    assert (download.size, content) == (None, b"x")


# Refused


@every_call
async def test_401_is_an_unknown_key_or_token(
    orchestrator: OrchestratorClient, identity: Identity, server: ScriptedServer, call: Call
) -> None:
    server.answer(json_response({"detail": "Invalid API key"}, 401))

    with pytest.raises(Unauthorised) as caught:
        await call(orchestrator, identity)

    assert str(caught.value) == "HTTP 401: Invalid API key"
    assert caught.value.status == 401


@every_call
@pytest.mark.parametrize("status", [400, 403, 404, 405, 409, 410, 413, 422])
async def test_other_4xx_is_refused_for_good(
    orchestrator: OrchestratorClient,
    identity: Identity,
    server: ScriptedServer,
    call: Call,
    status: int,
) -> None:
    server.answer(json_response({"detail": "no"}, status))

    with pytest.raises(Refused) as caught:
        await call(orchestrator, identity)

    assert type(caught.value) is Refused
    assert (str(caught.value), caught.value.status) == (f"HTTP {status}: no", status)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"detail": "task is closed"}', "HTTP 409: task is closed"),
        (b'{"detail": "two\\nlines\\u001b[31m"}', "HTTP 409: two lines [31m"),
        (b'{"detail": "\\ud800 alone"}', "HTTP 409: alone"),
        (b'{"detail": [{"loc": ["body"]}]}', 'HTTP 409: [{"loc": ["body"]}]'),
        (b'{"detail": null}', "HTTP 409"),
        (b"[]", "HTTP 409"),
        (b"", "HTTP 409"),
        (b"<html>", "HTTP 409"),
        (b'{"detail": "' + b"x" * 5000 + b'"}', "HTTP 409: " + "x" * 300),
    ],
)
async def test_refusal_carries_the_orchestrator_s_reason_as_one_short_line(
    orchestrator: OrchestratorClient, server: ScriptedServer, body: bytes, message: str
) -> None:
    server.answer(http(409, body, JSON))

    with pytest.raises(Refused) as caught:
        await orchestrator.health()

    assert str(caught.value) == message


PAGES = {
    "html": http(404, b"<html>404 page not found</html>", {"Content-Type": "text/html"}),
    "text": http(404, b"404 page not found", {"Content-Type": "text/plain"}),
    "nothing": http(404),
    "json in a page": http(404, b'{"detail": "no"}', {"Content-Type": "text/html"}),
    "bomb": http(404, BOMB, {**JSON, "Content-Encoding": "gzip"}),
    "endless": raw(b"HTTP/1.1 404 Not Found\r\n\r\n", *[bytes(1 << 20)] * 17),
}


@every_call
@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES.keys())
async def test_refusal_by_a_proxy_has_no_detail(
    orchestrator: OrchestratorClient,
    identity: Identity,
    server: ScriptedServer,
    call: Call,
    page: Answer,
) -> None:
    server.answer(page)

    with pytest.raises(Refused) as caught:
        await call(orchestrator, identity)

    assert (str(caught.value), caught.value.detail) == ("HTTP 404", None)


# Unavailable


@every_call
@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
async def test_trouble_that_passes_is_unavailable(
    orchestrator: OrchestratorClient,
    identity: Identity,
    server: ScriptedServer,
    call: Call,
    status: int,
) -> None:
    server.answer(json_response({"detail": "later"}, status))

    with pytest.raises(Unavailable) as caught:
        await call(orchestrator, identity)

    assert str(caught.value) == f"HTTP {status}: later"
    assert (caught.value.status, caught.value.detail) == (status, "later")
    assert caught.value.retry_after_s is None


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_in_seconds_is_kept(
    orchestrator: OrchestratorClient, server: ScriptedServer, status: int
) -> None:
    server.answer(http(status, headers={"Retry-After": "17"}))

    with pytest.raises(Unavailable) as caught:
        await orchestrator.health()

    assert caught.value.retry_after_s == 17


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_as_a_date_is_kept(
    orchestrator: OrchestratorClient, server: ScriptedServer, status: int
) -> None:
    moment = datetime.now(timezone.utc) + timedelta(seconds=600)
    server.answer(http(status, headers={"Retry-After": format_datetime(moment, usegmt=True)}))

    with pytest.raises(Unavailable) as caught:
        await orchestrator.health()

    assert caught.value.retry_after_s is not None
    assert 570 < caught.value.retry_after_s <= 600


async def test_retry_after_in_the_past_means_now(
    orchestrator: OrchestratorClient, server: ScriptedServer
) -> None:
    server.answer(http(503, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}))

    with pytest.raises(Unavailable) as caught:
        await orchestrator.health()

    assert caught.value.retry_after_s == 0


@pytest.mark.parametrize(
    "value",
    ["soon", "-1", "1.5", "Wed, 99 Oct 2015 07:28:00 GMT", "1 Jan 1 0:0:0 +9999999999999999", "²"],
)
async def test_retry_after_that_cannot_be_read_is_as_none(
    orchestrator: OrchestratorClient, server: ScriptedServer, value: str
) -> None:
    server.answer(http(503, headers={"Retry-After": value}))

    with pytest.raises(Unavailable) as caught:
        await orchestrator.health()

    assert caught.value.retry_after_s is None


@every_json_call
@pytest.mark.parametrize(
    "body",
    [b'{"half": ', b"\xff\xfe\xfd", b"[" * 200_000, b"9" * 5000, b"<html>"],
    ids=["half", "not text", "nested", "long number", "html"],
)
async def test_response_that_is_not_valid_json_is_unavailable(
    orchestrator: OrchestratorClient,
    identity: Identity,
    server: ScriptedServer,
    call: Call,
    body: bytes,
) -> None:
    server.answer(http(200, body, JSON))

    with pytest.raises(Unavailable) as caught:
        await call(orchestrator, identity)

    assert str(caught.value) == "its response is not valid JSON"


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "application/json;charset=UTF-8",
        "APPLICATION/JSON",
        "Text/Json",
        "application/problem+json",
        "application/vnd.victoria.v1+json ; charset=utf-8",
        " application/json",
    ],
)
@pytest.mark.parametrize("call", [CALLS["status"], CALLS["log"]], ids=["status", "log"])
async def test_json_is_what_the_content_type_calls_so(
    orchestrator: OrchestratorClient,
    identity: Identity,
    server: ScriptedServer,
    content_type: str,
    call: Call,
) -> None:
    server.answer(http(200, b"{}", {"Content-Type": content_type}))

    await call(orchestrator, identity)


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "text/html",
        "text/html; charset=utf-8",
        "text/plain",
        "application/jsonp",
        "application/octet-stream",
        "json",
        "text/html; application/json",
    ],
)
@pytest.mark.parametrize(
    "call",
    [*(CALLS[name] for name in ("register", "heartbeat", "next task", "claim", "status", "log"))],
    ids=["register", "heartbeat", "next task", "claim", "status", "log"],
)
async def test_json_of_another_content_type_is_unavailable(
    orchestrator: OrchestratorClient,
    identity: Identity,
    server: ScriptedServer,
    content_type: str | None,
    call: Call,
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    server.answer(http(200, b'{"id": "n", "api_key": "k", "task_id": "t-1"}', headers))

    with pytest.raises(Unavailable) as caught:
        await call(orchestrator, identity)

    assert str(caught.value) == (
        f"its response is not JSON (Content-Type: {content_type or 'none'}); "
        "is this the orchestrator's address?"
    )


@pytest.mark.parametrize("call", [CALLS["claim"], CALLS["status"], CALLS["log"]])
@pytest.mark.parametrize(
    "answer",
    [http(200), http(204), http(200, b"", {"Content-Type": "text/html"}), http(200, b"", JSON)],
    ids=["200", "204", "empty page", "empty json"],
)
async def test_report_may_be_acknowledged_without_a_body(
    orchestrator: OrchestratorClient,
    identity: Identity,
    server: ScriptedServer,
    call: Call,
    answer: Answer,
) -> None:
    server.answer(answer)

    assert await call(orchestrator, identity) is None


@pytest.mark.parametrize("status", [200, 409, 502])
async def test_deeply_nested_answer_is_survived_whatever_its_status(
    orchestrator: OrchestratorClient, server: ScriptedServer, status: int
) -> None:
    server.answer(http(status, b'{"detail": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", JSON))

    with pytest.raises((Refused, Unavailable)):
        await orchestrator.health()


@pytest.mark.parametrize("depth", [100, 500, 900, 990, 995, 998, 999, 1000, 1500, 5000])
async def test_reason_of_any_depth_is_survived(
    orchestrator: OrchestratorClient, server: ScriptedServer, depth: int
) -> None:
    server.answer(http(409, b'{"detail": ' + b"[" * depth + b"]" * depth + b"}", JSON))

    with pytest.raises(Refused):
        await orchestrator.health()


@pytest.mark.parametrize("answer", [b"[]", b"null", b'"text"', b"3"])
async def test_registration_answered_with_another_kind_of_json_is_unavailable(
    orchestrator: OrchestratorClient, server: ScriptedServer, answer: bytes
) -> None:
    server.answer(http(200, answer, JSON))

    with pytest.raises(Unavailable, match="its response is not a JSON object"):
        await orchestrator.register(TOKEN, NODE)


@every_call
async def test_error_page_of_a_proxy_is_unavailable(
    orchestrator: OrchestratorClient, identity: Identity, server: ScriptedServer, call: Call
) -> None:
    server.answer(http(500, b"<html>Internal Server Error</html>", {"Content-Type": "text/html"}))

    with pytest.raises(Unavailable) as caught:
        await call(orchestrator, identity)

    assert str(caught.value) == "HTTP 500"


@every_json_call
async def test_half_a_body_is_unavailable(
    orchestrator: OrchestratorClient, identity: Identity, server: ScriptedServer, call: Call
) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    server.answer(raw(head + b'{"id": "'))

    with pytest.raises(Unavailable):
        await call(orchestrator, identity)


@every_call
@pytest.mark.parametrize(
    "answer",
    [raw(b""), raw(b"\x00\x01 this is no HTTP\r\n\r\n"), raw(b"HTTP/1.1 200 OK\r\nContent-")],
    ids=["closed", "junk", "half a head"],
)
async def test_broken_connection_is_unavailable(
    orchestrator: OrchestratorClient,
    identity: Identity,
    server: ScriptedServer,
    call: Call,
    answer: Answer,
) -> None:
    server.answer(answer)

    with pytest.raises(Unavailable):
        await call(orchestrator, identity)


async def test_refused_connection_is_called_by_its_name(identity: Identity) -> None:
    with nobody_listening() as port:
        async with OrchestratorClient(f"http://127.0.0.1:{port}") as client:
            with pytest.raises(Unavailable) as caught:
                await client.next_task(identity, 25)

    assert str(caught.value) == "Connection refused"


async def test_refused_connection_is_called_by_its_name_where_a_host_has_two_addresses(
    identity: Identity,
) -> None:
    with nobody_listening() as port:
        async with OrchestratorClient(f"http://localhost:{port}") as client:
            with pytest.raises(Unavailable) as caught:
                await client.next_task(identity, 25)

    assert str(caught.value) == "Connection refused"


@pytest.mark.parametrize("answer", [stalled(b""), trickle()], ids=["nothing", "a byte at a time"])
async def test_answer_that_never_comes_is_unavailable_after_the_deadline(
    orchestrator: OrchestratorClient, identity: Identity, server: ScriptedServer, answer: Answer
) -> None:
    server.answer(answer)
    a_second_in_all = 1 - DEFAULT_TIMINGS.call_timeout_s

    with pytest.raises(Unavailable) as caught:
        await orchestrator.next_task(identity, a_second_in_all)

    assert str(caught.value) == "no response within 1 s"


async def test_deadline_grows_with_what_is_sent(server: ScriptedServer) -> None:
    async def answer_late(stream: ByteStream) -> None:
        await anyio.sleep(1.0)
        await json_response({})(stream)

    server.answer(answer_late)
    a_minute = "x" * 60 * SLOWEST_UPLOAD_BYTES_PER_S
    async with HttpClient(server.url, timings=Timings(call_timeout_s=0.1)) as client:
        async with client.request("POST", "logs", {}, {"session": a_minute}) as response:
            assert await response.json() == {}

        with pytest.raises(Unavailable, match="no response within"):
            async with client.request("POST", "logs", {}, {"log": "x"}):
                pass


# Answers that would do harm


@pytest.mark.parametrize("call", [CALLS["status"], CALLS["log"]], ids=["status", "log"])
@pytest.mark.parametrize(
    "answer",
    [
        endless(JSON, first=b'{"session": '),
        http(200, BOMB, {**JSON, "Content-Encoding": "gzip"}),
        http(200, b"<html>", JSON),
    ],
    ids=["endless", "compressed", "not valid"],
)
async def test_report_is_accepted_by_a_response_of_json_that_cannot_be_read(
    orchestrator: OrchestratorClient,
    identity: Identity,
    server: ScriptedServer,
    answer: Answer,
    call: Call,
) -> None:
    server.answer(answer)

    assert await call(orchestrator, identity) is None


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "text/html"}], ids=["untyped", "page"])
async def test_endless_page_is_not_read_for_long(
    orchestrator: OrchestratorClient,
    identity: Identity,
    server: ScriptedServer,
    headers: dict[str, str],
) -> None:
    server.answer(endless(headers))

    with pytest.raises(Unavailable, match="its response is not JSON"):
        await orchestrator.send_log(identity, {"session": {}})


@every_call
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_to_another_origin_is_not_followed(
    orchestrator: OrchestratorClient,
    identity: Identity,
    server: ScriptedServer,
    call: Call,
    status: int,
) -> None:
    async with serving() as elsewhere:
        elsewhere.answer(json_response({"id": NODE_ID, "api_key": "k"}))
        server.answer(http(status, headers={"Location": f"{elsewhere.url}/tasks/pending"}))

        with pytest.raises(Unavailable, match="a redirect, which is not followed"):
            await call(orchestrator, identity)

        assert elsewhere.requests == []


@every_json_call
async def test_endless_answer_is_given_up(
    orchestrator: OrchestratorClient, identity: Identity, server: ScriptedServer, call: Call
) -> None:
    server.answer(endless(JSON))

    with pytest.raises(Unavailable) as caught:
        await call(orchestrator, identity)

    assert str(caught.value) == f"its response is longer than {MAX_RESPONSE_BYTES >> 20} MiB"


async def test_endless_refusal_is_given_up(
    orchestrator: OrchestratorClient, server: ScriptedServer
) -> None:
    head = b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\n\r\n"
    server.answer(raw(head, *[bytes(1 << 20)] * 17))

    with pytest.raises(Unavailable, match="longer than 16 MiB"):
        await orchestrator.health()


@every_json_call
async def test_compressed_response_is_not_decompressed(
    orchestrator: OrchestratorClient, identity: Identity, server: ScriptedServer, call: Call
) -> None:
    server.answer(http(200, BOMB, {**JSON, "Content-Encoding": "gzip"}))

    with pytest.raises(Unavailable, match="its response is not valid JSON"):
        await call(orchestrator, identity)


async def test_compressed_file_is_not_taken(
    orchestrator: OrchestratorClient, identity: Identity, server: ScriptedServer
) -> None:
    server.answer(http(200, BOMB, {"Content-Encoding": "gzip"}))

    with pytest.raises(Unavailable, match="it sent a compressed file"):
        await _download(orchestrator, identity)


# TLS


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Make a certificate for 127.0.0.1 that is its own authority, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=scripted server"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
            *("-addext", "keyUsage=critical,digitalSignature,keyCertSign"),
            *("-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


@pytest.fixture
def tls(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    """Return the TLS context of a server with that certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


async def test_certificate_of_an_unknown_authority_is_not_trusted(
    tls: ssl.SSLContext, identity: Identity
) -> None:
    async with serving(tls) as server, OrchestratorClient(server.url) as client:
        with pytest.raises(Unavailable) as caught:
            await client.next_task(identity, 25)

        assert str(caught.value).startswith("its TLS certificate is not trusted: self")
        assert server.requests == []


async def test_certificate_of_a_private_authority_is_trusted_through_its_file(
    tls: ssl.SSLContext, certificate: tuple[Path, Path], identity: Identity
) -> None:
    async with serving(tls) as server, OrchestratorClient(server.url, certificate[0]) as client:
        server.answer(json_response({"task_id": "t-1"}))

        assert (await client.next_task(identity, 25)).assignment == {"task_id": "t-1"}


async def test_certificate_for_another_host_is_not_trusted(
    tls: ssl.SSLContext, certificate: tuple[Path, Path], identity: Identity
) -> None:
    async with serving(tls) as server:
        by_name = server.url.replace("127.0.0.1", "localhost")
        async with OrchestratorClient(by_name, certificate[0]) as client:
            with pytest.raises(Unavailable, match="its TLS certificate is not trusted: Hostname"):
                await client.next_task(identity, 25)

        assert server.requests == []


async def test_plain_http_behind_https_is_unavailable(identity: Identity) -> None:
    async def answer(stream: SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, answer)
        port = listener.extra(SocketAttribute.local_port)  # noqa: S610 - anyio's, no SQL
        async with OrchestratorClient(f"https://127.0.0.1:{port}") as client:
            with pytest.raises(Unavailable, match="TLS failed: "):
                await client.next_task(identity, 25)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("content", [b"", b"no certificate", b"\xff\x00"])
def test_ca_file_without_a_certificate_is_named(tmp_path: Path, content: bytes) -> None:
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(content)

    with pytest.raises(ConfigurationError) as caught:
        OrchestratorClient("https://o.example.com", ca_file)

    assert (
        str(caught.value) == f"cannot use --ca-file {ca_file}: it does not hold a PEM certificate"
    )


# Addresses


@pytest.mark.parametrize("url", ["https://999.999.1.1", "https://[v1.x]", "https://xn--a"])
def test_address_that_no_request_could_carry_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot use --orchestrator-url"):
        OrchestratorClient(url)


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=40))
def test_address_that_was_checked_can_be_asked_or_is_refused(rest: str) -> None:
    try:
        OrchestratorClient(check_orchestrator_url(f"http://{rest}", allow_http=True))
    except ConfigurationError as error:
        assert str(error).startswith("cannot use --orchestrator-url")  # noqa: PT017 - or none at all


async def test_key_for_a_loopback_orchestrator_is_shown_to_no_proxy(
    server: ScriptedServer, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answer(json_response(None))
    async with serving() as proxy:
        proxy.answer(json_response(None))
        for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(variable, proxy.url)
        async with OrchestratorClient(server.url) as orchestrator:
            await orchestrator.next_task(identity, 0)

        assert proxy.requests == []
    assert len(server.requests) == 1


async def test_other_hosts_are_asked_through_the_proxy(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving() as proxy:
        proxy.answer(json_response(None))
        monkeypatch.setenv("http_proxy", proxy.url)
        async with OrchestratorClient("http://orchestrator.invalid") as orchestrator:
            await orchestrator.next_task(identity, 0)

        assert [request.target for request in proxy.requests] == [
            "http://orchestrator.invalid/tasks/pending"
        ]


# Secrets


async def test_key_is_in_no_error(
    orchestrator: OrchestratorClient, identity: Identity, server: ScriptedServer
) -> None:
    server.answer(raw(b"junk"))

    with pytest.raises(Unavailable) as caught:
        await orchestrator.next_task(identity, 25)

    link: BaseException | None = caught.value
    while link is not None:
        assert identity.api_key.reveal() not in repr(link)
        link = link.__cause__


def test_identity_shows_no_key(identity: Identity) -> None:
    assert identity.api_key.reveal() not in repr(identity)
