"""The bodies of the calls about keys and registration tokens, field by field."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, Field, computed_field

from orchestrator.model import PERMISSIONS, Permission, Role
from orchestrator.schemas.types import (
    MAX_INT,
    NUMBER,
    Id,
    Moment,
    NonBlank,
    Pattern,
    RequestBody,
    Text,
    View,
)

MAX_PATTERNS = 100


class NewKey(RequestBody):
    """A scoped key to create."""

    name: NonBlank
    description: Text
    allowed_node_patterns: (
        Annotated[list[Pattern], Field(min_length=1, max_length=MAX_PATTERNS)] | None
    ) = None
    role: Role | None = Role.SUBMITTER
    rate_limit: Annotated[int, Field(ge=1, le=MAX_INT), NUMBER] | None = None
    expires_in_days: Annotated[int, Field(ge=1, le=36_500), NUMBER] | None = None


class KeyView(View):
    """A scoped key, without its secret."""

    key_id: Annotated[Id, Field(validation_alias=AliasChoices("key_id", "id"))]
    name: str
    description: str
    key_prefix: Annotated[str, Field(validation_alias=AliasChoices("key_prefix", "prefix"))]
    allowed_node_patterns: list[str]
    role: Role
    rate_limit: int | None = None
    created_at: datetime
    rotated_at: datetime | None = None
    expires_at: datetime | None = None
    enabled: bool

    @computed_field(description="What the role permits.")
    def permissions(self) -> list[Permission]:
        """Return what the role permits."""
        return sorted(PERMISSIONS[self.role])


class ShownKey(KeyView):
    """A scoped key with its secret, which is shown only here."""

    api_key: str


class RotatedKey(ShownKey):
    """A rotated key with its new secret."""

    grace_period_hours: int


class KeyDeleted(BaseModel):
    """The deleted key."""

    deleted: Literal[True] = True
    key_id: Id


class NewToken(RequestBody):
    """A registration token to create, for nodes whose name matches one of the patterns."""

    name: NonBlank
    allowed_node_patterns: Annotated[list[Pattern], Field(min_length=1, max_length=MAX_PATTERNS)]
    expires_at: Moment | None = None
    max_uses: Annotated[
        int | None,
        Field(ge=1, le=MAX_INT, description="How many nodes it may register."),
        NUMBER,
    ] = None


class TokenView(View):
    """A registration token, without its secret."""

    token_id: Id
    name: str
    token_prefix: str
    allowed_node_patterns: list[str]
    max_uses: int | None = None
    uses: Annotated[int, Field(description="How many nodes it has registered.")]
    created_at: datetime
    expires_at: datetime | None = None
    enabled: Annotated[
        bool, Field(description="Whether it registers nodes: it is neither expired nor used up.")
    ]


class ShownToken(TokenView):
    """A registration token with its secret, which is shown only here."""

    token: str


class TokenDeleted(BaseModel):
    """The revoked registration token."""

    deleted: Literal[True] = True
    token_id: Id


class AuditView(View):
    """One use of a key or a registration token, or one change to it."""

    timestamp: datetime
    key_id: str
    action: str
    detail: str
    client: str


class AuditLog(BaseModel):
    """The newest entries that match, and how many match in all."""

    entries: list[AuditView]
    total: int
