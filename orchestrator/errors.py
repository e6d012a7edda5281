"""The tree of errors, by what a caller does about each.

OrchestratorError
├── ConfigurationError      the server cannot start with these settings
└── Refused                 a request is answered with an error status and one sentence
"""

from datetime import timedelta
from typing import ClassVar


class OrchestratorError(Exception):
    """The base of every error that this package raises."""


class ConfigurationError(OrchestratorError):
    """The server cannot start with these settings."""

    exit_code: ClassVar[int] = 78


class DatabaseUnreachable(ConfigurationError):
    """The database does not answer, or refuses the login: a later start may work."""

    exit_code = 75


class Refused(OrchestratorError):
    """A refused request; `str()` is the sentence in the response."""

    status_code: ClassVar[int] = 400

    def __init_subclass__(cls, *, status_code: int) -> None:
        cls.status_code = status_code

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the response beside the status."""
        return {}

    @property
    def fields(self) -> dict[str, int]:
        """Fields of the response beside `detail`."""
        return {}


class Unauthenticated(Refused, status_code=401):
    """The credential is missing or invalid."""


class NotAllowed(Refused, status_code=403):
    """The credential is valid and does not permit this."""


class NotFound(Refused, status_code=404):
    """What the request names does not exist, or not for this caller."""


class Conflict(Refused, status_code=409):
    """The current state does not allow this."""


class WrongOffset(Conflict, status_code=409):
    """Output does not continue what is held, which has `length` bytes."""

    def __init__(self, sentence: str, length: int) -> None:
        super().__init__(sentence)
        self.length = length

    @property
    def fields(self) -> dict[str, int]:
        """The length, at which the next chunk has to begin."""
        return {"length": self.length}


class Gone(Refused, status_code=410):
    """What the request needs no longer exists: a retry does not help."""


class TooLarge(Refused, status_code=413):
    """The body is over its limit."""


class Invalid(Refused, status_code=422):
    """The body was read and its content is invalid."""


class TooMany(Refused, status_code=429):
    """The caller is over its rate limit until `retry_after` has passed."""

    def __init__(self, sentence: str, retry_after: timedelta) -> None:
        super().__init__(sentence)
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Retry-After, in whole seconds."""
        return {"Retry-After": str(max(1, -int(-self.retry_after.total_seconds() // 1)))}


class Disabled(Refused, status_code=503):
    """The operator has switched this off."""


class OutOfSpace(Refused, status_code=507):
    """The disk has not enough free space for the file."""
