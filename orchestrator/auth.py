"""Authentication: admin key, scoped keys, keys of nodes and of tasks, registration tokens.

Keys are looked up by their SHA-256 and compared in constant time; no key itself is stored. The key
of a task is computed again, from the task's row, which its id in the key leads to. Each call by the
admin or a scoped key is written into the audit before it is carried out; of refused ones, one a
minute of each kind.
"""

import hmac
import ipaddress
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader
from sqlalchemy import bindparam, delete, or_, select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from orchestrator.db import audit
from orchestrator.db.tables import ApiKey, AuditEntry, Node, RegistrationToken, Task
from orchestrator.errors import Disabled, Gone, NotAllowed, Refused, TooMany, Unauthenticated
from orchestrator.log import fields, log_on_commit
from orchestrator.model import (
    ADMIN_ID,
    PERMISSIONS,
    NodeIdentity,
    Permission,
    Reporter,
    Role,
    lies_within,
    name_matches,
    utc_now,
)
from orchestrator.scheduling.lifecycle import TASK_KEY_ENDED, takes_reports
from orchestrator.schemas.bodies import NodeView
from orchestrator.security import (
    UNGUESSABLE_LENGTH,
    KnownNode,
    charge,
    is_same,
    key_hash,
    rotated_node_key,
    task_key,
    task_of_key,
)
from orchestrator.services import Services, ServicesParam, services_of

_OF_NODES = "node"
"""In the audit, the action when another key calls what only nodes may call."""
_BEFORE_BODY = "call"
"""In the audit, the action when a key is refused before what the call asks for is read."""
_REGISTERING = "node:registered"
"""In the audit, the action when a registration token registers a node."""
_OF_A_HEARTBEAT = {"status", "last_heartbeat", "current_task_id"}
"""Fields of a node that each heartbeat changes."""
_ROTATED = "the key has been rotated: use the new one"

_LONGEST_ADDRESS = 64
_NO_ADDRESS = "unknown"
"""Stands for a client of which a proxy says something that is not an address."""

log = logging.getLogger(__name__)


def _key_scheme(name: str, description: str) -> APIKeyHeader:
    return APIKeyHeader(
        name="X-API-Key", scheme_name=name, description=description, auto_error=False
    )


_NODE_KEY = _key_scheme("NodeApiKey", "The key that a node received when it registered.")
_ADMIN_KEY = _key_scheme("AdminApiKey", "The admin key.")
_TASK_KEY = _key_scheme("TaskApiKey", "The key of the task, from its assignment.")
_SCOPED_KEY = _key_scheme("ScopedKey", "A scoped key that has one of the roles named at the call.")
_REGISTRATION_TOKEN = APIKeyHeader(
    name="X-Registration-Token",
    scheme_name="RegistrationToken",
    description="What the operator gives to hosts that may register as nodes.",
    auto_error=False,
)

_NodeKeyHeader = Annotated[str | None, Security(_NODE_KEY)]


@dataclass(frozen=True)
class Caller:
    """The admin, or the holder of a scoped key."""

    key_id: str
    role: Role
    allowed_node_patterns: tuple[str, ...]
    client: str
    """The address that the call came from."""

    @property
    def is_limited(self) -> bool:
        """Whether the key is for some nodes only."""
        return "*" not in self.allowed_node_patterns

    def covers(self, patterns: Iterable[str]) -> bool:
        """Return whether the key's patterns cover all of these."""
        return all(lies_within(pattern, self.allowed_node_patterns) for pattern in patterns)


@dataclass(frozen=True)
class Grant:
    """What the registration token of a call permits."""

    token_id: str | None = None
    """None for REGISTRATION_TOKEN."""
    token_name: str = ""
    allowed_node_patterns: tuple[str, ...] = ("*",)


@dataclass(frozen=True)
class KeyHolder:
    """A node that registers again, with the key that it showed."""

    node_id: str
    api_key: str = field(repr=False)


@dataclass(frozen=True)
class _Call:
    """One call, as the audit has it."""

    action: str
    detail: str
    client: str
    at: datetime


