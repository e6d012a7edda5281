"""podman and docker: one thin function a command, every call with a deadline.

The only file that imports sh. Commands run in the background with their output in descriptors,
are waited for in worker threads, and are ended with their whole process group when nobody waits
for them any more. What the engines say of a container is not taken on trust: see `Phase`.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import anyio
import anyio.to_thread
import sh

from runner.container import Container, ContainerSpec, EngineFacts, claims_to_run, read_container
from runner.errors import (
    EngineError,
    EngineSilent,
    ImageMissing,
    NameInUse,
    NoContainerRuntime,
    NoSuchContainer,
)
from runner.log import fields
from runner.settings import Limits, PullPolicy

log = logging.getLogger(__name__)

ANSWER_DEADLINE_S = 30.0
RUN_DEADLINE_S = 120.0
PULL_DEADLINE_S = 3600.0
STOP_GRACE_S = 10
LOG_SIZE = "10m"
"""How much of a container's output the engine keeps; older output makes way."""
NO_RUNTIME = "No container runtime found. Install podman or docker."

_MAX_OUTPUT_BYTES = 1 << 20
_KILL_GRACE_S = 2.0
_INHERITED = frozenset(
    [
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "TMPDIR",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REGISTRY_AUTH_FILE",
        "STORAGE_DRIVER",
        "STORAGE_OPTS",
        "XDG_RUNTIME_DIR",
        "XDG_CONFIG_HOME",
        "XDG_DATA_HOME",
        "DBUS_SESSION_BUS_ADDRESS",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "all_proxy",
    ]
)
_INHERITED_PREFIXES = ("CONTAINER_", "CONTAINERS_", "DOCKER_", "PODMAN_")
_ANY_EXIT_CODE = list(range(-64, 256))


class Engine(Protocol):
    """What the runner asks of a container engine; tests/contract/ holds each to the same.

    Every method but `wait` answers within a deadline of its own, or raises EngineSilent: then
    nothing is known. Any may raise EngineError with the engine's own words.
    """

    @property
    def kind(self) -> str:
        """Give podman or docker."""

    async def facts(self) -> EngineFacts:
        """Ask the engine about itself."""

    async def fetch_image(self, image: str, policy: PullPolicy) -> None:
        """See that the image is on this host, as the policy says; ImageMissing if it is not."""

    async def run(self, spec: ContainerSpec) -> str:
        """Start a container that outlives us and give its id; NameInUse if there is one."""

    async def inspect(self, name: str) -> Container | None:
        """Say what is true of the container; None when the engine knows no such one."""

    async def wait(self, name: str) -> None:
        """Return some time after the container has ended. Neither promptness nor truth is sure."""

    async def stop(self, name: str) -> None:
        """Send TERM, after ten seconds KILL. Nothing happens to one that is not there."""

    async def remove(self, name: str) -> None:
        """Remove the container, running or not. Nothing happens to one that is not there."""

    async def remove_stopped(self, name: str) -> None:
        """Remove the container unless it runs: EngineError then, and it goes on running."""

    async def labelled(self, label: str, value: str) -> list[str]:
        """Give the names of all containers, running or not, that carry the label."""

    async def last_output(self, name: str, lines: int) -> str:
        """Give the last lines that the container wrote, standard output and error together."""


@dataclass(frozen=True)
class _Answer:
    exit_code: int
    output: str
    errors: str

    @property
    def complaint(self) -> str:
        """Give the engine's last words on one line, without its own prefixes."""
        lines = [line.strip() for line in (self.errors or self.output).splitlines() if line.strip()]
        said = next((line for line in reversed(lines) if "rror" in line), (lines or [""])[-1])
        for prefix in ("docker: ", "Error: ", "Error response from daemon: "):
            said = said.removeprefix(prefix)
        return said[:500] or f"exit code {self.exit_code}"


