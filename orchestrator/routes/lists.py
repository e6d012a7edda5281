"""Lists of tasks and nodes: their filters, and their pages.

A page's `Link` header has the next one. Its cursor is the place of the last row, not a count of
rows: what is created or deleted meanwhile makes no row come twice or not at all.
"""

import json
import operator
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from typing import Annotated, Any, TypeVar
from urllib.parse import urlencode

from fastapi import Query, Request, Response
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    WithJsonSchema,
)
from sqlalchemy import ColumnElement, Select, and_, false, func, or_, select
from sqlalchemy.orm import Session, selectinload

from orchestrator.auth import Caller
from orchestrator.db.conditions import contains_text, has_tag
from orchestrator.db.tables import Node, Task, TaskFile
from orchestrator.errors import Invalid
from orchestrator.model import ADMIN_ID, TaskStatus
from orchestrator.schemas.bodies import ADMIN_CREATOR
from orchestrator.schemas.types import (
    MAX_TARGET_TAGS,
    UUID_PATTERN,
    UUID_SCHEMA,
    Moment,
    ShortText,
    is_uuid,
)
from orchestrator.scope import nodes_of, tasks_of

T = TypeVar("T")

_TASK_PLACE = TypeAdapter(tuple[Annotated[int, Field(gt=0, lt=2**63)]])
_NODE_PLACE = TypeAdapter(tuple[Moment, Annotated[str, Field(pattern=UUID_PATTERN)]])

LINK: dict[int | str, dict[str, Any]] = {
    200: {
        "headers": {
            "Link": {
                "description": 'The next page, as `</tasks?…>; rel="next"` (RFC 8288); it is absent'
                " from the last page, and if there is no `limit`.",
                "schema": {"type": "string"},
            }
        }
    }
}


def _refuse_number(text: str) -> str:
    # Pydantic would take it for seconds since 1970.
    try:
        float(text)
    except ValueError:
        return text
    raise ValueError("must be a date and time in ISO 8601")


_Time = Annotated[Moment, BeforeValidator(_refuse_number)]

_PAIR = {"type": "string", "maxLength": 255, "pattern": r"^[^\x00=]*=[^\x00]*$"}


def _require_uuid(text: str) -> str:
    if not is_uuid(text.lower()):
        raise ValueError("must be the id of a key, a UUID")
    return text.lower()


def _require_pair(tag: str) -> str:
    if "=" not in tag:
        raise ValueError("must be key=value")
    return tag


