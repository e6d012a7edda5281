"""The client sends what the API asks for, trusts no response, and classifies every failure."""

import gzip
import json
import zlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import cast

import anyio
import pytest
from anyio.abc import ByteStream
from hypothesis import example, given
from hypothesis import strategies as st

from runner import __version__
from runner.api.address import check_orchestrator_url, proxy_to
from runner.api.assignment import MAX_FILES, MAX_PROMPT_BYTES, parse_assignment
from runner.api.client import MAX_ASSIGNMENT_BYTES, HeartbeatResponse, OrchestratorClient
from runner.api.http import MAX_RESPONSE_BYTES, SLOWEST_UPLOAD_BYTES_PER_S, HttpClient
from runner.errors import (
    ConfigurationError,
    NoResponse,
    Refused,
    Unauthorised,
    Unavailable,
    Unexplained,
)
from runner.model import Identity, Registration, TaskStatus, log_body
from runner.redaction import Secret
from runner.timing import DEFAULT_TIMINGS, Timings
from tests.harness.clock import VirtualClock
from tests.harness.private_ca import make_private_ca
from tests.harness.server import (
    JSON,
    PLAIN_400,
    Answer,
    ScriptedServer,
    endless,
    http,
    json_response,
    nobody_listening,
    raw,
    serving,
    serving_at_once,
    stalled,
    trickle,
    zeros,
)

pytestmark = pytest.mark.anyio

NODE_ID = "6f1c2a34-0000-4000-8000-0123456789ab"
KEY = "node-key-1234"
TOKEN = Secret("registration-token")
NODE: dict[str, object] = {"name": "n-1", "hostname": "h", "os_type": "linux"}
BEAT: dict[str, object] = {"status": "busy", "current_task_id": "t-1"}
IDS = {"job_id": "t-1", "task_id": "t-1"}
REPORT = {**IDS, "message": "50 % für heute 🚀" * 6_000}
EPOCH = "1970-01-01T00:00:00+00:00"
CLAIM = {**IDS, "status": "running", "message": "starting", "timestamp": EPOCH}
REGISTERED: dict[str, object] = {"id": NODE_ID, "api_key": KEY}
PAGE = {"Content-Type": "text/html"}
GZIP = {"Content-Encoding": "gzip"}
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\n\r\n"
BOMB = gzip.compress(b"{}" + b" " * (4 * MAX_RESPONSE_BYTES), compresslevel=1)
"""Valid JSON, once it has become four times as long as a response may be."""


async def download(client: OrchestratorClient, identity: Identity) -> bytes:
    async with client.download(identity, "a") as arriving:
        return b"".join([chunk async for chunk in arriving.chunks])


CALLS: dict[str, Callable[[OrchestratorClient, Identity], Awaitable[object]]] = {
    "register": lambda client, _: client.register(TOKEN, NODE),
    "register again": lambda client, identity: client.register(TOKEN, NODE, identity),
    "heartbeat": lambda client, identity: client.heartbeat(identity, BEAT),
    "next task": lambda client, identity: client.next_task(identity, 25),
    "claim": lambda client, identity: client.claim(identity, "t-1", "starting", 0),
    "status": lambda client, identity: client.send_status(identity, REPORT),
    "log": lambda client, identity: client.send_log(identity, REPORT),
    "download": download,
    "health": lambda client, _: client.health(),
}
NEED_JSON = ("register", "heartbeat", "next task", "claim")
TAKE_JSON = (*NEED_JSON, "status", "log")
WITH_KEY = (*TAKE_JSON, "download")


@dataclass(frozen=True)
class Api:
    """The client, and the server that it asks."""

    client: OrchestratorClient
    identity: Identity
    server: ScriptedServer

    async def call(self, name: str, response: Answer) -> object:
        self.server.answer(response)
        return await CALLS[name](self.client, self.identity)

    async def error(self, name: str, response: Answer) -> Refused | Unavailable:
        with pytest.raises((Refused, Unavailable)) as caught:
            await self.call(name, response)
        return cast("Refused | Unavailable", caught.value)

    async def outage(self, name: str, response: Answer) -> Unavailable:
        error = await self.error(name, response)
        assert isinstance(error, Unavailable)
        return error


@pytest.fixture
async def api(orchestrator: OrchestratorClient, identity: Identity, server: ScriptedServer) -> Api:
    return Api(orchestrator, identity, server)


