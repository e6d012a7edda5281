"""One command of an engine: its environment, its call with a deadline, and its result.

The only file that imports sh. Calls run in the background with their output in descriptors, are
waited for in worker threads, and are ended with their whole process group when nobody waits for
them any more.
"""

from __future__ import annotations

# Before the first fork: each fork takes and releases a lock of this module. If it were imported
# during one, as by the first lookup of an address, that fork would release what it has not taken.
import concurrent.futures.thread  # noqa: F401
import fcntl
import logging
import os
import re
import resource
import signal
import struct
import termios
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, NamedTuple

import anyio
import anyio.to_thread
import sh

from runner.engine.progress import PullProgress
from runner.errors import (
    EngineError,
    EngineSilent,
    HalfRemoved,
    ImageMissing,
    NameInUse,
    NoSuchContainer,
    NoSuchFile,
)
from runner.redaction import encoded_forms, proxy_secrets, redact

_MAX_OUTPUT_BYTES = 1 << 20
_TERMINAL_SIZE = (50, 200)
"""Lines and columns."""
_MAX_ARGUMENT_PAGES = 32  # MAX_ARG_STRLEN in linux/binfmts.h
_ANY_EXIT_CODE = tuple(range(-64, 256))
# As podman 4.3 to 5.8 and docker 20.10 to 28 put it; the first match counts.
_ERROR_TYPES: tuple[tuple[re.Pattern[str], type[EngineError]], ...] = (
    (
        re.compile(
            r"cannot connect to (?:the docker daemon|podman)|unable to connect to podman|"
            r"error during connect|while trying to connect to the docker"
        ),
        EngineSilent,
    ),
    (re.compile(r"no such container|no container with name or id"), NoSuchContainer),
    (re.compile(r"container not known"), HalfRemoved),
    (re.compile(r"container name \S+ is already in use"), NameInUse),
    (re.compile(r"image not known|no such image|unable to find image"), ImageMissing),
    (re.compile(r"could not find the file|could not be found on container"), NoSuchFile),
)
_LOGIN_REFUSED = re.compile(
    r"unauthorized|authentication required|(?<!permission )denied|invalid username/password|"
    r"no basic auth credentials|error getting credentials|40[13] \(?(?:unauthorized|forbidden)"
)
_NOISE = re.compile(r"time=\"\S+\" level=(?:debug|info|warning) |Usage: |(?:See|Run) '")
_PREFIXES = ("docker: ", "Error: ", "Error response from daemon: ")
_MAX_ERROR_CHARS = 500
_VARIABLE_NAMES = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR"),
        *("REGISTRY_AUTH_FILE", "STORAGE_DRIVER", "STORAGE_OPTS"),
        *("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "DBUS_SESSION_BUS_ADDRESS"),
        *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"),
        *("http_proxy", "https_proxy", "no_proxy", "all_proxy"),
    }
)
_NAME_PREFIXES = ("CONTAINER_", "CONTAINERS_", "DOCKER_", "PODMAN_")


