"""podman and docker: one method a command, every call with a timeout."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread

from runner.engine import processes
from runner.engine.arguments import has_memory_limit, run_arguments
from runner.engine.base import (
    Container,
    ContainerSpec,
    EngineFacts,
    ImageFacts,
    OutputPart,
    OutputPosition,
    Phase,
)
from runner.engine.call import (
    CommandResult,
    OutputFile,
    Program,
    engine_environment,
    memory_file,
)
from runner.engine.inspect import (
    is_podman,
    log_file,
    process_ids,
    read_container,
    read_docker_facts,
    read_podman_facts,
    says_running,
)
from runner.engine.output import LogCommandReader, LogFileReader, last_lines, read_log_end
from runner.engine.progress import PullProgress
from runner.errors import (
    EngineError,
    EngineSilent,
    HalfRemoved,
    ImageMissing,
    ImageUnchecked,
    LoginRefused,
    NoContainerRuntime,
    NoSuchContainer,
    NoSuchFile,
)
from runner.model import PullPolicy
from runner.timing import DEFAULT_TIMINGS, Timings

log = logging.getLogger(__name__)

_IN_USE = re.compile(r"in use by|being used by|has dependent child")
"""Of an image: as podman 4.3 to 5.8 and docker 20.10 to 28 put it."""
LOG_IN = "run `%s login` for its registry as this user, see docs/day-two.md"
PODMAN_AS_DOCKER = (
    "cannot use docker: podman answers in its place (podman-docker, or its socket in DOCKER_HOST); "
    "use --container-runtime podman"
)
_SHOWS_MANIFEST = re.compile(r'parsing manifest blob "\{|single images as manifest lists')
"""What podman 5 says of an image for one architecture: only a list is shown by `inspect`."""
_TRUST = re.compile(r"\btls\b|x509|HTTPS client|experimental", re.IGNORECASE)
NO_RUNTIME = "No container runtime found. Install podman or docker."
_ARCHIVE_BYTES = 64 << 10  # of a tar file beside the file in it


class CliEngine:
    """podman or docker by its command line."""

    def __init__(
        self,
        kind: str,
        path: str,
        environment: Mapping[str, str],
        timings: Timings = DEFAULT_TIMINGS,
    ) -> None:
        """Use the program at `path`, started with `environment` and nothing else."""
        self.kind = kind
        self._environment = environment
        self._timings = timings
        self._program = Program(path, environment, timings.kill_grace_s)
        self._facts: EngineFacts | None = None
        self._images_present: set[str] = set()
        self._pids: dict[str, list[int]] = {}
        """Of containers that ran when they were inspected, by id, until they are waited for."""
        self._log_files: dict[str, Path] = {}
        """Of containers that were inspected, by id."""
        self._has_migrated = False

    @property
    def known_facts(self) -> EngineFacts | None:
        """What `facts` returned last; None before its first answer."""
        return self._facts

    async def facts(self) -> EngineFacts:
        """Return what the engine says of itself."""
        result = await self._check_call("info", "--format", "{{json .}}")
        try:
            about = json.loads(result.output)
            if self.kind == "docker":
                if is_podman(about):
                    raise EngineError(PODMAN_AS_DOCKER)
                socket = self._environment.get("DOCKER_HOST", "unix:")
                self._facts = read_docker_facts(about, socket)
            else:
                self._facts = read_podman_facts(about)
        except (ValueError, LookupError, TypeError) as error:
            raise EngineError(f"cannot understand the output of `{self.kind} info`") from error
        return self._facts

    async def fetch_image(
        self, image: str, policy: PullPolicy, progress: PullProgress | None = None
    ) -> None:
        """Pull the image where the policy says so."""
        # podman names its own builds so; they are in no registry.
        is_local_build = self.kind == "podman" and image.startswith("localhost/")
        is_local = policy is PullPolicy.NEVER or (policy is PullPolicy.NEWER and is_local_build)
        if (is_local or policy is PullPolicy.MISSING) and await self._is_image_present(image):
            return
        if is_local:
            raise ImageMissing(
                f"cannot find the image {image} on this host, and it may not be pulled "
                f"(--pull {policy.value})"
            )
        arguments, timeout_s = ("pull", image), self._timings.pull_timeout_s
        result = await self._program.call_on_terminal(
            arguments, timeout_s, progress or PullProgress()
        )
        if result.ok:
            return
        if result.error_type is EngineSilent:
            raise EngineSilent(f"cannot do {self.kind} pull: {result.error_text}")
        advice = f"; {LOG_IN % self.kind}" if result.refuses_login else ""
        if policy is PullPolicy.NEWER and await self._has_image(image):
            error = LoginRefused if result.refuses_login else ImageUnchecked
            raise error(f"cannot check for a newer image {image}: {result.error_text}{advice}")
        raise ImageMissing(f"cannot fetch the image {image}: {result.error_text}{advice}")

    async def can_fetch(self, image: str) -> bool:
        """Ask the image's registry for it without fetching it; False where that cannot be asked.

        Raises:
            ImageMissing: the registry cannot be reached, does not have it, or refuses it.
        """
        result = await self._call("manifest", "inspect", image)
        if result.ok or _SHOWS_MANIFEST.search(result.errors):
            return True
        if self.kind == "docker" and await self._fetches_otherwise(result.error_text):
            return False
        raise ImageMissing(f"cannot find the image {image} in its registry: {result.error_text}")

    async def image_user(self, image: str) -> str:
        """Return the USER of an image that is here, empty for root."""
        result = await self._check_call("image", "inspect", "--format", "{{.Config.User}}", image)
        return result.output.strip()

    async def inspect_image(self, image: str) -> ImageFacts:
        """Return what the engine says of an image on this host."""
        columns = "{{.Id}} {{.Architecture}}"
        try:
            result = await self._check_call("image", "inspect", "--format", columns, image)
        except ImageMissing:
            self._images_present.discard(image)
            raise
        image_id, _, architecture = result.output.strip().partition(" ")
        return ImageFacts(image_id.removeprefix("sha256:"), architecture)

    async def run(self, spec: ContainerSpec) -> str:
        """Start a container that outlives the runner and return its id."""
        if await self._needs_podman4_oom_workaround(spec):
            result = await self._create_and_start(spec)
        else:
            result = await self._call_start(*await self._run_arguments(spec))
        if result.ok:
            return result.output.strip()[-64:]
        if result.error_type is ImageMissing:
            self._images_present.discard(spec.image)
            raise ImageMissing(f"cannot find the image {spec.image} on this host")
        raise result.error_type(f"cannot start the container: {result.error_text}")

    async def inspect(self, name: str) -> Container | None:
        """Return what is true of the container; None when the engine knows no such container."""
        try:
            inspected = await self._inspect(name)
        except HalfRemoved:
            return await self._half_removed(name)
        if inspected is None:
            return None
        has_processes = await self._has_processes(inspected)
        if says_running(inspected) and not has_processes:
            # It may have ended between the engine's answer and the look for its processes.
            inspected = await self._inspect(name)
            if inspected is None:
                return None
            has_processes = await self._has_processes(inspected)
        return read_container(inspected, has_processes=has_processes)

    async def wait(self, name: str) -> bool:
        """Wait for the container to exit; return True if it has certainly exited.

        podman's own `wait` polls four times a second, and hangs when conmon was killed: where the
        container's processes are this host's, the kernel is asked instead.
        """
        if not await self._is_remote():
            container_id, pids = name, self._pids.pop(name, None)
            if pids is None:
                inspected = await self._inspect(name)
                if inspected is None:
                    raise NoSuchContainer(f"cannot wait for {name}: no such container")
                if not says_running(inspected):
                    return read_container(inspected, has_processes=False).phase is Phase.EXITED
                container_id, pids = inspected["Id"], process_ids(inspected)
            if await processes.wait_for_all(pids, container_id):
                return True
        await self._check_call("wait", name, timeout_s=math.inf)
        return self.kind == "docker"  # its daemon watches the container itself

    async def stop(self, name: str) -> None:
        """Send TERM, and KILL after the grace."""
        await self._call_twice("stop", "-t", str(self._timings.stop_grace_s), name)

    async def remove(self, name: str) -> None:
        """Remove the container, running or not."""
        await self._call_twice("rm", "--force", "--volumes", name)
        self._pids.pop(name, None)
        self._log_files.pop(name, None)

    async def remove_stopped(self, name: str) -> None:
        """Remove the container unless it runs."""
        with suppress(NoSuchContainer):
            await self._check_call("rm", "--volumes", name)

    async def labelled(self, label: str, value: str) -> list[str]:
        """Return the names of all containers, running or not, that carry the label."""
        result = await self._check_call(
            "ps", "--all", "--filter", f"label={label}={value}", "--format", "{{.Names}}"
        )
        return result.output.split()

    async def images(self) -> dict[str, bool]:
        """Return the ids of the images on this host, and whether each has a tag."""
        columns = ("--no-trunc", "--format", "{{.ID}} {{.Tag}}")
        result = await self._check_call("images", *columns)
        rows = [line.split() for line in result.output.splitlines()]
        tagged = {row[0] for row in rows if row[1:] not in ([], ["<none>"])}
        return {row[0].removeprefix("sha256:"): row[0] in tagged for row in rows if row}

    async def remove_image(self, image_id: str) -> bool:
        """Remove an image that has no tag and no container; return whether it was removed."""
        tags = await self._call("image", "inspect", "--format", "{{json .RepoTags}}", image_id)
        if tags.output.strip() not in {"[]", "null"}:
            return False
        timeout_s = self._timings.engine_run_timeout_s
        # Without the flag its parents go too, which may be of somebody's builds.
        result = await self._call("rmi", "--no-prune", image_id, timeout_s=timeout_s)
        if "unknown flag" in result.errors:  # podman 3
            result = await self._call("rmi", image_id, timeout_s=timeout_s)
        if not result.ok and not _IN_USE.search(result.errors):
            raise EngineError(f"cannot remove the image {image_id[:12]}: {result.error_text}")
        return result.ok

    async def last_output(self, name: str, lines: int) -> str:
        """Return the last lines that the container wrote."""
        tail: tuple[str, ...] = ("--tail", str(lines))
        if self.kind == "podman":
            # With --tail podman loses a last line without a newline, before 4.2 in any case
            # (podman#14458, podman#19545). It keeps no more than LOG_SIZE of this file.
            path = await self._log_file(name)
            if path is not None:
                tail = ()
                if not await self._is_remote():
                    with suppress(OSError):
                        return last_lines(await anyio.to_thread.run_sync(read_log_end, path), lines)
        result = await self._check_call("logs", *tail, name, is_one_stream=True)
        return last_lines(result.output, lines)

    def output_reader(self, name: str) -> CliOutputReader:
        """Return what reads the container's output on from where a runner has come to."""
        return CliOutputReader(partial(self._output_reader, name))

    async def _output_reader(self, name: str) -> LogFileReader | LogCommandReader:
        if self.kind == "podman" and not await self._is_remote():
            path = await self._log_file(name)
            if path is not None and os.access(path, os.R_OK):
                return LogFileReader(path)
        return LogCommandReader(partial(self._fetch_log, name))

    async def _fetch_log(self, name: str, moment: str, max_bytes: int) -> tuple[bytes, bool]:
        """Return the log from a moment on, and whether it is cut at `max_bytes`."""
        since = ("--since", _before(moment, time.time())) if moment else ()
        with memory_file() as file:
            target = OutputFile(file, max_bytes)
            arguments = ("logs", "--timestamps", *since, name)
            result = await self._call(*arguments, is_one_stream=True, target=target)
            file.seek(0)
            printed = file.read(max_bytes)
        is_cut = len(printed) >= max_bytes
        if not result.ok and not is_cut:
            reason = printed.decode("utf-8", "replace").strip().rpartition("\n")[2]
            failed = CommandResult(result.exit_code, "", reason)
            raise failed.error_type(f"cannot do {self.kind} logs: {failed.error_text}")
        return printed[: printed.rfind(b"\n") + 1] if is_cut else printed, is_cut

    async def copy_out(self, name: str, path: str, archive: Path, max_bytes: int) -> bool:
        """Write what is at a path in the container to a tar file; False if there is nothing."""
        with archive.open("xb") as file:
            target = OutputFile(file, max_bytes + _ARCHIVE_BYTES)
            result = await self._call("cp", f"{name}:{path}", "-", target=target)
            size = file.seek(0, os.SEEK_END)
        if result.ok:
            return True
        archive.unlink()  # noqa: ASYNC240 - at once
        if result.error_type is NoSuchFile:
            return False
        what = f"cannot copy {path} out of the container"
        if size >= target.max_bytes:
            raise EngineError(f"{what}: it has more than {max_bytes >> 20} MiB")
        raise result.error_type(f"{what}: {result.error_text}")

    # Checks of what the engine says

    async def _is_image_present(self, image: str) -> bool:
        """Return whether the image is on this host; cached until another call misses it."""
        if image not in self._images_present and await self._has_image(image):
            self._images_present.add(image)
        return image in self._images_present

    async def _fetches_otherwise(self, error_text: str) -> bool:
        """Return whether docker's daemon may reach a registry though its client, which asks, fails.

        It may trust other registries, and have a proxy or mirrors of its own.
        """
        template = "{{.HTTPProxy}}{{.HTTPSProxy}}{{range .RegistryConfig.Mirrors}}{{.}}{{end}}"
        ways = await self._call("info", "--format", template)
        return bool(_TRUST.search(error_text) or (ways.ok and ways.output.strip()))

    async def _has_image(self, image: str) -> bool:
        """Check whether the image is on this host.

        Raises:
            EngineError: the engine cannot tell.
        """
        result = await self._call("image", "inspect", "--format", "{{.Id}}", image)
        if not result.ok and result.error_type is not ImageMissing:
            raise result.error_type(f"cannot look for the image {image}: {result.error_text}")
        return result.ok

    async def _needs_podman4_oom_workaround(self, spec: ContainerSpec) -> bool:
        """Return whether an out-of-memory kill of this container would go unseen.

        conmon notes it in its own working folder, and podman before 5.0 looks for the note in the
        container's. Can go with the support of podman 4.
        """
        if not has_memory_limit(spec) or await self._is_remote():
            return False
        facts = self._facts or await self.facts()
        return int(facts.version.partition(".")[0]) < 5  # noqa: PLR2004 - said above

    async def _run_arguments(self, spec: ContainerSpec) -> list[str]:
        if self.kind == "docker":  # discards a limit that it cannot set
            return run_arguments(self.kind, spec)
        facts = self._facts or await self.facts()
        return run_arguments(self.kind, spec, can_limit_processes=facts.can_limit_processes)

    async def _create_and_start(self, spec: ContainerSpec) -> CommandResult:
        """Run in two steps, the second with the container's folder as the working folder."""
        _, _, *options = await self._run_arguments(spec)
        created = await self._call("create", *options, timeout_s=self._timings.engine_run_timeout_s)
        if not created.ok:
            return created
        container_id = created.output.strip()[-64:]
        try:
            inspected = await self._inspect(container_id)
        except EngineError as error:
            # It was created: the caller must look for it before the task is given up.
            raise EngineSilent(str(error)) from error
        folder = None if inspected is None else inspected.get("StaticDir")
        started = await self._call_start("start", container_id, folder=folder)
        return created if started.ok else started

    async def _inspect(self, name: str) -> Mapping[str, Any] | None:
        try:
            result = await self._check_call("container", "inspect", name)
        except NoSuchContainer:
            return None
        try:
            inspected: dict[str, Any] = json.loads(result.output)[0]
            read_container(inspected, has_processes=True)
            self._note(inspected)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise EngineError(f"cannot understand what {self.kind} says of {name}") from error
        return inspected

    async def _log_file(self, name: str) -> Path | None:
        """Return the path of podman's log of a container; None if it cannot be read as a file.

        It never changes, so podman is asked for it once.
        """
        if name not in self._log_files:
            inspected = await self._inspect(name)
            return None if inspected is None else log_file(inspected)
        return self._log_files[name]

    async def _half_removed(self, name: str) -> Container | None:
        """Return what podman's list has of a container that it cannot inspect any more."""
        result = await self._check_call("ps", "--all", "--no-trunc", "--format", "json")
        try:
            for row in json.loads(result.output):
                if name == row["Id"] or name in row["Names"]:
                    labels = row.get("Labels") or {}
                    return Container(row["Id"], row["Names"][0], Phase.HALF_REMOVED, labels=labels)
        except (ValueError, LookupError, TypeError) as error:
            raise EngineError(f"cannot understand the output of `{self.kind} ps`") from error
        return None

    def _note(self, inspected: Mapping[str, Any]) -> None:
        if self.kind == "podman":
            path = log_file(inspected)
            if path is not None:
                self._log_files[inspected["Id"]] = path
            if says_running(inspected):
                self._pids[inspected["Id"]] = process_ids(inspected)
            else:
                self._pids.pop(inspected["Id"], None)

    async def _has_processes(self, inspected: Mapping[str, Any]) -> bool:
        """Return whether the processes that podman names exist; docker's daemon watches its own."""
        if await self._is_remote():
            return says_running(inspected)
        return processes.any_exists(process_ids(inspected), inspected["Id"])

    async def _is_remote(self) -> bool:
        """Return whether the process ids that the engine names are not this host's to look at."""
        return self.kind == "docker" or (self._facts or await self.facts()).is_remote

    # Calls

    async def _call(
        self,
        *arguments: str,
        timeout_s: float | None = None,
        is_one_stream: bool = False,
        folder: str | None = None,
        grace_s: float = 0.0,
        target: OutputFile | None = None,
    ) -> CommandResult:
        """Call the engine once, or again after the migration that podman may ask for.

        Raises:
            EngineSilent: there is no answer, or none that says what is true.
            EngineError: the arguments cannot be passed to any program.
        """
        call = partial(
            self._program.call,
            arguments,
            self._timings.engine_timeout_s if timeout_s is None else timeout_s,
            is_one_stream=is_one_stream,
            folder=folder,
            grace_s=grace_s,
            target=target,
        )
        result = await call()
        if result.asks_for_migration and not self._has_migrated:
            self._has_migrated = True
            log.error("podman refuses to work; `podman system migrate` stops all its containers")
            await self._program.call(("system", "migrate"), self._timings.engine_run_timeout_s)
            result = await call()
        if not result.ok and result.error_type is EngineSilent:
            raise EngineSilent(f"cannot do {self.kind} {arguments[0]}: {result.error_text}")
        return result

    async def _call_start(self, *arguments: str, folder: str | None = None) -> CommandResult:
        """Call what starts a container, which is not killed as soon as nobody waits for it."""
        return await self._call(
            *arguments,
            timeout_s=self._timings.engine_run_timeout_s,
            folder=folder,
            grace_s=self._timings.engine_start_grace_s,
        )

    async def _check_call(
        self, *arguments: str, timeout_s: float | None = None, is_one_stream: bool = False
    ) -> CommandResult:
        """Call, and raise what the engine's error text means."""
        result = await self._call(*arguments, timeout_s=timeout_s, is_one_stream=is_one_stream)
        if result.ok:
            return result
        raise result.error_type(f"cannot do {self.kind} {arguments[0]}: {result.error_text}")

    async def _call_twice(self, *arguments: str) -> None:
        """Call twice if need be: after an accident the first call fails and the second works."""
        timeout_s = self._timings.engine_timeout_s + self._timings.stop_grace_s
        result = await self._call(*arguments, timeout_s=timeout_s)
        if not result.ok and result.error_type is not NoSuchContainer:
            with suppress(NoSuchContainer):
                await self._check_call(*arguments, timeout_s=timeout_s)