def allowed_to(permission: Permission) -> Callable[..., Iterator[Caller]]:
    """Return a dependency that admits the admin and scoped keys whose role has the permission.

    A handler that raises NotAllowed or TooMany makes the call a refused one in the audit.
    """
    roles = [role.value for role in Role if permission in PERMISSIONS[role]]

    def require(
        services: ServicesParam,
        request: Request,
        key: Annotated[str | None, Security(_ADMIN_KEY)],
        _: Annotated[str | None, Security(_SCOPED_KEY, scopes=roles)],
    ) -> Iterator[Caller]:
        call = _call(request, permission.value)
        holder = _identify(services, key, call)
        if isinstance(holder, Reporter):
            raise NotAllowed("a node key may not do this")
        _watch_for_proxy(services, request, holder.key_id)
        entry = _record_use(services, holder, permission, call)
        try:
            yield holder
        except (NotAllowed, TooMany) as refusal:
            _turn_into_denial(services, holder.key_id, call, entry, refusal)
            raise

    return require


def _require_node(services: ServicesParam, request: Request, key: _NodeKeyHeader) -> NodeIdentity:
    reporter = _require_reporter(services, request, key)
    if reporter.task_id is not None:
        raise NotAllowed("the key of a task may only report on that task")
    if not reporter.is_node:
        raise Unauthenticated(_ROTATED)
    return reporter.node


def _require_reporter(
    services: ServicesParam,
    request: Request,
    key: _NodeKeyHeader,
    _: Annotated[str | None, Security(_TASK_KEY)] = None,
) -> Reporter:
    call = _call(request, _OF_NODES)
    holder = _identify(services, key, call)
    if isinstance(holder, Reporter):
        _watch_for_proxy(services, request, holder.node.id)
        return holder
    sentence = "only a node may do this"
    _record_denial(services, holder.key_id, call, sentence)
    raise NotAllowed(sentence)


async def check_key(services: Services, request: Request) -> str | None:
    """Check that the request carries a valid key, whatever the key may do.

    Return the id of the node or of the scoped key; None for the admin key.

    Raises:
        Refused: the key is missing, unknown or expired, or its node has made too many calls.
    """
    key = request.headers.get("X-API-Key")
    node = None if key is None else services.nodes.find(key_hash(key))
    if node is not None:
        services.node_calls.others.charge(node.id)
        return node.id
    holder = await run_in_threadpool(_identify, services, key, _call(request, _BEFORE_BODY))
    if isinstance(holder, Reporter):
        # A task that calls without end uses up its own calls, not its node's.
        services.node_calls.others.charge(holder.task_id or holder.node.id)
        return holder.task_id or holder.node.id
    return None if holder.key_id == ADMIN_ID else holder.key_id


async def check_token(services: Services, request: Request) -> None:
    """Check that the request carries a valid registration token.

    Raises:
        Refused: the token is missing or unknown, or registration is disabled.
    """
    token = request.headers.get("X-Registration-Token")
    await run_in_threadpool(_require_registration_token, services, request, token)


async def known_node(request: Request) -> KnownNode:
    """Return the node whose key the request carries, from the cache if it has called before.

    For a heartbeat and a poll, which are nearly all requests: they need no database.

    Raises:
        Refused: the key is missing, unknown or expired, or is not a node's.
    """
    services = services_of(request.app)
    key = request.headers.get("X-API-Key") or None
    # Looked up by hash, so timing reveals nothing about the key.
    hash_of_key = key_hash(key or "")
    known = services.nodes.find(hash_of_key)
    if known is None:
        version = services.nodes.version
        known = await run_in_threadpool(_load_known_node, services, request, key)
        services.nodes.keep(hash_of_key, known, version)
    return known


def _load_known_node(services: Services, request: Request, key: str | None) -> KnownNode:
    identity = _require_node(services, request, key)
    with services.database.autocommit() as session:
        node = session.get(Node, identity.id)
    if node is None:
        raise Unauthenticated("the node is no longer registered")
    hash_of_key, new_key = key_hash(key or ""), None
    if node.api_key_hash != hash_of_key:
        raise Unauthenticated(_ROTATED)
    if node.pending_key_hash is not None:
        new_key = rotated_node_key(services.signing_secret.load(), node.id, node.key_rotation)
    view = NodeView.model_validate(node).model_dump_json(exclude=_OF_A_HEARTBEAT)
    return KnownNode(node.identity, view.encode().removesuffix(b"}"), hash_of_key, new_key)


