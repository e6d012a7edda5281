"""An engine in memory, whose containers obey the stand-in image's directives."""

from __future__ import annotations

import time
import uuid
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from runner.engine.base import Container, ContainerSpec, EngineFacts, Phase
from runner.errors import EngineError, EngineSilent, ImageMissing, NameInUse, NoSuchContainer
from runner.model import PullPolicy
from runner.settings import parse_size
from tests.image.victoria_stand_in import PROMPT_SHOWN, find_directives

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

LOG_BYTES = 10 << 20
MAX_ARGUMENT_BYTES = (128 << 10) - 1
CONTAINER_HOME = "/workspace/Victoria"
KILLED, TERMINATED, ENDED_BY_ENGINE = 137, 143, -1
LOOK_AGAIN_S = 0.01


class _EndedError(Exception):
    """The container's program ends with this exit code."""

    def __init__(self, exit_code: int, *, out_of_memory: bool = False) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code
        self.out_of_memory = out_of_memory


@dataclass
class _Running:
    """A container of the fake, as it stands."""

    spec: ContainerSpec
    container_id: str
    now: Callable[[], float]
    phase: Phase = Phase.CREATED
    exit_code: int = 0
    out_of_memory: bool = False
    started_at: float | None = None
    finished_at: float | None = None
    ignores_term: bool = False
    is_stopping: bool = False
    awaits: Path | None = None
    """The file that its program waits for."""
    variables: dict[str, str] = field(default_factory=dict)
    output: bytearray = field(default_factory=bytearray)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    over: anyio.Event = field(default_factory=anyio.Event)

    def end(self, exit_code: int, *, out_of_memory: bool = False) -> None:
        """Write down the end, once, and cut short what is left of the program."""
        if self.phase is not Phase.RUNNING:
            return
        self.phase = Phase.EXITED
        self.exit_code = exit_code
        self.out_of_memory = out_of_memory
        self.finished_at = self.now()
        self.scope.cancel()
        self.over.set()

    def show(self, text: bytes) -> None:
        """Keep the last of what was printed, as the engines do."""
        self.output += text
        del self.output[:-LOG_BYTES]


