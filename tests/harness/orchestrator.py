"""An orchestrator on a real socket that responds as a test has scripted, and keeps its requests."""

import hashlib
import re
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import unquote

import anyio
from anyio.abc import ByteStream

from tests.harness.seed_contract import Violation, check_request
from tests.harness.server import Answer, Request, ScriptedServer, http, json_response, raw, serving

TOKEN = "the-registration-token"  # noqa: S105 - opens nothing but test servers
POLL, BEAT, REGISTER = "/tasks/pending", "/nodes/heartbeat", "/register"
STATUS, LOGS = "/status", "/logs"
OUTPUT = re.compile(r"/tasks/([^/]+)/output")
FINAL = frozenset({"success", "error"})

ARTIFACT = re.compile(r"/tasks/([^/]+)/artifacts/(.+)")
TEST_ID = re.compile(r'"((?:node|t)-[^"]+)"')
"""The ids of nodes and tasks in tests, also in journals that tests have written."""

SILENCE = raw()  # close the connection without a word, as a server does that is being killed


@dataclass(frozen=True)
class Call:
    """A request as it came, and the moment on the host's clock."""

    request: Request
    at_s: float

    @property
    def key(self) -> str | None:
        return self.request.headers.get("x-api-key")

    @property
    def body(self) -> dict[str, Any]:
        return cast("dict[str, Any]", self.request.json())


