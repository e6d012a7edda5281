"""The orchestrator under test, as the rules see it. What they make there is removed at the end.

Tasks of others stay theirs. The check's nodes and tasks have random names and a high priority, so
each is meant for the other alone. Only a task that is for any node could still reach a node of the
check: where one is waiting, rules that expect no work are skipped, and if one is assigned all the
same, its node is removed at once, which returns the task to the queue.
"""

import secrets
import ssl
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from types import TracebackType

import httpx
from typing_extensions import Self

from orchestrator.conformance.expect import (
    Absent,
    Broken,
    Json,
    Skipped,
    Stopped,
    call_of,
    detail_of,
    expect_equal,
    fields_of,
    json_of,
)

CALL_TIMEOUT_S = 60
REDELIVERY_WITHIN_S = 30
"""How long an assignment may stay with a node that does not report on it."""
KNOWN_WITHIN_S = 10
"""How long each process of an orchestrator may take to know of a rotated key."""
PROMPT = "conformance check"
"""How the prompt of each task begins that any run of the check has made."""
PRIORITY = 10_000
"""Of the check's tasks, so that its nodes get them before any task of others."""
NODE_FIELDS = ("id", "hostname", "name", "os_type", "status", "last_heartbeat", "registered_at")
EXIT_UNAVAILABLE = 69
EXIT_CONFIGURATION = 78
FILE_CONTENT = bytes(range(256))

_FILE_NAME = "conformance check Übersicht.csv"


@dataclass(frozen=True)
class Node:
    """A node that a rule plays."""

    id: str
    name: str
    tags: dict[str, str]
    api_key: str
    http: httpx.Client
    registered: Json
    """The response to its registration."""

    def report(self, task_id: str, status: str, **fields: object) -> httpx.Response:
        """Send a status of a task."""
        body = {"job_id": task_id, "task_id": task_id, "status": status, **fields}
        return self.http.post("/status", json=body)

    def heartbeat(self, status: str = "idle") -> httpx.Response:
        """Send a heartbeat."""
        return self.http.post("/nodes/heartbeat", json={"node_id": self.id, "status": status})


@dataclass
class Held:
    """A task that a node was assigned."""

    node: Node
    assignment: Json
    has_ended: bool = False
    """Whether a status of its end was accepted."""

    @property
    def task_id(self) -> str:
        """The task's id."""
        return str(self.assignment["task_id"])

    def report(self, status: str, **fields: object) -> httpx.Response:
        """Send a status of the task."""
        response = self.node.report(self.task_id, status, **fields)
        self.has_ended |= response.is_success and status in {"success", "error"}
        return response

    def send_log(self, title: str) -> httpx.Response:
        """Send a log of the task."""
        session = {"title": title, "messages": []}
        return self.node.http.post("/logs", json={"job_id": self.task_id, "session": session})


