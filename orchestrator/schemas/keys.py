"""The bodies of the calls about keys, field by field."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, Field, computed_field

from orchestrator.model import PERMISSIONS, Permission, Role
from orchestrator.schemas.types import MAX_INT, NUMBER, NonBlank, ShortText, StrictBody, Text, View


class NewKey(StrictBody):
    """A scoped key to be made."""

    name: NonBlank
    description: Text
    allowed_node_patterns: Annotated[
        list[ShortText], Field(min_length=1, default_factory=lambda: ["*"])
    ]
    role: Role = Role.SUBMITTER
    rate_limit: Annotated[int, Field(ge=1, le=MAX_INT), NUMBER] | None = None
    expires_in_days: Annotated[int, Field(ge=1, le=36_500), NUMBER] | None = None


class KeyView(View):
    """A scoped key, without the key itself."""

    key_id: Annotated[str, Field(validation_alias=AliasChoices("key_id", "id"))]
    name: str
    description: str
    key_prefix: Annotated[str, Field(validation_alias=AliasChoices("key_prefix", "prefix"))]
    allowed_node_patterns: list[str]
    role: Role
    rate_limit: int | None
    created_at: datetime
    rotated_at: datetime | None
    expires_at: datetime | None
    enabled: bool

    @computed_field
    def permissions(self) -> list[Permission]:
        """Say what the role lets it do."""
        return sorted(PERMISSIONS[self.role])


class ShownKey(KeyView):
    """The answer to making a key: the only time that it is shown."""

    api_key: str


class RotatedKey(ShownKey):
    """The answer to a rotation."""

    grace_period_hours: int


class KeyDeleted(BaseModel):
    """The answer to a key's deletion."""

    deleted: Literal[True] = True
    key_id: str


class AuditView(View):
    """One use of a key, or one change to it."""

    timestamp: datetime
    key_id: str
    action: str
    detail: str
    client: str


class AuditLog(BaseModel):
    """The latest entries that were asked for, and how many there are of them in all."""

    entries: list[AuditView]
    total: int