class ScriptedOrchestrator:
    """Behaves, until a test says otherwise: `then` for the next responses, `always` for all."""

    def __init__(self, server: ScriptedServer, now: Callable[[], float]) -> None:
        """Respond at the server; `now` is the clock by which calls are dated."""
        server.answer(self._answer)
        self.url = server.url
        self.calls: list[Call] = []
        self.taken: list[dict[str, Any]] = []
        """The reports that were answered with 200, unless by a test's own response."""
        self.known_ids: set[str] = set()  # of tasks handed out; like TEST_ID's they stand for UUIDs
        self.violations: list[Violation] = []  # what did not fit the seed's contract
        self.queue: list[object] = []
        """Assignments to hand out, each once; what a test puts in need not be one."""
        self.files: dict[str, bytes | Answer] = {}
        self.keys: set[str] = set()  # the node keys that hold; take one out and it is answered 401
        self.task_keys: dict[str, str] = {}
        """By task id, the key that its assignment has with the extension `task-key`."""
        self.new_keys: dict[str, str] = {}  # what a heartbeat under a key is answered with
        self.cancelled: list[str] = []  # the tasks that every heartbeat's response names
        self.cancelled_for: dict[str, list[str]] = {}  # the same for heartbeats under one key alone
        self.standing: dict[str, str] = {}  # what reports on a task are answered with, by its id
        self.holds = False  # whether a request for work is held until there is some
        self.is_down = False
        self.outputs: dict[str, bytes] = {}  # by task id, what came to /tasks/ID/output
        self.whole_outputs: list[str] = []  # the ids of the tasks whose output is done
        self.output_interval_s = 5.0
        self.longest_chunk = 1 << 20
        """In bytes of text; a longer one is answered with `too_long`."""
        self.too_long = json_response({"detail": "the chunk is too long"}, 413)
        self.extensions: list[str] = []  # what the responses to registrations and heartbeats name
        self.artifacts: dict[tuple[str, str], bytes] = {}  # by task id and path
        self._server = server
        self._now = now
        self._registered = 0
        self._then: defaultdict[str, deque[Answer]] = defaultdict(deque)
        self._always: dict[str, Answer | None] = {}
        self._work = anyio.Event()

    def then(self, path: str, *answers: Answer) -> None:
        self._then[path].extend(answers)

    def always(self, path: str, answer: Answer | None) -> None:
        self._always[path] = answer

    def offer(self, task_id: str = "t-1", prompt: str = "do it", **fields: object) -> None:
        self.hand_out({"task_id": task_id, "prompt": prompt, **fields})

    def hand_out(self, assignment: object) -> None:
        self.queue.append(assignment)
        if isinstance(assignment, dict) and isinstance(assignment.get("task_id"), str):
            self.known_ids.add(assignment["task_id"])
            if "task-key" in self.extensions:
                key = assignment.setdefault("task_api_key", f"task-key-{assignment['task_id']}")
                self.task_keys[assignment["task_id"]] = key
        self.release()

    def release(self) -> None:
        self._work.set()
        self._work = anyio.Event()

    def called(self, path: str) -> list[Call]:
        return [call for call in self.calls if call.request.target == path]

    def count(self, path: str) -> int:
        return len(self.called(path))

    def reports(self, task_id: str) -> list[dict[str, Any]]:
        return [one.body for one in self.called(STATUS) if one.body["task_id"] == task_id]

    def ends(self, task_id: str) -> list[dict[str, Any]]:
        return [report for report in self.reports(task_id) if report["status"] in FINAL]

    def beats(self) -> list[str]:
        return [call.body["status"] for call in self.called(BEAT)]

    async def _answer(self, stream: ByteStream) -> None:
        request = self._server.requests[-1]
        self.calls.append(Call(request, self._now()))
        test_ids = TEST_ID.findall(request.body.decode("utf-8", "replace"))
        try:
            check_request(request, self.known_ids.union(test_ids))
        except Violation as violation:
            self.violations.append(violation)
        await (await self._chosen(request))(stream)

    async def _chosen(self, request: Request) -> Answer:
        path = request.target
        if self.is_down:
            return SILENCE
        if self._then[path]:
            return self._then[path].popleft()
        return self._always.get(path) or await self._usual(request)

    async def _usual(self, request: Request) -> Answer:
        path = request.target
        if path == REGISTER:
            return self._register(request)
        key = request.headers.get("x-api-key")
        if key not in self.keys and not self._is_of_task(key, request):
            return json_response({"detail": "unknown key"}, 401)
        if path == POLL:
            return await self._work_for(request)
        if path == BEAT:
            own = self.cancelled_for.get(str(key), [])
            new = {"new_api_key": self.new_keys[str(key)]} if str(key) in self.new_keys else {}
            cancelled = self.cancelled + own
            return json_response({"cancelled_task_ids": cancelled, **new, **self._named()})
        if path in {STATUS, LOGS} or OUTPUT.fullmatch(path):
            return self._report(request)
        return self._file(request)

    def _report(self, request: Request) -> Answer:
        if request.target == LOGS:
            return json_response({})
        if request.target != STATUS:
            return self._output(request)
        report = cast("dict[str, Any]", request.json())
        self.taken.append(report)
        task_id = report["task_id"]
        return json_response({"task_id": task_id, "status": self.standing.get(task_id, "running")})

    def _output(self, request: Request) -> Answer:
        task_id = unquote(request.target.split("/")[2])
        chunk = cast("dict[str, Any]", request.json())
        held, data = self.outputs.get(task_id, b""), chunk["text"].encode()
        if len(data) > self.longest_chunk:
            return self.too_long
        is_repeat = chunk["offset"] + len(data) <= len(held)
        if not is_repeat and (chunk["offset"] != len(held) or task_id in self.whole_outputs):
            return json_response({"detail": "it is elsewhere", "length": len(held)}, 409)
        self.outputs[task_id] = held if is_repeat else held + data
        if chunk.get("done") and task_id not in self.whole_outputs:
            self.whole_outputs.append(task_id)
        length = len(self.outputs[task_id])
        return json_response({"length": length, "interval_seconds": self.output_interval_s})

    def chunks(self, task_id: str = "t-1") -> list[dict[str, Any]]:
        """Return the chunks of a task's output that were sent, taken or not."""
        return [call.body for call in self.called(f"/tasks/{task_id}/output")]

    def uploads(self, task_id: str = "t-1") -> list[str]:
        """Return the paths of a task's artifacts as they were sent, in their order."""
        matches = [ARTIFACT.fullmatch(call.request.target) for call in self.calls]
        return [unquote(match[2]) for match in matches if match and match[1] == task_id]

    def _artifact(self, request: Request, task_id: str, path: str) -> Answer:
        if request.headers["x-checksum-sha256"] != sha256(request.body):
            return json_response({"detail": "the checksum is another one"}, 422)
        place = (task_id, "/".join(map(unquote, path.split("/"))))
        if self.artifacts.setdefault(place, request.body) != request.body:
            return json_response({"detail": "there is another artifact of this path"}, 409)
        size, checksum = len(request.body), sha256(request.body)
        return json_response({"path": place[1], "size": size, "checksum": checksum})

    def _is_of_task(self, key: str | None, request: Request) -> bool:
        """Return whether it is the key of the task that this report is about."""
        if key is None or request.target not in {STATUS, LOGS}:
            return False
        report = cast("dict[str, Any]", request.json())
        return self.task_keys.get(report["task_id"]) == key

    def _register(self, request: Request) -> Answer:
        if request.headers["x-registration-token"] != TOKEN:
            return json_response({"detail": "wrong token"}, 401)
        key = request.headers.get("x-api-key")
        if key is None or "reregister" not in self.extensions:
            self._registered += 1
            key = f"node-key-{self._registered}"
            self.keys.add(key)
        elif key not in self.keys:
            return json_response({"detail": "no node has this key"}, 410)
        return json_response({"id": key.replace("-key", ""), "api_key": key, **self._named()})

    def _named(self) -> dict[str, object]:
        return {"extensions": self.extensions} if self.extensions else {}

    async def _work_for(self, request: Request) -> Answer:
        is_held = self.holds and "wait=0" not in request.headers["prefer"]
        if is_held and not self.queue:
            await self._work.wait()
        headers = {"Preference-Applied": "wait=25"} if is_held else {}
        return json_response(self.queue.pop(0) if self.queue else None, headers=headers)

    def _file(self, request: Request) -> Answer:
        if match := ARTIFACT.fullmatch(request.target):
            return self._artifact(request, unquote(match[1]), match[2])
        file = self.files.get(unquote(request.target.removeprefix("/files/")))
        if file is None:
            return json_response({"detail": "no such file"}, 404)
        return http(200, file) if isinstance(file, bytes) else file


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@asynccontextmanager
async def orchestrating(now: Callable[[], float]) -> AsyncIterator[ScriptedOrchestrator]:
    async with serving() as server:
        orchestrator = ScriptedOrchestrator(server, now)
        yield orchestrator
    assert not orchestrator.violations, orchestrator.violations
