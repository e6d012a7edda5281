"""The engines that the contract is tried on: the fake one, and those named in the environment."""

import os
import re
import tarfile
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest

from runner.engine.base import Container, ContainerSpec, Engine
from runner.engine.cli import find_engine
from runner.errors import NoSuchContainer
from runner.timing import DEFAULT_TIMINGS
from tests.engines import ADVICE, named_image, names_for_tests
from tests.engines import Engine as Command
from tests.harness.engine import FakeEngine
from tests.harness.until import DEADLINE_S, until

FAKE_IMAGE = "localhost/victoria-fake:1"
FAKE_GRACE_S = 2.0


@dataclass
class Subject:
    """An engine, and the containers that a test makes on it."""

    engine: Engine
    image: str
    name: str
    stop_grace_s: float = DEFAULT_TIMINGS.stop_grace_s
    """How long it gives a container to end by itself."""
    names: set[str] = field(default_factory=set)

    def spec(self, prompt: str, **changes: Any) -> ContainerSpec:  # noqa: ANN401 - the fields of a spec
        """Describe a container of the stand-in image. It needs no network of its own."""
        spec = {
            "name": self.name,
            "image": self.image,
            "arguments": ("--accept-license", "--task", prompt),
            "run_args": ("--network", "host"),
            **changes,
        }
        self.names.add(spec["name"])
        return ContainerSpec(**spec)

    async def start(self, prompt: str, **changes: Any) -> str:  # noqa: ANN401 - as above
        return await self.engine.run(self.spec(prompt, **changes))

    async def start_ready(self, prompt: str) -> None:
        """Run a container whose program heeds signals, or ignores them; before, they would kill."""
        await self.start(f"{prompt}[print-line ready][hang]")
        with anyio.fail_after(DEADLINE_S):
            while "ready" not in await self.engine.last_output(self.name, 1):  # noqa: ASYNC110 - its output has no event
                await anyio.sleep(0.05)

    async def look(self) -> Container:
        container = await self.engine.inspect(self.name)
        assert container is not None
        return container

    async def finish(self, prompt: str, **changes: Any) -> Container:  # noqa: ANN401 - as above
        await self.start(prompt, **changes)
        await self.engine.wait(self.name)
        return await self.look()

    async def add_image(self, tag: str | None = None, *, is_used: bool = False) -> str:
        """Add an image, which may have a tag or a container; return its id."""
        if isinstance(self.engine, FakeEngine):
            self.engine.image_id = uuid.uuid4().hex
            self.engine.image_tags[self.engine.image_id] = tag is not None
            if is_used:
                await self.start("")
            return self.engine.image_id
        command = Command(self.engine.kind)
        with tempfile.NamedTemporaryFile(suffix=".tar") as file:
            with tarfile.open(fileobj=file, mode="w") as archive:
                archive.addfile(tarfile.TarInfo(uuid.uuid4().hex))
            file.flush()
            image_id = command.run("import", file.name, *([tag] if tag else [])).strip()
        if is_used:
            self.names.add(self.name)
            command.run("create", "--name", self.name, image_id, "nothing")
        return image_id.removeprefix("sha256:")

    def remove_tag(self, tag: str) -> None:
        if not isinstance(self.engine, FakeEngine):
            Command(self.engine.kind).run("rmi", tag)

    async def is_gone(self) -> bool:
        return await self.engine.inspect(self.name) is None

    @asynccontextmanager
    async def waiting(self) -> AsyncIterator[list[bool]]:
        """Wait for the end of the container during the block, and after it; yield the results."""
        results: list[bool] = []

        async def wait() -> None:
            with suppress(NoSuchContainer):
                results.append(await self.engine.wait(self.name))

        with anyio.fail_after(DEADLINE_S):
            async with anyio.create_task_group() as group:
                group.start_soon(wait)
                await until(self._is_waited_for)
                yield results

    def _is_waited_for(self) -> bool:
        if isinstance(self.engine, FakeEngine):
            return True  # it notices every end
        if self.engine.kind == "podman":
            ours = [str(os.getpid())]
            return any(stat_of(pid)[1:2] not in ([], ours) for pid in held_processes())
        calls = [read_process(pid, "cmdline") for pid in own_children()]
        return any({b"wait", self.name.encode()} <= set(call.split(b"\0")) for call in calls)


def held_processes() -> Iterator[int]:
    """Yield the ids of the processes of which this one holds a descriptor; -1 if one has ended."""
    for entry in Path("/proc/self/fdinfo").iterdir():
        with suppress(FileNotFoundError):
            yield from map(int, re.findall(r"^Pid:\s*(-?\d+)$", entry.read_text(), re.MULTILINE))


def own_children() -> set[int]:
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return {pid for pid in pids if stat_of(pid)[1:2] == [str(os.getpid())] and is_alive(pid)}


def is_alive(pid: int) -> bool:
    return stat_of(pid)[:1] not in ([], ["Z"], ["X"])


def stat_of(pid: int) -> list[str]:
    """Return a process's state, its parent and more; nothing when it is gone."""
    return read_process(pid, "stat").rpartition(b") ")[2].decode().split()


def read_process(pid: int, name: str) -> bytes:
    """Return a file of a process; nothing when it is gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    real = names_for_tests()
    kinds = {"subject": ["fake", *real], "real": real, "podman": ["podman"], "docker": ["docker"]}
    for name in kinds.keys() & set(metafunc.fixturenames):
        metafunc.parametrize(name, kinds[name], indirect=True)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    """Yield an engine; remove its containers afterwards."""
    name = f"victoria-contract-{uuid.uuid4().hex[:12]}"
    if request.param == "fake":
        async with FakeEngine(FAKE_IMAGE, stop_grace_s=FAKE_GRACE_S) as fake:
            yield Subject(fake, FAKE_IMAGE, name, FAKE_GRACE_S)
        return
    if request.param not in os.environ.get("VICTORIA_TEST_ENGINES", "").split(","):
        pytest.fail(f"cannot test on {request.param}: {ADVICE}", pytrace=False)
    made = Subject(find_engine(request.param), named_image(), name)
    yield made
    for one in made.names:
        await made.engine.remove(one)


real = podman = docker = subject  # the same fixture, for fewer engines: see pytest_generate_tests