# What is sent


@pytest.mark.parametrize(
    ("name", "method", "target", "body"),
    [
        ("register", "POST", "/register", NODE),
        ("register again", "POST", "/register", NODE),
        ("heartbeat", "POST", "/nodes/heartbeat", {"node_id": NODE_ID, **BEAT}),
        ("next task", "GET", "/tasks/pending", None),
        ("claim", "POST", "/status", CLAIM),
        ("status", "POST", "/status", REPORT),
        ("log", "POST", "/logs", REPORT),
        ("download", "GET", "/files/a", None),
        ("health", "GET", "/health", None),
    ],
)
async def test_request_is_as_the_api_asks(
    api: Api, name: str, method: str, target: str, body: object
) -> None:
    await api.call(name, json_response(REGISTERED))

    (request,) = api.server.requests
    assert (request.method, request.target) == (method, target)
    assert (request.json() if request.body else None) == body
    expected = {
        "x-registration-token": TOKEN.reveal() if name.startswith("register") else None,
        "x-api-key": None if name in {"register", "health"} else KEY,
        "prefer": "wait=25" if name == "next task" else None,
        "content-type": "application/json" if body else None,
        "user-agent": f"victoria-runner/{__version__}",
        "accept": "application/json",
        "accept-encoding": "identity",
    }
    assert {header: request.headers.get(header) for header in expected} == expected


async def test_field_without_a_value_is_left_out_of_every_body(api: Api) -> None:
    api.server.answer(json_response({}))
    message = {"id": "m-1", "content": "", "model": None, "finished_at": None}
    await api.client.heartbeat(api.identity, {"status": "offline", "current_task_id": None})
    await api.client.send_log(api.identity, log_body("t-1", {"messages": [message]}))
    heartbeat, log = (json.loads(request.body) for request in api.server.requests)
    assert heartbeat == {"node_id": NODE_ID, "status": "offline"}
    assert log["session"] == {"messages": [{"id": "m-1", "content": ""}]}


async def test_orchestrator_may_live_below_a_path(server: ScriptedServer) -> None:
    server.answer(json_response({"status": "ok", "version": "1.1.2"}))
    async with OrchestratorClient(f"{server.url}/victoria/api") as client:
        assert (await client.health())["version"] == "1.1.2"
    assert server.requests[0].target == "/victoria/api/health"


async def test_name_of_a_file_is_encoded(api: Api) -> None:
    names = ["two words", "Übersicht", "#1", "%2e%2e", "what?", "//evil", "a+b&c=d;e:f@g"]
    encoded = ["two%20words", "%C3%9Cbersicht", "%231", "%252e%252e", "what%3F", "%2F%2Fevil"]
    api.server.answer(http(200, b"x"))
    for name in names:
        async with api.client.download(api.identity, name):
            pass
    targets = [request.target for request in api.server.requests]
    assert targets == [f"/files/{name}" for name in (*encoded, "a%2Bb%26c%3Dd%3Be%3Af%40g")]


# What is read

USELESS_IDENTITIES: list[object] = [
    *({}, {"id": NODE_ID}, {"api_key": "k"}, {"id": 7, "api_key": "k"}),
    *({"id": "\ud800", "api_key": "k"}, {"id": NODE_ID, "api_key": None}),
    *({"id": NODE_ID, "api_key": key} for key in ("", "k\r\nX-Evil: 1", "ü")),
]


async def test_identity_must_be_usable(api: Api) -> None:
    for response in USELESS_IDENTITIES:
        error = await api.error("register", json_response(response))
        assert "has no usable id or api_key" in str(error)
    error = await api.error("register", json_response(["text"]))
    assert "its response is not a JSON object" in str(error)


@pytest.mark.parametrize(
    ("named", "extensions"),
    [
        (["reregister", "pace"], {"reregister", "pace"}),
        (["reregister", 7, None, "with space", ""], {"reregister"}),
        ("reregister", set()),
        (None, set()),
    ],
)
async def test_registration_and_heartbeat_return_extensions(
    api: Api, named: object, extensions: set[str]
) -> None:
    api.server.answer(json_response({**REGISTERED, "name": "n-1", "extensions": named}))
    registration = Registration(Identity(NODE_ID, Secret(KEY)), NODE, frozenset(extensions))
    assert await api.client.register(TOKEN, NODE) == registration
    assert (await api.client.heartbeat(api.identity, {})).extensions == extensions


