"""Nodes: registration, heartbeat, and the admin's view of them."""

import json
import logging
import uuid
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from orchestrator.auth import (
    TOKEN_AND_KEY,
    Caller,
    GrantParam,
    KeyHolder,
    KeyHolderParam,
    NodeParam,
    address_of,
    allowed_to,
    charge_use,
    known_node,
    require_name,
)
from orchestrator.db import audit
from orchestrator.db.tables import Node
from orchestrator.errors import Gone, NotAllowed
from orchestrator.log import fields, log_on_commit
from orchestrator.model import NodeStatus, Permission, utc_now
from orchestrator.routes import NO_STORE, NodeId, Route, plain_route
from orchestrator.routes.bodies import read_body
from orchestrator.routes.lists import LINK, NodeQueryParam, node_list, page
from orchestrator.scheduling.heartbeats import Beat
from orchestrator.scheduling.lifecycle import take_from
from orchestrator.scheduling.waiting import WorkAvailable
from orchestrator.schemas.bodies import (
    EXTENSIONS,
    Heartbeat,
    HeartbeatResponse,
    NodeRemoved,
    NodeView,
    RegisteredNode,
    Registration,
)
from orchestrator.schemas.problems import problems
from orchestrator.schemas.types import is_uuid, shown_time
from orchestrator.scope import require_node_within
from orchestrator.security import NODE_KEY_MARK, key_hash, new_secret, rotated_node_key
from orchestrator.services import Services, ServicesParam, services_of

_Reader = Annotated[Caller, Depends(allowed_to(Permission.READ_NODES))]
_Pauser = Annotated[Caller, Depends(allowed_to(Permission.PAUSE_NODES))]

router = APIRouter(tags=["nodes"], route_class=Route)

log = logging.getLogger(__name__)


@router.post(
    "/register",
    dependencies=[NO_STORE],
    responses=problems(401, 403, 410, 422, 429, 503, 507),
    openapi_extra=TOKEN_AND_KEY,
)
def register(
    services: ServicesParam,
    request: Request,
    grant: GrantParam,
    holder: KeyHolderParam,
    registration: Registration,
) -> RegisteredNode:
    """Register a node and return its key, which is shown only here. Names need not be unique.

    With a node's key in X-API-Key beside the token (extension `reregister`) that node is updated:
    it takes the name, tags, capabilities, hostname and os_type of the body, and keeps its id, key
    and tasks. The response has the key that was sent, so a retry changes nothing. 410 means that
    no node has this key: drop the id and the key, and register as a new node.

    403 means that the token is not for this name, or that it has registered as many nodes as it
    may. A node that registers again does not count.
    """
    require_name(services, request, grant, _name(registration))
    if holder is not None:
        return _reregister(services, request, holder, registration)
    services.reserve.check()
    now = utc_now()
    api_key = new_secret(NODE_KEY_MARK)
    node = Node(
        id=str(uuid.uuid4()),
        api_key_hash=key_hash(api_key),
        **_description(registration),
        status=NodeStatus.IDLE,
        last_heartbeat=now,
        offline_at=now + services.heartbeats.pace.offline_after(has_task=False),
        held_task_ids=[],
        registered_at=now,
    )
    with services.database.writing() as session:
        session.add(node)
        charge_use(session, request, grant, name=node.name, node_id=node.id, now=now)
        ids = {"node_id": node.id, "name": node.name, "client": address_of(request)}
        if grant.token_id is not None:
            ids["token_id"] = grant.token_id
        log_on_commit(session, log, "node registered", ids)
    return _registered(node, api_key, now)