class Target:
    """Calls the orchestrator in every role; a context manager removes what it has made there."""

    def __init__(
        self,
        url: str,
        registration_token: str,
        admin_key: str | None,
        *,
        redelivery_within_s: float = REDELIVERY_WITHIN_S,
        known_within_s: float = KNOWN_WITHIN_S,
    ) -> None:
        self.url = url.rstrip("/")
        self.registration_token = registration_token
        self.redelivery_within_s = redelivery_within_s
        self.known_within_s = known_within_s
        self.left_behind: list[str] = []
        """The paths of what could not be removed."""
        self._run = secrets.token_hex(6)
        self._stack = ExitStack()
        # Made once: httpx would load the certificates of the CAs for every client, also for http.
        is_https = self.url.lower().startswith("https:")
        self._tls = (
            httpx.create_ssl_context() if is_https else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        )
        # Python demands extensions since 3.13 that many a private CA lacks; curl does without them.
        self._tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
        self._anonymous = self.client()
        self._has_admin_key = admin_key is not None
        self.admin = self.client(admin_key)
        self.admin.event_hooks = {"response": [self._stop_if_locked_out]}
        self._made: list[str] = []
        """The paths of tasks, nodes, keys and tokens."""
        self._nodes: list[Node] = []
        self._unused: tuple[str, httpx.Response] | None = None
        """A registration that no rule has used yet: the node's name, and the response."""
        self._foreign_was_assigned = False
        self._has_purge = True
        self._unpurged: list[str] = []
        """Paths of ended tasks that still had a node."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._remove_all()
        finally:
            self._stack.close()

    def check_credentials(self) -> None:
        """Raise Stopped if the orchestrator cannot be reached or refuses a credential."""
        try:
            self._anonymous.get("/health")
            if self._has_admin_key:
                self._check_admin_key()
            # After the admin key, without which the node could not be removed.
            self._check_registration_token()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Stopped(f"cannot reach {self.url}: {error}", EXIT_UNAVAILABLE) from error

    def _check_admin_key(self) -> None:
        response = self.admin.get("/nodes")
        if response.status_code in {401, 403}:
            raise Stopped(
                f"cannot use the admin key: {_refusal(response)}; set ADMIN_API_KEY to the key that"
                " the orchestrator was started with",
                EXIT_CONFIGURATION,
            )

    def _check_registration_token(self) -> None:
        name = self.unique("node")
        response = self.try_to_register(self.registration_token, name, {})
        if response.status_code in {401, 403}:
            raise Stopped(
                f"cannot register a node: {_refusal(response)}; set REGISTRATION_TOKEN to the token"
                " that the orchestrator was started with",
                EXIT_CONFIGURATION,
            )
        if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            raise Stopped(
                f"cannot register a node: {_refusal(response)}; start the orchestrator with a"
                " registration token",
                EXIT_CONFIGURATION,
            )
        self._stop_if_locked_out(response)
        self._unused = (name, response)

    def _stop_if_locked_out(self, response: httpx.Response) -> None:
        if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
            response.read()
            wait_s = response.headers.get("Retry-After", "60")
            raise Stopped(
                f"cannot go on: {_refusal(response)}; try again in {wait_s} s",
                EXIT_UNAVAILABLE,
            )

    def unique(self, word: str) -> str:
        """Return a name that nothing else has, and that names this run."""
        return f"conformance-{word}-{self._run}-{secrets.token_hex(4)}"

    def client(self, api_key: str | None = None) -> httpx.Client:
        """Return a client that calls with this key, or with none. Raises Broken if none can."""
        headers = {} if api_key is None else {"X-API-Key": api_key}
        if api_key is not None and not is_sendable(api_key):
            raise Broken("a key has characters that no header can carry")
        client = httpx.Client(
            base_url=self.url, headers=headers, timeout=CALL_TIMEOUT_S, verify=self._tls
        )
        return self._stack.enter_context(client)

    def register(self, name: str | None = None, tags: dict[str, str] | None = None) -> Node:
        """Register a node whose name is random if none is given."""
        if self._unused is not None and name is None and tags is None:
            (name, response), self._unused = self._unused, None
        else:
            name = name or self.unique("node")
            response = self.try_to_register(self.registration_token, name, tags or {})
            self._stop_if_locked_out(response)
        body = fields_of(response, "id", "api_key")
        key = body["api_key"]
        node = Node(body["id"], name, tags or {}, key, self.client(key), body)
        self._nodes.append(node)
        return node

    def with_key(self, node: Node, api_key: str) -> Node:
        """Return the node as it calls with another key."""
        return replace(node, api_key=api_key, http=self.client(api_key))

    def try_to_register(
        self, token: str, name: str, tags: dict[str, str], *, api_key: str | None = None
    ) -> httpx.Response:
        """Send a registration, with a key beside the token if one is given."""
        body = {"hostname": "conformance.example", "os_type": "linux", "name": name, "tags": tags}
        headers = {"X-Registration-Token": token}
        if api_key is not None:
            headers["X-API-Key"] = api_key
        response = self._anonymous.post("/register", json=body, headers=headers)
        self._note_made(response, "/nodes", "id")
        return response

    def reregister(self, node: Node, name: str, tags: dict[str, str]) -> Json:
        """Register a node again with its key; return the response's body."""
        response = self.try_to_register(self.registration_token, name, tags, api_key=node.api_key)
        return fields_of(response, "id", "api_key")

    def idle_node(self, name: str | None = None) -> Node:
        """Return a node that holds no task, of this name if one is given."""
        return self.register(name)

    def hold(self, *, with_file: bool = False) -> Held:
        """Return a node that holds a task which any node of its name could have got."""
        files = [fields_of(self.upload(), "filename")["filename"]] if with_file else []
        node = self.register(self.unique("node"))
        task = self.create_task(target_node_name=node.name, files=files)
        assignment = self.poll(node) or {}
        expect_equal("the task that the node gets", assignment.get("task_id"), task["id"])
        return Held(node, assignment)

    def assign(self, node: Node, **fields: object) -> Held:
        """Create a task for this node alone and have the node get it."""
        task = self.create_task(target_node_id=node.id, **fields)
        assignment = self.poll(node) or {}
        expect_equal("the task that the node gets", assignment.get("task_id"), task["id"])
        return Held(node, assignment)

    def request_work(self, node: Node, *, prefer: str = "") -> httpx.Response:
        """Ask for work once. Raises Skipped if it is work of others, having returned it."""
        if self._foreign_was_assigned:
            # This orchestrator does not go by priority: be as careful as where none is expected.
            self.require_no_foreign_work(node)
        response = node.http.get("/tasks/pending", headers={"Prefer": prefer} if prefer else {})
        with suppress(ValueError):
            body = response.json() if response.is_success else None
            if isinstance(body, dict) and "task_id" in body and not self._is_ours(body):
                self._foreign_was_assigned = True
                self._return_work(node)
                raise Skipped("a task of others was waiting; it was returned at once")
        return response

    def poll(self, node: Node) -> Json | None:
        """Return what the node gets when it asks for work. Raises as `request_work`."""
        body = json_of(self.request_work(node))
        if body is not None and not isinstance(body, dict):
            raise Broken(f"the assignment is a {type(body).__name__}")
        return body

    def assigned_id(self, node: Node) -> str | None:
        """Ask for work once; return the task's id, if there is one. Raises as `request_work`."""
        assignment = self.poll(node)
        return None if assignment is None else assignment.get("task_id")

    def expect_no_task(self, what: str, node: Node) -> None:
        """Raise Broken if the node gets a task of ours, Skipped if one of others is waiting."""
        self.require_no_foreign_work(node)
        expect_equal(what, self.assigned_id(node), None)

    def require_no_foreign_work(self, node: Node) -> None:
        """Raise Skipped if a task of others is waiting that this node would get."""
        response = self.admin.get("/tasks", params={"status_filter": "pending"})
        for task in _rows(response):
            if not self._is_ours(task) and _is_for(task, node):
                raise Skipped("tasks of others are waiting that are for any node")

    def _is_ours(self, task: Json) -> bool:
        path = f"/tasks/{task.get('task_id', task.get('id'))}"
        # By the prompt as well: the response to a creation may have been lost.
        return path in self._made or self._run in str(task.get("prompt"))

    def _return_work(self, node: Node) -> None:
        # What a node has not reported on goes back to the queue when the node is removed. A node
        # that is not removed keeps it until it counts as silent.
        if self._has_admin_key:
            self._remove(f"/nodes/{node.id}")

    def create_task(self, by: httpx.Client | None = None, /, **fields: object) -> Json:
        """Create a task, as the admin if no client is given; return it."""
        return fields_of(self.try_to_create(by, **fields), "id", "status")

    def try_to_create(self, by: httpx.Client | None = None, /, **fields: object) -> httpx.Response:
        """Send a new task. Without a target it is for a node that does not exist."""
        body = {"prompt": f"{PROMPT} {self._run}", "priority": PRIORITY, **fields}
        if not body.keys() & {"target_node_id", "target_node_name"}:
            body["target_node_name"] = self.unique("nobody")
        sent = {name: value for name, value in body.items() if value is not None}
        response = (by or self.admin).post("/tasks", json=sent)
        self._note_made(response, "/tasks", "id")
        return response

    def rerun(self, task_id: str) -> Json:
        """Run a task again; return the new one."""
        response = self.admin.post(f"/tasks/{task_id}/rerun")
        self._note_made(response, "/tasks", "id")
        return fields_of(response, "id", "status")

    def create_key(self, **fields: object) -> Json:
        """Create a scoped key; return it with its secret, which is shown this once."""
        body = {"name": self.unique("key"), "description": PROMPT, **fields}
        response = self.admin.post("/keys", json=body)
        self._note_made(response, "/keys", "key_id")
        return fields_of(response, "key_id", "api_key")

    def create_token(self, *patterns: str) -> Json:
        """Create a registration token; return it with its secret. Raises Absent."""
        body = {"name": self.unique("token"), "allowed_node_patterns": patterns}
        response = self.admin.post("/registration-tokens", json=body)
        if response.status_code in {404, 405}:
            raise Absent("there is one registration token, for every name")
        self._note_made(response, "/registration-tokens", "token_id")
        return fields_of(response, "token_id", "token")

    def upload(self) -> httpx.Response:
        """Upload a file with every byte in it and a name that has to be quoted in a URL."""
        return self.admin.post("/upload", files={"file": (_FILE_NAME, FILE_CONTENT)})

    def task(self, task_id: str) -> Json:
        """Return a task as the admin sees it."""
        return fields_of(self.admin.get(f"/tasks/{task_id}"), "id", "status")

    def _note_made(self, response: httpx.Response, path: str, name_of_id: str) -> None:
        with suppress(ValueError):
            body = response.json() if response.is_success else None
            if isinstance(body, dict) and f"{path}/{body.get(name_of_id)}" not in self._made:
                self._made.append(f"{path}/{body.get(name_of_id)}")

    def _remove_all(self) -> None:
        if not self._has_admin_key:
            return
        try:
            # Tasks before their nodes and keys: each was made after those.
            while self._made:
                self._remove(self._made[-1])
                self._made.pop()
            # What was made by a call whose response never came, as after Ctrl-C.
            self._remove_named("/tasks?status_filter=pending", "id", "prompt")
            self._remove_named("/nodes", "id", "name")
            self._remove_named("/keys", "key_id", "name")
            self._remove_named("/registration-tokens", "token_id", "name")
            for path in self._unpurged:
                self.admin.post(f"{path}/purge")
        except (httpx.HTTPError, httpx.InvalidURL, Stopped):
            pass
        finally:
            self.left_behind.extend(self._made)

    def _remove_named(self, url: str, name_of_id: str, name: str) -> None:
        for row in _rows(self.admin.get(url)):
            path = f"{url.partition('?')[0]}/{row.get(name_of_id)}"
            if self._run in str(row.get(name)) and path not in self.left_behind:
                self._remove(path)

    def _remove(self, path: str) -> None:
        response = self.admin.delete(path)
        is_task = path.startswith("/tasks/")
        # 404: a rule has removed it. A task that has ended cannot be cancelled.
        if not response.is_success and response.status_code not in (
            {400, 404, 409} if is_task else {404}
        ):
            self.left_behind.append(path)
        if is_task and self._has_purge and response.status_code != httpx.codes.NOT_FOUND:
            # Not every orchestrator can remove a task; some can.
            purged = self.admin.post(f"{path}/purge")
            self._has_purge = purged.status_code not in {404, 405}
            if purged.status_code == httpx.codes.CONFLICT:
                self._unpurged.append(path)


