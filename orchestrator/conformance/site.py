"""The orchestrator under test, as the rules see it; what they make there is taken away again."""

import secrets
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx
from typing_extensions import Self

Json = dict[str, Any]

CALL_TIMEOUT_S = 60
REDELIVERY_WITHIN_S = 30
"""How long an assignment may stay with a node that does not report on it."""
NODE_FIELDS = (
    "id",
    "hostname",
    "name",
    "os_type",
    "status",
    "last_heartbeat",
    "current_task_id",
    "registered_at",
)
_OK = 200


class Broken(Exception):
    """The orchestrator breaks a rule; the sentence says how."""


class Absent(Exception):
    """It does not know an extension, which it need not."""


@dataclass(frozen=True)
class Node:
    """A node that a rule plays."""

    id: str
    api_key: str
    http: httpx.Client
    registered: Json
    """What its registration was answered with."""

    def poll(self, **headers: str) -> Json | None:
        """Ask for work."""
        answer = answered(self.http.get("/tasks/pending", headers=headers))
        if answer is not None and not isinstance(answer, dict):
            raise Broken(f"work is answered as {type(answer).__name__}")
        return answer

    def report(self, task_id: str, status: str, **fields: object) -> httpx.Response:
        """Report a task's status."""
        body = {"job_id": task_id, "task_id": task_id, "status": status, **fields}
        return self.http.post("/status", json=body)

    def beat(self, status: str = "idle") -> Json:
        """Send a heartbeat."""
        return fields_of(
            self.http.post("/nodes/heartbeat", json={"node_id": self.id, "status": status})
        )


