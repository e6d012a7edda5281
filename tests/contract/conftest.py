"""The engines that the contract is tried on: the fake one, and those named in the environment."""

from __future__ import annotations

import os
import uuid
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from runner.engine.base import Container, ContainerSpec, Engine
from runner.engine.cli import find_engine
from runner.timing import DEFAULT_TIMINGS
from tests.engines import ADVICE, NoEngineError, named_engines, named_image
from tests.harness.engine import FakeEngine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

FAKE_IMAGE = "localhost/victoria-fake:1"
NO_ENGINE = "no-engine"

FAKE_GRACE_S = 2.0
WAITED_FOR_WITHIN_S = 60


@dataclass
class Subject:
    """An engine, and the containers that a test makes on it."""

    engine: Engine
    image: str
    name: str
    names: list[str] = field(default_factory=list)
    stop_grace_s: float = DEFAULT_TIMINGS.stop_grace_s
    """How long it gives a container to end by itself."""

    def spec(self, prompt: str, **changes: Any) -> ContainerSpec:  # noqa: ANN401 - the fields of a spec
        """Describe a container of the stand-in image. It needs no network of its own."""
        self.names.append(changes.get("name", self.name))
        return ContainerSpec(
            **{
                "name": self.name,
                "image": self.image,
                "arguments": ("--accept-license", "--task", prompt),
                "run_args": ("--network", "host"),
                **changes,
            }
        )

    async def start(self, prompt: str, **changes: Any) -> str:  # noqa: ANN401 - as above
        """Run a container; return its id."""
        return await self.engine.run(self.spec(prompt, **changes))

    async def look(self) -> Container:
        """Inspect the container, which must be there."""
        container = await self.engine.inspect(self.name)
        assert container is not None
        return container

    async def finish(self, prompt: str, **changes: Any) -> Container:  # noqa: ANN401 - as above
        """Run a container to its end; return its state then."""
        await self.start(prompt, **changes)
        await self.engine.wait(self.name)
        return await self.look()

    async def until_waited_for(self) -> None:
        """Wait until a wait for the end of the container is under way."""
        with anyio.fail_after(WAITED_FOR_WITHIN_S):
            while not self._is_waited_for():  # noqa: ASYNC110 - the kernel's tables have no events
                await anyio.sleep(0.02)

    def _is_waited_for(self) -> bool:
        if isinstance(self.engine, FakeEngine):
            return True  # it notices every end
        if self.engine.kind == "podman":
            return any(parent_of(pid) not in {0, os.getpid()} for pid in held_processes())
        return any({b"wait", self.name.encode()} <= call for call in calls_under_way())

    async def clean_up(self) -> None:
        """Remove what the test made."""
        for name in {self.name, *self.names}:
            await self.engine.remove(name)


def held_processes() -> Iterator[int]:
    """Yield the ids of the processes of which this one holds a descriptor; -1 where it is over."""
    for entry in Path("/proc/self/fdinfo").iterdir():
        with suppress(FileNotFoundError):
            for line in entry.read_text().splitlines():
                if line.startswith("Pid:"):
                    yield int(line.removeprefix("Pid:"))


def parent_of(pid: int) -> int:
    """Return the id of the process that has started one; 0 where it is over."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
    except OSError:
        return 0


def calls_under_way() -> Iterator[set[bytes]]:
    """Yield the arguments of each process that this one has started."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if parent_of(int(folder.name)) == os.getpid():
                yield set((folder / "cmdline").read_bytes().split(b"\0"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test on each engine; where none is named, let it fail and not vanish."""
    try:
        real = [engine.name for engine in named_engines()]
    except NoEngineError:
        real = [NO_ENGINE]
    if "subject" in metafunc.fixturenames:
        metafunc.parametrize("subject", ["fake", *real], indirect=True)
    if "real" in metafunc.fixturenames:
        metafunc.parametrize("real", real, indirect=True)


@pytest.fixture
def anyio_backend() -> str:
    """Name the event loop that the runner uses."""
    return "asyncio"


@pytest.fixture
async def subject(request: pytest.FixtureRequest, anyio_backend: str) -> AsyncIterator[Subject]:  # noqa: ARG001 - asked for, so that it runs there
    """Yield each engine, the fake one too."""
    async with subject_named(request.param) as made:
        yield made


@pytest.fixture
async def real(request: pytest.FixtureRequest, anyio_backend: str) -> AsyncIterator[Subject]:  # noqa: ARG001 - as above
    """Yield each real engine."""
    async with subject_named(request.param) as made:
        yield made


@pytest.fixture
async def podman(anyio_backend: str) -> AsyncIterator[Subject]:  # noqa: ARG001 - as above
    """Yield podman."""
    async with subject_named("podman") as made:
        yield made


@pytest.fixture
async def docker(anyio_backend: str) -> AsyncIterator[Subject]:  # noqa: ARG001 - as above
    """Yield docker."""
    async with subject_named("docker") as made:
        yield made


@asynccontextmanager
async def subject_named(kind: str) -> AsyncIterator[Subject]:
    """Yield the engine under test; remove its containers afterwards."""
    name = f"victoria-contract-{uuid.uuid4().hex[:12]}"
    if kind == "fake":
        async with FakeEngine(FAKE_IMAGE, stop_grace_s=FAKE_GRACE_S) as fake:
            yield Subject(fake, FAKE_IMAGE, name, stop_grace_s=FAKE_GRACE_S)
        return
    if kind not in os.environ.get("VICTORIA_TEST_ENGINES", "").split(","):
        pytest.fail(f"cannot test on {kind}: {ADVICE}", pytrace=False)
    made = Subject(find_engine(kind), named_image(), name)
    try:
        yield made
    finally:
        await made.clean_up()