def _find_key_holder(services: ServicesParam, request: Request) -> KeyHolder | None:
    key = request.headers.get("X-API-Key")
    if key is None:
        return None
    try:
        node = _require_node(services, request, key)
    except Unauthenticated as error:
        # Not 401: that is for a wrong token, and no retry helps there. Nor a new node: each retry,
        # and each call that came to the wrong server, would make one more.
        raise Gone(
            "no node has the key in X-API-Key: register without it, as a new node"
        ) from error
    return KeyHolder(node.id, key)


def _require_registration_token(
    services: ServicesParam,
    request: Request,
    token: Annotated[str | None, Security(_REGISTRATION_TOKEN)],
) -> Grant:
    expected, wanted = services.settings.registration_token, key_hash(token or "")
    with services.database.autocommit() as session:
        row = session.scalars(
            select(RegistrationToken).where(RegistrationToken.token_hash == wanted)
        ).one_or_none()
        if row is None and expected is None and _has_no_tokens(session):
            raise Disabled("registration is disabled")
    if token is None:
        raise Unauthenticated("X-Registration-Token is missing")
    if row is None:
        _compare(services, token, expected, address_of(request), "invalid registration token")
        return Grant()
    if row.is_expired(utc_now()):
        cause = f"the registration token {row.name} has expired"
        _record_denial(services, row.id, _call(request, _REGISTERING), cause)
        raise Unauthenticated(cause)
    return Grant(row.id, row.name, tuple(row.allowed_node_patterns))


def _has_no_tokens(session: Session) -> bool:
    return session.scalars(select(RegistrationToken.id).limit(1)).first() is None


def require_name(services: Services, request: Request, grant: Grant, name: str) -> None:
    """Raise NotAllowed for a node's name that the registration token is not for."""
    patterns = grant.allowed_node_patterns
    if any(name_matches(pattern, name) for pattern in patterns):
        return
    cause = f"the registration token {grant.token_name} is for {', '.join(patterns)} only"
    if grant.token_id is not None:
        _record_denial(services, grant.token_id, _call(request, _REGISTERING), cause)
    raise NotAllowed(f"{cause}, not for {name}: use another name or token")


def charge_use(  # noqa: PLR0913 - the parts of one registration
    session: Session, request: Request, grant: Grant, *, name: str, node_id: str, now: datetime
) -> None:
    """Count a new node for its registration token, in the transaction that adds it.

    Raises NotAllowed for a token that is used up, Unauthenticated for one that was deleted.
    """
    if grant.token_id is None:
        return
    # Locked: of several registrations at once, none sees the number from before another.
    token = session.get(RegistrationToken, grant.token_id, with_for_update=True)
    if token is None:
        raise Unauthenticated("invalid registration token")
    if token.is_used_up:
        raise NotAllowed(
            f"the registration token {token.name} has registered {token.uses} nodes, as many as it"
            " may: use another token"
        )
    token.uses += 1
    detail = f"{name} is {node_id}"
    audit.record(
        session,
        now,
        key_id=token.id,
        action=_REGISTERING,
        detail=detail,
        client=address_of(request),
    )


NodeParam = Annotated[NodeIdentity, Depends(_require_node)]
"""A handler's parameter: the node whose key the request carries."""

GrantParam = Annotated[Grant, Depends(_require_registration_token)]
"""A parameter of the registration: what the token of the call permits."""

ReporterParam = Annotated[Reporter, Depends(_require_reporter)]
"""A handler's parameter: who reports on a task, by a node's key or by the task's own."""

KeyHolderParam = Annotated[KeyHolder | None, Depends(_find_key_holder)]
"""A parameter of the registration: the node whose key came beside the token, if any."""

TOKEN_AND_KEY: dict[str, object] = {"security": [{"RegistrationToken": [], "NodeApiKey": []}]}
"""For the schema of a request that takes a key beside the token."""