@pytest.mark.parametrize(
    ("response", "cancelled"),
    [
        ({"cancelled_task_ids": ["t-1", "t-2"]}, {"t-1", "t-2"}),
        ({"cancelled_task_ids": "t-1"}, set()),
        ({"cancelled_task_ids": [None, 1]}, set()),
        (["cancelled_task_ids"], set()),
    ],
    ids=["two", "a text", "no texts", "no object"],
)
async def test_heartbeat_returns_cancelled_tasks(
    api: Api, response: object, cancelled: set[str]
) -> None:
    expected = HeartbeatResponse(frozenset(cancelled), frozenset())
    assert await api.call("heartbeat", json_response(response)) == expected


@pytest.mark.parametrize(
    ("sent", "key"),
    [("vn_new", Secret("vn_new")), ("two words", None), ("", None), (7, None), (None, None)],
)
async def test_heartbeat_returns_a_new_key_that_is_fit_for_a_header(
    api: Api, sent: object, key: Secret | None
) -> None:
    response = await api.call("heartbeat", json_response({"new_api_key": sent}))
    assert response == HeartbeatResponse(frozenset(), frozenset(), None, key)


@pytest.mark.parametrize(
    ("headers", "was_held"),
    [
        ({"Preference-Applied": "wait=25"}, True),
        ({"preference-applied": "Wait=5, return=minimal"}, True),
        ({"Preference-Applied": "respond-async"}, False),
        ({}, False),
    ],
)
async def test_assignment_comes_as_it_was_sent_and_a_header_says_whether_it_was_held(
    api: Api, *, headers: dict[str, str], was_held: bool
) -> None:
    api.server.answer(json_response({"task_id": "t-1", "unheard": [1]}, headers=headers))
    offer = await api.client.next_task(api.identity, 25)
    assert offer.was_held is was_held
    assert offer.assignment == {"task_id": "t-1", "unheard": [1]}


async def test_longest_valid_assignment_is_read_though_no_other_response_may_be_so_long(
    api: Api,
) -> None:
    names = [f"{number:03}" + "é" * 126 for number in range(MAX_FILES)]
    longest = {"task_id": "t" * 128, "prompt": "\x01" * MAX_PROMPT_BYTES, "files": names}
    body = json.dumps({**longest, "file_checksums": ["0" * 64] * MAX_FILES}).encode()
    assert MAX_RESPONSE_BYTES < len(body) < MAX_ASSIGNMENT_BYTES
    api.server.answer(http(200, body, JSON))
    offer = await api.client.next_task(api.identity, 25)
    assert parse_assignment(offer.assignment, orchestrator_url="").prompt == longest["prompt"]
    assert str(await api.outage("heartbeat", http(200, body, JSON))) == TOO_LONG


EMPTY = [json_response(None), http(200), http(204), http(200, b" \n"), http(200, b"", PAGE)]


@pytest.mark.parametrize("response", EMPTY, ids=["null", "200", "204", "blank", "empty page"])
async def test_empty_body_is_no_work_and_acknowledges_a_report(api: Api, response: Answer) -> None:
    api.server.answer(response)
    assert (await api.client.next_task(api.identity, 25)).assignment is None
    for name in ("claim", "status", "log"):
        assert await api.call(name, response) is None


@pytest.mark.parametrize(
    ("status", "responses"),
    [
        (TaskStatus.CANCELLED, [{"status": "cancelled"}]),
        (TaskStatus.SUCCESS, [{"status": "success", "task_id": "t-1"}]),
        (TaskStatus.ERROR, [{"status": "error", "job_id": "t-1"}]),
        (None, [{"status": "success"}]),  # of the request, perhaps
        (None, [{"status": "success", "task_id": "t-2"}, {"status": "success", "task_id": [1]}]),
        (None, [{"status": "paused", "task_id": "t-1"}, {"status": {}}, {}, None, ["status"]]),
    ],
)
async def test_claim_and_report_return_a_final_status(
    api: Api, status: TaskStatus | None, responses: list[object]
) -> None:
    for response in responses:
        for name in ("claim", "status"):
            assert await api.call(name, json_response(response)) is status


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("response", "announced", "sent"),
    [(zeros(3_000_000), 3_000_000, 3_000_000), (raw(CHUNKED), None, 1)],
    ids=["announced", "chunked"],
)
async def test_download_streams_what_is_sent(
    api: Api, response: Answer, announced: int | None, sent: int
) -> None:
    api.server.answer(response)
    async with api.client.download(api.identity, "a") as arriving:
        sizes = [len(chunk) async for chunk in arriving.chunks]
    assert (arriving.size, sum(sizes)) == (announced, sent)
    assert max(sizes) < 2_000_000