class CliOutputReader:
    """Reads the output of a container in the way that its log allows, once that is known."""

    def __init__(self, open_log: Callable[[], Awaitable[LogFileReader | LogCommandReader]]) -> None:
        self._open_log = open_log
        self._reader: LogFileReader | LogCommandReader | None = None

    async def read(self, position: OutputPosition, max_bytes: int) -> OutputPart:
        """Return up to about `max_bytes` that follow the position."""
        if self._reader is None:
            self._reader = await self._open_log()
        return await self._reader.read(position, max_bytes)

    async def look(self) -> None:
        """Note whether the engine begins another log."""
        if self._reader is not None:
            await self._reader.look()

    def close(self) -> None:
        """Close what is open."""
        if self._reader is not None:
            self._reader.close()


def _before(moment: str, now: float) -> str:
    """Return a moment a little earlier: podman prints what is later than it, docker what is not.

    If the host's clock was set back, what follows may have an earlier one: the beginning then.
    """
    parsed = datetime.fromisoformat(moment[:19] + "+00:00")
    zone = moment[29:]
    if zone not in {"", "Z"}:
        parsed = datetime.fromisoformat(moment[:19] + zone)
    if parsed.timestamp() > now + 1:
        return "1970-01-01T00:00:00Z"
    earlier = parsed.astimezone(timezone.utc) - timedelta(seconds=1)
    return earlier.strftime("%Y-%m-%dT%H:%M:%SZ")


def find_engine(
    runtime: str,
    environment: Mapping[str, str] | None = None,
    timings: Timings = DEFAULT_TIMINGS,
    inherited: Collection[str] = (),
) -> CliEngine:
    """Return the engine on PATH: podman or docker; for `auto` the first of them that is there.

    It gets the variables named in `inherited`, beside those that it always gets.

    Raises:
        NoContainerRuntime: it is not there.
    """
    chosen = engine_environment(os.environ if environment is None else environment, inherited)
    for kind in ("podman", "docker") if runtime == "auto" else (runtime,):
        path = shutil.which(kind, path=chosen.get("PATH"))
        if path is not None:
            return CliEngine(kind, path, chosen, timings)
    raise NoContainerRuntime(NO_RUNTIME)
