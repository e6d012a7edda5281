"""A real orchestrator on a real socket, in a thread of the test's process.

    with serve(tmp_path / "orchestrator") as orchestrator:
        task = orchestrator.create_task(prompt="do it")

It can be stopped and started again on the same port with the same data, as in an outage.
"""

import hashlib
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import quote

import httpx
import psycopg
from fastapi import FastAPI
from sqlalchemy import Update, select
from typing_extensions import Self

from orchestrator.app import create_app
from orchestrator.db.database import Database
from orchestrator.db.tables import Base, Node, Task
from orchestrator.server import Server, bind, url_of
from orchestrator.settings import Settings
from tests.harness.ports import kept_port
from tests.harness.seed_contract import Message, check_response, declares

REGISTRATION_TOKEN = "the-registration-token"  # noqa: S105 - opens nothing but test servers
ADMIN_KEY = "the-admin-key"
DEADLINE_S = 60
"""How long anything that must happen may take, on the slowest machine."""
PROMPTLY_S = 25
"""Shorter than it takes until a waiting node's queue is looked at without an announcement."""
POLL_S = 60
"""How long a poll is held: the longest that the orchestrator accepts."""

_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
# Made once: httpx would load the system's certificates for every client.

Json = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class RegisteredNode:
    """A node that a test plays itself."""

    id: str
    name: str
    api_key: str
    http: httpx.Client
    """Calls the orchestrator with the node's key."""

    def poll(self, wait_s: int | None = None) -> Json | None:
        headers = {} if wait_s is None else {"Prefer": f"wait={wait_s}"}
        return ok(self.http.get("/tasks/pending", headers=headers)) or None

    def poll_id(self, wait_s: int | None = None) -> str | None:
        assignment = self.poll(wait_s)
        return None if assignment is None else str(assignment["task_id"])

    def report(self, task_id: str, status: str, **fields: object) -> Json:
        body = {"task_id": task_id, "job_id": task_id, "status": status, **fields}
        return ok(self.http.post("/status", json=body))

    def beat(self, status: str = "idle", **fields: object) -> Json:
        body = {"node_id": self.id, "status": status, **fields}
        return ok(self.http.post("/nodes/heartbeat", json=body))

    def send_log(self, task_id: str, session: Json) -> Json:
        return ok(self.http.post("/logs", json={"task_id": task_id, "session": session}))

    def put_artifact(self, task_id: str, path: str, content: bytes) -> Json:
        headers = {"X-Checksum-SHA256": sha256(content)}
        url = f"/tasks/{task_id}/artifacts/{quote(path)}"
        return ok(self.http.put(url, content=content, headers=headers))