async def test_content_types_of_json_are_accepted(api: Api) -> None:
    for content_type in (
        *("application/json; charset=utf-8", "APPLICATION/JSON", "Text/Json", " application/json"),
        *("application/problem+json", "application/vnd.victoria.v1+json ; charset=utf-8"),
    ):
        await api.call("status", http(200, b"{}", {"Content-Type": content_type}))


# What is refused, and what is unavailable

MAX_DETAIL = "x" * 300
DETAILS: dict[str, tuple[bytes, str]] = {
    "control characters": (b'{"detail": "two\\nlines\\u001b[31m"}', ": two lines [31m"),
    "half a character": (b'{"detail": "\\ud800 alone"}', ": alone"),
    "a list": (b'{"detail": [{"loc": ["body"]}]}', ': [{"loc": ["body"]}]'),
    "null": (b'{"detail": null}', ""),
    "not an object": (b"[]", ""),
    "not JSON": (b"<html>", ""),
    "too long": (b'{"detail": "' + b"x" * 5000 + b'"}', f": {MAX_DETAIL}"),
}
MUCH = [bytes(1 << 20)] * 17
REFUSED: dict[str, tuple[Answer, str]] = {
    **{
        f"{status}": (json_response({"detail": "no"}, status), f"HTTP {status}: no")
        for status in (400, 401, 403, 404, 413, 422)
    },
    **{name: (http(400, body, JSON), f"HTTP 400{text}") for name, (body, text) in DETAILS.items()},
    "nothing": (http(405), "HTTP 405"),
    "compressed": (http(401, gzip.compress(b'{"detail": "no"}'), {**JSON, **GZIP}), "HTTP 401: no"),
    "endless": (raw(b"HTTP/1.1 400 Bad Request\r\n\r\n", *MUCH), "HTTP 400"),
}


@pytest.mark.parametrize(("response", "message"), REFUSED.values(), ids=REFUSED)
async def test_4xx_is_refused_with_one_short_line(api: Api, response: Answer, message: str) -> None:
    for name in WITH_KEY:
        error = await api.error(name, response)
        assert type(error) is (Unauthorised if error.status == 401 else Refused)
        assert str(error) == message
        assert error.detail == (message.partition(": ")[2] or None)
        assert message.startswith(f"HTTP {error.status}")


UNEXPLAINED = {
    "nothing": http(401),
    "text": http(403, b"Forbidden", {"Content-Type": "text/plain"}),
    "JSON": json_response({"error": "not found"}, 404),
    "no type": raw(b"HTTP/1.1 409 Conflict\r\n\r\n<html>"),
    "other JSON": http(410, b"[]", JSON),
}


@pytest.mark.parametrize("response", UNEXPLAINED.values(), ids=UNEXPLAINED)
async def test_refusal_without_a_reason_is_believed_when_it_has_lasted_for_ten_minutes(
    server: ScriptedServer, identity: Identity, response: Answer
) -> None:
    clock = VirtualClock()
    async with OrchestratorClient(server.url, clock=clock) as client:
        api = Api(client, identity, server)
        for name in ("register", "heartbeat", "next task", "claim", "log", "download"):
            for wait_s, is_first in ((0, True), (599, False)):
                clock.move(wait_s)
                doubt = await api.error(name, response)
                assert isinstance(doubt, Unexplained)
                assert (doubt.is_first, doubt.detail) == (is_first, None)
                assert "without a reason, maybe from a proxy; believed if it lasts 10 min" in str(
                    doubt
                )
            clock.move(2)
            believed = await api.error(name, response)
            assert isinstance(believed, Refused)
            assert str(believed) == f"HTTP {believed.status}"


