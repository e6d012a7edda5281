"""The runner's errors: one class for each thing that a caller does about it.

    RunnerError                     has the exit code of the process that it ends
    ├── ConfigurationError          an option, variable or file cannot be used
    ├── NoContainerRuntime          there is neither podman nor docker
    ├── RegistrationRefused         the orchestrator refuses the registration token
    │   └── RegistrationPostponed   it does not respond, and this process does not wait for it
    ├── TryAgain                    it heals by itself: the same call may work later
    │   └── StateFolderInUse        another runner holds the state folder
    ├── JournalError                the journal cannot be read or written
    ├── WireError                   a request to the orchestrator failed
    │   ├── Refused                 the response is 4xx: the same request would be refused again
    │   │   └── Unauthorised        401: it does not know the key or token
    │   └── Unavailable             it did not respond, or not intelligibly: retry later
    │       ├── Unexplained         401, 403 or the like without a reason: maybe a proxy's
    │       └── NoResponse          the request was sent, and no response came
    ├── EngineError                 a call of the container engine failed
    │   ├── EngineSilent            it timed out: what is true there is unknown
    │   ├── NoSuchContainer         there is no such container
    │   ├── NoSuchFile              there is no such file in the container
    │   ├── HalfRemoved             a killed removal left it without storage: remove it again
    │   ├── NameInUse               there is a container of that name already
    │   ├── ImageUnchecked          the image is on this host; whether there is a newer is unknown
    │   │   └── LoginRefused        because the registry wants another login
    │   └── ImageMissing            the image is not on this host and cannot be pulled
    └── TaskError                   this task cannot run; it ends with the reason named
        ├── BadAssignment           the assignment is invalid
        └── Unstartable             its files, image or container cannot be provided
            ├── FileRefused         the orchestrator refuses a file to this node
            └── HostUnusable        this host is in no state for any task
                └── HomeUnusable    its Victoria home is not

Messages read `cannot <verb> <thing>: <reason>; <what to do>`, in lower case, without a full stop.
"""

from __future__ import annotations

from runner.model import EndReason

EXIT_OK = 0
EXIT_DEFECT = 1
EXIT_USAGE = 2
EXIT_NO_RUNTIME = 69
EXIT_TRY_AGAIN = 75
EXIT_REGISTRATION_REFUSED = 77
EXIT_CONFIGURATION = 78


class RunnerError(Exception):
    """Base of all. The exit codes are those of sysexits.h."""

    exit_code = EXIT_DEFECT


class ConfigurationError(RunnerError):
    """An option, variable or file cannot be used as it is."""

    exit_code = EXIT_CONFIGURATION


class NoContainerRuntime(RunnerError):
    """Neither podman nor docker can be run."""

    exit_code = EXIT_NO_RUNTIME


class RegistrationRefused(RunnerError):
    """The orchestrator refuses the registration token."""

    exit_code = EXIT_REGISTRATION_REFUSED


class RegistrationPostponed(RegistrationRefused):
    """The orchestrator does not respond, and `--once` does not wait for it."""

    exit_code = EXIT_TRY_AGAIN


class TryAgain(RunnerError):
    """Something outside of the runner is not ready; the same call may work later."""

    exit_code = EXIT_TRY_AGAIN


class StateFolderInUse(TryAgain):
    """Another runner holds the state folder."""


class JournalError(RunnerError):
    """The journal cannot be read or written."""

    exit_code = EXIT_TRY_AGAIN


class WireError(RunnerError):
    """A request to the orchestrator failed."""

    exit_code = EXIT_TRY_AGAIN


class Refused(WireError):
    """The response is 4xx: the same request would be refused again.

    `status` is the HTTP status code, `detail` the orchestrator's JSON explanation if it has one,
    and `length` how much it holds of what was refused because it begins elsewhere.
    """

    def __init__(
        self, message: str, status: int, detail: str | None = None, length: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.detail = detail
        self.length = length


class Unauthorised(Refused):
    """The orchestrator does not know the key or token (401)."""

    def __init__(self, message: str, detail: str | None = None) -> None:
        super().__init__(message, 401, detail)


class Unavailable(WireError):
    """The orchestrator did not respond, or not intelligibly; retry later.

    `retry_after_s` is its Retry-After in seconds, `status` the HTTP status code and `detail` its
    JSON explanation; each is None when there is none.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        status: int | None = None,
        detail: str | None = None,
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.status = status
        self.detail = detail


class Unexplained(Unavailable):
    """A refusal without a JSON `detail`: it may be a proxy's, and is believed only if it lasts.

    `is_first` is set on the first one in a row.
    """

    def __init__(self, message: str, status: int, *, is_first: bool) -> None:
        super().__init__(message, status=status)
        self.is_first = is_first


class NoResponse(Unavailable):
    """The request was sent; the connection ended before the response, or it took too long."""


class EngineError(RunnerError):
    """A call of the container engine failed."""

    exit_code = EXIT_TRY_AGAIN


class EngineSilent(EngineError):
    """A call of the engine timed out: whether it took effect is unknown."""


class NoSuchContainer(EngineError):
    """There is no container of that name."""


class NoSuchFile(EngineError):
    """There is no file at that path in the container."""


class HalfRemoved(EngineError):
    """A killed removal left the container without storage: it cannot run or be inspected."""


class NameInUse(EngineError):
    """There is a container of that name already."""


class ImageMissing(EngineError):
    """The image is not on this host, and cannot or may not be pulled."""


class ImageUnchecked(EngineError):
    """The image is on this host; its registry did not say whether there is a newer one."""


class LoginRefused(ImageUnchecked):
    """The registry does not take this user's login, or wants one."""


class TaskError(RunnerError):
    """The task cannot run; it ends with `reason`."""

    reason = EndReason.UNSTARTABLE

    def __init__(self, message: str, reason: EndReason | None = None) -> None:
        super().__init__(message)
        self.reason = reason or self.reason


class BadAssignment(TaskError):
    """The assignment is invalid. `task_id` is set when it has a valid one."""

    reason = EndReason.REJECTED

    def __init__(self, message: str, task_id: str | None = None) -> None:
        super().__init__(message)
        self.task_id = task_id


class Unstartable(TaskError):
    """The task's files, image or container cannot be provided."""


class FileRefused(Unstartable):
    """The orchestrator refuses a file of the task to this node."""


class HostUnusable(Unstartable):
    """The next task would meet the same: no new one is taken for a while."""


class HomeUnusable(HostUnusable):
    """The Victoria home is in no state for any task."""
