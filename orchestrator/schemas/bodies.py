"""The extensions of the contract that this server offers.

The answers to registrations and heartbeats name them; a node uses only what is named.
"""

import json
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from orchestrator.model import ADMIN_ID, NodeStatus, TaskStatus, check_expression, utc_now
from orchestrator.schemas.types import (
    MAX_HELD_IDS,
    MAX_INT,
    MAX_LISTED,
    MAX_NODE_TAGS,
    MAX_TIMEOUT_S,
    NUMBER,
    UUID_SCHEMA,
    GivenId,
    Id,
    Message,
    Moment,
    NodeTags,
    NonBlank,
    Pattern,
    Percent,
    Prompt,
    RequestBody,
    SessionId,
    ShortText,
    TargetTags,
    Text,
    View,
    is_uuid,
)

EXTENSIONS = ("reregister", "pace", "task-key", "parked-reports")
"""`reregister`: a node that registers with its key beside the token stays the same node.
`pace`: the server decides how often a node without a task sends heartbeats.
`task-key`: an assignment has a key with which the task can be reported on, and nothing else done.
`parked-reports`: a heartbeat has the number of reports that were refused and are kept on the host.
"""

DEFAULT_TIMEOUT_S = 3600

_Extensions = Annotated[
    list[str],
    Field(
        default_factory=lambda: list(EXTENSIONS),
        description="The extensions that the server has; a node must not use others.",
    ),
]


class _AboutTask(RequestBody):
    """Names its task as `job_id`, as `task_id`, or as both."""

    job_id: GivenId | None = None
    task_id: GivenId | None = None

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
    """A node's description, which targets are compared with. The name defaults to the host name."""

    hostname: NonBlank
    os_type: NonBlank
    name: ShortText | None = None
    capabilities: Annotated[list[ShortText], Field(max_length=MAX_NODE_TAGS)] | None = None
    tags: NodeTags | None = None


_TaskId = Annotated[
    Text, StringConstraints(max_length=128), WithJsonSchema({**UUID_SCHEMA, "maxLength": 128})
]


class Heartbeat(RequestBody):
    """A node's status; `task_ids` is for nodes that run several tasks at once.

    `parked_reports` is the number of reports that were refused and wait for the host's operator.
    """

    node_id: GivenId
    status: NodeStatus
    current_task_id: _TaskId | None = None
    task_ids: Annotated[list[_TaskId], Field(max_length=MAX_HELD_IDS)] | None = None
    parked_reports: Annotated[int, Field(ge=0, le=MAX_INT)] | None = None

    @property
    def held_task_ids(self) -> list[str]:
        """All tasks that the node reports to hold."""
        current = [self.current_task_id] if self.current_task_id else []
        return list(dict.fromkeys([*current, *(self.task_ids or [])]))


def _uuid_or_none(text: str | None) -> str | None:
    return text if text is not None and is_uuid(text) else None


# Whatever a node has sent, or a version before this one has stored, a response has UUIDs.
_ShownId = Annotated[Id | None, AfterValidator(_uuid_or_none)]


class NodeView(View):
    """A node."""

    id: Id
    hostname: str
    name: str
    os_type: str
    status: NodeStatus
    last_heartbeat: datetime
    current_task_id: _ShownId = None
    registered_at: datetime
    capabilities: list[str]
    tags: dict[str, str]


class RegisteredNode(NodeView):
    """The registered node, with its key, which is shown only here."""

    api_key: str
    extensions: _Extensions


class HeartbeatResponse(NodeView):
    """The node, and the tasks that it must stop."""

    cancelled_task_ids: list[Id]
    extensions: _Extensions
    heartbeat_interval_seconds: Annotated[
        int, Field(ge=5, le=300, description="Seconds until the node's next heartbeat.")
    ]
    new_api_key: Annotated[
        str | None, Field(description="Replaces the node's key once it is used.")
    ] = None


class NodeRemoved(BaseModel):
    """The removed node."""

    status: Literal["deleted"] = "deleted"
    node_id: Id


def _require_uuid(text: str) -> str:
    lower = text.lower()
    if not is_uuid(lower):
        raise ValueError("must be the id of a node, a UUID")
    return lower


class NewTask(RequestBody):
    """A task to create. Every target that is given must match; without any, all nodes do."""

    prompt: Prompt
    target_node_id: (
        Annotated[ShortText, AfterValidator(_require_uuid), WithJsonSchema(UUID_SCHEMA)] | None
    ) = None
    target_node_name: Annotated[
        Pattern | None,
        Field(
            description="A node's name; `*` matches any characters, and may be there up to ten"
            " times. Case matters."
        ),
    ] = None
    target_tags: Annotated[
        TargetTags | None,
        Field(description="Tags that the node must have, with these values. Case matters."),
    ] = None
    priority: Annotated[int, Field(ge=-MAX_INT, le=MAX_INT), NUMBER] | None = 0
    timeout_seconds: Annotated[
        Annotated[int, Field(ge=0, le=MAX_TIMEOUT_S), NUMBER] | None,
        Field(description="Counted from the start of the container; 0 is no limit."),
    ] = DEFAULT_TIMEOUT_S
    scheduled_for: Moment | None = None
    recurrence: Annotated[
        ShortText | None,
        Field(
            description="A cron expression, in UTC: `0 8 * * mon`, or `@daily`, `@weekly` and the"
            " like. It must fire some time, and at most once a minute."
        ),
    ] = None
    files: Annotated[
        Annotated[
            list[ShortText], Field(max_length=MAX_LISTED, json_schema_extra={"uniqueItems": True})
        ]
        | None,
        Field(description="Names from the responses to `POST /upload`."),
    ] = None

    @field_validator("recurrence")
    @classmethod
    def _refuse_what_is_no_cron(cls, recurrence: str | None) -> str | None:
        if not recurrence:
            return None
        check_expression(recurrence, utc_now())
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
    message: str | None = None
    progress: float | None = None
    timestamp: datetime


