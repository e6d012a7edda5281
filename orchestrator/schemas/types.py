"""The kinds of fields that bodies are made of."""

import math
import re
from datetime import datetime, timezone
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
)

MAX_INT = 2**31 - 1
"""The largest number that an integer column holds."""


def _no_text(value: object) -> object:
    # Pydantic would read numbers out of texts, which the contract does not promise.
    if isinstance(value, str | bytes | bool):
        raise ValueError("must be a number")  # noqa: TRY004 - pydantic listens to this one
    return value


def _no_number(value: object) -> object:
    # Nor moments out of numbers.
    if isinstance(value, str | datetime) or value is None:
        return value
    raise ValueError("must be a date and time in ISO 8601")


NUMBER = BeforeValidator(_no_text)
"""The annotation of number fields."""

# PostgreSQL's text has no character zero, so none is taken on either database.
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
"""Any text, however long."""

ShortText = Annotated[Text, StringConstraints(max_length=255)]

WITH_SOMETHING_IN_IT = r"^[^\x00]*[^\s\x00][^\x00]*$"

NonBlank = Annotated[
    str,
    StringConstraints(
        pattern=WITH_SOMETHING_IN_IT, strip_whitespace=True, min_length=1, max_length=255
    ),
]
"""A short text with something in it."""


UUID_SCHEMA = {"type": "string", "format": "uuid"}

Id = Annotated[str, WithJsonSchema(UUID_SCHEMA)]
"""The id of a node, a task or a key: a UUID, though any other text is looked up as well."""

GivenId = Annotated[NonBlank, WithJsonSchema(UUID_SCHEMA)]
"""An id in a request; one that no node and no task has is for the handler to refuse."""

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def is_uuid(text: str) -> bool:
    """Return whether the text is a UUID as this server writes them."""
    return _UUID.fullmatch(text) is not None


def _clamp(value: object) -> object:
    # Before pydantic, which takes no integer that is too large for a float.
    is_nan = isinstance(value, float) and math.isnan(value)
    if isinstance(value, bool) or is_nan or not isinstance(value, int | float):
        return value
    return min(max(value, 0), 100)


Percent = Annotated[
    float,
    Field(allow_inf_nan=False, description="0 to 100; any other number is moved into that range."),
    BeforeValidator(_clamp),
    NUMBER,
]


def _in_utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        return moment.replace(tzinfo=timezone.utc)
    try:
        return moment.astimezone(timezone.utc)
    except OverflowError:
        raise ValueError("the time is out of range") from None


Moment = Annotated[datetime, BeforeValidator(_no_number), AfterValidator(_in_utc)]
"""A time; one without a zone is taken as UTC."""


def shown_time(moment: datetime) -> str:
    """Return a UTC time as pydantic writes it into responses."""
    return moment.isoformat().replace("+00:00", "Z")


class RequestBody(BaseModel):
    """A request body; unknown fields are ignored."""

    model_config = ConfigDict(frozen=True)


class View(BaseModel):
    """A response body, made of a row."""

    model_config = ConfigDict(frozen=True, from_attributes=True)