async def test_ten_minutes_are_those_of_one_task_and_begin_again_after_anything_else(
    server: ScriptedServer, identity: Identity
) -> None:
    clock = VirtualClock()
    async with OrchestratorClient(server.url, clock=clock) as client:
        api = Api(client, identity, server)
        for between in (json_response({"status": "running"}), http(502), http(401, b"<p>", PAGE)):
            assert isinstance(await api.error("claim", http(403)), Unexplained)
            clock.move(601)
            server.answer(http(403))
            with pytest.raises(Unexplained):
                await client.claim(identity, "t-2", "starting", 0)
            server.answer(between)
            with suppress(Unavailable):
                await client.claim(identity, "t-1", "starting", 0)
            with pytest.raises(Unexplained):
                await api.call("claim", http(403))
            clock.move(601)
            assert (await api.error("claim", http(429))).status == 429  # which says nothing of it
            assert not isinstance(await api.error("claim", http(403)), Unavailable)
            server.answer(json_response({}))
            await client.claim(identity, "t-2", "starting", 0)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 407, 409, 413])
async def test_web_page_is_never_a_refusal(
    server: ScriptedServer, identity: Identity, status: int
) -> None:
    clock = VirtualClock()
    async with OrchestratorClient(server.url, clock=clock) as client:
        api = Api(client, identity, server)
        for content_type in ("text/html; charset=utf-8", "Application/XHTML+xml"):
            page = http(status, b'{"detail": "no"}', {"Content-Type": content_type})
            for name in WITH_KEY:
                error = await api.outage(name, page)
                assert not isinstance(error, Unexplained)
                assert error.status == status
                clock.move(24 * 3600)
    sentence = f"HTTP {status} with a web page: a proxy responds in place of the orchestrator"
    assert str(error) == (sentence if status != 407 else "HTTP 407")


@pytest.mark.parametrize("depth", [100, 990, 998, 1000, 100_000])
async def test_reason_of_any_depth_is_survived(api: Api, depth: int) -> None:
    nested = b'{"detail": ' + b"[" * depth + b"]" * depth + b"}"
    for status, kind in ((400, Refused), (502, Unavailable)):
        assert type(await api.error("health", http(status, nested, JSON))) is kind


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 507])
async def test_status_that_will_pass_is_unavailable(api: Api, status: int) -> None:
    for name in WITH_KEY:
        error = await api.outage(name, json_response({"detail": "later"}, status))
        assert (str(error), error.status) == (f"HTTP {status}: later", status)
        assert (error.detail, error.retry_after_s) == ("later", None)
        assert str(await api.error(name, http(status, b"<html>", PAGE))) == f"HTTP {status}"


TOMORROW = datetime.now(timezone.utc) + timedelta(days=1)


@pytest.mark.parametrize(
    ("seconds", "values"),
    [
        (17, ["17"]),
        (0, ["Wed, 21 Oct 2015 07:28:00 GMT"]),
        (pytest.approx(86_400, abs=7_200), [format_datetime(TOMORROW, usegmt=True)]),
        (None, ["soon", "-1", "1.5", "²"]),
        (None, ["Wed, 99 Oct 2015 07:28:00 GMT", "1 Jan 1 0:0:0 +9999999999999999"]),
    ],
    ids=["seconds", "past", "future", "not a number", "not a date"],
)
async def test_retry_after_is_in_seconds_or_a_date(
    api: Api, seconds: object, values: list[str]
) -> None:
    for value in values:
        for status in (429, 503):
            error = await api.outage("health", http(status, headers={"Retry-After": value}))
            assert error.retry_after_s == seconds


def not_json(shown: str) -> str:
    return f"its response is not JSON (Content-Type: {shown}); is this the orchestrator's address?"


