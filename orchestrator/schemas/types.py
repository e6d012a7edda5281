"""The kinds of fields that bodies are made of."""

from datetime import datetime, timezone
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, StringConstraints

MAX_INT = 2**31 - 1
"""The largest number that an integer column holds."""


def _no_text(value: object) -> object:
    # Pydantic would read numbers out of texts, which the contract does not promise.
    if isinstance(value, str | bytes | bool):
        raise ValueError("input should be a number")  # noqa: TRY004 - pydantic listens to this one
    return value


def _no_number(value: object) -> object:
    # Nor moments out of numbers.
    if isinstance(value, str | datetime) or value is None:
        return value
    raise ValueError("input should be a date and a time as text")


NUMBER = BeforeValidator(_no_text)
"""What a field of numbers is annotated with."""

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


def _in_utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        return moment.replace(tzinfo=timezone.utc)
    try:
        return moment.astimezone(timezone.utc)
    except OverflowError:
        raise ValueError("the time is out of range") from None


Moment = Annotated[datetime, BeforeValidator(_no_number), AfterValidator(_in_utc)]
"""A time; one without a zone is taken as UTC."""


class RequestBody(BaseModel):
    """What comes in; fields that it does not know are passed over."""

    model_config = ConfigDict(frozen=True)


class StrictBody(RequestBody):
    """What comes in where a misspelt field would lift a limit: unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class View(BaseModel):
    """What goes out, made of a row."""

    model_config = ConfigDict(frozen=True, from_attributes=True)