def _reregister(
    services: Services, request: Request, holder: KeyHolder, registration: Registration
) -> RegisteredNode:
    now = utc_now()
    with services.database.writing() as session:
        node = session.get(Node, holder.node_id, with_for_update=True)
        if node is None:
            raise Gone("the node is no longer registered: register without X-API-Key")
        changes = {}
        for field, after in _description(registration).items():
            before = getattr(node, field)
            if before != after:
                changes[field] = f"{field}: {before!r} -> {after!r}"
                setattr(node, field, after)
        # The heartbeat stays as it is: this request does not say which tasks the node holds.
        if changes:
            # A request for work that it holds has to look again.
            services.announcer.announce_node(session, node.id)
            audit.record(
                session,
                now,
                key_id=node.id,
                action="node:reregistered",
                detail="; ".join(changes.values()),
                client=address_of(request),
            )
            ids = {"node_id": node.id, "name": node.name, "client": address_of(request)}
            ids["changed"] = ",".join(changes)
            log_on_commit(session, log, "node registered again", ids)
    return _registered(node, holder.api_key, now)


def _name(registration: Registration) -> str:
    return (registration.name or "").strip() or registration.hostname


def _description(registration: Registration) -> dict[str, Any]:
    return {
        "hostname": registration.hostname,
        "name": _name(registration),
        "os_type": registration.os_type,
        "capabilities": registration.capabilities or [],
        "tags": registration.tags or {},
    }


def _registered(node: Node, api_key: str, now: datetime) -> RegisteredNode:
    return RegisteredNode(**_view(node, now).model_dump(), api_key=api_key)


MAX_HEARTBEAT_BYTES = 256 * 1024
"""Its ids are 132 kB at most if they are ASCII."""


@router.post("/nodes/heartbeat", responses=problems(401, 403, 422, 429))
def record_heartbeat(node: NodeParam, heartbeat: Heartbeat) -> HeartbeatResponse:
    """Record a heartbeat and return the tasks that the node must stop.

    The next one is expected after `heartbeat_interval_seconds` (extension `pace`). `new_api_key`
    replaces the node's key, which ends when the new one is first used.
    """
    raise NotImplementedError("_answer_heartbeat answers this call")


async def _answer_heartbeat(request: Request) -> Response:
    services, node = services_of(request.app), await known_node(request)
    services.node_calls.heartbeats.charge(node.id)
    heartbeat = await read_body(request, Heartbeat)
    if heartbeat.node_id != node.id:
        raise NotAllowed("node_id is not the node of this key")
    now = utc_now()
    held = heartbeat.held_task_ids
    pace, has_task = services.heartbeats.pace, bool(held) or heartbeat.status is NodeStatus.BUSY
    parked, before = heartbeat.parked_reports or 0, services.heartbeats.last(node.id)
    if parked and (before is None or not before.parked_reports):
        ids = {"node_id": node.id, "name": node.identity.name, "parked_reports": parked}
        log.warning("node has reports that were refused", extra=fields(**ids))
    services.heartbeats.record(
        Beat(
            node.id,
            heartbeat.status,
            heartbeat.current_task_id,
            held,
            at=now,
            offline_at=now + pace.offline_after(has_task=has_task),
            parked_reports=parked,
        )
    )
    services.breaks.note_call(node.id)
    content = {
        "status": heartbeat.status.value,
        "last_heartbeat": shown_time(now),
        "cancelled_task_ids": services.cancelled.of(node.id),
        "extensions": EXTENSIONS,
        "heartbeat_interval_seconds": pace.announced_s(has_task=has_task),
    }
    if heartbeat.current_task_id is not None and is_uuid(heartbeat.current_task_id):
        content["current_task_id"] = heartbeat.current_task_id
    if node.new_api_key is not None:
        content["new_api_key"] = node.new_api_key
    body = node.view + b"," + json.dumps(content).encode().removeprefix(b"{")
    return Response(body, media_type="application/json", headers=_NOT_STORED)


_NOT_STORED = {"Cache-Control": "no-store"}
"""The response may have a key."""
HEARTBEAT = plain_route("/nodes/heartbeat", "POST", _answer_heartbeat)


@router.get("/nodes", responses={**LINK, **problems(401, 403, 422, 429)})
def list_nodes(
    services: ServicesParam,
    request: Request,
    response: Response,
    caller: _Reader,
    query: NodeQueryParam,
) -> list[NodeView]:
    """List the registered nodes within the key's patterns, the oldest first."""
    now = utc_now()
    services.heartbeats.write()
    with services.database.reading() as session:
        nodes = list(session.scalars(node_list(session, caller, query)))
        return [_view(node, now) for node in page(request, response, query, nodes)]


