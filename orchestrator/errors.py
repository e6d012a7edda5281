"""What can go wrong, by the cause that a caller acts on.

OrchestratorError
├── ConfigurationError      the server cannot start like this; the operator mends it
└── Refused                 a call is answered with an error status and one sentence
    ├── Unauthenticated     401
    ├── NotAllowed          403
    ├── NotFound            404
    ├── Conflict            409
    ├── TooLarge            413
    ├── Invalid             422
    ├── Disabled            503
    └── OutOfSpace          507
"""

from typing import ClassVar


class OrchestratorError(Exception):
    """The base of every error that this package raises."""


class ConfigurationError(OrchestratorError):
    """The server cannot start with these settings."""


class Refused(OrchestratorError):
    """A call that is refused; `str()` is the sentence that the caller reads."""

    status_code: ClassVar[int] = 400


class Unauthenticated(Refused):
    """The caller has shown no credential, or one that nobody knows."""

    status_code = 401


class NotAllowed(Refused):
    """The caller is known and may not do this."""

    status_code = 403


class NotFound(Refused):
    """What the call names is not here, or not for this caller."""

    status_code = 404


class Conflict(Refused):
    """The thing is in a state in which this cannot be done."""

    status_code = 409


class TooLarge(Refused):
    """The body is over its limit."""

    status_code = 413


class Invalid(Refused):
    """The body was understood and makes no sense."""

    status_code = 422


class Disabled(Refused):
    """The operator has switched this off."""

    status_code = 503


class OutOfSpace(Refused):
    """The disk has no room for the file."""

    status_code = 507