class CliEngine:
    """podman or docker by its command line."""

    def __init__(self, kind: str, path: str, environment: Mapping[str, str]) -> None:
        """Use the program at `path`, started with `environment` and nothing else."""
        self.kind = kind
        self._command = sh.Command(path)
        self._environment = dict(environment)
        self._is_remote = False
        self._has_migrated = False
        # One thread waits for each call and each running container; they do nothing meanwhile.
        self._threads = anyio.CapacityLimiter(10_000)

    async def facts(self) -> EngineFacts:
        """Ask the engine about itself."""
        answer = await self._ask("info", "--format", "{{json .}}")
        about = _json(answer.output)
        if self.kind == "docker":
            if not about.get("ServerVersion"):
                raise EngineSilent("cannot reach docker: its daemon does not answer")
            return EngineFacts(
                version=about["ServerVersion"],
                is_rootless=any("rootless" in option for option in about["SecurityOptions"] or ()),
                cgroup_manager=about.get("CgroupDriver", ""),
                is_remote=not self._environment.get("DOCKER_HOST", "unix:").startswith("unix:"),
            )
        host = about["host"]
        self._is_remote = bool(host.get("serviceIsRemote"))
        return EngineFacts(
            version=about["version"]["Version"],
            is_rootless=bool(host["security"]["rootless"]),
            cgroup_manager=host["cgroupManager"],
            is_remote=self._is_remote,
        )

    async def fetch_image(self, image: str, policy: PullPolicy) -> None:
        """See that the image is on this host, as the policy says."""
        # What podman builds itself is named so, and is in no registry.
        is_local_build = self.kind == "podman" and image.startswith("localhost/")
        if policy is PullPolicy.NEVER or (policy is PullPolicy.NEWER and is_local_build):
            return
        if policy is PullPolicy.MISSING and await self._has_image(image):
            return
        answer = await self._call("pull", "--quiet", image, deadline_s=PULL_DEADLINE_S)
        if answer.exit_code == 0:
            return
        if policy is PullPolicy.NEWER and await self._has_image(image):
            log.warning(
                "cannot ask for a newer image, the one at hand is used: %s",
                answer.complaint,
                extra=fields(image=image),
            )
            return
        raise ImageMissing(f"cannot fetch the image {image}: {answer.complaint}")

    async def _has_image(self, image: str) -> bool:
        answer = await self._call("image", "inspect", "--format", "{{.Id}}", image)
        return answer.exit_code == 0

    async def run(self, spec: ContainerSpec) -> str:
        """Start a container that outlives us and give its id."""
        answer = await self._call(*self._run_arguments(spec), deadline_s=RUN_DEADLINE_S)
        if answer.exit_code == 0:
            return answer.output.split()[-1]
        complaint = f"cannot start the container: {answer.complaint}"
        said = answer.errors.lower()
        if "is already in use" in said:
            raise NameInUse(complaint)
        if any(words in said for words in ("image not known", "no such image", "unable to find")):
            raise ImageMissing(f"cannot find the image {spec.image} on this host")
        raise _failure(complaint, said)

    def _run_arguments(self, spec: ContainerSpec) -> list[str]:
        arguments = ["run", "--detach", "--pull", "never", "--name", spec.name]
        for key, value in spec.labels.items():
            arguments += ["--label", f"{key}={value}"]
        for path in spec.env_files:
            arguments += ["--env-file", str(path)]
        for source, target in spec.volumes.items():
            arguments += ["--volume", f"{source}:{target}:z"]
        if spec.cid_file is not None:
            arguments += ["--cidfile", str(spec.cid_file)]
        arguments += ["--log-opt", f"max-size={LOG_SIZE}"]
        if self.kind == "podman":
            arguments += ["--log-driver", "k8s-file"]
            if spec.timeout_s is not None:
                arguments += ["--timeout", str(max(1, round(spec.timeout_s)))]
        else:
            arguments += ["--log-driver", "json-file", "--log-opt", "max-file=1"]
            if not _uses_host_network(spec.run_args):
                arguments += ["--add-host", "host.containers.internal:host-gateway"]
        arguments += self._limit_arguments(spec.limits)
        return [*arguments, *spec.run_args, spec.image, *spec.arguments]

    def _limit_arguments(self, limits: Limits) -> list[str]:
        arguments: list[str] = []
        if limits.memory is not None:
            arguments += ["--memory", limits.memory]
        if limits.cpus is not None:
            arguments += ["--cpus", limits.cpus]
        if limits.gpus is None:
            return arguments
        if self.kind == "docker":
            devices = "all" if limits.gpus == "all" else f'"device={limits.gpus}"'
            return [*arguments, "--gpus", devices]
        for device in limits.gpus.split(","):
            arguments += ["--device", f"nvidia.com/gpu={device}"]
        return arguments

    async def inspect(self, name: str) -> Container | None:
        """Say what is true of the container; None when the engine knows no such one."""
        told = await self._inspect(name)
        if told is not None and claims_to_run(told) and not self._has_processes(told):
            # It may have ended between the engine's answer and our look.
            told = await self._inspect(name)
        if told is None:
            return None
        return read_container(told, has_processes=self._has_processes(told))

    async def _inspect(self, name: str) -> dict[str, Any] | None:
        answer = await self._call("container", "inspect", name)
        if answer.exit_code == 0:
            found: dict[str, Any] = json.loads(answer.output)[0]
            return found
        if "no such container" in answer.errors.lower():
            return None
        raise _failure(f"cannot inspect the container: {answer.complaint}", answer.errors.lower())

    def _has_processes(self, told: Mapping[str, Any]) -> bool:
        """Look for the processes that podman names; docker's daemon watches its own."""
        if self.kind == "docker" or self._is_remote:
            return claims_to_run(told)
        pids = (told["State"].get("Pid"), told["State"].get("ConmonPid"))
        return any(pid and Path(f"/proc/{pid}").exists() for pid in pids)

    async def wait(self, name: str) -> None:
        """Return some time after the container has ended."""
        await self._ask("wait", name, deadline_s=None)

    async def stop(self, name: str) -> None:
        """Send TERM, after ten seconds KILL."""
        await self._insist("stop", "-t", str(STOP_GRACE_S), name)

    async def remove(self, name: str) -> None:
        """Remove the container, running or not."""
        await self._insist("rm", "--force", "--volumes", name)

    async def remove_stopped(self, name: str) -> None:
        """Remove the container unless it runs."""
        with suppress(NoSuchContainer):
            await self._ask("rm", "--volumes", name)

    async def _insist(self, *arguments: str) -> None:
        """Call twice if need be: after an accident the first call fails and the second works."""
        deadline_s = ANSWER_DEADLINE_S + STOP_GRACE_S
        answer = await self._call(*arguments, deadline_s=deadline_s)
        if answer.exit_code != 0 and "no such container" not in answer.errors.lower():
            with suppress(NoSuchContainer):
                await self._ask(*arguments, deadline_s=deadline_s)

    async def labelled(self, label: str, value: str) -> list[str]:
        """Give the names of all containers, running or not, that carry the label."""
        answer = await self._ask(
            "ps", "--all", "--filter", f"label={label}={value}", "--format", "{{.Names}}"
        )
        return answer.output.split()

    async def last_output(self, name: str, lines: int) -> str:
        """Give the last lines that the container wrote."""
        answer = await self._ask("logs", "--tail", str(lines), name, is_one_stream=True)
        return answer.output

    async def _ask(
        self,
        *arguments: str,
        deadline_s: float | None = ANSWER_DEADLINE_S,
        is_one_stream: bool = False,
    ) -> _Answer:
        """Call, and raise what the engine complains of."""
        answer = await self._call(*arguments, deadline_s=deadline_s, is_one_stream=is_one_stream)
        if answer.exit_code == 0:
            return answer
        said = (answer.errors or answer.output).lower()
        raise _failure(f"cannot do {self.kind} {arguments[0]}: {answer.complaint}", said)

    async def _call(
        self,
        *arguments: str,
        deadline_s: float | None = ANSWER_DEADLINE_S,
        is_one_stream: bool = False,
    ) -> _Answer:
        """Run the engine once, or twice when podman asks to be mended in between."""
        answer = await self._run(arguments, deadline_s, is_one_stream=is_one_stream)
        asks_to_be_mended = answer.exit_code != 0 and "podman system migrate" in answer.errors
        if not asks_to_be_mended or self._has_migrated:
            return answer
        self._has_migrated = True
        log.error("podman refuses to work; running `podman system migrate`, which stops containers")
        await self._run(("system", "migrate"), RUN_DEADLINE_S, is_one_stream=False)
        return await self._run(arguments, deadline_s, is_one_stream=is_one_stream)

    async def _run(
        self, arguments: Sequence[str], deadline_s: float | None, *, is_one_stream: bool
    ) -> _Answer:
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            # Started in a scope of its own, so that no cancellation can lose the process.
            with anyio.CancelScope(shield=True):
                process = await anyio.to_thread.run_sync(
                    self._start,
                    arguments,
                    output,
                    output if is_one_stream else errors,
                    limiter=self._threads,
                )
            try:
                with anyio.fail_after(deadline_s):
                    await anyio.to_thread.run_sync(
                        process.wait, abandon_on_cancel=True, limiter=self._threads
                    )
            except TimeoutError as error:
                await self._end(process)
                raise EngineSilent(
                    f"cannot do {self.kind} {arguments[0]}: no answer within {deadline_s:g} s"
                ) from error
            except BaseException:
                await self._end(process)
                raise
            return _Answer(process.exit_code, _tail(output), _tail(errors))

    def _start(
        self, arguments: Sequence[str], output: IO[bytes], errors: IO[bytes]
    ) -> sh.RunningCommand:
        with open(os.devnull, "rb") as nothing:
            process: sh.RunningCommand = self._command(
                *arguments,
                _bg=True,
                _bg_exc=False,
                _tty_out=False,
                _new_group=True,
                _in=nothing,
                _out=output,
                _err=errors,
                _env=self._environment,
                _ok_code=_ANY_EXIT_CODE,
                _return_cmd=True,
            )
        return process

    async def _end(self, process: sh.RunningCommand) -> None:
        """End a call's process group: TERM, then KILL; the container is none of its members."""
        with anyio.CancelScope(shield=True):
            for how in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, how)
                with anyio.move_on_after(_KILL_GRACE_S):
                    await anyio.to_thread.run_sync(
                        process.wait, abandon_on_cancel=True, limiter=self._threads
                    )
                    return