NOT_VALID = "its response is not valid JSON"
TOO_LONG = "its response is longer than 1 MiB"
COMPRESSED = "it sent a compressed file, which was not asked for"
BROTLI = (
    "its response is compressed (br), which was not asked for; "
    "switch that off in the proxy in front of it"
)
NODE_JSON = b'{"id": "n", "api_key": "k"}'
UNREADABLE: dict[str, tuple[Answer, str]] = {
    "half": (http(200, b'{"half": ', JSON), NOT_VALID),
    "not text": (http(200, b"\xff\xfe\xfd", JSON), NOT_VALID),
    "nested": (http(200, b"[" * 200_000, JSON), NOT_VALID),
    "long number": (http(200, b"9" * 5000, JSON), NOT_VALID),
    "damaged": (http(200, b"{}", {**JSON, **GZIP}), "its compressed response is damaged"),
    "br": (http(200, b"{}", {**JSON, "Content-Encoding": "br"}), BROTLI),
    "endless": (endless(JSON, b'{"session": '), TOO_LONG),
}
USELESS: dict[str, tuple[tuple[str, ...], Answer, str]] = {
    **{name: (NEED_JSON, *row) for name, row in UNREADABLE.items() if name != "endless"},
    "endless": (("register", "heartbeat", "claim", "health"), *UNREADABLE["endless"]),
    "bomb": (("register", "heartbeat", "claim"), http(200, BOMB, {**JSON, **GZIP}), TOO_LONG),
    "endless assignment": (("next task",), endless(JSON, b'{"x": '), f"{TOO_LONG[:-5]}4 MiB"),
    **{
        other: (TAKE_JSON, http(200, NODE_JSON, {"Content-Type": other}), not_json(other or "none"))
        for other in ("", "text/html; charset=utf-8", "json", "text/html; application/json")
    },
    "endless page": (("log",), endless(PAGE), not_json("text/html")),
    "endless refusal": (("health",), raw(NOT_FOUND, *MUCH), TOO_LONG),
    "compressed file": (("download",), http(200, BOMB, GZIP), COMPRESSED),
}


@pytest.mark.parametrize(("names", "response", "message"), USELESS.values(), ids=USELESS)
async def test_other_content_is_unavailable_and_not_read_for_long(
    api: Api, names: tuple[str, ...], response: Answer, message: str
) -> None:
    for name in names:
        assert str(await api.outage(name, response)) == message


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP", "deflate"])
async def test_response_that_was_compressed_unasked_is_read(api: Api, encoding: str) -> None:
    compress = zlib.compress if encoding == "deflate" else gzip.compress
    body = compress(json.dumps({"task_id": "t-1", "padding": "x" * 100_000}).encode())
    api.server.answer(http(200, body, {**JSON, "Content-Encoding": encoding}))
    offer = await api.client.next_task(api.identity, 25)
    assert isinstance(offer.assignment, dict)
    assert offer.assignment["task_id"] == "t-1"


@pytest.mark.parametrize("name", UNREADABLE)
async def test_unreadable_json_accepts_a_report(api: Api, name: str) -> None:
    for report in ("status", "log"):
        assert await api.call(report, UNREADABLE[name][0]) is None


HALF = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"


@pytest.mark.parametrize(
    ("names", "sent"),
    [
        *((WITH_KEY, sent) for sent in (b"", b"\x00\x01 no HTTP\r\n\r\n", HALF[:25])),
        (NEED_JSON, HALF),
    ],
    ids=["nothing", "junk", "half a head", "half a body"],
)
async def test_lost_connection_shows_no_key(api: Api, names: tuple[str, ...], sent: bytes) -> None:
    for name in names:
        link: BaseException | None = await api.error(name, raw(sent))
        assert isinstance(link, NoResponse)
        while link is not None:
            assert KEY not in repr(link)
            link = link.__cause__


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_refused_connection_is_called_by_its_name(identity: Identity, host: str) -> None:
    with nobody_listening() as port:
        async with OrchestratorClient(f"http://{host}:{port}") as client:
            with pytest.raises(Unavailable, match=r"^Connection refused$") as caught:
                await client.next_task(identity, 25)
            assert not isinstance(caught.value, NoResponse)


@pytest.mark.parametrize("response", [stalled(b""), trickle()], ids=["nothing", "a byte at a time"])
async def test_response_that_never_comes_ends_at_the_deadline(api: Api, response: Answer) -> None:
    api.server.answer(response)
    a_second_in_all = 1 - DEFAULT_TIMINGS.call_timeout_s
    with pytest.raises(Unavailable, match=r"^no response within 1 s$"):
        await api.client.next_task(api.identity, a_second_in_all)