@router.get("/nodes/{node_id}", responses=problems(401, 403, 404, 429))
def get_node(services: ServicesParam, caller: _Reader, node_id: NodeId) -> NodeView:
    """Return one node."""
    services.heartbeats.write()
    with services.database.reading() as session:
        return _view(require_node_within(session, caller, node_id), utc_now())


@router.delete("/nodes/{node_id}", responses=problems(401, 403, 404, 429))
def remove_node(
    services: ServicesParam,
    caller: Annotated[Caller, Depends(allowed_to(Permission.REMOVE_NODES))],
    node_id: NodeId,
) -> NodeRemoved:
    """Remove a node and revoke its key.

    Tasks that it has not started become pending again; those that it runs end as `lost`.
    """
    with services.database.writing() as session:
        node = require_node_within(session, caller, node_id, to_change=True)
        for task in take_from(session, node.id, utc_now()):
            services.announcer.announce(session, WorkAvailable(task.id, task.target))
        session.delete(node)
        log_on_commit(session, log, "node removed", {"node_id": node.id, "name": node.name})
        # Its held request has to end, and its key to be looked up.
        services.announcer.announce_node(session, node.id)
    return NodeRemoved(node_id=node_id)


@router.post("/nodes/{node_id}/pause", responses=problems(401, 403, 404, 429))
def pause_node(services: ServicesParam, caller: _Pauser, node_id: NodeId) -> NodeView:
    """Pause a node: it gets no new tasks until it is resumed; those that it has go on."""
    return _set_paused(services, caller, node_id, paused=True)


@router.post("/nodes/{node_id}/resume", responses=problems(401, 403, 404, 429))
def resume_node(services: ServicesParam, caller: _Pauser, node_id: NodeId) -> NodeView:
    """Resume a paused node: it gets new tasks again."""
    return _set_paused(services, caller, node_id, paused=False)


def _set_paused(services: Services, caller: Caller, node_id: str, *, paused: bool) -> NodeView:
    services.heartbeats.write()
    with services.database.writing() as session:
        # Its row is locked: a task that it is being assigned this moment comes before the response.
        node = require_node_within(session, caller, node_id, to_change=True)
        if node.paused is not paused:
            node.paused = paused
            ids = {"node_id": node.id, "name": node.name, "by": caller.key_id}
            log_on_commit(session, log, "node paused" if paused else "node resumed", ids)
            # A request for work that it holds has to look again, in every process.
            services.announcer.announce_node(session, node.id)
        return _view(node, utc_now())


@router.post("/nodes/{node_id}/rotate-key", responses=problems(401, 403, 404, 429))
def rotate_node_key(
    services: ServicesParam,
    caller: Annotated[Caller, Depends(allowed_to(Permission.ROTATE_NODE_KEYS))],
    node_id: NodeId,
) -> NodeView:
    """Make a new key for a node, which gets it with its next heartbeat, until it has used it.

    From then on the old key works for `/status` and `/logs` of the tasks that were assigned before,
    until they end. One more rotation before the new key is used replaces the new one.
    """
    secret = services.signing_secret.load()
    services.heartbeats.write()
    with services.database.writing() as session:
        node = require_node_within(session, caller, node_id, to_change=True)
        node.key_rotation += 1
        node.pending_key_hash = key_hash(rotated_node_key(secret, node.id, node.key_rotation))
        log_on_commit(session, log, "node key rotated", {"node_id": node.id, "name": node.name})
        # Every process answers heartbeats from what it knows.
        services.announcer.announce_node(session, node.id)
        return _view(node, utc_now())


def _view(node: Node, now: datetime) -> NodeView:
    view = NodeView.model_validate(node)
    if node.offline_at >= now:
        return view
    return view.model_copy(update={"status": NodeStatus.OFFLINE})