class RunnerTarget(Target):
    """Calls the orchestrator as a runner does: as two nodes, with one task that it offers."""

    def __init__(
        self,
        url: str,
        registration_token: str,
        admin_key: str | None = None,
        *,
        take_task: bool = False,
        redelivery_within_s: float = REDELIVERY_WITHIN_S,
    ) -> None:
        super().__init__(
            url, registration_token, admin_key, redelivery_within_s=redelivery_within_s
        )
        self._take_task = take_task
        self._first: Node | None = None
        self._second: Node | None = None
        self._held: Held | None = None

    def register(self, name: str | None = None, tags: dict[str, str] | None = None) -> Node:
        """Return the first node. Two do for all rules: not every node can be removed again."""
        if self._first is None:
            self._first = super().register(name, tags)
        return self._first

    def idle_node(self, name: str | None = None) -> Node:
        """Return the second node. The task is with the first by then, so there is no more work."""
        self.hold()
        if self._second is None:
            self._second = super().register(name or self.unique("node"))
        return self._second

    def hold(self, *, with_file: bool = False) -> Held:
        """Return the first node with the task that it was offered."""
        if not self._take_task:
            raise Skipped("it needs a task: queue one that has a file, and add --take-task")
        if self._held is None:
            self._held = self._take()
        if with_file and not self._held.assignment.get("files"):
            raise Skipped("the task that was offered has no file")
        return self._held

    def _take(self) -> Held:
        node = self.register()
        response = node.http.get("/tasks/pending")
        if json_of(response) is None:
            raise Skipped("no task was offered: queue one for any node")
        return Held(node, fields_of(response, "task_id"))

    def _is_ours(self, task: Json) -> bool:
        return self._held is not None and task.get("task_id") == self._held.task_id

    def _return_work(self, node: Node) -> None:
        super()._return_work(node)
        # A last heartbeat would only put off that the node counts as silent.
        self._nodes.remove(node)

    def require_no_foreign_work(self, node: Node) -> None:
        """Do nothing: only an admin can see what is waiting."""

    def _remove_all(self) -> None:
        with suppress(httpx.HTTPError, httpx.InvalidURL):
            if self._held is not None and not self._held.has_ended:
                message = "the conformance check ended before this task did"
                self._held.report("error", message=message)
            for node in self._nodes:
                node.heartbeat("offline")
        super()._remove_all()
        if not self._has_admin_key:
            self.left_behind.extend(self._made)


def is_sendable(credential: str) -> bool:
    """Check whether a header can carry it."""
    return credential.isascii() and credential.isprintable()


def _refusal(response: httpx.Response) -> str:
    detail = detail_of(response) or response.reason_phrase
    return f"{call_of(response)} is answered with {response.status_code} ({detail})"


def _rows(response: httpx.Response) -> list[Json]:
    # Whatever else comes back is the subject of the rule about that list.
    with suppress(ValueError):
        body = response.json()
        if isinstance(body, list):
            return [row for row in body if isinstance(row, dict)]
    return []


def _is_for(task: Json, node: Node) -> bool:
    with suppress(TypeError, ValueError):
        scheduled_for = str(task.get("scheduled_for")).replace("Z", "+00:00")
        if datetime.fromisoformat(scheduled_for) > datetime.now(timezone.utc):
            return False
    tags = task.get("target_tags") or {}
    return (
        task.get("status", "pending") == "pending"
        and task.get("target_node_id") in {None, node.id}
        and fnmatchcase(node.name, task.get("target_node_name") or "*")
        and tags.items() <= node.tags.items()
    )


Rule = Callable[[Target], None]
"""Its docstring is the claim. It raises Broken, Absent or Skipped if the claim does not hold."""