class OutputFile(NamedTuple):
    """A file for a program's output, of which the kernel lets it write so many bytes."""

    file: IO[bytes]
    max_bytes: int

    def limit(self) -> None:
        """Limit the size of files that this process writes."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.max_bytes, self.max_bytes))


class Program:
    """A program at a path, always started with the same environment and nothing else."""

    def __init__(self, path: str, environment: Mapping[str, str], kill_grace_s: float) -> None:
        self._path = path
        self._name = Path(path).name
        self._environment = dict(environment)
        self._kill_grace_s = kill_grace_s
        # An engine quotes a proxy's URL that it cannot use, with the password.
        passwords = (secret.reveal() for secret in proxy_secrets(environment))
        self._secret_forms = encoded_forms(passwords)
        # One thread waits for each call; it does nothing meanwhile.
        self._threads = anyio.CapacityLimiter(10_000)
        # sh logs every command line, with the task's prompt in it.
        logging.getLogger("sh").setLevel(logging.CRITICAL)

    async def call(  # noqa: PLR0913 - what to call, and how
        self,
        arguments: Sequence[str],
        timeout_s: float,
        *,
        is_one_stream: bool = False,
        folder: str | None = None,
        grace_s: float = 0.0,
        target: OutputFile | None = None,
    ) -> CommandResult:
        """Run the program in `folder` and return its result; output is cut to its last MiB.

        When the call is cancelled, the program may finish within `grace_s` before it is killed.
        With a target, the output goes there and is not in the result.

        Raises:
            EngineSilent: it timed out, or cannot be started now.
            EngineError: the arguments cannot be passed to any program.
        """
        what = f"cannot do {self._name} {arguments[0]}"
        self._check(arguments, what)
        try:
            # In memory: where no file can be written, the engine's reason must still be read.
            with memory_file() as output, memory_file() as errors:
                shown = output if target is None else target.file
                outputs = (shown, shown if is_one_stream else errors)
                limit = None if target is None else target.limit
                process = await self._start(arguments, outputs, folder, limit)
                await self._wait_for(process, timeout_s, grace_s, what)
                result = CommandResult(process.exit_code, _tail(output), _tail(errors))
                return result if result.ok else self._redacted(result)
        except (OSError, sh.ForkException) as error:
            reason = getattr(error, "strerror", None) or str(error).strip().rpartition("\n")[2]
            raise EngineSilent(f"{what}: {reason.strip()}") from error

    def _redacted(self, failed: CommandResult) -> CommandResult:
        """Return a failure without the passwords of proxies: it is logged and reported."""
        output, errors = (
            redact(text, self._secret_forms) for text in (failed.output, failed.errors)
        )
        return replace(failed, output=output, errors=errors)

    def _check(self, arguments: Sequence[str], what: str) -> None:
        """Raise for what sh would only find out after its fork, where it leaves a zombie behind."""
        limit = _MAX_ARGUMENT_PAGES * os.sysconf("SC_PAGE_SIZE")
        for argument in arguments:
            try:
                size = len(argument.encode())
            except UnicodeEncodeError as error:
                raise EngineError(f"{what}: an argument is not valid text") from error
            if size >= limit:
                raise EngineError(f"{what}: an argument has {size} bytes, at most {limit - 1} fit")
            if "\0" in argument:
                raise EngineError(f"{what}: an argument has a NUL character in it")
        if not os.access(self._path, os.X_OK):
            raise EngineSilent(f"{what}: {self._path} is not there")

    async def call_on_terminal(
        self, arguments: Sequence[str], timeout_s: float, progress: PullProgress
    ) -> CommandResult:
        """Run the program as `call` does, with its output on a terminal that `progress` reads.

        Only there engines show how much of an image is downloaded.
        """
        what = f"cannot do {self._name} {arguments[0]}"
        self._check(arguments, what)
        try:
            ends = os.openpty()
        except OSError:  # without /dev/pts; then no progress is shown
            return await self.call(arguments, timeout_s)
        failure: Exception | None = None
        with _terminal(*ends) as (ours, theirs):
            async with anyio.create_task_group() as group:
                group.start_soon(_read_terminal, ours, progress)
                try:
                    process = await self._start(arguments, (theirs, theirs), None)
                    await self._wait_for(process, timeout_s, 0.0, what)
                except (OSError, sh.ForkException) as error:
                    failure = EngineSilent(f"{what}: {error}")
                except EngineError as error:
                    failure = error
                group.cancel_scope.cancel()
            _take(ours, progress)
        if failure is not None:
            raise failure  # not from the group, which would wrap it
        result = CommandResult(process.exit_code, "", progress.text)
        return result if result.ok else self._redacted(result)

    async def _start(
        self,
        arguments: Sequence[str],
        outputs: tuple[IO[bytes] | int, IO[bytes] | int],
        folder: str | None,
        before: Callable[[], None] | None = None,
    ) -> sh.RunningCommand:
        """Start the program, shielded, so that no cancellation can lose the process."""

        def start() -> sh.RunningCommand:
            with Path(os.devnull).open("rb") as nothing:
                return sh.Command(self._path)(
                    *arguments,
                    _bg=True,
                    _bg_exc=False,
                    _new_group=True,
                    _in=nothing,
                    _out=outputs[0],
                    _err=outputs[1],
                    _env=self._environment,
                    # conmon leaves its out-of-memory note in its working folder
                    _cwd=folder or "/",
                    _encoding="utf-8",
                    _ok_code=_ANY_EXIT_CODE,
                    _preexec_fn=before,
                    _return_cmd=True,
                )

        with anyio.CancelScope(shield=True):
            process = await anyio.to_thread.run_sync(start, limiter=self._threads)
        return process  # noqa: RET504 - a scope may swallow an exception, says its type

    async def _wait_for(
        self, process: sh.RunningCommand, timeout_s: float, grace_s: float, what: str
    ) -> None:
        try:
            with anyio.fail_after(timeout_s):
                await self._wait(process)
        except TimeoutError as error:
            await self._kill(process)
            raise EngineSilent(f"{what}: no answer within {timeout_s:g} s") from error
        except BaseException:
            with anyio.move_on_after(grace_s, shield=True) as waiting:
                await self._wait(process)
            if waiting.cancelled_caught:
                await self._kill(process)
            raise

    async def _wait(self, process: sh.RunningCommand) -> None:
        await anyio.to_thread.run_sync(process.wait, abandon_on_cancel=True, limiter=self._threads)

    async def _kill(self, process: sh.RunningCommand) -> None:
        """Send TERM, then KILL, to the process group; the container is not a member of it."""
        with anyio.CancelScope(shield=True):
            for number in (signal.SIGTERM, signal.SIGKILL):
                # KILL even if the first process ended: its children may live on.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with anyio.move_on_after(self._kill_grace_s):
                    await self._wait(process)


@contextmanager
def _terminal(ours: int, theirs: int) -> Iterator[tuple[int, int]]:
    """Yield both ends of a terminal, on whose lines the engines' bars have room; close them."""
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *_TERMINAL_SIZE, 0, 0))
        os.set_blocking(ours, False)
        yield ours, theirs
    finally:
        os.close(theirs)
        os.close(ours)


