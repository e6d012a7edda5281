"""The orchestrator's calls, one method each; nothing is retried here.

The node key and the registration token go to the configured origin alone.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeGuard, final
from urllib.parse import quote

from runner.api.http import HttpClient
from runner.errors import Unavailable
from runner.model import Identity, Registration
from runner.redaction import Secret
from runner.timing import DEFAULT_TIMINGS, Timings

_HEADER_SAFE = re.compile(r"[\x21-\x7e]+")
_FINAL = ("success", "error", "cancelled")


@dataclass(frozen=True)
class Offer:
    """The answer to a request for work."""

    assignment: object
    """The assignment as it came, unchecked; None when there is no work."""
    was_held: bool
    """The orchestrator held the request, so that it may be asked again at once."""


@dataclass(frozen=True)
class HeartbeatResponse:
    """The answer to a heartbeat; both are empty where the orchestrator knows nothing of them."""

    cancelled: frozenset[str]
    """The ids of the node's tasks that were cancelled."""
    extensions: frozenset[str]
    """The extensions of the API that the orchestrator offers."""


@dataclass(frozen=True)
class Download:
    """A file on its way: `size` in bytes when the orchestrator has told it."""

    size: int | None
    chunks: AsyncIterator[bytes]


@final
class OrchestratorClient:
    """A connection to one orchestrator; use it as an async context manager."""

    def __init__(
        self, url: str, ca_file: Path | None = None, timings: Timings = DEFAULT_TIMINGS
    ) -> None:
        """Prepare to talk to the orchestrator at `url`, checked before.

        Raises:
            ConfigurationError: `url` cannot be asked, or `ca_file` holds no certificate.
        """
        self.url = url
        self._wire = HttpClient(url, ca_file, timings)

    async def __aenter__(self) -> OrchestratorClient:
        await self._wire.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._wire.__aexit__(kind, error, traceback)

    async def health(self) -> Mapping[str, Any]:
        """Ask how it is; the answer may carry `version` and `timestamp`."""
        return _object(await self._call("GET", "health", {}))

    async def register(
        self, token: Secret, node: Mapping[str, object], known: Identity | None = None
    ) -> Registration:
        """Register this host as a node, described in the API's own field names.

        With a `known` identity that node is described anew, where the orchestrator offers
        `reregister`; elsewhere it would be one more node.

        Raises:
            Unauthorised: the token is wrong.
            Refused: `status` is 410 when the known identity is unknown there.
            Unavailable: as everywhere; `status` is 503 when registration is disabled.
        """
        headers = {"X-Registration-Token": token.reveal(), **(_key(known) if known else {})}
        answer = _object(await self._call("POST", "register", headers, node))
        node_id, api_key = answer.get("id"), answer.get("api_key")
        if not _is_header_safe(node_id) or not _is_header_safe(api_key):
            raise Unavailable("its answer to a registration has no usable id or api_key")
        identity = Identity(node_id, Secret(api_key))
        return Registration(identity, node, _extensions(answer))

    async def heartbeat(self, identity: Identity, body: Mapping[str, object]) -> HeartbeatResponse:
        """Send a heartbeat and return what its answer says."""
        answer = await self._call(
            "POST", "nodes/heartbeat", _key(identity), {"node_id": identity.node_id, **body}
        )
        if not isinstance(answer, Mapping):
            return HeartbeatResponse(frozenset(), frozenset())
        cancelled = _strings(answer.get("cancelled_task_ids"))
        return HeartbeatResponse(cancelled, _extensions(answer))

    async def next_task(self, identity: Identity, wait_s: float) -> Offer:
        """Ask for work; the orchestrator may hold the request for `wait_s` seconds (RFC 7240)."""
        headers = {**_key(identity), "Prefer": f"wait={wait_s:.0f}"}
        async with self._wire.request("GET", "tasks/pending", headers, held_s=wait_s) as response:
            applied = response.header("Preference-Applied")
            return Offer(await response.decoded(), "wait" in applied.lower())

    async def report(self, identity: Identity, path: str, body: Mapping[str, object]) -> str | None:
        """Hand in what is for `status` or `logs`; give the task's standing status if it is told.

        Only `cancelled` is believed of an answer that does not name the task: another word may as
        well say how the request went.
        """
        answer = await self._call("POST", path, _key(identity), body)
        if not isinstance(answer, Mapping):
            return None
        standing = answer.get("status")
        is_named = body.get("task_id") in (answer.get("task_id"), answer.get("job_id"))
        return standing if standing == "cancelled" or (is_named and standing in _FINAL) else None

    async def hand_in(self, identity: Identity, path: str, body: Mapping[str, object]) -> None:
        """Hand in what is for `status` or `logs`, whatever is said of it beside that it is taken.

        An answer may echo a whole log, or have no end: only its beginning is read.
        """
        async with self._wire.request("POST", path, _key(identity), body) as response:
            await response.check_begins_as_json()

    @asynccontextmanager
    async def download(self, identity: Identity, name: str) -> AsyncIterator[Download]:
        """Open a file of the task that this node holds; the connection may stall for a minute."""
        path = "files/" + quote(name, safe="")
        async with self._wire.request("GET", path, _key(identity), is_download=True) as response:
            if response.header("Content-Encoding", "identity").lower() != "identity":
                raise Unavailable("it compressed a file that was asked for as it is")
            length = response.header("Content-Length")
            async with aclosing(response.chunks()) as chunks:
                yield Download(int(length) if length.isdecimal() else None, chunks)

    async def _call(
        self, method: str, path: str, headers: Mapping[str, str], body: object = None
    ) -> object:
        async with self._wire.request(method, path, headers, body) as response:
            return await response.decoded()


def _is_header_safe(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and _HEADER_SAFE.fullmatch(value) is not None


def _extensions(answer: Mapping[str, Any]) -> frozenset[str]:
    names = _strings(answer.get("extensions"))
    return frozenset(name for name in names if _is_header_safe(name))


def _strings(value: object) -> frozenset[str]:
    if not isinstance(value, list):
        return frozenset()
    return frozenset(text for text in value if isinstance(text, str))


def _key(identity: Identity) -> dict[str, str]:
    return {"X-API-Key": identity.api_key.reveal()}


def _object(answer: object) -> Mapping[str, Any]:
    if not isinstance(answer, Mapping):
        raise Unavailable("its answer is no JSON object; is this the orchestrator's address?")
    return answer
