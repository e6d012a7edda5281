"""What can go wrong, one class for each cause that a caller acts on.

    RunnerError                     carries the process's exit code, should it end the process
    ├── ConfigurationError          a flag, variable or file that cannot be used
    ├── NoContainerRuntime          neither podman nor docker is there
    ├── RegistrationRefused         the orchestrator does not take the registration token
    │   └── RegistrationPostponed   it cannot be asked now, and nobody wants to wait for it
    ├── TryAgain                    nothing is wrong here that waiting would not mend
    │   └── StateFolderInUse        another runner holds the state folder
    ├── JournalError                the journal cannot be read or written
    ├── WireError                   the orchestrator did not do what was asked
    │   ├── Refused                 it answered 4xx: asking again changes nothing
    │   │   └── Unauthorised        it does not know the key or token (401)
    │   └── Unavailable             it could not be reached or not understood: ask again later
    ├── EngineError                 the engine did not do what was asked
    │   ├── EngineSilent            it did not answer before the deadline: the truth is unknown
    │   ├── NoSuchContainer         it knows no such container
    │   ├── NameInUse               a container of that name is there already
    │   └── ImageMissing            it has no such image and may not or cannot fetch it
    └── TaskError                   this task cannot be run; it ends with the reason named
        ├── BadAssignment           the assignment cannot be obeyed
        └── Unstartable             its files, image or container cannot be had
            └── FileRefused         the orchestrator will not give a file to this node

Messages read "cannot <verb> <thing>: <reason>", in lower case, without a full stop.
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
    """Anything the runner says no to. The exit code is from sysexits.h."""

    exit_code = EXIT_DEFECT


class ConfigurationError(RunnerError):
    """A flag, variable or file cannot be used as it is."""

    exit_code = EXIT_CONFIGURATION


class NoContainerRuntime(RunnerError):
    """Neither podman nor docker can be run."""

    exit_code = EXIT_NO_RUNTIME


class RegistrationRefused(RunnerError):
    """The orchestrator does not take the registration token."""

    exit_code = EXIT_REGISTRATION_REFUSED


class RegistrationPostponed(RegistrationRefused):
    """The orchestrator cannot be asked now, and `--once` does not wait for it."""

    exit_code = EXIT_TRY_AGAIN


class TryAgain(RunnerError):
    """Something outside is not ready; the same call may work later."""

    exit_code = EXIT_TRY_AGAIN


class StateFolderInUse(TryAgain):
    """Another runner holds the state folder."""


class JournalError(RunnerError):
    """The journal cannot be read or written."""

    exit_code = EXIT_TRY_AGAIN


class WireError(RunnerError):
    """The orchestrator did not do what was asked."""

    exit_code = EXIT_TRY_AGAIN


class Refused(WireError):
    """The orchestrator answered 4xx: the same request would be refused again.

    `status` is the HTTP status code, `detail` its own JSON explanation: without one the answer may
    be the page of a proxy before it.
    """

    def __init__(self, message: str, status: int, detail: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.detail = detail


class Unauthorised(Refused):
    """The orchestrator does not know the key or token that was sent (401)."""

    def __init__(self, message: str, detail: str | None = None) -> None:
        super().__init__(message, 401, detail)


class Unavailable(WireError):
    """The orchestrator could not be reached, or said nothing that can be understood.

    `retry_after_s` is the wait in seconds that it asked for, `status` the HTTP status code when
    there was one, `detail` its own JSON explanation when it gave one.
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


class EngineError(RunnerError):
    """The container engine did not do what was asked."""

    exit_code = EXIT_TRY_AGAIN


class EngineSilent(EngineError):
    """The engine did not answer before the deadline: what is true there is unknown."""


class NoSuchContainer(EngineError):
    """The engine knows no container of that name."""


class NameInUse(EngineError):
    """A container of that name is there already."""


class ImageMissing(EngineError):
    """The image is not on this host and may not or cannot be fetched."""


class TaskError(RunnerError):
    """The task cannot be run; it ends with `reason`."""

    reason = EndReason.UNSTARTABLE


class BadAssignment(TaskError):
    """The assignment cannot be obeyed. `task_id` is set when it has a usable one."""

    reason = EndReason.REJECTED

    def __init__(self, message: str, task_id: str | None = None) -> None:
        super().__init__(message)
        self.task_id = task_id


class Unstartable(TaskError):
    """The task's files, image or container cannot be had."""


class FileRefused(Unstartable):
    """The orchestrator will not give a file of the task to this node."""