class FakeEngine:
    """podman in memory. Use it as a context: leaving it ends every container.

    Set `silent` and no call is answered; `starts` counts how often each name was run.
    """

    def __init__(
        self,
        image: str,
        *,
        stop_grace_s: float = 10.0,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Have one image; `stop_grace_s` may be short for tests that are not about stopping.

        `now` is the host's wall clock, by which starts and ends are written down.
        """
        self.kind = "podman"
        self.image = image
        self.silent = False
        self.starts: Counter[str] = Counter()
        self._stop_grace_s = stop_grace_s
        self._now = now
        self._containers: dict[str, _Running] = {}
        self._group = anyio.create_task_group()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        self._group.cancel_scope.cancel()
        return await self._group.__aexit__(kind, error, traceback)

    # What tests do to it

    def vanish(self, name: str) -> None:
        """Have the container's processes killed, and nobody see it."""
        container = self._containers[name]
        container.phase = Phase.VANISHED
        container.scope.cancel()
        container.over.set()

    def remove_behind(self, name: str) -> None:
        """Remove the container as another user of the engine would."""
        container = self._containers.pop(name)
        container.scope.cancel()
        container.over.set()

    @property
    def is_at_work(self) -> bool:
        """Whether a container goes on by itself, without the test or the runner, in a moment."""
        return any(
            container.phase is Phase.RUNNING
            and (
                container.is_stopping
                or (container.awaits is not None and container.awaits.exists())
            )
            for container in self._containers.values()
        )

    # What the runner asks of it

    async def facts(self) -> EngineFacts:
        """Return the facts as podman does."""
        await self._answer("facts")
        return EngineFacts(version="5.0.0", is_rootless=True, cgroup_manager="systemd")

    async def fetch_image(self, image: str, policy: PullPolicy) -> None:
        """Have no registry."""
        await self._answer("fetch_image")
        if policy is PullPolicy.ALWAYS or image != self.image:
            raise ImageMissing(f"cannot fetch the image {image}: no registry answers")

    async def run(self, spec: ContainerSpec) -> str:
        """Start a container, whose program runs in a task of ours."""
        await self._answer("run")
        arguments = _understood(spec)
        if spec.name in self._containers:
            raise NameInUse(f"cannot start the container: the name {spec.name} is in use")
        if spec.image != self.image:
            raise ImageMissing(f"cannot find the image {spec.image} on this host")
        container = _Running(spec, uuid.uuid4().hex * 2, self._now)
        self._containers[spec.name] = container
        if spec.cid_file is not None:
            with spec.cid_file.open("x") as file:
                file.write(container.container_id)
        if "--entrypoint" in arguments:
            raise EngineError("cannot start the container: no such file or directory")
        environment = container.variables = _environment(spec.env_files)
        container.phase = Phase.RUNNING
        container.started_at = self._now()
        self.starts[spec.name] += 1
        self._group.start_soon(_live, container, environment)
        return container.container_id

    async def inspect(self, name: str) -> Container | None:
        """Return the state of the container."""
        await self._answer("inspect")
        container = self._containers.get(name)
        if container is None:
            return None
        return Container(
            container_id=container.container_id,
            name=name,
            phase=container.phase,
            exit_code=container.exit_code,
            out_of_memory=container.out_of_memory,
            started_at=container.started_at,
            finished_at=container.finished_at,
            labels=container.spec.labels,
            variables=container.variables,
        )

    async def wait(self, name: str) -> bool:
        """Return when the container is over."""
        container = await self._named("wait", name)
        if container.phase is Phase.RUNNING:
            await container.over.wait()
        return True

    async def stop(self, name: str) -> None:
        """End the program: by TERM if it lets itself, by KILL after the grace."""
        await self._answer("stop")
        container = self._containers.get(name)
        if container is None or container.phase is not Phase.RUNNING:
            return
        if not container.ignores_term:
            container.end(TERMINATED)
            return
        container.is_stopping = True
        with anyio.move_on_after(self._stop_grace_s):
            await container.over.wait()
        container.end(KILLED)

    async def remove(self, name: str) -> None:
        """Remove the container, running or not."""
        await self._answer("remove")
        if name in self._containers:
            self.remove_behind(name)

    async def remove_stopped(self, name: str) -> None:
        """Remove the container unless it runs."""
        await self._answer("remove_stopped")
        container = self._containers.get(name)
        if container is not None and container.phase is Phase.RUNNING:
            raise EngineError(f"cannot do podman rm: container {name} is running")
        self._containers.pop(name, None)

    async def labelled(self, label: str, value: str) -> list[str]:
        """Return the names of the containers that carry the label."""
        await self._answer("labelled")
        return [
            name
            for name, container in self._containers.items()
            if container.spec.labels.get(label) == value
        ]

    async def last_output(self, name: str, lines: int) -> str:
        """Return the last lines."""
        container = await self._named("last_output", name)
        kept = bytes(container.output).decode().splitlines(keepends=True)
        return "".join(kept[-lines:])

    async def _named(self, call: str, name: str) -> _Running:
        await self._answer(call)
        if name not in self._containers:
            raise NoSuchContainer(f"cannot find {name}: no such container")
        return self._containers[name]

    async def _answer(self, call: str) -> None:  # noqa: ARG002 - for who obstructs single calls
        await anyio.lowlevel.checkpoint()
        if self.silent:
            raise EngineSilent("cannot reach the fake engine: it is silent")


async def _live(container: _Running, environment: dict[str, str]) -> None:
    """Be the container's program, until it ends or is ended."""
    timeout_s = container.spec.timeout_s
    with container.scope:
        try:
            with anyio.fail_after(timeout_s):
                await _obey(container, environment)
        except _EndedError as ended:
            container.end(ended.exit_code, out_of_memory=ended.out_of_memory)
        except TimeoutError:
            container.end(ENDED_BY_ENGINE)
        else:
            container.end(0)


async def _obey(container: _Running, environment: dict[str, str]) -> None:
    spec = container.spec
    home = next((source for source, to in spec.volumes.items() if to == CONTAINER_HOME), None)
    if home is not None:
        folder = home / "tasks" / environment.get("JOB_ID", "unnamed")
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "starts.log").open("a") as file:
            file.write(f"time={time.time():.6f} hostname={container.container_id[:12]}\n")
    if spec.arguments[:2] != ("--accept-license", "--task"):
        raise _EndedError(2)
    prompt = spec.arguments[2]
    directives = find_directives(prompt)
    if not directives:
        container.show(f"task: {prompt[:PROMPT_SHOWN]}\n".encode())
    for name, value in directives:
        await _do(container, name, value, environment, home)
    if home is not None:
        (folder / "result.txt").write_text(f"prompt: {prompt[:PROMPT_SHOWN]}\noutcome: success\n")


