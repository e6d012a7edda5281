"""The tables.

The same ones serve SQLite and PostgreSQL; `migrations` makes them, and a test holds it to this. A
task's `number` orders tasks that came in the same instant. Node ids in tasks are no foreign keys,
since a node can be removed and its finished tasks stay.
"""

from datetime import datetime, timezone
from enum import Enum as PythonEnum
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Enum,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, WriteOnlyMapped, mapped_column, relationship
from sqlalchemy.types import TypeDecorator

from orchestrator.model import NodeIdentity, NodeStatus, Role, Target, TaskStatus


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime, kept as naive UTC: SQLite has no time zones."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Store UTC without its zone."""
        del dialect
        return None if value is None else value.astimezone(timezone.utc).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return UTC with its zone."""
        del dialect
        return None if value is None else value.replace(tzinfo=timezone.utc)


def _enum_values(enum: type[PythonEnum]) -> list[str]:
    return [str(member.value) for member in enum]


class Base(DeclarativeBase):
    """The base of all tables; maps Python's types to columns."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcDateTime,
        dict[str, str]: JSON(none_as_null=True),
        list[str]: JSON(none_as_null=True),
        TaskStatus: Enum(TaskStatus, native_enum=False, length=16, values_callable=_enum_values),
        NodeStatus: Enum(NodeStatus, native_enum=False, length=16, values_callable=_enum_values),
        Role: Enum(Role, native_enum=False, length=16, values_callable=_enum_values),
    }


