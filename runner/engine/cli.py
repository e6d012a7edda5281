"""podman and docker: one thin function a command, every call with a deadline."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from runner.engine import processes
from runner.engine.arguments import has_memory_limit, run_arguments
from runner.engine.base import Container, ContainerSpec, EngineFacts, ignored
from runner.engine.call import CommandResult, Program, engine_environment
from runner.engine.inspect import (
    process_ids,
    read_container,
    read_docker_facts,
    read_podman_facts,
    says_running,
    watcher_id,
)
from runner.errors import (
    EngineError,
    EngineSilent,
    ImageMissing,
    NoContainerRuntime,
    NoSuchContainer,
)
from runner.log import fields
from runner.model import PullPolicy
from runner.timing import DEFAULT_TIMINGS, Timings

log = logging.getLogger(__name__)
NO_RUNTIME = "No container runtime found. Install podman or docker."


class EngineCalls:
    """podman's or docker's program, as it is called."""

    def __init__(
        self, kind: str, path: str, environment: Mapping[str, str], timings: Timings
    ) -> None:
        """Start it with `environment` and nothing else; `deadline_s` is for what is quick."""
        self._kind = kind
        self._timings = timings
        self._program = Program(path, environment, timings.kill_grace_s)
        self._has_migrated = False

    async def check_call(
        self,
        *arguments: str,
        deadline_s: float | None = None,
        is_one_stream: bool = False,
    ) -> CommandResult:
        """Call, and raise what the engine complains of."""
        answer = await self.call(*arguments, deadline_s=deadline_s, is_one_stream=is_one_stream)
        if answer.ok:
            return answer
        raise answer.error_type(f"cannot do {self._kind} {arguments[0]}: {answer.error_text}")

    async def call(
        self,
        *arguments: str,
        deadline_s: float | None = None,
        is_one_stream: bool = False,
        folder: str | None = None,
        patience_s: float = 0.0,
    ) -> CommandResult:
        """Run the engine once, or twice when podman asks to be mended in between.

        Raises:
            EngineSilent: there is no answer, or none that says what is true.
            EngineError: the command cannot be given at all.
        """
        if deadline_s is None:
            deadline_s = self._timings.engine_timeout_s
        call_once = partial(
            self._program.call,
            arguments,
            deadline_s,
            is_one_stream=is_one_stream,
            folder=folder,
            patience_s=patience_s,
        )
        answer = await call_once()
        if answer.asks_for_migration and not self._has_migrated:
            self._has_migrated = True
            log.error("podman refuses to work; `podman system migrate` stops all its containers")
            await self._program.call(("system", "migrate"), self._timings.engine_run_timeout_s)
            answer = await call_once()
        if not answer.ok and answer.error_type is EngineSilent:
            raise EngineSilent(f"cannot do {self._kind} {arguments[0]}: {answer.error_text}")
        return answer

    async def call_twice(self, *arguments: str) -> None:
        """Call twice if need be: after an accident the first call fails and the second works."""
        deadline_s = self._timings.engine_timeout_s + self._timings.stop_grace_s
        answer = await self.call(*arguments, deadline_s=deadline_s)
        if not answer.ok and answer.error_type is not NoSuchContainer:
            with suppress(NoSuchContainer):
                await self.check_call(*arguments, deadline_s=deadline_s)


class CliEngine:
    """podman or docker by its command line."""

    def __init__(
        self,
        kind: str,
        path: str,
        environment: Mapping[str, str],
        timings: Timings = DEFAULT_TIMINGS,
    ) -> None:
        """Use the program at `path`, started with `environment` and nothing else.

        `deadline_s` is for what is answered at once; fetching, starting and stopping have more.
        """
        self.kind = kind
        self._calls = EngineCalls(kind, path, environment, timings)
        self._timings = timings
        self._environment = environment
        self._facts: EngineFacts | None = None
        self._seen_images: set[str] = set()
        self._watchers: dict[str, tuple[int, str]] = {}
        """Of containers just started: the process that watches each, and the container's id."""

    async def facts(self) -> EngineFacts:
        """Ask the engine about itself."""
        answer = await self._calls.check_call("info", "--format", "{{json .}}")
        try:
            about = json.loads(answer.output)
            if self.kind == "docker":
                socket = self._environment.get("DOCKER_HOST", "unix:")
                self._facts = read_docker_facts(about, socket)
            else:
                self._facts = read_podman_facts(about)
        except (ValueError, LookupError, TypeError) as error:
            raise EngineError(f"cannot understand what {self.kind} says of itself") from error
        return self._facts

    async def fetch_image(self, image: str, policy: PullPolicy) -> None:
        """See that the image is on this host, as the policy says."""
        # What podman builds itself is named so, and is in no registry.
        is_local_build = self.kind == "podman" and image.startswith("localhost/")
        is_local = policy is PullPolicy.NEVER or (policy is PullPolicy.NEWER and is_local_build)
        if (is_local or policy is PullPolicy.MISSING) and await self._has_seen(image):
            return
        if is_local:
            raise ImageMissing(
                f"cannot find the image {image} on this host, and it is not to be fetched "
                f"(--pull {policy.value})"
            )
        answer = await self._calls.call(
            "pull", "--quiet", image, deadline_s=self._timings.pull_timeout_s
        )
        if answer.ok:
            return
        if policy is PullPolicy.NEWER and await self._has_image(image):
            log.warning(
                "cannot ask for a newer image, the one at hand is used: %s",
                answer.error_text,
                extra=fields(image=image),
            )
            return
        raise ImageMissing(f"cannot fetch the image {image}: {answer.error_text}")

    async def _has_seen(self, image: str) -> bool:
        """Look for an image once; should it be gone later, `run` tells, and it is forgotten."""
        if image not in self._seen_images and await self._has_image(image):
            self._seen_images.add(image)
        return image in self._seen_images

    async def _has_image(self, image: str) -> bool:
        answer = await self._calls.call("image", "inspect", "--format", "{{.Id}}", image)
        return answer.ok

    async def run(self, spec: ContainerSpec) -> str:
        """Start a container that outlives us and give its id."""
        if spec.watcher_file is not None and await self._is_remote():
            spec = replace(spec, watcher_file=None)
        if await self._needs_podman4_oom_workaround(spec):
            answer = await self._create_and_start(spec)
        else:
            answer = await self._calls.call(
                *run_arguments(self.kind, spec),
                deadline_s=self._timings.engine_run_timeout_s,
                patience_s=self._timings.engine_start_grace_s,
            )
        if answer.ok:
            container_id = answer.output.strip()[-64:]
            self._note_watcher(spec, container_id)
            return container_id
        if answer.error_type is ImageMissing:
            self._seen_images.discard(spec.image)
            raise ImageMissing(f"cannot find the image {spec.image} on this host")
        raise answer.error_type(f"cannot start the container: {answer.error_text}")

    def _note_watcher(self, spec: ContainerSpec, container_id: str) -> None:
        """Keep who watches the container, so that `wait` need not ask the engine for it."""
        if spec.watcher_file is None:
            return
        with suppress(OSError, ValueError):
            self._watchers[spec.name] = (int(spec.watcher_file.read_text()), container_id)
        spec.watcher_file.unlink(missing_ok=True)

    async def _needs_podman4_oom_workaround(self, spec: ContainerSpec) -> bool:
        """Tell whether the end for want of memory would not be seen.

        conmon notes it in the folder that it is started in, and podman before 5.0 looks for the
        note in the container's own. To be removed with the support of podman 4.
        """
        if not has_memory_limit(spec) or await self._is_remote():
            return False
        return int((self._facts or await self.facts()).version.partition(".")[0]) < 5  # noqa: PLR2004 - said above

    async def _create_and_start(self, spec: ContainerSpec) -> CommandResult:
        """Do what `run` does in two steps, the second from within the container's own folder."""
        _, _, *options = run_arguments(self.kind, spec)
        created = await self._calls.call(
            "create", *options, deadline_s=self._timings.engine_run_timeout_s
        )
        if not created.ok:
            return created
        try:
            inspected = await self._inspect(spec.name)
        except EngineError as error:
            # It was made: whoever calls must look for it before the task is given up.
            raise EngineSilent(str(error)) from error
        folder = None if inspected is None else inspected.get("StaticDir")
        started = await self._calls.call(
            "start",
            spec.name,
            deadline_s=self._timings.engine_run_timeout_s,
            folder=folder,
            patience_s=self._timings.engine_start_grace_s,
        )
        return created if started.ok else started

    async def inspect(self, name: str) -> Container | None:
        """Say what is true of the container; None when the engine knows no such one."""
        inspected = await self._inspect(name)
        if (
            inspected is not None
            and says_running(inspected)
            and not await self._has_processes(inspected)
        ):
            # It may have ended between the engine's answer and our look.
            inspected = await self._inspect(name)
        if inspected is None:
            return None
        return read_container(inspected, has_processes=await self._has_processes(inspected))

    async def _inspect(self, name: str) -> Mapping[str, Any] | None:
        try:
            answer = await self._calls.check_call("container", "inspect", name)
        except NoSuchContainer:
            return None
        try:
            inspected: dict[str, Any] = json.loads(answer.output)[0]
            read_container(inspected, has_processes=True)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise EngineError(f"cannot understand what {self.kind} says of {name}") from error
        return inspected

    async def _has_processes(self, inspected: Mapping[str, Any]) -> bool:
        """Look for the processes that podman names; docker's daemon watches its own."""
        if await self._is_remote():
            return says_running(inspected)
        return processes.any_exists(process_ids(inspected), inspected["Id"])

    async def _is_remote(self) -> bool:
        """Tell whether the process ids that the engine names are no business of ours."""
        return self.kind == "docker" or (self._facts or await self.facts()).is_remote

    async def wait(self, name: str, on_exit: Callable[[], None] = ignored) -> None:
        """Return some time after the container has ended; call `on_exit` before, if it is seen.

        podman's own `wait` asks four times a second, and hangs when conmon was killed; so the
        kernel is asked, where it can be.
        """
        if not await self._is_remote():
            pid, container_id = self._watchers.pop(name, (0, ""))
            if pid and await processes.wait_for_watched(pid, container_id):
                on_exit()
            if pid and await processes.wait_for_all([pid], container_id):
                return
            inspected = await self._inspect(name)
            if inspected is None:
                raise NoSuchContainer(f"cannot wait for {name}: no such container")
            if not says_running(inspected):
                return
            watcher = watcher_id(inspected)
            if watcher and await processes.wait_for_watched(watcher, inspected["Id"]):
                on_exit()
            if await processes.wait_for_all(process_ids(inspected), inspected["Id"]):
                return
        await self._calls.check_call("wait", name, deadline_s=math.inf)
        on_exit()

    async def stop(self, name: str) -> None:
        """Send TERM, after ten seconds KILL."""
        await self._calls.call_twice("stop", "-t", str(self._timings.stop_grace_s), name)

    async def remove(self, name: str) -> None:
        """Remove the container, running or not."""
        await self._calls.call_twice("rm", "--force", "--volumes", name)

    async def remove_stopped(self, name: str) -> None:
        """Remove the container unless it runs."""
        with suppress(NoSuchContainer):
            await self._calls.check_call("rm", "--volumes", name)

    async def labelled(self, label: str, value: str) -> list[str]:
        """Give the names of all containers, running or not, that carry the label."""
        answer = await self._calls.check_call(
            "ps", "--all", "--filter", f"label={label}={value}", "--format", "{{.Names}}"
        )
        return answer.output.split()

    async def last_output(self, name: str, lines: int) -> str:
        """Give the last lines that the container wrote."""
        answer = await self._calls.check_call(
            "logs", "--tail", str(lines), name, is_one_stream=True
        )
        return answer.output


def find_engine(
    runtime: str,
    environment: Mapping[str, str] | None = None,
    timings: Timings = DEFAULT_TIMINGS,
) -> CliEngine:
    """Find the engine on PATH: podman or docker, `auto` for the first of them that is there.

    Raises:
        NoContainerRuntime: it is not there.
    """
    chosen = engine_environment(os.environ if environment is None else environment)
    for kind in ("podman", "docker") if runtime == "auto" else (runtime,):
        path = shutil.which(kind, path=chosen.get("PATH"))
        if path is not None:
            return CliEngine(kind, path, chosen, timings)
    raise NoContainerRuntime(NO_RUNTIME)
