"""What can go wrong, by the cause that a caller acts on.

OrchestratorError
├── ConfigurationError      the server cannot start like this; the operator mends it
└── Refused                 a call is answered with an error status and one sentence
"""

from datetime import timedelta
from typing import ClassVar


class OrchestratorError(Exception):
    """The base of every error that this package raises."""


class ConfigurationError(OrchestratorError):
    """The server cannot start with these settings."""


class Refused(OrchestratorError):
    """A call that is refused; `str()` is the sentence that the caller reads."""

    status_code: ClassVar[int] = 400

    def __init_subclass__(cls, *, status_code: int) -> None:
        cls.status_code = status_code

    @property
    def headers(self) -> dict[str, str]:
        """What the answer's head says beside the status."""
        return {}


class Unauthenticated(Refused, status_code=401):
    """The caller has shown no credential, or one that does not hold."""


class NotAllowed(Refused, status_code=403):
    """The caller is known and may not do this."""


class NotFound(Refused, status_code=404):
    """What the call names is not here, or not for this caller."""


class Conflict(Refused, status_code=409):
    """The thing is in a state in which this cannot be done."""


class Gone(Refused, status_code=410):
    """What the call needs is not here any more, if it ever was: a retry does not help."""


class TooLarge(Refused, status_code=413):
    """The body is over its limit."""


class Invalid(Refused, status_code=422):
    """The body was understood and makes no sense."""


class TooMany(Refused, status_code=429):
    """The caller asks too often; after `retry_after` it may again."""

    def __init__(self, sentence: str, retry_after: timedelta) -> None:
        super().__init__(sentence)
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Say in how many whole seconds the caller may come again."""
        return {"Retry-After": str(max(1, -int(-self.retry_after.total_seconds() // 1)))}


class Disabled(Refused, status_code=503):
    """The operator has switched this off."""


class OutOfSpace(Refused, status_code=507):
    """The disk has no room for the file."""