class Site:
    """Calls the orchestrator in every role; a context manager removes what it has made there."""

    def __init__(
        self,
        url: str,
        registration_token: str,
        admin_key: str,
        *,
        redelivery_within_s: float = REDELIVERY_WITHIN_S,
    ) -> None:
        self.url = url.rstrip("/")
        self.registration_token = registration_token
        self.redelivery_within_s = redelivery_within_s
        self.unreported: list[tuple[Node, str]] = []
        """Nodes with the task that each was given and does not report on, to be looked at last."""
        self._stack = ExitStack()
        # Made once: httpx would load the system's certificates anew for every client.
        self._tls = httpx.create_ssl_context()
        self._nobody = self.client()
        self.admin = self.client(admin_key)
        self._made: list[str] = []
        """The paths of tasks, nodes and keys."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Tasks before their nodes and keys: each was made after those.
        for path in reversed(self._made):
            with suppress(httpx.HTTPError, httpx.InvalidURL):
                self.admin.delete(path)
        self._stack.close()

    def client(self, api_key: str | None = None) -> httpx.Client:
        """Give a client that calls with this key, or with none. Raises Broken if none can."""
        headers = {} if api_key is None else {"X-API-Key": api_key}
        if api_key is not None and not is_sendable(api_key):
            raise Broken("a key has characters that no header can carry")
        client = httpx.Client(
            base_url=self.url, headers=headers, timeout=CALL_TIMEOUT_S, verify=self._tls
        )
        return self._stack.enter_context(client)

    def register(self, name: str | None = None, tags: dict[str, str] | None = None) -> Node:
        """Register a node of a name that no task of others is for."""
        response = self.try_to_register(self.registration_token, name or unique("node"), tags or {})
        node = fields_of(response, "id", "api_key")
        self._made.append(f"/nodes/{node['id']}")
        return Node(node["id"], node["api_key"], self.client(node["api_key"]), node)

    def try_to_register(
        self, token: str, name: str, tags: dict[str, str], *, api_key: str | None = None
    ) -> httpx.Response:
        """Ask for a registration, with a key beside the token if one is given."""
        body = {"hostname": "conformance.example", "os_type": "linux", "name": name, "tags": tags}
        headers = {"X-Registration-Token": token}
        if api_key is not None:
            headers["X-API-Key"] = api_key
        return self._nobody.post("/register", json=body, headers=headers)

    def reregister(self, node: Node, name: str, tags: dict[str, str]) -> Json:
        """Register a node again with its key; return what that is answered with."""
        response = self.try_to_register(self.registration_token, name, tags, api_key=node.api_key)
        answer = fields_of(response, "id", "api_key")
        if answer["id"] != node.id:
            self.remove_later(f"/nodes/{answer['id']}")
        return answer

    def remove_later(self, path: str) -> None:
        """Note a node, task or key that is there though it should not be, to be removed."""
        self._made.append(path)

    def create_task(self, by: httpx.Client | None = None, /, **fields: object) -> Json:
        """Create a task, as the admin if nobody is named; give it."""
        return fields_of(self.try_to_create(by, **fields), "id", "status")

    def try_to_create(self, by: httpx.Client | None = None, /, **fields: object) -> httpx.Response:
        """Ask for a task; whoever calls sees to it that it is for no other node."""
        response = (by or self.admin).post("/tasks", json={"prompt": "conformance check", **fields})
        if response.is_success:
            self._made.append(f"/tasks/{fields_of(response, 'id')['id']}")
        return response

    def create_key(self, **fields: object) -> Json:
        """Create a scoped key; give it as it is shown this once."""
        body = {"name": unique("key"), "description": "conformance check", **fields}
        key = fields_of(self.admin.post("/keys", json=body), "key_id", "api_key")
        self._made.append(f"/keys/{key['key_id']}")
        return key

    def task_of(self, node: Node, **fields: object) -> str:
        """Create a task for a node and have the node take it; give its id."""
        task = self.create_task(target_node_id=node.id, **fields)
        expect_equal("the task that the node is given", assigned_id(node), task["id"])
        return str(task["id"])

    def task(self, task_id: str) -> Json:
        """Show a task as the admin sees it."""
        return fields_of(self.admin.get(f"/tasks/{task_id}"), "id", "status")


def unique(word: str) -> str:
    """Make a name that nothing else has."""
    return f"conformance-{word}-{secrets.token_hex(6)}"


def is_sendable(credential: str) -> bool:
    """Say whether a header can carry it."""
    return credential.isascii() and credential.isprintable()


def assigned_id(node: Node) -> str | None:
    """Poll once; give the id of the task, if any."""
    assignment = node.poll()
    return None if assignment is None else assignment.get("task_id")


def answered(response: httpx.Response) -> Any:  # noqa: ANN401 - any JSON
    """Give the JSON of an answer that has to be 200."""
    what = f"{response.request.method} {response.request.url.path}"
    if response.status_code != _OK:
        raise Broken(f"{what} is answered {response.status_code}")
    try:
        return response.json()
    except ValueError:
        raise Broken(f"{what} is answered with something else than JSON") from None


def fields_of(response: httpx.Response, *names: str) -> Json:
    """Give the object of an answer that has to be 200 and to have these fields."""
    found = answered(response)
    what = f"{response.request.method} {response.request.url.path}"
    if not isinstance(found, dict):
        raise Broken(f"{what} is not answered with an object")
    expect_fields(f"the answer to {what}", found, *names)
    return found


def expect_fields(what: str, found: Json, *names: str) -> None:
    """See that something has these fields."""
    missing = [name for name in names if name not in found]
    if missing:
        raise Broken(f"{what} lacks {', '.join(missing)}")


def expect_refusal(what: str, response: httpx.Response, *codes: int) -> None:
    """See that a call is refused with one of these, and says why in `detail`."""
    if response.status_code not in codes:
        wanted = " or ".join(map(str, codes))
        raise Broken(f"{what} is answered {response.status_code}, not {wanted}")
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict) or "detail" not in body:
        raise Broken(f"{what} is refused without a detail")


def expect_equal(what: str, found: object, wanted: object) -> None:
    """See that something is as it has to be."""
    if found != wanted:
        raise Broken(f"{what} is {found!r}, not {wanted!r}")


Rule = Callable[[Site], None]
"""Its docstring is what has to hold; it raises Broken or Absent."""
