"""Registration tokens for some names of nodes, from being made to being revoked."""

import logging
import uuid
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends
from sqlalchemy import select
from sqlalchemy.orm import Session

from orchestrator.auth import Caller, allowed_to
from orchestrator.db import audit
from orchestrator.db.tables import RegistrationToken
from orchestrator.errors import Invalid, NotFound
from orchestrator.log import log_on_commit
from orchestrator.model import Permission, utc_now
from orchestrator.routes import NO_STORE, Route, TokenId
from orchestrator.routes.keys import check_covers
from orchestrator.schemas.keys import NewToken, ShownToken, TokenDeleted, TokenView
from orchestrator.schemas.problems import problems
from orchestrator.scope import within
from orchestrator.security import PREFIX_LENGTH, TOKEN_MARK, key_hash, new_secret
from orchestrator.services import ServicesParam

_Admin = Annotated[Caller, Depends(allowed_to(Permission.MANAGE_TOKENS))]

router = APIRouter(prefix="/registration-tokens", tags=["tokens"], route_class=Route)

log = logging.getLogger(__name__)


@router.post("", dependencies=[NO_STORE], responses=problems(401, 403, 422, 429))
def create_token(services: ServicesParam, caller: _Admin, new: NewToken) -> ShownToken:
    """Create a registration token and return it; it is shown only here.

    It registers nodes whose name matches one of its patterns, up to `expires_at` and `max_uses`.
    A key that is limited to patterns may manage only tokens whose patterns lie within its own.
    """
    check_covers(caller, new.allowed_node_patterns, "tokens")
    now = utc_now()
    if new.expires_at is not None and new.expires_at <= now:
        raise Invalid("expires_at is in the past")
    secret = new_secret(TOKEN_MARK)
    token = RegistrationToken(
        id=str(uuid.uuid4()),
        name=new.name,
        prefix=secret[:PREFIX_LENGTH],
        token_hash=key_hash(secret),
        allowed_node_patterns=new.allowed_node_patterns,
        max_uses=new.max_uses,
        uses=0,
        created_at=now,
        created_by=caller.key_id,
        expires_at=new.expires_at,
    )
    with services.database.writing() as session:
        session.add(token)
        _note(session, caller, token, "created")
    return ShownToken(**_view(token, now).model_dump(), token=secret)


@router.get("", responses=problems(401, 403, 429))
def list_tokens(services: ServicesParam, caller: _Admin) -> list[TokenView]:
    """List all registration tokens within the key's patterns, the oldest first."""
    now = utc_now()
    oldest_first = (RegistrationToken.created_at, RegistrationToken.id)
    with services.database.reading() as session:
        tokens = session.scalars(select(RegistrationToken).order_by(*oldest_first))
        return [_view(token, now) for token in within(caller, tokens)]


@router.get("/{token_id}", responses=problems(401, 403, 404, 429))
def get_token(services: ServicesParam, caller: _Admin, token_id: TokenId) -> TokenView:
    """Return one registration token, without its secret."""
    with services.database.reading() as session:
        return _view(_require(session, caller, token_id), utc_now())


@router.delete("/{token_id}", responses=problems(401, 403, 404, 429))
def delete_token(services: ServicesParam, caller: _Admin, token_id: TokenId) -> TokenDeleted:
    """Revoke a registration token at once; the nodes that registered with it stay."""
    with services.database.writing() as session:
        token = _require(session, caller, token_id)
        _note(session, caller, token, "deleted")
        session.delete(token)
    return TokenDeleted(token_id=token_id)


def _require(session: Session, caller: Caller, token_id: str) -> RegistrationToken:
    token = session.get(RegistrationToken, token_id)
    if token is None:
        raise NotFound("there is no such registration token")
    check_covers(caller, token.allowed_node_patterns, "tokens")
    return token


def _view(token: RegistrationToken, now: datetime) -> TokenView:
    return TokenView(
        token_id=token.id,
        name=token.name,
        token_prefix=token.prefix,
        allowed_node_patterns=token.allowed_node_patterns,
        max_uses=token.max_uses,
        uses=token.uses,
        created_at=token.created_at,
        expires_at=token.expires_at,
        enabled=not (token.is_used_up or token.is_expired(now)),
    )


def _note(session: Session, caller: Caller, token: RegistrationToken, change: str) -> None:
    ids = {"token_id": token.id, "by": caller.key_id}
    log_on_commit(session, log, f"registration token {change}", ids)
    audit.record(
        session,
        utc_now(),
        key_id=token.id,
        action=f"token:{change}",
        detail=f"by {caller.key_id}",
        client=caller.client,
    )
