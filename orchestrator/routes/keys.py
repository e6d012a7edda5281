"""Scoped keys, from being made to being deleted, and the audit of all keys."""

import logging
import uuid
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from orchestrator.auth import Caller, allowed_to
from orchestrator.db import audit
from orchestrator.db.tables import ApiKey, AuditEntry
from orchestrator.errors import Conflict, NotAllowed, NotFound
from orchestrator.log import log_on_commit
from orchestrator.model import Permission, Role, lies_within, utc_now
from orchestrator.routes import KeyId, Route
from orchestrator.schemas.keys import (
    AuditLog,
    AuditView,
    KeyDeleted,
    KeyView,
    NewKey,
    RotatedKey,
    ShownKey,
)
from orchestrator.schemas.problems import problems
from orchestrator.schemas.types import Text
from orchestrator.security import key_hash, new_secret
from orchestrator.services import ServicesParam

_MARK = "vk_"
"""The prefix of every scoped key, by which secret scanners recognise one that leaked."""
_PREFIX_LENGTH = 8

_Admin = Annotated[Caller, Depends(allowed_to(Permission.MANAGE_KEYS))]

router = APIRouter(prefix="/keys", tags=["keys"], route_class=Route)

log = logging.getLogger(__name__)


@router.post("", responses=problems(401, 403, 422, 429, 507))
def create_key(services: ServicesParam, caller: _Admin, new: NewKey) -> ShownKey:
    """Create a scoped key and return its secret, which is shown only here.

    A scoped key may manage only keys whose patterns lie within its own.
    """
    services.reserve.check()
    patterns = new.allowed_node_patterns or ["*"]
    _check_may_give(caller, patterns)
    now = utc_now()
    secret = _MARK + new_secret()
    days = new.expires_in_days
    key = ApiKey(
        id=str(uuid.uuid4()),
        name=new.name,
        description=new.description,
        prefix=secret[:_PREFIX_LENGTH],
        key_hash=key_hash(secret),
        allowed_node_patterns=patterns,
        role=new.role or Role.SUBMITTER,
        rate_limit=new.rate_limit,
        created_at=now,
        expires_at=None if days is None else now + timedelta(days=days),
        enabled=True,
    )
    with services.database.writing() as session:
        session.add(key)
        _note(session, caller, key, "created")
    return ShownKey(**_view(key).model_dump(), api_key=secret)


@router.get("", responses=problems(401, 403, 429))
def list_keys(services: ServicesParam, caller: _Admin) -> list[KeyView]:
    """List all scoped keys, the oldest first, without their secrets."""
    del caller
    with services.database.reading() as session:
        keys = session.scalars(select(ApiKey).order_by(ApiKey.created_at, ApiKey.id))
        return [_view(key) for key in keys]


@router.get("/audit", responses=problems(401, 403, 422, 429))
def list_uses(  # noqa: PLR0913, PLR0917 - a parameter each
    services: ServicesParam,
    caller: _Admin,
    key_id: Annotated[
        Text | None, Query(description="Only entries of this key; `admin` is the admin key.")
    ] = None,
    action: Annotated[Text | None, Query(description="Only entries with this action.")] = None,
    hours: Annotated[int, Query(ge=1, le=100_000, description="Only the last so many hours.")] = 24,
    limit: Annotated[int, Query(ge=1, le=10_000, description="At most so many entries.")] = 100,
) -> AuditLog:
    """Return what was done with which key, the newest first; the admin key's id is `admin`."""
    del caller
    wanted = select(AuditEntry).where(AuditEntry.timestamp >= utc_now() - timedelta(hours=hours))
    if key_id:
        wanted = wanted.where(AuditEntry.key_id == key_id)
    if action:
        wanted = wanted.where(AuditEntry.action == action)
    with services.database.reading() as session:
        total = session.scalar(select(func.count()).select_from(wanted.subquery())) or 0
        latest = session.scalars(wanted.order_by(AuditEntry.number.desc()).limit(limit))
        return AuditLog(entries=[AuditView.model_validate(one) for one in latest], total=total)


