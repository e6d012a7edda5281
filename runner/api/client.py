"""The orchestrator's API, one method for each call; nothing is retried here.

The node key and the registration token are sent to the configured origin only.
"""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, final
from urllib.parse import quote

from runner.api.http import HttpClient, Upload
from runner.errors import Refused, Unavailable
from runner.model import MOST_MESSAGE_CHARS, Identity, Registration, TaskStatus, status_body
from runner.redaction import Secret
from runner.timing import DEFAULT_TIMINGS, Clock, Timings

_BLOCK_BYTES = 1 << 20
"""A piece of a download that is worth the switch to a worker thread that writes it."""
_INVALID_BODY = frozenset({400, 422})
_HEADER_SAFE = re.compile(r"[\x21-\x7e]+")


PACE = "pace"
"""The extension by which the orchestrator sets the interval of heartbeats."""
TASK_KEY = "task-key"
"""The extension by which each task has a key of its own, for its container."""
PARKED_REPORTS = "parked-reports"
"""The extension by which heartbeats have the number of reports that wait for an operator."""
_CUT = " [… cut …] "
_MESSAGE_END_CHARS = 10_000
MAX_ASSIGNMENT_BYTES = 4 << 20
"""The longest valid assignment has 2.4 MB: 128 KiB of prompt and two names of 1000 files, each
character escaped. Above that, what an orchestrator takes in a body of 1 MiB, which escapes make
three times as long, can still be read, so that the task is rejected by its id instead of failing
every poll."""


@dataclass(frozen=True)
class Offer:
    """The response to a poll."""

    assignment: object
    """The assignment as it came, unchecked; None when there is no work."""
    was_held: bool
    """The orchestrator held the long poll: the next one may follow at once."""


@dataclass(frozen=True)
class HeartbeatResponse:
    """The response to a heartbeat; empty is what the orchestrator does not offer."""

    cancelled: frozenset[str]
    """The ids of the node's tasks that were cancelled."""
    extensions: frozenset[str]
    """The extensions of the API that the orchestrator offers."""
    interval_s: float | None = None
    """The time until the next heartbeat that it asks for (extension `pace`)."""
    new_api_key: Secret | None = None
    """The key that replaces the node's."""


@dataclass(frozen=True)
class Download:
    """A file that is arriving; `size` is its length in bytes, None when that is not announced."""

    size: int | None
    chunks: AsyncIterator[bytes]


