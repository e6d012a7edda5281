"""Scoped keys, from being made to being deleted, and the audit of all keys."""

import logging
import uuid
from datetime import timedelta
from typing import Annotated

from anyio import from_thread
from fastapi import APIRouter, Depends, Query
from sqlalchemy import and_, func, select
from sqlalchemy.orm import Session

from orchestrator.auth import Caller, allowed_to
from orchestrator.db import audit
from orchestrator.db.tables import ApiKey, AuditEntry, Task
from orchestrator.errors import Conflict, NotAllowed, NotFound
from orchestrator.log import log_on_commit
from orchestrator.model import Permission, Role, TaskStatus, utc_now
from orchestrator.routes import NO_STORE, KeyId, Route
from orchestrator.scheduling.lifecycle import cancel
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
from orchestrator.scope import entries_of, within
from orchestrator.security import PREFIX_LENGTH, SCOPED_KEY_MARK, key_hash, new_secret
from orchestrator.services import Services, ServicesParam

_Admin = Annotated[Caller, Depends(allowed_to(Permission.MANAGE_KEYS))]
_CancelTasks = Annotated[
    bool, Query(description="Cancel all tasks that it created and that have not ended.")
]

router = APIRouter(prefix="/keys", tags=["keys"], route_class=Route)

log = logging.getLogger(__name__)


@router.post("", dependencies=[NO_STORE], responses=problems(401, 403, 422, 429, 507))
def create_key(services: ServicesParam, caller: _Admin, new: NewKey) -> ShownKey:
    """Create a scoped key and return its secret, which is shown only here.

    A scoped key may manage only keys whose patterns lie within its own.
    """
    services.reserve.check()
    patterns = new.allowed_node_patterns or ["*"]
    check_covers(caller, patterns, "keys")
    now = utc_now()
    secret = new_secret(SCOPED_KEY_MARK)
    days = new.expires_in_days
    key = ApiKey(
        id=str(uuid.uuid4()),
        name=new.name,
        description=new.description,
        prefix=secret[:PREFIX_LENGTH],
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
    """List all scoped keys within the key's patterns, the oldest first, without their secrets."""
    with services.database.reading() as session:
        keys = session.scalars(select(ApiKey).order_by(ApiKey.created_at, ApiKey.id))
        return [_view(key) for key in within(caller, keys)]


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
    """Return what was done with which key, the newest first; the admin key's id is `admin`.

    A key that is limited to patterns sees the entries of keys, tokens and nodes within them.
    """
    wanted = select(AuditEntry).where(AuditEntry.timestamp >= utc_now() - timedelta(hours=hours))
    if key_id:
        wanted = wanted.where(AuditEntry.key_id == key_id)
    if action:
        wanted = wanted.where(AuditEntry.action == action)
    with services.database.reading() as session:
        wanted = wanted.where(entries_of(session, caller))
        total = session.scalar(select(func.count()).select_from(wanted.subquery())) or 0
        latest = session.scalars(wanted.order_by(AuditEntry.number.desc()).limit(limit))
        return AuditLog(entries=[AuditView.model_validate(one) for one in latest], total=total)


@router.get("/{key_id}", responses=problems(401, 403, 404, 429))
def get_key(services: ServicesParam, caller: _Admin, key_id: KeyId) -> KeyView:
    """Return one scoped key, without its secret."""
    with services.database.reading() as session:
        return _view(_require(session, caller, key_id))


@router.post(
    "/{key_id}/rotate",
    dependencies=[NO_STORE],
    responses=problems(401, 403, 404, 409, 422, 429),
)
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
    secret = new_secret(SCOPED_KEY_MARK)
    with services.database.writing() as session:
        key = _require(session, caller, key_id, to_change=True)
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
        key.prefix = secret[:PREFIX_LENGTH]
        key.rotated_at = now
        _note(session, caller, key, "rotated")
        view = _view(key)
    return RotatedKey(**view.model_dump(), api_key=secret, grace_period_hours=grace_period_hours)


@router.post("/{key_id}/revoke", responses=problems(401, 403, 404, 422, 429))
def revoke_key(
    services: ServicesParam, caller: _Admin, key_id: KeyId, *, cancel_tasks: _CancelTasks = False
) -> KeyView:
    """Revoke a key at once, with its previous secret; it stays on the list.

    Its repeated tasks end: pending occurrences are cancelled, and one that runs is the last.
    """
    with services.database.writing() as session:
        key = _require(session, caller, key_id, to_change=True)
        key.enabled = False
        _note(session, caller, key, "revoked")
        view = _view(key)
    _end_tasks(services, caller, key_id, all_of_them=cancel_tasks)
    return view


@router.delete("/{key_id}", responses=problems(401, 403, 404, 422, 429))
def delete_key(
    services: ServicesParam, caller: _Admin, key_id: KeyId, *, cancel_tasks: _CancelTasks = False
) -> KeyDeleted:
    """Delete a key at once; its tasks and its audit entries stay.

    Its repeated tasks end: pending occurrences are cancelled, and one that runs is the last.
    """
    with services.database.writing() as session:
        key = _require(session, caller, key_id, to_change=True)
        _note(session, caller, key, "deleted")
        session.delete(key)
    _end_tasks(services, caller, key_id, all_of_them=cancel_tasks)
    return KeyDeleted(key_id=key_id)


def _end_tasks(services: Services, caller: Caller, key_id: str, *, all_of_them: bool) -> None:
    """Cancel the key's pending occurrences of repeated tasks, or all its tasks.

    In a transaction of its own: the end of an occurrence locks its task and then the key.
    """
    is_open = Task.status.in_([status for status in TaskStatus if not status.is_final])
    is_waiting = and_(Task.status == TaskStatus.PENDING, Task.recurrence.is_not(None))
    wanted = select(Task).where(Task.created_by == key_id, is_open if all_of_them else is_waiting)
    now = utc_now()
    with services.database.writing() as session:
        locked = wanted.order_by(Task.number).with_for_update(of=Task)
        tasks = session.scalars(locked).all()
        for task in tasks:
            cancel(session, task, now, caller.key_id)
        held = [(task.assigned_node_id, task.id) for task in tasks if task.assigned_node_id]
    for node_id, task_id in held:
        from_thread.run_sync(services.cancelled.add, node_id, task_id)


def _require(session: Session, caller: Caller, key_id: str, *, to_change: bool = False) -> ApiKey:
    key = session.get(ApiKey, key_id, with_for_update=to_change or None)
    if key is None:
        raise NotFound("there is no such key")
    check_covers(caller, key.allowed_node_patterns, "keys")
    return key


def check_covers(caller: Caller, patterns: list[str], kind: str) -> None:
    """Raise NotAllowed for patterns of keys or tokens that go beyond the caller's own."""
    # Otherwise the holder of a key for some nodes could create one for all of them.
    if not caller.covers(patterns):
        own = ", ".join(caller.allowed_node_patterns)
        raise NotAllowed(
            f"the key may manage {kind} for {own} only: allowed_node_patterns goes beyond"
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