async def _read_terminal(descriptor: int, progress: PullProgress) -> None:
    while True:
        await anyio.wait_readable(descriptor)
        _take(descriptor, progress)


def _take(descriptor: int, progress: PullProgress) -> None:
    """Read what there is; the terminal's other end is open, so that it has no end."""
    with suppress(BlockingIOError):
        while True:
            content = os.read(descriptor, _MAX_OUTPUT_BYTES)
            progress.feed(content.decode("utf-8", errors="replace"))


def memory_file() -> IO[bytes]:
    """Open a file in memory, for the output of a program."""
    return os.fdopen(os.memfd_create("engine-output"), "w+b")


def _tail(file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _MAX_OUTPUT_BYTES))
    return file.read().decode("utf-8", errors="replace")


@dataclass(frozen=True)
class CommandResult:
    """How a command of the engine ended; a negative exit code is the signal that ended it."""

    exit_code: int
    output: str
    errors: str

    @property
    def ok(self) -> bool:
        """Whether the command succeeded."""
        return self.exit_code == 0

    @property
    def asks_for_migration(self) -> bool:
        """Whether podman refuses every command until `podman system migrate` is run."""
        return not self.ok and "podman system migrate" in self.errors

    @property
    def error_text(self) -> str:
        """The engine's last error line, without its own prefixes and advice."""
        if self.exit_code < 0:
            return f"it was killed by signal {-self.exit_code}"
        lines = [line.strip() for line in (self.errors or self.output).splitlines()]
        lines = [line for line in lines if line and not _NOISE.match(line)]
        text = next((line for line in reversed(lines) if "rror" in line), (lines or [""])[-1])
        for prefix in _PREFIXES:
            text = text.removeprefix(prefix)
        return text[:_MAX_ERROR_CHARS] or f"exit code {self.exit_code}"

    @property
    def refuses_login(self) -> bool:
        """Whether a registry does not take the login, or the lack of one."""
        return not self.ok and bool(_LOGIN_REFUSED.search(self.error_text.lower()))

    @property
    def error_type(self) -> type[EngineError]:
        """The class of our error that the error text means."""
        if self.exit_code < 0:
            return EngineSilent
        text = (self.errors or self.output).lower()
        return next((error for pattern, error in _ERROR_TYPES if pattern.search(text)), EngineError)


def engine_environment(ours: Mapping[str, str], inherited: Collection[str] = ()) -> dict[str, str]:
    """Return the variables that the engine inherits; no secret of ours: conmon keeps them."""
    chosen = {
        name: value
        for name, value in ours.items()
        if name in _VARIABLE_NAMES or name in inherited or name.startswith(_NAME_PREFIXES)
    }
    runtime_dir = Path(f"/run/user/{os.getuid()}")
    if os.getuid() != 0 and runtime_dir.is_dir():
        chosen.setdefault("XDG_RUNTIME_DIR", str(runtime_dir))
        chosen.setdefault("DBUS_SESSION_BUS_ADDRESS", f"unix:path={runtime_dir}/bus")
    # Its error texts are matched: they must be in English.
    return {**chosen, "LC_ALL": "C"}
