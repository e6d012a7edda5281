"""podman and docker: one method a command, every call with a timeout."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import anyio.to_thread

from runner.engine import processes
from runner.engine.arguments import has_memory_limit, run_arguments
from runner.engine.base import Container, ContainerSpec, EngineFacts, ImageFacts, Phase
from runner.engine.call import CommandResult, Program, engine_environment
from runner.engine.inspect import (
    log_file,
    process_ids,
    read_container,
    read_docker_facts,
    read_podman_facts,
    says_running,
)
from runner.engine.output import last_lines, read_log_end
from runner.errors import (
    EngineError,
    EngineSilent,
    HalfRemoved,
    ImageMissing,
    NoContainerRuntime,
    NoSuchContainer,
)
from runner.log import fields
from runner.model import PullPolicy
from runner.timing import DEFAULT_TIMINGS, Timings

log = logging.getLogger(__name__)

NO_RUNTIME = "No container runtime found. Install podman or docker."


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
                socket = self._environment.get("DOCKER_HOST", "unix:")
                self._facts = read_docker_facts(about, socket)
            else:
                self._facts = read_podman_facts(about)
        except (ValueError, LookupError, TypeError) as error:
            raise EngineError(f"cannot understand the output of `{self.kind} info`") from error
        return self._facts

    async def fetch_image(self, image: str, policy: PullPolicy) -> None:
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
        result = await self._call("pull", "--quiet", image, timeout_s=self._timings.pull_timeout_s)
        if result.ok:
            return
        if policy is PullPolicy.NEWER and await self._has_image(image):
            log.warning(
                "cannot check for a newer image, using the local one: %s",
                result.error_text,
                extra=fields(image=image),
            )
            return
        raise ImageMissing(f"cannot fetch the image {image}: {result.error_text}")

    async def inspect_image(self, image: str) -> ImageFacts:
        """Return what the engine says of an image on this host."""
        columns = "{{.Id}} {{.Architecture}}"
        result = await self._check_call("image", "inspect", "--format", columns, image)
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
            inspected = await self._inspect(name)
            if inspected is None:
                raise NoSuchContainer(f"cannot wait for {name}: no such container")
            if not says_running(inspected):
                return read_container(inspected, has_processes=False).phase is Phase.EXITED
            if await processes.wait_for_all(process_ids(inspected), inspected["Id"]):
                return True
        await self._check_call("wait", name, timeout_s=math.inf)
        return self.kind == "docker"  # its daemon watches the container itself

    async def stop(self, name: str) -> None:
        """Send TERM, and KILL after the grace."""
        await self._call_twice("stop", "-t", str(self._timings.stop_grace_s), name)

    async def remove(self, name: str) -> None:
        """Remove the container, running or not."""
        await self._call_twice("rm", "--force", "--volumes", name)

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

    async def last_output(self, name: str, lines: int) -> str:
        """Return the last lines that the container wrote."""
        tail: tuple[str, ...] = ("--tail", str(lines))
        if self.kind == "podman":
            # With --tail podman loses a last line without a newline, before 4.2 in any case
            # (podman#14458, podman#19545). It keeps no more than LOG_SIZE of this file.
            inspected = await self._inspect(name)
            path = None if inspected is None else log_file(inspected)
            if path is not None:
                tail = ()
                if not await self._is_remote():
                    with suppress(OSError):
                        return last_lines(await anyio.to_thread.run_sync(read_log_end, path), lines)
        result = await self._check_call("logs", *tail, name, is_one_stream=True)
        return last_lines(result.output, lines)

    # Checks of what the engine says

    async def _is_image_present(self, image: str) -> bool:
        """Return whether the image is on this host; cached until a `run` misses it."""
        if image not in self._images_present and await self._has_image(image):
            self._images_present.add(image)
        return image in self._images_present

    async def _has_image(self, image: str) -> bool:
        return (await self._call("image", "inspect", "--format", "{{.Id}}", image)).ok

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
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise EngineError(f"cannot understand what {self.kind} says of {name}") from error
        return inspected

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


def find_engine(
    runtime: str,
    environment: Mapping[str, str] | None = None,
    timings: Timings = DEFAULT_TIMINGS,
) -> CliEngine:
    """Return the engine on PATH: podman or docker; for `auto` the first of them that is there.

    Raises:
        NoContainerRuntime: it is not there.
    """
    chosen = engine_environment(os.environ if environment is None else environment)
    for kind in ("podman", "docker") if runtime == "auto" else (runtime,):
        path = shutil.which(kind, path=chosen.get("PATH"))
        if path is not None:
            return CliEngine(kind, path, chosen, timings)
    raise NoContainerRuntime(NO_RUNTIME)
