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

MAX_MESSAGE_CHARS = 100_000
"""Characters, as Python counts them; up to 400 kB in UTF-8. The status reporter cuts there, too."""

Message = Annotated[Text, StringConstraints(max_length=MAX_MESSAGE_CHARS)]
"""A message of an agent."""


def short_id(text: str) -> str:
    """Return as much of an agent's id as is stored. Crush's have 36 characters."""
    return text.replace("\0", "")[:255]


SessionId = Annotated[Text, AfterValidator(short_id)]
"""Cut and not refused: a final report must not fail by it."""

MAX_HELD_IDS = 1000
"""Tasks of one node. As many may a runner run at once."""
MAX_TARGET_TAGS = 32
MAX_NODE_TAGS = 100
MAX_LISTED = 1000
"""Entries of a list in a request."""
_MAX_STARS = 10


def at_most(entries: int) -> BeforeValidator:
    """Return what refuses an object with more entries, before each of them is looked at."""

    def check(value: object) -> object:
        if isinstance(value, dict) and len(value) > entries:
            raise ValueError(f"must have at most {entries} entries")
        return value

    return BeforeValidator(check)


def _check_stars(pattern: str) -> str:
    if pattern.count("*") > _MAX_STARS:
        raise ValueError(f"must have at most {_MAX_STARS} asterisks")
    return pattern


Pattern = Annotated[ShortText, AfterValidator(_check_stars)]
"""A pattern of names. Its `*` stand for any text, so each costs time."""

TargetTags = Annotated[
    dict[ShortText, ShortText],
    at_most(MAX_TARGET_TAGS),
    Field(json_schema_extra={"maxProperties": MAX_TARGET_TAGS}),
]
NodeTags = Annotated[
    dict[ShortText, ShortText],
    at_most(MAX_NODE_TAGS),
    Field(json_schema_extra={"maxProperties": MAX_NODE_TAGS}),
]

# Python, and so our runner, also takes the separators 1C to 1F for blanks.
WITH_SOMETHING_IN_IT = r"^[^\x00]*[^\s\x00\x1c-\x1f][^\x00]*$"

# Control characters, line separators, and those that change the direction of text: a name with one
# of them looks like another in a terminal or on a page.
_UNSEEN = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
PLAIN = rf"^[^{_UNSEEN}]*$"
PLAIN_WITH_SOMETHING_IN_IT = rf"^[^{_UNSEEN}]*[^\s{_UNSEEN}][^{_UNSEEN}]*$"

NodeName = Annotated[str, StringConstraints(pattern=PLAIN, max_length=255)]
"""A node's name; a blank one is replaced by the host name."""

MAX_PROMPT_BYTES = 131_071
"""In UTF-8: Linux takes no longer single argument (MAX_ARG_STRLEN), less the final NUL."""
_WITH_OPTION_BYTES = len("--task=")
"""Of a prompt that begins with a dash: it is one argument with its option."""
MAX_TIMEOUT_S = 366 * 24 * 3600
"""More our runner does not take; 0 is no limit."""


def _check_prompt_bytes(prompt: str) -> str:
    most = MAX_PROMPT_BYTES - (_WITH_OPTION_BYTES if prompt.startswith("-") else 0)
    if len(prompt.encode()) > most:
        raise ValueError(f"must have at most {most} bytes in UTF-8: send the text as a file")
    return prompt


Prompt = Annotated[
    str,
    StringConstraints(pattern=WITH_SOMETHING_IN_IT, max_length=MAX_PROMPT_BYTES),
    AfterValidator(_check_prompt_bytes),
    Field(
        description=f"At most {MAX_PROMPT_BYTES} bytes in UTF-8, and {_WITH_OPTION_BYTES} fewer if"
        " it begins with a dash: a container gets it as one argument. Longer texts are files."
    ),
]
"""What an agent is asked to do; no longer than a command line takes."""

NonBlank = Annotated[
    str,
    StringConstraints(
        pattern=WITH_SOMETHING_IN_IT, strip_whitespace=True, min_length=1, max_length=255
    ),
]
"""A short text with something in it."""


HostName = Annotated[
    str,
    StringConstraints(
        pattern=PLAIN_WITH_SOMETHING_IN_IT, strip_whitespace=True, min_length=1, max_length=255
    ),
]
"""A host's name, which is its node's unless it has another."""

UUID_SCHEMA = {"type": "string", "format": "uuid"}

Id = Annotated[str, WithJsonSchema(UUID_SCHEMA)]
"""The id of a node, a task or a key: a UUID, though any other text is looked up as well."""

GivenId = Annotated[NonBlank, WithJsonSchema(UUID_SCHEMA)]
"""An id in a request; one that no node and no task has is for the handler to refuse."""

UUID_PATTERN = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
_UUID = re.compile(UUID_PATTERN)


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