class Node(Base):
    """A registered runner. Of its key only the hash is kept."""

    __tablename__ = "nodes"
    __table_args__ = (Index("ix_nodes_listed", "registered_at", "id"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    api_key_hash: Mapped[str] = mapped_column(String(64), unique=True)
    hostname: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)
    os_type: Mapped[str] = mapped_column(Text)
    capabilities: Mapped[list[str]]
    tags: Mapped[dict[str, str]]
    status: Mapped[NodeStatus]
    last_heartbeat: Mapped[datetime]
    offline_at: Mapped[datetime] = mapped_column(index=True)
    """When the node counts as offline, unless another heartbeat comes before."""
    current_task_id: Mapped[str | None] = mapped_column(Text)
    held_task_ids: Mapped[list[str]]
    """The tasks that the node held at its last heartbeat."""
    registered_at: Mapped[datetime]
    key_rotation: Mapped[int] = mapped_column(default=0)
    """How often a new key was made for it."""
    pending_key_hash: Mapped[str | None] = mapped_column(String(64), index=True, unique=True)
    """Of the new key, until the node has used it."""
    previous_key_hash: Mapped[str | None] = mapped_column(String(64), index=True, unique=True)
    key_replaced_at: Mapped[datetime | None]
    """When the previous key was replaced; it still reports on tasks that were assigned before."""
    paused: Mapped[bool] = mapped_column(default=False)
    """Whether it gets no new tasks."""

    @property
    def identity(self) -> NodeIdentity:
        """What targeting compares."""
        return NodeIdentity(self.id, self.name, self.tags)


class Task(Base):
    """A task, from its creation to its end and after."""

    __tablename__ = "tasks"

    number: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    )
    id: Mapped[str] = mapped_column(String(36), unique=True)
    prompt: Mapped[str] = mapped_column(Text)
    target_node_id: Mapped[str | None] = mapped_column(Text)
    target_node_name: Mapped[str | None] = mapped_column(Text)
    target_tags: Mapped[dict[str, str] | None]
    priority: Mapped[int] = mapped_column()
    timeout_seconds: Mapped[int]
    status: Mapped[TaskStatus]
    assigned_node_id: Mapped[str | None] = mapped_column(String(36))
    offered_at: Mapped[datetime | None]
    """When the assignment last went out to its node."""
    assigned_at: Mapped[datetime | None]
    """When the assignment first went out to its node."""
    assignment_number: Mapped[int] = mapped_column(default=0)
    """How often the task was assigned; a task's key is good for one assignment."""
    node_ended_at: Mapped[datetime | None]
    """When the node itself first reported an end, whatever the task's status was by then."""
    crush_session_id: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    overdue_at: Mapped[datetime | None]
    """When its time limit is over; None until it runs, and if it has none."""
    completed_at: Mapped[datetime | None]
    result: Mapped[str | None] = mapped_column(Text)
    error_message: Mapped[str | None] = mapped_column(Text)
    scheduled_for: Mapped[datetime | None]
    recurrence: Mapped[str | None] = mapped_column(Text)
    created_by: Mapped[str] = mapped_column(Text)
    rerun_of: Mapped[str | None] = mapped_column(String(36))
    """The id of the task of which this one is a copy; that one may be deleted since."""

    file_links: Mapped[list["TaskFile"]] = relationship(
        order_by="TaskFile.position", lazy="selectin", cascade="all, delete-orphan"
    )
    history: Mapped[list["StatusEntry"]] = relationship(
        order_by="StatusEntry.number", viewonly=True
    )
    further_steps: WriteOnlyMapped["StatusEntry"] = relationship()
    """Adds to the history without loading it: it may be long."""

    __table_args__ = (
        # In the order in which tasks are given out, so that a long queue need not be sorted.
        Index("ix_tasks_queue", "status", priority.desc(), "number"),
        Index("ix_tasks_node", "assigned_node_id", "status"),
        Index("ix_tasks_due", "status", "scheduled_for"),
        Index("ix_tasks_overdue", "status", "overdue_at"),
        Index("ix_tasks_completed", "completed_at"),
        # Pending ones of a key are counted with each that it creates.
        Index("ix_tasks_creator", "created_by", "status"),
        Index("ix_tasks_unconfirmed", "status", "node_ended_at", "completed_at"),
        # Lists are in the order of numbers: a page is read from the index, without a sort.
        Index("ix_tasks_listed_status", "status", "number"),
        Index("ix_tasks_listed_node", "assigned_node_id", "number"),
        Index("ix_tasks_listed_creator", "created_by", "number"),
        Index("ix_tasks_listed_time", "created_at", "number"),
    )

    @property
    def target(self) -> Target:
        """The conditions on the node."""
        return Target(self.target_node_id, self.target_node_name, self.target_tags)

    @property
    def files(self) -> list[str]:
        """The names of the task's files, in their order."""
        return [link.filename for link in self.file_links]