class RunningOrchestrator:
    """One server, listening from `start` to `stop`; a context manager does both."""

    def __init__(self, data_dir: Path, **settings: Any) -> None:  # noqa: ANN401 - Settings has types
        """Prepare a server on a free port of loopback; `settings` are fields of Settings."""
        data_dir.mkdir(parents=True, exist_ok=True)
        defaults = {
            "registration_token": REGISTRATION_TOKEN,
            "admin_key": ADMIN_KEY,
            # Most tests' nodes never send a heartbeat; on a slow machine they must not fall silent.
            "heartbeat_timeout_s": 3600,
            # Nor may an assignment be offered again before the test has used it.
            "redelivery_after_s": 3600,
        }
        self.settings = Settings(data_dir, **{**defaults, **settings})
        self.registration_token = self.settings.registration_token
        self.admin_key = self.settings.admin_key
        self.url = ""
        """Where it listens; stays the same over a stop and a start."""
        self._port = 0
        self._server: Server | None = None
        self._thread: threading.Thread | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.start()
        self._stack.callback(self.stop)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self) -> None:
        """Listen, on the port of the last time if there was one."""
        if not self._port:
            keeper, self._port = kept_port()
            self._stack.enter_context(keeper)
        listener = bind("127.0.0.1", self._port)
        self.url = url_of(listener)
        listening = threading.Event()
        self._server = Server(self.application(), listener, lambda _: listening.set())
        self._thread = threading.Thread(target=self._server.serve_until_stopped, daemon=True)
        self._thread.start()
        if not listening.wait(DEADLINE_S):
            raise TimeoutError("the orchestrator does not listen")

    def application(self) -> FastAPI:
        return create_app(self.settings)

    def stop(self) -> None:
        """Stop listening, answer held requests; nothing is lost. May be called when stopped."""
        if self._server is None or self._thread is None:
            return
        self._server.should_exit = True
        self._thread.join(DEADLINE_S)
        if self._thread.is_alive():
            raise TimeoutError("the orchestrator does not stop")
        self._server = self._thread = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def stored(self) -> str:
        tables = Base.metadata.sorted_tables
        with self.database() as database, database.reading() as session:
            return "\n".join(str(row) for table in tables for row in session.execute(select(table)))

    def change(self, statement: Update) -> None:
        """Change its database directly, for what takes hours otherwise."""
        with self.database() as database, database.writing() as session:
            session.execute(statement)

    def database(self) -> AbstractContextManager[Database]:
        return closing(Database(self.settings.data_dir, self.settings.database_url))

    def disconnect(self, application: str) -> int:
        """End the sessions of PostgreSQL that have this name; return their number."""
        query = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = %s"
        )
        with psycopg.connect(str(self.settings.database_url), autocommit=True) as connection:
            return len(connection.execute(query, [application]).fetchall())

    def silence(self, node: RegisteredNode, seconds: float = 86_400) -> None:
        """Let so much time pass without a heartbeat of a node, a day by default."""
        self.nodes()  # Its heartbeats are written by now, and not over the change.
        passed = timedelta(seconds=seconds)
        with self.database() as database, database.writing() as session:
            row = session.get_one(Node, node.id)
            row.last_heartbeat -= passed
            row.offline_at -= passed
            for task in session.scalars(select(Task).where(Task.assigned_node_id == node.id)):
                task.offered_at = task.offered_at and task.offered_at - passed

    @property
    def waiting_count(self) -> int:
        return 0 if self._server is None else self._server.waiting_count

    def client(self, api_key: str | None = None) -> httpx.Client:
        """Return a client that calls this server, with a key if one is named."""
        headers = {} if api_key is None else {"X-API-Key": api_key}
        client = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=90,
            trust_env=False,
            verify=_NO_TLS,
            event_hooks={"response": [_check_response]},
        )
        return self._stack.enter_context(client)

    @cached_property
    def admin(self) -> httpx.Client:
        return self.client(self.admin_key)

    def register(self, name: str = "node", *, tags: dict[str, str] | None = None) -> RegisteredNode:
        node = ok(self.try_to_register(name, tags=tags or {}))
        key = node["api_key"]
        return RegisteredNode(node["id"], node["name"], key, self.client(key))

    def try_to_register(
        self, name: str, token: str | None = None, *, key: str | None = None, **fields: object
    ) -> httpx.Response:
        """Register with this token, or REGISTRATION_TOKEN; with a key, as the node that has it."""
        body = {"hostname": "host.example", "os_type": "linux", "name": name, **fields}
        headers = {"X-Registration-Token": token or self.registration_token or ""}
        return self.client(key).post("/register", json=body, headers=headers)

    def create_task(self, prompt: str = "do it", **fields: object) -> Json:
        return ok(self.admin.post("/tasks", json={"prompt": prompt, **fields}))

    def assign(self, node: RegisteredNode, *reports: str, **fields: object) -> str:
        """Create a task for a node that polls for it and sends these reports; return its id."""
        body = {"prompt": "do it", "target_node_id": node.id, **fields}
        task_id = str(ok(self.admin.post("/tasks", json=body))["id"])
        assert node.poll_id() == task_id
        for status in reports:
            node.report(task_id, status)
        return task_id

    def create_key(self, **fields: object) -> Json:
        return ok(self.admin.post("/keys", json={"name": "ci", "description": "d", **fields}))

    def create_token(self, *patterns: str, **fields: object) -> Json:
        body = {"name": "acme", "allowed_node_patterns": patterns or ["client-acme-*"], **fields}
        return ok(self.admin.post("/registration-tokens", json=body))

    def audit(self, **params: str | int) -> list[Json]:
        return list(reversed(ok(self.admin.get("/keys/audit", params=params))["entries"]))

    def task(self, task_id: str) -> Json:
        return ok(self.admin.get(f"/tasks/{task_id}"))

    def tasks(self) -> list[Json]:
        return rows(self.admin.get("/tasks"))

    def nodes(self) -> list[Json]:
        return rows(self.admin.get("/nodes"))

    def cancel(self, task_id: str) -> Json:
        return ok(self.admin.delete(f"/tasks/{task_id}"))

    def log_of(self, task_id: str) -> Json:
        return ok(self.admin.get(f"/logs/{task_id}"))

    def output_of(self, task_id: str) -> tuple[str, bool]:
        """Return what is stored of a task's output, and whether that is all of it."""
        return stored_output(self.admin, task_id)

    def artifacts_of(self, task_id: str) -> dict[str, bytes]:
        """Return a task's artifacts by their paths."""
        return stored_artifacts(self.admin, task_id)

    def upload(self, name: str, content: bytes) -> Json:
        return ok(self.admin.post("/upload", files={"file": (name, content)}))

    @staticmethod
    def moment(**ahead: float) -> str:
        return (datetime.now(timezone.utc) + timedelta(**ahead)).isoformat()

    def wait_for_task(self, task_id: str, *statuses: str) -> Json:
        wait_for(lambda: self.task(task_id)["status"] in statuses)
        return self.task(task_id)


