"""The extensions of the contract that this server offers.

The answers to registrations and heartbeats name them; a node uses only what is named.
"""

import json
from datetime import datetime
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    Field,
    JsonValue,
    StringConstraints,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from orchestrator.model import NodeStatus, TaskStatus, check_expression
from orchestrator.schemas.types import (
    MAX_INT,
    NUMBER,
    WITH_SOMETHING_IN_IT,
    Moment,
    NonBlank,
    RequestBody,
    ShortText,
    StrictBody,
    Text,
    View,
)

EXTENSIONS = ("reregister",)
"""`reregister`: a node that registers with its key beside the token stays the same node."""

DEFAULT_TIMEOUT_S = 3600

_Extensions = Annotated[
    list[str],
    Field(
        default_factory=lambda: list(EXTENSIONS),
        description="The extensions that the server offers; what is not named is not used.",
    ),
]


class _AboutTask(RequestBody):
    """Names its task as `job_id`, as `task_id`, or as both."""

    job_id: NonBlank | None = None
    task_id: NonBlank | None = None

    @model_validator(mode="after")
    def _name_one_task(self) -> "_AboutTask":
        if self.job_id is None and self.task_id is None:
            raise ValueError("job_id or task_id is missing")
        if self.job_id and self.task_id and self.job_id != self.task_id:
            raise ValueError("job_id and task_id differ")
        return self

    @property
    def about(self) -> str:
        """The id of the task that the body is about."""
        return self.job_id or self.task_id or ""


class Registration(RequestBody):
    """What a node says of itself: once, and again when it has changed."""

    hostname: NonBlank
    os_type: NonBlank
    name: ShortText | None = None
    capabilities: Annotated[list[ShortText], Field(default_factory=list)]
    tags: Annotated[dict[ShortText, ShortText], Field(default_factory=dict)]


class Heartbeat(RequestBody):
    """A node's sign of life; `task_ids` is for nodes that run several tasks at once."""

    node_id: NonBlank
    status: NodeStatus
    current_task_id: ShortText | None = None
    task_ids: list[ShortText] | None = None

    @property
    def held_task_ids(self) -> list[str]:
        """Every task that the node says it has in hand."""
        current = [self.current_task_id] if self.current_task_id else []
        return list(dict.fromkeys([*current, *(self.task_ids or [])]))


class NodeView(View):
    """A node as others see it."""

    id: str
    hostname: str
    name: str
    os_type: str
    status: NodeStatus
    last_heartbeat: datetime
    current_task_id: str | None
    registered_at: datetime
    capabilities: list[str]
    tags: dict[str, str]


class RegisteredNode(NodeView):
    """The answer to a registration: the only time that the key is shown."""

    api_key: str
    extensions: _Extensions


class HeartbeatAnswer(NodeView):
    """The node, and the tasks that it is to stop."""

    cancelled_task_ids: list[str]
    extensions: _Extensions


class NodeRemoved(BaseModel):
    """The answer to a node's removal."""

    status: Literal["deleted"] = "deleted"
    node_id: str


_CRON = {"type": "string", "format": "cron", "maxLength": 255}
_UploadedName = Annotated[
    ShortText, WithJsonSchema({"type": "string", "format": "uploaded-file", "maxLength": 255})
]


class NewTask(StrictBody):
    """A task to be created. A target that is null does not restrict."""

    prompt: Annotated[str, StringConstraints(pattern=WITH_SOMETHING_IN_IT)]
    target_node_id: ShortText | None = None
    target_node_name: ShortText | None = None
    target_tags: dict[ShortText, ShortText] | None = None
    priority: Annotated[int, Field(ge=-MAX_INT, le=MAX_INT), NUMBER] = 0
    timeout_seconds: Annotated[int, Field(ge=1, le=MAX_INT), NUMBER] | None = DEFAULT_TIMEOUT_S
    scheduled_for: Moment | None = None
    recurrence: Annotated[ShortText, WithJsonSchema(_CRON)] | None = None
    files: Annotated[list[_UploadedName], Field(json_schema_extra={"uniqueItems": True})] | None = (
        None
    )

    @field_validator("recurrence")
    @classmethod
    def _refuse_what_is_no_cron(cls, recurrence: str | None) -> str | None:
        if not recurrence:
            return None
        check_expression(recurrence)
        return recurrence

    @field_validator("files")
    @classmethod
    def _refuse_repeats(cls, files: list[str] | None) -> list[str] | None:
        if files and len(set(files)) != len(files):
            raise ValueError("a file is named twice")
        return files


class HistoryEntry(View):
    """One step in a task's life."""

    status: TaskStatus
    message: str | None
    progress: float | None
    timestamp: datetime


class TaskView(View):
    """A task as the admin sees it."""

    id: str
    prompt: str
    target_node_id: str | None
    target_node_name: str | None
    target_tags: dict[str, str] | None
    priority: int
    timeout_seconds: int
    status: TaskStatus
    assigned_node_id: str | None
    crush_session_id: str | None
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    result: str | None
    error_message: str | None
    scheduled_for: datetime | None
    recurrence: str | None
    created_by: str
    files: list[str]


class TaskDetail(TaskView):
    """One task, with every step that it took."""

    history: list[HistoryEntry]


class Assignment(BaseModel):
    """A task on its way to its node."""

    task_id: str
    prompt: str
    orchestrator_url: str
    timeout_seconds: int
    files: list[str]
    file_checksums: list[str]


class Report(_AboutTask):
    """What a node says of a task that it holds."""

    status: Literal[TaskStatus.RUNNING, TaskStatus.ANALYZING, TaskStatus.SUCCESS, TaskStatus.ERROR]
    message: Text | None = None
    progress: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False), NUMBER] | None = None
    crush_session_id: Text | None = None
    timestamp: Moment | None = None


class ReportAnswer(BaseModel):
    """Where the task stands now, whatever the report said."""

    task_id: str
    job_id: str
    status: TaskStatus


class LogSubmission(_AboutTask):
    """A session of the agent that worked on a task. Its fields are kept as they come."""

    session: dict[str, JsonValue]

    @field_validator("session")
    @classmethod
    def _refuse_what_is_no_json(cls, session: dict[str, JsonValue]) -> dict[str, JsonValue]:
        # Python's parser lets NaN and half characters in that nothing could send out again.
        json.dumps(session, allow_nan=False, ensure_ascii=False).encode()
        return session


class UploadedFile(View):
    """A file that a task may name by its `filename`."""

    filename: str
    original_name: str
    checksum: str
    size: int


class CleanedUp(BaseModel):
    """How many old tasks are gone."""

    deleted_count: int


class Statistics(BaseModel):
    """The fleet in numbers; days are in UTC."""

    total_nodes: int
    active_nodes: int
    idle_nodes: int
    offline_nodes: int
    pending_tasks: int
    running_tasks: int
    completed_tasks_today: int
    failed_tasks_today: int