class _Page(BaseModel):
    """What every list takes. Others are refused: somebody may rely on a misspelled filter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    limit: Annotated[
        int | None, Field(ge=1, le=10_000, description="At most so many; without it, all.")
    ] = None
    cursor: Annotated[
        ShortText | None, Field(description="Where a page begins; copied from `Link`.")
    ] = None


class NodeQuery(_Page):
    """The parameters of a list of nodes."""


class TaskQuery(_Page):
    """The parameters of a list of tasks; a task is listed if it meets all of them."""

    status_filter: Annotated[
        TaskStatus | None,
        # As forms send what was left empty.
        BeforeValidator(lambda text: text or None),
        WithJsonSchema({"type": "string", "enum": [*(status.value for status in TaskStatus), ""]}),
        Field(description="Only tasks with this status."),
    ] = None
    node: Annotated[
        ShortText | None,
        Field(description="Only tasks that this node was assigned, by its id or its name."),
    ] = None
    tag: Annotated[
        list[Annotated[ShortText, AfterValidator(_require_pair), WithJsonSchema(_PAIR)]],
        Field(
            max_length=MAX_TARGET_TAGS,
            description="Only tasks with this target tag, as `key=value`; may be repeated.",
        ),
    ] = []
    created_by: Annotated[
        Annotated[ShortText, AfterValidator(_require_uuid), WithJsonSchema(UUID_SCHEMA)] | None,
        Field(description="Only tasks that were created with the key that has this id."),
    ] = None
    created_after: Annotated[
        _Time | None, Field(description="Only tasks that were created at this time or later.")
    ] = None
    created_before: Annotated[
        _Time | None, Field(description="Only tasks that were created before this time.")
    ] = None
    text: Annotated[
        ShortText | None,
        Field(description="Only tasks with this text in the prompt, in upper or lower case."),
    ] = None


NodeQueryParam = Annotated[NodeQuery, Query()]
TaskQueryParam = Annotated[TaskQuery, Query()]


def task_list(session: Session, caller: Caller, query: TaskQuery) -> Select[Any]:
    """Return the query of one page, and one task more. Raises Invalid for a wrong cursor."""
    conditions = [tasks_of(session, caller)]
    if query.status_filter is not None:
        conditions.append(Task.status == query.status_filter)
    if query.node:
        conditions.append(_was_assigned(session, caller, query.node))
    conditions += [has_tag(session, Task.target_tags, *tag.split("=", 1)) for tag in query.tag]
    if query.created_by:
        key_id = ADMIN_ID if query.created_by == ADMIN_CREATOR else query.created_by
        conditions.append(Task.created_by == key_id)
    if query.created_after is not None:
        conditions += _within(Task.created_at >= query.created_after, func.min, operator.ge)
    if query.created_before is not None:
        conditions += _within(Task.created_at < query.created_before, func.max, operator.le)
    if query.text:
        conditions.append(contains_text(session, Task.prompt, query.text))
    if query.cursor:
        (number,) = _place_of(query.cursor, _TASK_PLACE)
        conditions.append(Task.number < number)
    return _limited(select(Task).where(*conditions).order_by(Task.number.desc()), query).options(
        selectinload(Task.file_links).lazyload(TaskFile.file)
    )


def node_list(session: Session, caller: Caller, query: NodeQuery) -> Select[Any]:
    """Return the query of one page, and one node more. Raises Invalid for a wrong cursor."""
    conditions = [nodes_of(session, caller)]
    if query.cursor:
        registered_at, node_id = _place_of(query.cursor, _NODE_PLACE)
        later = and_(Node.registered_at == registered_at, Node.id > node_id)
        conditions += [
            # The index serves this one, and the other is exact.
            Node.registered_at >= registered_at,
            or_(Node.registered_at > registered_at, later),
        ]
    return _limited(select(Node).where(*conditions).order_by(Node.registered_at, Node.id), query)


def page(request: Request, response: Response, query: _Page, rows: list[T]) -> list[T]:
    """Return the rows of one page, and name the next one in `Link` if there is a row more."""
    if query.limit is None or len(rows) <= query.limit:
        return rows
    shown = rows[: query.limit]
    others = [pair for pair in request.query_params.multi_items() if pair[0] != "cursor"]
    # By its path alone: behind a proxy this server does not know its own name.
    url = f"{request.url.path}?{urlencode([*others, ('cursor', _cursor_after(shown[-1]))])}"
    response.headers["Link"] = f'<{url}>; rel="next"'
    return shown


def _limited(rows: Select[Any], query: _Page) -> Select[Any]:
    return rows if query.limit is None else rows.limit(query.limit + 1)


def _was_assigned(session: Session, caller: Caller, node: str) -> ColumnElement[bool]:
    named = select(Node.id).where(Node.name == node, nodes_of(session, caller))
    ids = set(session.scalars(named))
    # Its tasks outlive a node.
    ids |= {node.lower()} if is_uuid(node.lower()) else set()
    if len(ids) == 1:
        return Task.assigned_node_id == ids.pop()
    return Task.assigned_node_id.in_(ids) if ids else false()


def _within(
    is_within: ColumnElement[bool], utmost: Callable[..., Any], compare: Callable[..., Any]
) -> list[ColumnElement[bool]]:
    """Return a condition on the time, and one on numbers that follows from it.

    Times rise with numbers, nearly. So the second one, whose bound an index has, leaves out nearly
    all tasks that the first would have to be tried on.
    """
    # Of a plain number the databases would look for the bound in the table, row by row.
    bound = select(utmost(Task.number + 0)).where(is_within).scalar_subquery()
    return [is_within, compare(Task.number, bound)]


def _cursor_after(row: object) -> str:
    place: list[object] = []
    if isinstance(row, Task):
        place = [row.number]
    if isinstance(row, Node):
        place = [row.registered_at.isoformat(), row.id]
    return urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def _place_of(cursor: str, shape: TypeAdapter[T]) -> T:
    try:
        return shape.validate_json(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except ValueError as error:
        raise Invalid("cursor is not of this list: leave it out for the first page") from error