class File(Base):
    """An uploaded file; its bytes lie under its id, never under a name that came from outside."""

    __tablename__ = "files"
    __table_args__ = (Index("ix_files_creator", "created_by", "size"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    filename: Mapped[str] = mapped_column(Text, unique=True)
    original_name: Mapped[str] = mapped_column(Text)
    checksum: Mapped[str] = mapped_column(String(64))
    size: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]
    created_by: Mapped[str] = mapped_column(Text)


class TaskFile(Base):
    """A file of a task, with its position."""

    __tablename__ = "task_files"

    task_number: Mapped[int] = mapped_column(ForeignKey("tasks.number"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    filename: Mapped[str] = mapped_column(ForeignKey("files.filename"), index=True)

    file: Mapped[File] = relationship(lazy="joined")


class StatusEntry(Base):
    """One step in a task's life, as it took effect."""

    __tablename__ = "status_history"

    number: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    )
    task_number: Mapped[int] = mapped_column(ForeignKey("tasks.number"), index=True)
    status: Mapped[TaskStatus]
    message: Mapped[str | None] = mapped_column(Text)
    progress: Mapped[float | None] = mapped_column(Float)
    timestamp: Mapped[datetime]


class Log(Base):
    """The session that was last sent for a task, as JSON text."""

    __tablename__ = "logs"

    task_number: Mapped[int] = mapped_column(ForeignKey("tasks.number"), primary_key=True)
    session: Mapped[str] = mapped_column(Text)
    received_at: Mapped[datetime]


class TaskOutput(Base):
    """How much output of a task has come in, and who waits for more."""

    __tablename__ = "task_output"

    task_number: Mapped[int] = mapped_column(ForeignKey("tasks.number"), primary_key=True)
    length: Mapped[int] = mapped_column(BigInteger, default=0)
    """Bytes of the whole stream, including those that are no longer stored."""
    is_done: Mapped[bool] = mapped_column(default=False)
    """Whether no more will come."""
    watched_until: Mapped[datetime | None]
    """Until when its node is asked to send often."""


class OutputPart(Base):
    """A piece of a task's output: whole characters in UTF-8, which may include NUL."""

    __tablename__ = "task_output_parts"

    task_number: Mapped[int] = mapped_column(ForeignKey("tasks.number"), primary_key=True)
    start: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    """The offset of its first byte in the whole stream."""
    data: Mapped[bytes] = mapped_column(LargeBinary)


class Artifact(Base):
    """A file that a task has made; its bytes lie under its id."""

    __tablename__ = "artifacts"
    __table_args__ = (Index("ix_artifacts_task", "task_number", "path", unique=True),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    task_number: Mapped[int] = mapped_column(ForeignKey("tasks.number"))
    path: Mapped[str] = mapped_column(Text)
    """Below the task's folder of artifacts, with `/` between its segments."""
    size: Mapped[int] = mapped_column(BigInteger)
    checksum: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]


class ApiKey(Base):
    """A scoped key. Of the key itself only the hash is kept, and its first characters."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    description: Mapped[str] = mapped_column(Text)
    prefix: Mapped[str] = mapped_column(String(16))
    key_hash: Mapped[str] = mapped_column(String(64), unique=True)
    previous_hash: Mapped[str | None] = mapped_column(String(64), unique=True)
    previous_until: Mapped[datetime | None]
    """Until when the key from before the last rotation is valid."""
    allowed_node_patterns: Mapped[list[str]]
    role: Mapped[Role]
    rate_limit: Mapped[int | None]
    """Calls a minute; None does not limit."""
    paid_until: Mapped[datetime | None]
    """Up to when the calls so far use up the rate; see `rate`."""
    created_at: Mapped[datetime]
    rotated_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    enabled: Mapped[bool]


class RegistrationToken(Base):
    """A registration token for some names. Of the token itself only the hash is kept."""

    __tablename__ = "registration_tokens"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    prefix: Mapped[str] = mapped_column(String(16))
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    allowed_node_patterns: Mapped[list[str]]
    """What the names of nodes must match that register with it."""
    max_uses: Mapped[int | None]
    """How many nodes may be registered with it; None does not limit."""
    uses: Mapped[int]
    created_at: Mapped[datetime]
    created_by: Mapped[str] = mapped_column(Text)
    expires_at: Mapped[datetime | None]

    @property
    def is_used_up(self) -> bool:
        """Whether it registers no further node."""
        return self.max_uses is not None and self.uses >= self.max_uses

    def is_expired(self, now: datetime) -> bool:
        """Return whether its end has come."""
        return self.expires_at is not None and self.expires_at <= now


class ServerSecret(Base):
    """A secret of the server's own, which keys are derived from instead of being stored."""

    __tablename__ = "server_secrets"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    value: Mapped[str] = mapped_column(String(64))
    """Hexadecimal."""


class AuditEntry(Base):
    """A use of the admin key, a scoped one or a registration token, or a change to one."""

    __tablename__ = "key_audit"

    number: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    )
    timestamp: Mapped[datetime] = mapped_column(index=True)
    key_id: Mapped[str] = mapped_column(Text)
    action: Mapped[str] = mapped_column(Text)
    detail: Mapped[str] = mapped_column(Text)
    client: Mapped[str] = mapped_column(Text)
