"""Asking for work; `Prefer: wait=N` (RFC 7240) holds the request until work comes."""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from pydantic import WithJsonSchema
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from orchestrator.auth import NodeParam, known_node
from orchestrator.db.tables import Task
from orchestrator.errors import Unauthenticated
from orchestrator.model import NodeIdentity
from orchestrator.routes import plain_route
from orchestrator.scheduling.claims import REMOVED, Claim, take
from orchestrator.scheduling.waiting import Waiter
from orchestrator.schemas.bodies import Assignment
from orchestrator.schemas.problems import problems
from orchestrator.security import KnownNode, task_key
from orchestrator.services import Services, services_of
from orchestrator.uploads import plain_name

_LONGEST_WAIT_S = 60
_TLS_PORT = 443
_WAIT = re.compile(r'\s*wait\s*=\s*"?([0-9]{1,9})"?\s*', re.IGNORECASE)

_NO_TASK = b"null"
_TLS_SIGNS = re.compile(r"\bhttps\b|\bon\b", re.IGNORECASE)

log = logging.getLogger(__name__)

router = APIRouter(tags=["tasks"])


_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "An assignment, or null when there is no work.",
        "headers": {
            "Preference-Applied": {
                "description": "How long the server would have waited: it knows `Prefer: wait`.",
                "schema": {"type": "string", "examples": ["wait=25"]},
            }
        },
    }
}


@router.get("/tasks/pending", responses={**_ANSWER, **problems(401, 403, 429)})
def next_task(
    node: NodeParam,
    prefer: Annotated[
        # There may be several; each is any text.
        Annotated[list[str], WithJsonSchema({"type": "string"})] | None,
        Header(
            description="`wait=25` holds the request for up to 25 seconds until there is work; 60"
            " is the maximum. A value that cannot be parsed is ignored.",
            examples=["wait=25"],
        ),
    ] = None,
) -> Assignment | None:
    """Return the node's next assignment, or null; wait for one as long as the node prefers."""
    raise NotImplementedError("_answer_poll answers this call")


async def _answer_poll(request: Request) -> Response:
    services, node = services_of(request.app), await known_node(request)
    services.node_calls.polls.charge(node.id)
    services.breaks.note_call(node.id)
    services.heartbeats.revive(node.id)
    wait_s = preferred_wait_s(request.headers.getlist("prefer"))
    headers = {"Preference-Applied": f"wait={wait_s}"} if wait_s else {}
    task = await _claim_within(services, node, request, wait_s)
    if task is None:
        return Response(_NO_TASK, headers=headers, media_type="application/json")
    services.unreported.add(node.id, task.id)
    secret = services.signing_secret.known
    if secret is None:
        secret = await run_in_threadpool(services.signing_secret.load)
    assignment = _assignment(services, request, task, secret)
    content = assignment.model_dump(mode="json", exclude_none=True)
    return JSONResponse(content, headers={**headers, "Cache-Control": "no-store"})


PENDING = plain_route("/tasks/pending", "GET", _answer_poll)


def preferred_wait_s(preferences: list[str]) -> int:
    """Read the first `wait` out of Prefer headers; what cannot be read counts for nothing."""
    for preference in ",".join(preferences).split(","):
        found = _WAIT.fullmatch(preference.partition(";")[0])
        if found:
            return min(int(found[1]), _LONGEST_WAIT_S)
    return 0


async def _claim_within(
    services: Services, node: KnownNode, request: Request, wait_s: int
) -> Task | None:
    deadline = time.monotonic() + wait_s
    with (
        services.waiters.waiting(node.identity) as waiter,
        _watching(request, waiter, wait_s) as hang_up,
    ):
        while not services.waiters.closed:
            claim = Claim()
            if waiter.offers or _may_have_work(services, waiter.node, wait_s):
                # A client that has hung up gets no task; later, it gets it by redelivery.
                if hang_up() or (not wait_s and await request.is_disconnected()):
                    return None
                claim = await _claim(services, waiter, node.key_hash)
                if claim.is_over:
                    return None
            left_s = deadline - time.monotonic()
            if claim.task is not None or left_s <= 0 or waiter.is_dismissed:
                return claim.task
            if hang_up():
                # Other processes, if there are any, may hear of this node meanwhile.
                if not services.announcer.is_shared and services.waiters.count(node.id) == 1:
                    services.breaks.note(node.id, time.monotonic())
                return None
            await waiter.wait(min(left_s, claim.look_again_s))
    return None


def _may_have_work(services: Services, node: NodeIdentity, wait_s: int) -> bool:
    if services.unreported.of(node.id) or services.waiters.may_have_work(node):
        return True
    # What another process announced a moment ago may not have arrived yet.
    return services.announcer.is_shared and not wait_s


@contextmanager
def _watching(request: Request, waiter: Waiter, wait_s: int) -> Iterator[Callable[[], bool]]:
    """Wake the waiter when its client hangs up; yields whether it has."""
    if not wait_s:
        yield lambda: False
        return
    hang_up = asyncio.ensure_future(_hang_up(request))
    hang_up.add_done_callback(lambda _: waiter.wake())
    try:
        yield hang_up.done
    finally:
        hang_up.cancel()


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _claim(services: Services, waiter: Waiter, key_hash: str) -> Claim:
    """Look at the queue, and assign the node a task that it shows, if there is one."""
    while True:
        offered, looked_at = list(waiter.offers), services.waiters.now
        look = await services.looks.ask(waiter.node.id)
        if look is None:
            raise Unauthenticated(REMOVED)
        if look.key_hash != key_hash:
            # The node has another key by now: that one has to ask.
            return Claim(is_over=True)
        if look.node == waiter.node:
            break
        # It has registered again. Tasks that came during the look called for its old name and
        # tags, so it looks once more.
        services.nodes.forget(look.node.id)
        services.waiters.change(look.node)
    claim = Claim(look_again_s=look.look_again_s, is_full=look.is_full)
    if look.seen:
        claim = await run_in_threadpool(take, services.database, services.settings, look)
    elif not look.is_full:
        services.waiters.note_empty(look.node, looked_at)
    services.waiters.set_full(waiter, is_full=look.is_full or claim.is_full)
    waiter.settle(offered, None if claim.task is None else claim.task.id)
    return claim


def _assignment(services: Services, request: Request, task: Task, secret: bytes) -> Assignment:
    url = services.settings.public_url or str(request.base_url)
    if url.startswith("http:") and services.settings.public_url is None:
        _warn_of_http(request, url)
    return Assignment(
        task_id=task.id,
        prompt=task.prompt,
        orchestrator_url=url.rstrip("/"),
        timeout_seconds=task.timeout_seconds,
        files=task.files,
        file_checksums=[link.file.checksum for link in task.file_links],
        original_names=[plain_name(link.file.original_name) for link in task.file_links],
        task_api_key=task_key(secret, task.id, task.assignment_number),
    )


def _warn_of_http(request: Request, url: str) -> None:
    """Log once that assignments name http though the request seems to have come by TLS."""
    names = ("x-forwarded-proto", "x-forwarded-ssl", "forwarded")
    is_tls = any(_TLS_SIGNS.search(request.headers.get(name, "")) for name in names)
    is_tls |= request.base_url.port == _TLS_PORT
    if not is_tls or getattr(request.app.state, "has_warned_of_http", False):
        return
    request.app.state.has_warned_of_http = True
    log.warning(
        "assignments name %s, but a proxy with TLS seems to be in front: name it in "
        "--forwarded-allow-ips, or set --public-url; runners by https do not hand this URL on",
        url.rstrip("/"),
    )
