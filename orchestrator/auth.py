"""Who calls: the admin, a node, or someone who holds the registration token.

A key is looked up by its SHA-256 and compared in constant time; the key itself is stored nowhere.
"""

import hashlib
import hmac
import secrets
from typing import Annotated

from fastapi import Depends, Security
from fastapi.security import APIKeyHeader
from sqlalchemy import select

from orchestrator.errors import Disabled, NotAllowed, Unauthenticated
from orchestrator.schema import Node
from orchestrator.services import Services, ServicesParam
from orchestrator.targeting import NodeIdentity

_API_KEY = APIKeyHeader(name="X-API-Key", scheme_name="ApiKey", auto_error=False)
_REGISTRATION_TOKEN = APIKeyHeader(
    name="X-Registration-Token", scheme_name="RegistrationToken", auto_error=False
)


def new_secret() -> str:
    """Make a secret that fits a header and a shell variable."""
    return secrets.token_urlsafe(32)


def key_hash(key: str) -> str:
    """Give what is stored of a key. Keys are random, so a fast hash does."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _require_registration_token(
    services: ServicesParam, token: Annotated[str | None, Security(_REGISTRATION_TOKEN)]
) -> None:
    expected = services.settings.registration_token
    if expected is None:
        raise Disabled("registration is disabled")
    if token is None:
        raise Unauthenticated("X-Registration-Token is missing")
    if not _same(token, expected):
        raise Unauthenticated("invalid registration token")


def _require_admin(services: ServicesParam, key: Annotated[str | None, Security(_API_KEY)]) -> None:
    if key is not None and _same(key, services.settings.admin_key):
        return
    _find_node(services, key)
    raise NotAllowed("a node key may not do this")


def _require_node(
    services: ServicesParam, key: Annotated[str | None, Security(_API_KEY)]
) -> NodeIdentity:
    if key is not None and _same(key, services.settings.admin_key):
        raise NotAllowed("only a node may do this")
    return _find_node(services, key)


def _find_node(services: Services, key: str | None) -> NodeIdentity:
    if key is None:
        raise Unauthenticated("X-API-Key is missing")
    wanted = key_hash(key)
    with services.database.reading() as session:
        node = session.scalars(select(Node).where(Node.api_key_hash == wanted)).one_or_none()
    if node is None or not hmac.compare_digest(node.api_key_hash, wanted):
        raise Unauthenticated("X-API-Key is not known here")
    return node.identity


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(key_hash(given), key_hash(expected))


NodeParam = Annotated[NodeIdentity, Depends(_require_node)]
"""A handler's parameter that receives the node whose key the call carries."""

REGISTRATION_TOKEN_REQUIRED = Depends(_require_registration_token)
ADMIN_REQUIRED = Depends(_require_admin)
