"""Asking for work; `Prefer: wait=N` (RFC 7240) holds the request until work comes."""

import re
import time
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from pydantic import WithJsonSchema
from starlette.concurrency import run_in_threadpool

from orchestrator.auth import KnownNodeParam, keep_identity
from orchestrator.db.tables import Task
from orchestrator.errors import Unauthenticated
from orchestrator.model import NodeIdentity
from orchestrator.scheduling.claims import REMOVED, Claim, Look, take
from orchestrator.schemas.bodies import Assignment
from orchestrator.schemas.problems import problems
from orchestrator.services import Services, ServicesParam

_LONGEST_WAIT_S = 60
_WAIT = re.compile(r'\s*wait\s*=\s*"?([0-9]{1,9})"?\s*', re.IGNORECASE)

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


@router.get("/tasks/pending", responses={**_ANSWER, **problems(401, 403)})
async def next_task(
    services: ServicesParam,
    node: KnownNodeParam,
    request: Request,
    response: Response,
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
    wait_s = preferred_wait_s(prefer or [])
    if wait_s:
        response.headers["Preference-Applied"] = f"wait={wait_s}"
    task = await _claim_within(services, node, request, wait_s)
    return None if task is None else _assignment(services, request, task)


def preferred_wait_s(preferences: list[str]) -> int:
    """Read the first `wait` out of Prefer headers; what cannot be read counts for nothing."""
    for preference in ",".join(preferences).split(","):
        found = _WAIT.fullmatch(preference.partition(";")[0])
        if found:
            return min(int(found[1]), _LONGEST_WAIT_S)
    return 0


async def _claim_within(
    services: Services, node: NodeIdentity, request: Request, wait_s: int
) -> Task | None:
    deadline = time.monotonic() + wait_s
    with services.waiters.waiting(node) as waiter:
        # A client that has hung up gets no task; one that hangs up later gets it by redelivery.
        while not services.waiters.closed and not await request.is_disconnected():
            offered = list(waiter.offers)
            look = await services.looks.ask(node.id)
            if look is None:
                raise Unauthenticated(REMOVED)
            if look.node != waiter.node:
                # It has registered again. Tasks that came during the look called for its old name
                # and tags, so it looks once more.
                keep_identity(services, request, look.node)
                services.waiters.change(look.node)
                continue
            claim = await _claim(services, look)
            waiter.settle(offered, None if claim.task is None else claim.task.id)
            left_s = deadline - time.monotonic()
            if claim.task is not None or left_s <= 0:
                return claim.task
            await waiter.wait(min(left_s, claim.look_again_s))
    return None


async def _claim(services: Services, look: Look) -> Claim:
    if not look.seen:
        return Claim(look_again_s=look.look_again_s)
    return await run_in_threadpool(take, services.database, services.settings, look)


def _assignment(services: Services, request: Request, task: Task) -> Assignment:
    url = services.settings.public_url or str(request.base_url)
    return Assignment(
        task_id=task.id,
        prompt=task.prompt,
        orchestrator_url=url.rstrip("/"),
        timeout_seconds=task.timeout_seconds,
        files=task.files,
        file_checksums=[link.file.checksum for link in task.file_links],
    )