def _identify(services: Services, key: str | None, call: _Call) -> Reporter | Caller:
    if key is None:
        raise Unauthenticated("X-API-Key is missing")
    task_id = task_of_key(key)
    if task_id is not None:
        return _identify_task(services, key, task_id, call.at)
    wanted = key_hash(key)
    # Nodes first: nearly every request is theirs.
    reporter = _identify_node(services, wanted, call)
    if reporter is not None:
        return reporter
    with services.database.autocommit() as session:
        scoped = session.scalars(
            select(ApiKey).where(or_(ApiKey.key_hash == wanted, ApiKey.previous_hash == wanted))
        ).first()
    if scoped is None:
        sentence = "unknown or expired API key"
        _compare(services, key, services.settings.admin_key, call.client, sentence)
        return Caller(ADMIN_ID, Role.ADMIN, ("*",), call.client)
    reason = _rejection_reason(scoped, wanted, call.at)
    if reason is not None:
        _record_denial(services, scoped.id, call, reason)
        raise Unauthenticated(reason)
    return Caller(scoped.id, scoped.role, tuple(scoped.allowed_node_patterns), call.client)


_OF_TASK = (
    select(Task.assignment_number, Task.status, Task.completed_at, Node.id, Node.name, Node.tags)
    .join(Node, Node.id == Task.assigned_node_id)
    .where(Task.id == bindparam("task_id"))
)
_BY_KEY = select(Node).where(
    or_(
        Node.api_key_hash == bindparam("wanted"),
        Node.pending_key_hash == bindparam("wanted"),
        Node.previous_key_hash == bindparam("wanted"),
    )
)


def _identify_task(services: Services, key: str, task_id: str, now: datetime) -> Reporter:
    secret = services.signing_secret.load()
    with services.database.autocommit() as session:
        row = session.execute(_OF_TASK, {"task_id": task_id}).one_or_none()
    # A wrong one does not count as guessing: nobody guesses a MAC, and a container that goes on to
    # report after its end must not lock others out.
    if row is None:
        raise Unauthenticated(TASK_KEY_ENDED)
    number, status, completed_at, node_id, name, tags = row
    if not is_same(key, task_key(secret, task_id, number)) or not takes_reports(
        status, completed_at, now
    ):
        raise Unauthenticated(TASK_KEY_ENDED)
    return Reporter(NodeIdentity(node_id, name, tags), task_id, number)


def _identify_node(services: Services, wanted: str, call: _Call) -> Reporter | None:
    with services.database.autocommit() as session:
        node = session.scalars(_BY_KEY, {"wanted": wanted}).one_or_none()
    if node is None:
        return None
    if hmac.compare_digest(node.api_key_hash, wanted):
        return Reporter(node.identity)
    if hmac.compare_digest(node.pending_key_hash or "", wanted):
        _replace_key(services, node.id, wanted, call)
        return Reporter(node.identity)
    return Reporter(node.identity, assigned_until=node.key_replaced_at)


def _replace_key(services: Services, node_id: str, wanted: str, call: _Call) -> None:
    """Make a node's new key its key: the node has used it, so it has kept it."""
    with services.database.writing() as session:
        node = session.get(Node, node_id, with_for_update=True)
        if node is None or wanted not in {node.pending_key_hash, node.api_key_hash}:
            raise Unauthenticated(_ROTATED)
        if node.pending_key_hash != wanted:
            # Another request was faster.
            return
        node.previous_key_hash, node.key_replaced_at = node.api_key_hash, call.at
        node.api_key_hash, node.pending_key_hash = wanted, None
        # Every process has the old one among those that it knows.
        services.announcer.announce_node(session, node.id)
        _record(session, node.id, replace(call, action="node:key-replaced"))
        ids = {"node_id": node.id, "name": node.name, "client": call.client}
        log_on_commit(session, log, "node key replaced", ids)