async def test_deadline_grows_with_what_is_sent(server: ScriptedServer) -> None:
    async def respond_late(stream: ByteStream) -> None:
        await anyio.sleep(1.0)
        await json_response({})(stream)

    server.answer(respond_late)
    a_minute = "x" * 60 * SLOWEST_UPLOAD_BYTES_PER_S
    async with HttpClient(server.url, timings=Timings(call_timeout_s=0.1)) as client:
        async with client.request("POST", "logs", {}, {"session": a_minute}) as response:
            assert await response.json() == {}

        with pytest.raises(Unavailable, match="no response within"):
            async with client.request("POST", "logs", {}, {"log": "x"}):
                pass


@pytest.mark.parametrize("status", [301, 307])
async def test_redirect_to_another_origin_is_not_followed(api: Api, status: int) -> None:
    async with serving() as elsewhere:
        elsewhere.answer(json_response(REGISTERED))
        target = f"{elsewhere.url}/tasks/pending"
        location = target.replace("://", "://user:secret@") + "?token=secret#top"
        for name in WITH_KEY:
            error = await api.outage(name, http(status, b"<p>", {"Location": location, **PAGE}))
            assert str(error) == (
                f"HTTP {status}, a redirect to {target}, which is not followed; "
                "give the orchestrator's final address as --orchestrator-url"
            )
        assert elsewhere.requests == []


async def test_response_of_a_cache_and_a_redirect_without_a_target_are_named(api: Api) -> None:
    for name in WITH_KEY:
        error = await api.outage(name, http(304))
        advice = "switch caching off in what is in front of the orchestrator"
        assert str(error) == f"HTTP 304, from a cache; {advice}"
        assert str(await api.outage(name, http(302))) == "HTTP 302"


# TLS


async def test_certificate_is_trusted_for_its_host(
    tmp_path: Path, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, ca_file = make_private_ca(tmp_path)
    async with serving(context) as server:
        server.answer(json_response({"task_id": "t-1"}))
        for host, trusted, error in (
            ("127.0.0.1", None, "its TLS certificate is not trusted: unable to get local issuer"),
            ("localhost", ca_file, "its TLS certificate is not trusted: Hostname"),
        ):
            url = server.url.replace("127.0.0.1", host)
            async with OrchestratorClient(url, trusted) as client:
                with pytest.raises(Unavailable, match=f"^{error}"):
                    await client.next_task(identity, 25)
        assert server.requests == []

        # The status reporter has no option for it.
        monkeypatch.setenv("SSL_CERT_FILE", str(ca_file))
        for trusted in (ca_file, None):
            async with OrchestratorClient(server.url, trusted) as client:
                assert (await client.next_task(identity, 25)).assignment == {"task_id": "t-1"}


async def test_plain_http_behind_https_is_unavailable(identity: Identity) -> None:
    async with (
        serving_at_once(PLAIN_400) as port,
        OrchestratorClient(f"https://127.0.0.1:{port}") as client,
    ):
        with pytest.raises(Unavailable, match="TLS failed: "):
            await client.next_task(identity, 25)


@pytest.mark.parametrize("content", [b"", b"\xff\x00"])
def test_ca_file_without_a_certificate_is_named(tmp_path: Path, content: bytes) -> None:
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(content)
    message = f"^cannot use --ca-file {ca_file}: it does not hold a PEM certificate$"
    with pytest.raises(ConfigurationError, match=message):
        OrchestratorClient("https://o.example.com", ca_file)


# Addresses and proxies

AWAY = "https://orchestrator.example.com"
PROXY = "http://proxy.example:3128"


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return monkeypatch


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("value", [PROXY, PROXY.removeprefix("http://")])
def test_proxy_of_the_scheme_or_of_all(env: pytest.MonkeyPatch, variable: str, value: str) -> None:
    assert proxy_to(AWAY) is None
    env.setenv("HTTP_PROXY", "http://other.example")
    env.setenv(variable, value)
    assert proxy_to(AWAY) == PROXY


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "http://localhost", "https://[::1]:84"])
def test_loopback_needs_no_proxy(env: pytest.MonkeyPatch, url: str) -> None:
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        env.setenv(variable, PROXY)
    assert proxy_to(url) is None