async def _do(  # noqa: C901 - a table of directives, each in a line or two
    container: _Running, name: str, value: str, environment: dict[str, str], home: Path | None
) -> None:
    if name == "print":
        container.show((b"x" * 99 + b"\n") * (min(int(value), LOG_BYTES) // 100))
    elif name in {"print-line", "stderr"}:
        container.show(f"{value}\n".encode())
    elif name == "env":
        shown = f"{value}={environment[value]}" if value in environment else f"{value} is not set"
        container.show(f"{shown}\n".encode())
    elif name == "write" and home is not None:
        target, _, text = value.partition(" ")
        (home / target).parent.mkdir(parents=True, exist_ok=True)
        (home / target).write_text(text)
    elif name == "wait-for" and home is not None:
        container.awaits = home / value
        while not container.awaits.exists():  # noqa: ASYNC110 - a file has no event
            await anyio.sleep(LOOK_AGAIN_S)
        container.awaits = None
    elif name == "sleep":
        await anyio.sleep(float(value))
    elif name == "hang":
        await anyio.sleep_forever()
    elif name == "ignore-term":
        container.ignores_term = True
    elif name == "eat-memory":
        limit = container.spec.limits.memory
        if limit is not None and int(value) << 20 > parse_size(limit):
            raise _EndedError(KILLED, out_of_memory=True)
    elif name == "fail":
        raise _EndedError(int(value))


def _understood(spec: ContainerSpec) -> set[str]:
    """Read the arguments for the engine, of which only a few are known."""
    known = {"--network", "--entrypoint"}
    given = {argument.partition("=")[0] for argument in spec.run_args if argument.startswith("-")}
    if given - known:
        raise EngineError(f"cannot start the container: unknown flag: {min(given - known)}")
    for argument in spec.arguments:
        if len(argument.encode()) > MAX_ARGUMENT_BYTES or "\0" in argument:
            raise EngineError("cannot do podman run: an argument is too long or has a NUL in it")
    return given


def _environment(paths: tuple[Path, ...]) -> dict[str, str]:
    variables: dict[str, str] = {}
    for path in paths:
        for line in path.read_text().splitlines():
            name, equals, text = line.partition("=")
            if equals and not line.startswith("#"):
                variables[name] = text
    return variables


class ObstructedEngine(FakeEngine):
    """Counts its calls; each can be held up before or after it has done its work, or fail."""

    def __init__(self, image: str, now: Callable[[], float]) -> None:
        """Have one image; `now` is the host's wall clock."""
        super().__init__(image, stop_grace_s=0.1, now=now)
        self.called: Counter[str] = Counter()
        self.waiting: Counter[str] = Counter()
        """How many callers wait at each shut door."""
        self.specs: dict[str, ContainerSpec] = {}
        """What each container was last started with."""
        self.variables: dict[str, dict[str, str]] = {}
        """The variables that each container last had."""
        self.false_ends = 0
        """How many of the next waits return though the container runs."""
        self._doors: dict[str, anyio.Event] = {}
        self._failures: defaultdict[str, deque[Exception]] = defaultdict(deque)
        self._broken: dict[str, Exception] = {}

    @property
    def names(self) -> list[str]:
        """The containers that there are."""
        return list(self._containers)

    # What tests do to it

    def shut(self, call: str) -> None:
        """Hold up calls: "run" before it does anything, "after run" before it answers."""
        self._doors.setdefault(call, anyio.Event())

    def open(self, call: str) -> None:
        """Let them go on."""
        self._doors.pop(call).set()

    def fail(self, call: str, *errors: Exception) -> None:
        """Have the next calls fail."""
        self._failures[call].extend(errors)

    def break_(self, call: str, error: Exception) -> None:
        """Have every call fail."""
        self._broken[call] = error

    def mend(self) -> None:
        """Have no call fail any more."""
        self._broken.clear()
        self._failures.clear()

    async def _answer(self, call: str) -> None:
        self.called[call] += 1
        await self._pass(call)
        if self._failures[call]:
            raise self._failures[call].popleft()
        if call in self._broken:
            error = self._broken[call]
            raise type(error)(*error.args)
        await super()._answer(call)

    async def _pass(self, door: str) -> None:
        if door not in self._doors:
            return
        self.waiting[door] += 1
        try:
            await self._doors[door].wait()
        finally:
            self.waiting[door] -= 1

    # What the runner asks of it

    async def run(self, spec: ContainerSpec) -> str:
        """Start a container."""
        container_id = await super().run(spec)
        self.specs[spec.name] = spec
        self.variables[spec.name] = dict(self._containers[spec.name].variables)
        await self._pass("after run")
        return container_id

    async def wait(self, name: str) -> bool:
        """Wait for its end."""
        if self.false_ends:
            self.called["wait"] += 1
            self.false_ends -= 1
            return False
        return await super().wait(name)