def _rejection_reason(key: ApiKey, wanted: str, now: datetime) -> str | None:
    if not key.enabled:
        return "the key has been revoked"
    if key.expires_at is not None and key.expires_at <= now:
        return "the key has expired"
    if hmac.compare_digest(key.key_hash, wanted):
        return None
    if key.previous_until is None or key.previous_until <= now:
        return "the key has been rotated: use the new one"
    return None


def _compare(
    services: Services, given: str, expected: str | None, client: str, sentence: str
) -> None:
    now = utc_now()
    is_right = expected is not None and is_same(given, expected)
    if is_right and len(given) >= UNGUESSABLE_LENGTH:
        return
    services.throttle.check(client, now)
    if is_right:
        return
    services.throttle.note_failure(client, now)
    raise Unauthenticated(sentence)


def _record_use(
    services: Services, caller: Caller, permission: Permission, call: _Call
) -> AuditEntry:
    """Write a call into the audit, before it is carried out.

    Raises NotAllowed for a role that may not make it, TooMany for a key above its rate.
    """
    with services.database.writing() as session:
        refusal = _refusal(session, caller, permission, call)
        if refusal is None:
            return _record(session, caller.key_id, call)
        cause = str(refusal) if isinstance(refusal, TooMany) else f"{call.action}: {refusal}"
        if services.denials.is_due(caller.key_id, cause, call.at):
            _record(session, caller.key_id, call, str(refusal))
    # Only now: the entry and the charge are to stay.
    raise refusal


def _refusal(
    session: Session, caller: Caller, permission: Permission, call: _Call
) -> Refused | None:
    # By id: a key that was deleted just now has no row that could limit it.
    key = session.get(ApiKey, caller.key_id, with_for_update=True)
    if key is not None and key.rate_limit is not None:
        key.paid_until, wait = charge(key.paid_until, call.at, key.rate_limit)
        if wait is not None:
            return TooMany(f"the key is limited to {key.rate_limit} calls a minute", wait)
    if permission not in PERMISSIONS[caller.role]:
        return NotAllowed(f"a key with the role {caller.role.value} may not do this")
    return None


def _turn_into_denial(
    services: Services, key_id: str, call: _Call, entry: AuditEntry, refusal: Refused
) -> None:
    # By the kind of refusal and not its sentence, which may name what varies from call to call.
    cause = f"{call.action}: {refusal.status_code}"
    with services.database.writing() as session:
        session.execute(delete(AuditEntry).where(AuditEntry.number == entry.number))
        if services.denials.is_due(key_id, cause, call.at):
            _record(session, key_id, call, str(refusal))


def _record_denial(services: Services, key_id: str, call: _Call, cause: str) -> None:
    # Checked first, so that a flood does not write at all.
    if services.denials.is_due(key_id, cause, call.at):
        with services.database.writing() as session:
            _record(session, key_id, call, cause)


def _record(
    session: Session, key_id: str, call: _Call, denied_for: str | None = None
) -> AuditEntry:
    action, detail = call.action, call.detail
    if denied_for is not None:
        action, detail = f"denied {action}", f"{detail}: {denied_for}"
    return audit.record(
        session, call.at, key_id=key_id, action=action, detail=detail, client=call.client
    )


def _call(request: Request, action: str) -> _Call:
    return _Call(action, f"{request.method} {request.url.path}", address_of(request), utc_now())


def address_of(request: Request) -> str:
    """Return the address that a call came from."""
    if request.client is None:
        return ""
    # uvicorn takes any text out of a trusted proxy's X-Forwarded-For.
    address = request.client.host
    is_clean = len(address) <= _LONGEST_ADDRESS and address.isprintable() and " " not in address
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return _NO_ADDRESS
    return address if is_clean else _NO_ADDRESS


def _watch_for_proxy(services: Services, request: Request, caller_id: str) -> None:
    # With trusted proxies the addresses are those of clients, who may well share one.
    if services.settings.trusted_proxies:
        return
    address, is_forwarded = address_of(request), "X-Forwarded-For" in request.headers
    if services.proxies.is_suspicious(address, caller_id, is_forwarded=is_forwarded):
        log.warning(
            "all callers have one address: if a proxy is there, set --forwarded-allow-ips to it",
            extra=fields(client=address),
        )