EXEMPT = {
    "10.99.7.1": "10.0.0.0/8|10.99.7.1|10.99.7.1/|10.99.7.1/8|a.b, 10.0.0.0/8|10.99.7.1/32",
    "10.99.7.1.": "10.99.7.1",
    "192.168.3.4": " localhost , 192.168.0.0/16 |fd00::/8,192.168.3.4\t",
    "[fd00::1]": "fd00::/8|fd00::1|[fd00::1]|[fd00::]/8|[fd00::/8]|FD00:0::1|*",
    "example.com": "example.com|.example.com|example.com.|.example.com.|com|EXAMPLE.com|*",
    "a.example.com": "example.com|.example.com|example.com.|example.com,|,example.com",
    "a.example.com.": "example.com|a.org example.com|a.org\texample.com|a.org,, ,example.com",
}
"""Hosts, and the values of NO_PROXY that exempt them, separated by |. curl 7.88.1 has the same
results, but for IPv6, which it reads wrongly."""
NOT_EXEMPT = {
    "11.0.0.1": "10.0.0.0/8|0.0.0.1|.0.0.1|11.0.0.1:8000|11.0.0.1.|.11.0.0.1|11.0.0.1/33|0.0.0.0/0",
    "11.0.0.2": "11.0/8|11.0.0.0/255.0.0.0|11.0.0.0/x|11.0.0.0/-1|::ffff:11.0.0.2",
    "10.99.7.1.example.com": "10.0.0.0/8|10.99.7.1",
    "[fd00::1]": "fd00::/129|fd01::/16|::/0|[fd00::1]:8000|fd00::|0.0.0.0/0",
    "[::ffff:10.9.9.9]": "10.9.9.9|10.0.0.0/8",
    "notexample.com": "example.com|.example.com",
    "example.com": "|.|a.example.com|*.com|*.example.com|example.com:443|a.org,*|https://example.com",
    "example.com.": "..example.com|example.com..|example.com;a.org|example.org",
}


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("variable", ["NO_PROXY", "no_proxy"])
def test_no_proxy_is_read_as_curl_reads_it(
    env: pytest.MonkeyPatch, variable: str, scheme: str
) -> None:
    env.setenv("ALL_PROXY", PROXY)
    env.setenv("no_proxy", "")
    for hosts, expected in ((EXEMPT, None), (NOT_EXEMPT, PROXY)):
        for host, values in hosts.items():
            for value in values.split("|"):
                env.setenv(variable, value)
                assert proxy_to(f"{scheme}://{host}:8000") == expected, (host, value)


@pytest.mark.parametrize(
    "value",
    [
        *("socks5://h:1080", "ftp://h", "http://", "http://h:port", "http://[::1", "h h"),
        *("http://@", "http://svc:secret@[v1.x]", "svc:secret@999.1.1.1"),
    ],
)
def test_unusable_proxy_is_refused_and_not_shown(env: pytest.MonkeyPatch, value: str) -> None:
    env.setenv("ALL_PROXY", value)
    with pytest.raises(ConfigurationError, match=r"^cannot use the proxy in ALL_PROXY: ") as caught:
        OrchestratorClient(AWAY)
    assert value not in str(caught.value).replace("http://HOST:PORT", "")


@example("999.999.1.1")
@example("[v1.x]")
@example("xn--a")
@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=40))
def test_address_that_was_checked_can_be_requested_or_is_refused(rest: str) -> None:
    try:
        OrchestratorClient(check_orchestrator_url(f"http://{rest}", allow_http=True))
    except ConfigurationError as error:
        assert str(error).startswith("cannot use --orchestrator-url")  # noqa: PT017 - or none at all


def test_address_that_the_reporter_has_not_checked_is_refused(env: pytest.MonkeyPatch) -> None:
    env.setenv("ALL_PROXY", PROXY)
    with pytest.raises(ConfigurationError, match=r"^cannot use --orchestrator-url"):
        OrchestratorClient("http://[bad")


@pytest.mark.parametrize("is_loopback", [True, False])
async def test_key_for_a_loopback_orchestrator_goes_to_no_proxy(
    server: ScriptedServer,
    identity: Identity,
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_loopback: bool,
) -> None:
    url = server.url if is_loopback else "http://orchestrator.invalid"
    server.answer(json_response(None))
    async with serving() as proxy:
        proxy.answer(json_response(None))
        for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(variable, proxy.url)
        async with OrchestratorClient(url) as orchestrator:
            await orchestrator.next_task(identity, 0)
        targets = [request.target for request in proxy.requests]
        assert targets == ([] if is_loopback else [f"{url}/tasks/pending"])
    assert len(server.requests) == is_loopback
