"""An engine in memory, whose containers obey the stand-in image's directives."""

import os
import tarfile
import time
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import anyio
from typing_extensions import Self

from runner.engine.base import (
    AFTER_GAP,
    GAP_MARK,
    Container,
    ContainerSpec,
    EngineFacts,
    ImageFacts,
    OutputPart,
    OutputPosition,
    OutputReader,
    Phase,
)
from runner.engine.output import last_lines
from runner.engine.progress import PullProgress
from runner.errors import EngineError, EngineSilent, ImageMissing, NameInUse, NoSuchContainer
from runner.model import PullPolicy
from runner.settings import parse_size
from tests.image.victoria_stand_in import (
    PROMPT_SHOWN,
    Refused,
    find_directives,
    read_arguments,
)

LOG_BYTES = 10 << 20
MAX_ARGUMENT_BYTES = (128 << 10) - 1
CONTAINER_HOME = "/workspace/Victoria"
SHELL = "sh"
KNOWN_FLAGS = frozenset({"--network", "--entrypoint"})
USAGE_ERROR, KILLED, TERMINATED, ENDED_BY_ENGINE = 2, 137, 143, -1
LOOK_AGAIN_S = 0.01


@dataclass
class _Container:
    """A container and its program, which runs in a task of ours."""

    spec: ContainerSpec
    state: Container
    now: Callable[[], float]
    executes: bool = True
    ignores_term: bool = False
    is_stopping: bool = False
    awaits: Path | None = None  # the file that its program waits for
    output: bytearray = field(default_factory=bytearray)
    removed_bytes: int = 0  # of its output, from the beginning
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    over: anyio.Event = field(default_factory=anyio.Event)

    @property
    def is_running(self) -> bool:
        return self.state.phase is Phase.RUNNING

    @property
    def home(self) -> Path | None:
        return self._source_of(CONTAINER_HOME)

    @property
    def folder(self) -> Path | None:
        """The task's own folder; earlier versions mounted the home alone."""
        below = f"tasks/{self.state.variables.get('JOB_ID', 'unnamed')}"
        return self._source_of(f"{CONTAINER_HOME}/{below}") or (self.home and self.home / below)

    def _source_of(self, target: str) -> Path | None:
        volumes = self.spec.volumes.items()
        return next((source for source, inside in volumes if inside == target), None)

    def on_host(self, path: str) -> Path | None:
        """Return where a path of the container is on the host; None if it is in no volume."""
        inside = PurePosixPath(path)
        volumes = {**self.spec.volumes, **self.spec.read_only}.items()
        fitting = [
            (len(target), source / inside.relative_to(target))
            for source, target in volumes
            if inside.is_relative_to(target)
        ]
        return max(fitting)[1] if fitting else None

    @property
    def is_at_work(self) -> bool:
        is_released = self.awaits is not None and self.awaits.exists()
        return self.is_running and (self.is_stopping or is_released)

    def end(self, exit_code: int, *, out_of_memory: bool = False) -> None:
        """Record the end, unless it has ended, and cancel what is left of the program."""
        if self.is_running:
            self.change(exit_code=exit_code, out_of_memory=out_of_memory, finished_at=self.now())
            self.disappear(Phase.EXITED)

    def change(self, **state: Any) -> None:  # noqa: ANN401 - fields of Container
        self.state = replace(self.state, **state)

    def disappear(self, phase: Phase = Phase.VANISHED) -> None:
        self.change(phase=phase)
        self.scope.cancel()
        self.over.set()

    async def live(self) -> None:
        with self.scope:
            with anyio.move_on_after(self.spec.timeout_s):
                await self._obey()
                self.end(0)
            self.end(ENDED_BY_ENGINE)

    async def _obey(self) -> None:
        if not self.executes:
            self._print("exec /usr/bin/agent: exec format error")
            self.end(1)
            return
        if self.spec.run_args[-2:] == ("--entrypoint", SHELL):
            return  # no directive is for it
        folder = self.folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "starts.log").open("a") as file:
                file.write(f"time={time.time():.6f} hostname={self.state.container_id[:12]}\n")
        try:
            prompt = read_arguments(list(self.spec.arguments))
        except Refused:
            self.end(USAGE_ERROR)
            return
        directives = find_directives(prompt)
        if not directives:
            self._print(f"task: {prompt[:PROMPT_SHOWN]}\n")
        for name, value in directives:
            await self._do(name, value)
            await anyio.lowlevel.checkpoint()  # cancelled if that was the end
        if folder is not None:
            shown = prompt[:PROMPT_SHOWN]
            (folder / "result.txt").write_text(f"prompt: {shown}\noutcome: success\n")

    async def _do(self, name: str, value: str) -> None:  # noqa: C901 - a table of directives
        if name == "print":
            self._print(("x" * 99 + "\n") * (min(int(value), LOG_BYTES) // 100))
        elif name in {"print-line", "stderr"}:
            self._print(f"{value}\n")
        elif name == "env":
            variables = self.state.variables
            known = f"{value}={variables[value]}\n" if value in variables else None
            self._print(known or f"{value} is not set\n")
        elif name == "write" and self.home is not None:
            target, _, text = value.partition(" ")
            (self.home / target).parent.mkdir(parents=True, exist_ok=True)
            (self.home / target).write_text(text)
        elif name == "wait-for" and self.home is not None:
            self.awaits = self.home / value
            while not self.awaits.exists():  # noqa: ASYNC110 - a file has no event
                await anyio.sleep(LOOK_AGAIN_S)
            self.awaits = None
        elif name == "sleep":
            await anyio.sleep(float(value))
        elif name == "hang":
            await anyio.sleep_forever()
        elif name == "ignore-term":
            self.ignores_term = True
        elif name == "eat-memory":
            limit = self.spec.limits.memory
            if limit is not None and int(value) << 20 > parse_size(limit):
                self.end(KILLED, out_of_memory=True)
        elif name == "fail":
            self.end(int(value))

    def _print(self, text: str) -> None:
        self.print(text.encode())

    def print(self, data: bytes) -> None:
        self.output += data
        self.rotate(LOG_BYTES)

    def rotate(self, kept_bytes: int = 0) -> None:
        removed = max(0, len(self.output) - kept_bytes)
        del self.output[:removed]
        self.removed_bytes += removed


class FakeEngine:
    """podman in memory. Use it as a context: leaving it ends every container.

    Each kind of call is counted, and can be held up before or after it has done its work, or fail.
    """

    def __init__(
        self, image: str, now: Callable[[], float] = time.time, *, stop_grace_s: float = 0.1
    ) -> None:
        """Prepare one image; `now` is the host's wall clock, which dates starts and ends."""
        self.kind = "podman"
        self.image = image
        self.progress: PullProgress | None = None  # of the last pull
        self.silent = False  # whether no call is answered
        self.false_ends = 0  # how many of the next waits return though the container runs
        self.called: Counter[str] = Counter()
        self.waiting: Counter[str] = Counter()  # how many callers wait at each shut door
        self.starts: Counter[str] = Counter()
        """How often a container of each name was started; below, what it last had."""
        self.specs: dict[str, ContainerSpec] = {}
        self.variables: dict[str, dict[str, str]] = {}
        self.image_id = "image-1"  # of the next containers
        self.image_tags = {self.image_id: True}  # by id, whether an image has a tag
        self.storage: Path | None = None
        self.image_architecture = "arm64"
        self.executes_shell = False  # also if the image's own program is not executed
        self.executes = True  # whether programs of the image run here, whatever it says
        self._stop_grace_s = stop_grace_s
        self._now = now
        self._containers: dict[str, _Container] = {}
        self._doors: dict[str, anyio.Event] = {}
        self._failures: defaultdict[str, deque[Exception]] = defaultdict(deque)
        self._broken: dict[str, Exception] = {}
        self._group = anyio.create_task_group()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> bool | None:
        self._group.cancel_scope.cancel()
        return await self._group.__aexit__(*error)  # type: ignore[arg-type]

    def shut(self, call: str) -> None:
        """Hold up calls: "run" before it does anything, "after run" before it answers."""
        self._doors.setdefault(call, anyio.Event())

    def open(self, call: str) -> None:
        self._doors.pop(call).set()

    def fail(self, call: str, *errors: Exception) -> None:
        self._failures[call].extend(errors)

    def break_(self, call: str, error: Exception) -> None:
        self._broken[call] = error

    def mend(self) -> None:
        self._broken.clear()
        self._failures.clear()

    def vanish(self, name: str) -> None:
        self._containers[name].disappear()

    def remove_behind(self, name: str) -> None:
        self._containers.pop(name).disappear()

    @property
    def names(self) -> list[str]:
        return list(self._containers)

    @property
    def is_at_work(self) -> bool:
        """Whether a container goes on by itself, without the test or the runner, in a moment."""
        return any(container.is_at_work for container in self._containers.values())

    @property
    def known_facts(self) -> EngineFacts:
        return EngineFacts(
            version="5.0.0",
            is_rootless=True,
            cgroup_manager="systemd",
            storage=self.storage,
            architecture="arm64",
        )

    async def facts(self) -> EngineFacts:
        await self._answer("facts")
        return self.known_facts

    async def inspect_image(self, image: str) -> ImageFacts:
        await self._answer("inspect_image")
        if image != self.image:
            raise ImageMissing(f"cannot find the image {image} on this host")
        return ImageFacts(self.image_id, self.image_architecture)

    async def fetch_image(
        self, image: str, policy: PullPolicy, progress: PullProgress | None = None
    ) -> None:
        await self._answer("fetch_image")
        is_here = image == self.image
        if is_here and policy in {PullPolicy.NEVER, PullPolicy.MISSING}:
            return
        if policy is not PullPolicy.NEVER:
            self.progress = progress
            await self._answer("pull")
            is_here = image == self.image
        if policy is PullPolicy.ALWAYS or not is_here:
            raise ImageMissing(f"cannot fetch the image {image}: no registry answers")

    async def image_user(self, image: str) -> str:
        await self._answer("image_user")
        if image != self.image:
            raise ImageMissing(f"cannot find the image {image} on this host")
        return ""

    async def run(self, spec: ContainerSpec) -> str:
        await self._answer("run")
        flags = _check_arguments(spec)
        if spec.name in self._containers:
            raise NameInUse(f"cannot start the container: the name {spec.name} is in use")
        if spec.image != self.image:
            raise ImageMissing(f"cannot find the image {spec.image} on this host")
        variables = _read_variables(spec.env_files)
        container_id = uuid.uuid4().hex * 2
        state = Container(
            container_id,
            spec.name,
            Phase.CREATED,
            image_id=self.image_id,
            labels=spec.labels,
            variables=variables,
        )
        container = self._containers[spec.name] = _Container(
            spec, state, self._now, self.executes or (self.executes_shell and bool(flags))
        )
        if spec.cid_file is not None:
            with spec.cid_file.open("x") as file:
                file.write(container_id)
        if "--entrypoint" in flags and spec.run_args[-1] != SHELL:
            raise EngineError("cannot start the container: no such file or directory")
        container.change(phase=Phase.RUNNING, started_at=self._now())
        self.starts[spec.name] += 1
        self.specs[spec.name] = spec
        self.variables[spec.name] = variables
        self._group.start_soon(container.live)
        await self._pass("after run")
        return container_id

    async def inspect(self, name: str) -> Container | None:
        await self._answer("inspect")
        container = self._find(name)
        return None if container is None else container.state

    async def wait(self, name: str) -> bool:
        container = await self._named("wait", name)
        if self.false_ends:
            self.false_ends -= 1
            return False
        if container.is_running:
            await container.over.wait()
        return True

    async def stop(self, name: str) -> None:
        await self._answer("stop")
        container = self._find(name)
        if container is None or not container.is_running:
            return
        if container.ignores_term:
            container.is_stopping = True
            with anyio.move_on_after(self._stop_grace_s):
                await container.over.wait()
        container.end(KILLED if container.ignores_term else TERMINATED)

    async def remove(self, name: str) -> None:
        await self._answer("remove")
        container = self._find(name)
        if container is not None:
            self.remove_behind(container.spec.name)

    async def remove_stopped(self, name: str) -> None:
        await self._answer("remove_stopped")
        container = self._find(name)
        if container is not None and container.is_running:
            raise EngineError(f"cannot do podman rm: container {name} is running")
        if container is not None:
            self._containers.pop(container.spec.name)

    def move_tag(self, image_id: str) -> None:
        """Have the image's name mean another one from now on."""
        self.image_tags |= {self.image_id: False, image_id: True}
        self.image_id = image_id

    async def images(self) -> dict[str, bool]:
        await self._answer("images")
        return dict(self.image_tags)

    async def remove_image(self, image_id: str) -> bool:
        await self._answer("remove_image")
        in_use = {one.state.image_id for one in self._containers.values()}
        is_removed = image_id not in in_use and self.image_tags.get(image_id) is False
        if is_removed:
            del self.image_tags[image_id]
        return is_removed

    async def labelled(self, label: str, value: str) -> list[str]:
        await self._answer("labelled")
        containers = self._containers.items()
        return [name for name, one in containers if one.spec.labels.get(label) == value]

    async def last_output(self, name: str, lines: int) -> str:
        container = await self._named("last_output", name)
        return last_lines(container.output.decode(), lines)

    def output_reader(self, name: str) -> OutputReader:
        return _FakeReader(self, name)

    async def read_output(self, name: str, position: OutputPosition, max_bytes: int) -> OutputPart:
        """Read on; an anchor is the number of bytes before it."""
        container = await self._named("read_output", name)
        start = int(position.anchor.removeprefix(AFTER_GAP) or 0)
        is_after_gap = position.anchor.startswith(AFTER_GAP)
        skip = position.skip
        if start < container.removed_bytes and start + skip <= container.removed_bytes:
            is_after_gap = start + skip < container.removed_bytes or is_after_gap
            start, skip = container.removed_bytes, 0
        text = bytes(container.output[start - container.removed_bytes :])
        if is_after_gap:
            text = GAP_MARK + text
        text = text[skip : skip + max_bytes]
        anchor = f"{AFTER_GAP if is_after_gap else ''}{start}"
        pieces = ((OutputPosition(anchor, skip), text),) if text else ()
        return OutputPart(pieces, has_more=len(text) >= max_bytes)

    def print(self, name: str, data: bytes) -> None:
        """Have a container print something now."""
        self._containers[name].print(data)

    def rotate(self, name: str) -> None:
        """Remove what a container has printed so far from its log."""
        self._containers[name].rotate()

    async def copy_out(self, name: str, path: str, archive: Path, max_bytes: int) -> bool:
        container = await self._named("copy_out", name)
        source = container.on_host(path)
        if source is None or not os.path.lexists(source):  # noqa: ASYNC240 - at once
            return False
        if source.lstat().st_size > max_bytes:
            limit = f"it has more than {max_bytes >> 20} MiB"
            raise EngineError(f"cannot copy {path} out of the container: {limit}")
        with tarfile.open(archive, "x") as tar:
            tar.add(source, source.name)
        return True

    async def _named(self, call: str, name: str) -> _Container:
        await self._answer(call)
        container = self._find(name)
        if container is None:
            raise NoSuchContainer(f"cannot find {name}: no such container")
        return container

    def _find(self, name: str) -> _Container | None:
        """Return the container of that name or id."""
        containers = self._containers.values()
        by_id = (one for one in containers if one.state.container_id == name)
        return self._containers.get(name) or next(by_id, None)

    async def _answer(self, call: str) -> None:
        """Begin every call: count it, hold it up, fail it."""
        await anyio.lowlevel.checkpoint()
        # From here on nothing else runs, unless the door is shut: what is counted is carried out.
        self.called[call] += 1
        await self._pass(call)
        if self._failures[call]:
            raise self._failures[call].popleft()
        if call in self._broken:
            raise copy(self._broken[call])  # each time without the last one's traceback
        if self.silent:
            raise EngineSilent("cannot reach the fake engine: it is silent")

    async def _pass(self, door: str) -> None:
        if door in self._doors:
            self.waiting[door] += 1
            try:
                await self._doors[door].wait()
            finally:
                self.waiting[door] -= 1


@dataclass
class _FakeReader:
    """Reads the output of a container."""

    engine: FakeEngine
    name: str

    async def read(self, position: OutputPosition, max_bytes: int) -> OutputPart:
        return await self.engine.read_output(self.name, position, max_bytes)

    async def look(self) -> None:
        pass

    def close(self) -> None:
        pass


def _check_arguments(spec: ContainerSpec) -> set[str]:
    """Return the flags for the engine; raise EngineError for what no engine takes."""
    flags = {argument.partition("=")[0] for argument in spec.run_args if argument.startswith("-")}
    if flags - KNOWN_FLAGS:
        raise EngineError(f"cannot start the container: unknown flag: {min(flags - KNOWN_FLAGS)}")
    for argument in spec.arguments:
        if len(argument.encode()) > MAX_ARGUMENT_BYTES or "\0" in argument:
            raise EngineError("cannot do podman run: an argument is too long or has a NUL in it")
    return flags


def _read_variables(paths: tuple[Path, ...]) -> dict[str, str]:
    lines = [line for path in paths for line in path.read_text().splitlines()]
    pairs = [line.partition("=") for line in lines if not line.startswith("#")]
    return {name: text for name, equals, text in pairs if equals}