ADMIN_CREATOR = "00000000-0000-4000-8000-000000000000"
"""Stands in `created_by` for the admin key, whose own id is not a UUID."""


def _creator(key_id: str) -> str:
    return ADMIN_CREATOR if key_id == ADMIN_ID else key_id


class TaskView(View):
    """A task."""

    id: Id
    prompt: str
    target_node_id: _ShownId = None
    target_node_name: str | None = None
    target_tags: dict[str, str] | None = None
    priority: int
    timeout_seconds: int
    status: TaskStatus
    assigned_node_id: Id | None = None
    crush_session_id: str | None = None
    created_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    result: str | None = None
    error_message: str | None = None
    scheduled_for: datetime | None = None
    recurrence: str | None = None
    created_by: Annotated[
        Id,
        BeforeValidator(_creator),
        Field(description=f"The id of the key; for the admin key it is `{ADMIN_CREATOR}`."),
    ]
    files: list[str]


class TaskDetail(TaskView):
    """One task, with every step that it took."""

    history: list[HistoryEntry]


class Assignment(BaseModel):
    """A task for the node that asked."""

    task_id: Id
    prompt: str
    orchestrator_url: str
    timeout_seconds: int
    files: list[str]
    file_checksums: list[str]
    original_names: Annotated[
        list[str] | None,
        Field(
            description="The names under which the files were uploaded, in the same order. A node"
            " stores the files under these; where several have one name, it adds a number."
        ),
    ] = None
    task_api_key: Annotated[
        str | None, Field(description="Reports on this task, for the time of this assignment.")
    ] = None


class Report(_AboutTask):
    """The status of a task that the node has been given; `task_id` or `job_id` names it."""

    status: Literal[TaskStatus.RUNNING, TaskStatus.ANALYZING, TaskStatus.SUCCESS, TaskStatus.ERROR]
    message: Message | None = None
    progress: Percent | None = None
    crush_session_id: SessionId | None = None
    timestamp: Moment | None = None


class ReportResponse(BaseModel):
    """The task's status after the report, which may differ from the reported one."""

    task_id: Id
    job_id: Id
    status: TaskStatus


_Count = Annotated[int, NUMBER]
_Epoch = Annotated[int, NUMBER, Field(description="Seconds since 1970.")]


class _LogPart(BaseModel):
    """Part of a log; fields that are not declared are kept as well."""

    model_config = ConfigDict(frozen=True, extra="allow")

    __pydantic_extra__: dict[str, JsonValue]

    def fields(self) -> dict[str, Any]:
        """Return the fields to keep: not the declared ones that are null."""
        declared = {name: getattr(self, name) for name in type(self).model_fields}
        present = {name: value for name, value in declared.items() if value is not None}
        return {**present, **(self.model_extra or {})}


class LogMessage(_LogPart):
    """A message of the agent's session."""

    id: str | None = None
    role: str | None = None
    content: str | None = None
    model: str | None = None
    provider: str | None = None
    created_at: _Epoch | None = None
    finished_at: _Epoch | None = None


class LogSession(_LogPart):
    """A session of the agent that worked on a task. Further fields are kept as they are."""

    id: str | None = None
    title: str | None = None
    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    cost: Annotated[float, NUMBER] | None = None
    created_at: _Epoch | None = None
    updated_at: _Epoch | None = None
    messages: Annotated[list[LogMessage], Field(fail_fast=True)] | None = None

    def fields(self) -> dict[str, Any]:
        """Return the fields to keep, those of the messages included."""
        messages = [message.fields() for message in self.messages or []]
        present = super().fields()
        return {**present, "messages": messages} if "messages" in present else present


class LogSubmission(_AboutTask):
    """The agent's session; `task_id` or `job_id` names the task."""

    session: LogSession

    @field_validator("session")
    @classmethod
    def _refuse_what_is_not_json(cls, session: LogSession) -> LogSession:
        # Python's parser lets NaN and half characters in that nothing could send out again.
        json.dumps(session.fields(), allow_nan=False, ensure_ascii=False).encode()
        return session


class UploadedFile(View):
    """A file that a task may name by its `filename`."""

    filename: str
    original_name: str
    checksum: str
    size: int


class CleanedUp(BaseModel):
    """The number of deleted tasks."""

    deleted_count: int


class Statistics(BaseModel):
    """Numbers of nodes and tasks; today is in UTC."""

    total_nodes: int
    active_nodes: int
    idle_nodes: int
    offline_nodes: int
    pending_tasks: int
    running_tasks: int
    completed_tasks_today: int
    failed_tasks_today: int