def find_engine(runtime: str, environment: Mapping[str, str] | None = None) -> CliEngine:
    """Find the engine on PATH: podman or docker, `auto` for the first of them that is there.

    Raises:
        NoContainerRuntime: it is not there.
    """
    chosen = _environment(os.environ if environment is None else environment)
    for kind in ("podman", "docker") if runtime == "auto" else (runtime,):
        path = shutil.which(kind, path=chosen.get("PATH"))
        if path is not None:
            return CliEngine(kind, path, chosen)
    raise NoContainerRuntime(NO_RUNTIME)


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    """Choose what the engine inherits; the rest may be secret, and conmon would keep it."""
    chosen = {
        name: value
        for name, value in ours.items()
        if name in _INHERITED or name.startswith(_INHERITED_PREFIXES)
    }
    runtime_dir = Path(f"/run/user/{os.getuid()}")
    if os.getuid() != 0 and runtime_dir.is_dir():
        chosen.setdefault("XDG_RUNTIME_DIR", str(runtime_dir))
        chosen.setdefault("DBUS_SESSION_BUS_ADDRESS", f"unix:path={runtime_dir}/bus")
    return {**chosen, "LC_ALL": "C"}


def _failure(complaint: str, said: str) -> EngineError:
    if "no such container" in said:
        return NoSuchContainer(complaint)
    if any(words in said for words in ("cannot connect to", "is the docker daemon running")):
        return EngineSilent(complaint)
    return EngineError(complaint)


def _uses_host_network(run_args: Sequence[str]) -> bool:
    joined = " ".join(run_args)
    return any(words in joined for words in ("--network=host", "--network host", "--net=host"))


def _json(text: str) -> dict[str, Any]:
    try:
        about = json.loads(text)
    except ValueError as error:
        raise EngineError("cannot read what the engine says of itself") from error
    return about if isinstance(about, dict) else {}


def _tail(file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _MAX_OUTPUT_BYTES))
    return file.read().decode("utf-8", errors="replace")