@final
class OrchestratorClient:
    """Connections to one orchestrator; use it as an async context manager.

    Every call raises `Unauthorised`, `Refused` or `Unavailable`, as `HttpClient.request` does.
    """

    def __init__(
        self,
        url: str,
        ca_file: Path | None = None,
        timings: Timings = DEFAULT_TIMINGS,
        clock: Clock | None = None,
    ) -> None:
        """Prepare calls to `url`, as `check_orchestrator_url` returns it.

        Raises:
            ConfigurationError: `url` cannot be used, or `ca_file` does not hold a certificate.
        """
        self.url = url
        self._http = HttpClient(url, ca_file, timings, clock)

    async def __aenter__(self) -> OrchestratorClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.__aexit__()

    async def health(self) -> Mapping[str, Any]:
        """Return the orchestrator's health, which may have `version` and `timestamp`."""
        return _check_object(await self._call("GET", "health", {}))

    async def register(
        self, token: Secret, node: Mapping[str, object], known: Identity | None = None
    ) -> Registration:
        """Register this host as a node, described in the API's own field names.

        With a `known` identity the description of that node is replaced, where the orchestrator
        offers `reregister`; elsewhere another node would be registered.

        Raises:
            Unauthorised: the token is wrong.
            Refused: `status` is 410 when the known identity is unknown there.
            Unavailable: `status` is 503 when registration is disabled.
        """
        key = _key_header(known) if known is not None else {}
        headers = {"X-Registration-Token": token.reveal(), **key}
        body = _check_object(await self._call("POST", "register", headers, node))
        node_id, api_key = body.get("id"), body.get("api_key")
        if not _is_header_safe(node_id) or not _is_header_safe(api_key):
            raise Unavailable("its response to a registration has no usable id or api_key")
        return Registration(Identity(node_id, Secret(api_key)), node, _extensions(body))

    async def check_token(self, token: Secret) -> None:
        """Check that the token is not refused, by a registration that registers nothing.

        The body lacks what the contract requires. Some orchestrators, such as the reference one,
        look at the token first; where the body is looked at first, a wrong token goes unnoticed.

        Raises:
            Unauthorised: the token is wrong.
            Unavailable: `status` is 503 when registration is disabled.
        """
        try:
            await self._call("POST", "register", {"X-Registration-Token": token.reveal()}, {})
        except Refused as error:
            if error.status not in _INVALID_BODY:
                raise

    async def heartbeat(self, identity: Identity, body: Mapping[str, object]) -> HeartbeatResponse:
        """Send a heartbeat; return its response."""
        response = await self._call(
            "POST", "nodes/heartbeat", _key_header(identity), {"node_id": identity.node_id, **body}
        )
        if not isinstance(response, Mapping):
            return HeartbeatResponse(frozenset(), frozenset())
        cancelled = _strings(response.get("cancelled_task_ids"))
        extensions = _extensions(response)
        interval_s = response.get("heartbeat_interval_seconds") if PACE in extensions else None
        key = response.get("new_api_key")
        new_key = Secret(key) if _is_header_safe(key) else None
        return HeartbeatResponse(cancelled, extensions, _finite(interval_s), new_key)

    async def next_task(self, identity: Identity, wait_s: float) -> Offer:
        """Poll for work; the orchestrator may hold the long poll for `wait_s` s (RFC 7240)."""
        headers = {**_key_header(identity), "Prefer": f"wait={wait_s:.0f}"}
        async with self._http.request("GET", "tasks/pending", headers, hold_s=wait_s) as response:
            preferences = response.header("Preference-Applied").lower()
            return Offer(await response.json(MAX_ASSIGNMENT_BYTES), "wait" in preferences)

    async def claim(
        self, identity: Identity, task_id: str, message: str, now: float
    ) -> TaskStatus | None:
        """Report a task as running, which the orchestrator refuses when it is not this node's.

        `now` is in seconds since the epoch. Return the task's final status there if it has one.
        """
        body = status_body(task_id, TaskStatus.RUNNING, message, now)
        headers = _key_header(identity)
        return _final_status(await self._call("POST", "status", headers, body, task_id), task_id)

    async def send_status(
        self, identity: Identity, body: Mapping[str, object]
    ) -> TaskStatus | None:
        """Send a status report; return the task's final status there if the response has one."""
        headers, task_id = _key_header(identity), _task_id(body)
        body = _with_message_cut(body)
        async with self._http.request("POST", "status", headers, body, task_id=task_id) as response:
            await response.check_json()
            # The report was accepted, even if the body is too long or not valid JSON.
            with suppress(Unavailable):
                if response.is_json:
                    return _final_status(await response.json(), body.get("task_id"))
        return None

    async def send_log(self, identity: Identity, body: Mapping[str, object]) -> None:
        """Send a task's log. The response may repeat all of it, and is not read."""
        headers, task_id = _key_header(identity), _task_id(body)
        async with self._http.request("POST", "logs", headers, body, task_id=task_id) as response:
            await response.check_json()

    async def send_artifact(
        self,
        identity: Identity,
        task_id: str,
        segments: Iterable[str],
        upload: Upload,
        sha256: str,
    ) -> None:
        """Send an artifact of a task that this node has run; the same again changes nothing there.

        `segments` are its path, `sha256` its checksum in lower-case hex.
        """
        path = "/".join(quote(segment, safe="") for segment in (task_id, "artifacts", *segments))
        headers = {**_key_header(identity), "X-Checksum-SHA256": sha256}
        async with self._http.request(
            "PUT", f"tasks/{path}", headers, upload, task_id=task_id
        ) as response:
            await response.check_json()

    async def send_output(
        self, identity: Identity, task_id: str, chunk: Mapping[str, object]
    ) -> float | None:
        """Send a chunk of a task's output; return after how many seconds the next one is wanted.

        Raises:
            Refused: `status` is 409 when the chunk begins elsewhere than at the `length` held.
        """
        path = f"tasks/{quote(task_id, safe='')}/output"
        response = await self._call("POST", path, _key_header(identity), chunk, task_id)
        if not isinstance(response, Mapping):
            return None
        return _finite(response.get("interval_seconds"))

    @asynccontextmanager
    async def download(self, identity: Identity, name: str) -> AsyncIterator[Download]:
        """Open a file of a task that this node holds."""
        path = "files/" + quote(name, safe="")
        headers = _key_header(identity)
        async with self._http.request("GET", path, headers, is_download=True) as response:
            if response.header("Content-Encoding", "identity").lower() != "identity":
                raise Unavailable("it sent a compressed file, which was not asked for")
            length = response.header("Content-Length")
            async with aclosing(response.chunks(_BLOCK_BYTES)) as chunks:
                yield Download(int(length) if length.isdecimal() else None, chunks)

    async def _call(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: object = None,
        task_id: str | None = None,
    ) -> object:
        async with self._http.request(method, path, headers, body, task_id=task_id) as response:
            return await response.json()


def _task_id(report: Mapping[str, object]) -> str | None:
    task_id = report.get("task_id")
    return task_id if isinstance(task_id, str) else None


def _is_header_safe(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and _HEADER_SAFE.fullmatch(value) is not None


def _extensions(body: Mapping[str, Any]) -> frozenset[str]:
    names = _strings(body.get("extensions"))
    return frozenset(name for name in names if _is_header_safe(name))


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _strings(value: object) -> frozenset[str]:
    if not isinstance(value, list):
        return frozenset()
    return frozenset(text for text in value if isinstance(text, str))


def _key_header(identity: Identity) -> dict[str, str]:
    return {"X-API-Key": identity.api_key.reveal()}


def _with_message_cut(body: Mapping[str, object]) -> Mapping[str, object]:
    """Return a report without the middle of a message that would be refused for its length."""
    message = body.get("message")
    if not isinstance(message, str) or len(message) <= MOST_MESSAGE_CHARS:
        return body
    # Its end is what the container did, and what was not uploaded.
    head = message[: MOST_MESSAGE_CHARS - len(_CUT) - _MESSAGE_END_CHARS]
    return {**body, "message": f"{head}{_CUT}{message[-_MESSAGE_END_CHARS:]}"}


def _check_object(body: object) -> Mapping[str, Any]:
    if not isinstance(body, Mapping):
        raise Unavailable("its response is not a JSON object; is this the orchestrator's address?")
    return body


def _final_status(body: object, task_id: object) -> TaskStatus | None:
    """Return a task's final status; where the body does not name the task, only `cancelled`.

    Any other status may describe the request and not the task.
    """
    if not isinstance(body, Mapping):
        return None
    for status in TaskStatus:
        if status.is_final and status.value == body.get("status"):
            is_named = task_id in (body.get("task_id"), body.get("job_id"))
            return status if is_named or status is TaskStatus.CANCELLED else None
    return None