class Poller:
    """Nodes that wait for work, each in a thread of its own, until their requests are answered."""

    def __init__(self, orchestrator: RunningOrchestrator, *nodes: RegisteredNode) -> None:
        """Send the requests; return once the orchestrator holds all of them."""
        pool = ThreadPoolExecutor(max_workers=len(nodes))
        headers = {"Prefer": f"wait={POLL_S}"}
        self._responses: list[Future[httpx.Response]] = [
            pool.submit(node.http.get, "/tasks/pending", headers=headers) for node in nodes
        ]
        wait_for(lambda: orchestrator.waiting_count == len(nodes))

    def response(self, index: int = 0, within_s: float = DEADLINE_S) -> httpx.Response:
        return self._responses[index].result(within_s)

    def task_id(self, index: int = 0, within_s: float = DEADLINE_S) -> str | None:
        """Wait for the response to a node's request; return the assigned task's id, if any."""
        assignment = ok(self.response(index, within_s))
        return None if assignment is None else str(assignment["task_id"])


@contextmanager
def serve(data_dir: Path, **settings: Any) -> Iterator[RunningOrchestrator]:  # noqa: ANN401
    with RunningOrchestrator(data_dir, **settings) as running:
        yield running


def ok(response: httpx.Response) -> Json:
    return cast("Json", _ok(response))


def rows(response: httpx.Response) -> list[Json]:
    return cast("list[Json]", _ok(response))


def refusal(response: httpx.Response) -> tuple[int, str]:
    """Return the status code and the sentence of a response that must be a refusal."""
    body = response.json()
    assert list(body) == ["detail"]
    assert isinstance(body["detail"], str)
    return response.status_code, body["detail"]


def stored_output(admin: httpx.Client, task_id: str) -> tuple[str, bool]:
    """Return what is stored of a task's output, and whether that is all of it."""
    response = admin.get(f"/tasks/{task_id}/output").raise_for_status()
    return response.text, response.headers["X-Output-Done"] == "true"


def stored_artifacts(admin: httpx.Client, task_id: str) -> dict[str, bytes]:
    """Return a task's artifacts by their paths."""
    paths = [one["path"] for one in rows(admin.get(f"/tasks/{task_id}/artifacts"))]
    urls = {path: f"/tasks/{task_id}/artifacts/{quote(path)}" for path in paths}
    return {path: admin.get(url).raise_for_status().content for path, url in urls.items()}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def wait_for(condition: Callable[[], T | None], deadline_s: float = DEADLINE_S) -> T:
    """Return what the condition returns as soon as it is true. Raises TimeoutError."""
    until = time.monotonic() + deadline_s
    while time.monotonic() < until:
        result = condition()
        if result:
            return result
        time.sleep(0.02)
    raise TimeoutError("what was waited for did not happen")


def _check_response(response: httpx.Response) -> None:
    """Check that a client generated from the seed's contract could read the response."""
    method, target = response.request.method, response.request.url.raw_path.decode()
    if declares(method, target, response.status_code):
        check_response(
            Message(method, target, response.headers, response.read()), response.status_code
        )


def _ok(response: httpx.Response) -> object:
    assert response.status_code == httpx.codes.OK, response.text
    body: object = response.json()
    return body