@router.get("/{key_id}", responses=problems(401, 403, 404, 429))
def get_key(services: ServicesParam, caller: _Admin, key_id: KeyId) -> KeyView:
    """Return one scoped key, without its secret."""
    del caller
    with services.database.reading() as session:
        return _view(_require(session, key_id))


@router.post("/{key_id}/rotate", responses=problems(401, 403, 404, 409, 422, 429))
def rotate_key(
    services: ServicesParam,
    caller: _Admin,
    key_id: KeyId,
    grace_period_hours: Annotated[
        int, Query(ge=0, le=100_000, description="How long the previous secret stays valid.")
    ] = 24,
) -> RotatedKey:
    """Rotate the key and return the new secret, which is shown only here.

    The previous secret stays valid for the grace period. During that time the key is rotated again
    only with `grace_period_hours=0`, which ends all secrets but the new one.
    """
    now = utc_now()
    secret = _MARK + new_secret()
    with services.database.writing() as session:
        key = _require_to_change(session, caller, key_id)
        if not key.enabled:
            raise Conflict("cannot rotate the key: it has been revoked")
        if grace_period_hours and key.previous_until is not None and key.previous_until > now:
            # Only one old key is kept: a second rotation would cut its grace period short.
            raise Conflict(
                "cannot rotate the key: the one before its last rotation holds until"
                f" {key.previous_until:%Y-%m-%d %H:%M} UTC: wait until then, or rotate with"
                " grace_period_hours=0, which ends all but the new one at once"
            )
        key.previous_hash = key.key_hash
        key.previous_until = now + timedelta(hours=grace_period_hours)
        key.key_hash = key_hash(secret)
        key.prefix = secret[:_PREFIX_LENGTH]
        key.rotated_at = now
        _note(session, caller, key, "rotated")
        view = _view(key)
    return RotatedKey(**view.model_dump(), api_key=secret, grace_period_hours=grace_period_hours)


@router.post("/{key_id}/revoke", responses=problems(401, 403, 404, 429))
def revoke_key(services: ServicesParam, caller: _Admin, key_id: KeyId) -> KeyView:
    """Revoke a key at once, with its previous secret; it stays on the list."""
    with services.database.writing() as session:
        key = _require_to_change(session, caller, key_id)
        key.enabled = False
        _note(session, caller, key, "revoked")
        return _view(key)


@router.delete("/{key_id}", responses=problems(401, 403, 404, 429))
def delete_key(services: ServicesParam, caller: _Admin, key_id: KeyId) -> KeyDeleted:
    """Delete a key at once; its tasks and its audit entries stay."""
    with services.database.writing() as session:
        key = _require_to_change(session, caller, key_id)
        _note(session, caller, key, "deleted")
        session.delete(key)
    return KeyDeleted(key_id=key_id)


def _require(session: Session, key_id: str, *, to_change: bool = False) -> ApiKey:
    key = session.get(ApiKey, key_id, with_for_update=to_change or None)
    if key is None:
        raise NotFound("there is no such key")
    return key


def _require_to_change(session: Session, caller: Caller, key_id: str) -> ApiKey:
    key = _require(session, key_id, to_change=True)
    _check_may_give(caller, key.allowed_node_patterns)
    return key


def _check_may_give(caller: Caller, patterns: list[str]) -> None:
    # Otherwise the holder of a key for some nodes could create one for all of them.
    own = caller.allowed_node_patterns
    if not all(lies_within(pattern, own) for pattern in patterns):
        raise NotAllowed(
            f"the key may manage keys for {', '.join(own)} only: allowed_node_patterns goes beyond"
        )


def _view(key: ApiKey) -> KeyView:
    return KeyView.model_validate(key)


def _note(session: Session, caller: Caller, key: ApiKey, change: str) -> None:
    log_on_commit(session, log, f"key {change}", {"key_id": key.id, "by": caller.key_id})
    audit.record(
        session,
        utc_now(),
        key_id=key.id,
        action=f"key:{change}",
        detail=f"by {caller.key_id}",
        client=caller.client,
    )
