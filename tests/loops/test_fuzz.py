"""Assignments by chance go through the whole runner: nothing breaks, nothing is written elsewhere.

Most are good but for one or two fields, so that they come past the first check, to the files, the
container and its variables. The checks themselves are fuzzed in tests/unit/test_assignment.py.
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import anyio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.model import is_task_id
from tests.harness.clock import VirtualClock
from tests.harness.host import hosting
from tests.harness.loop import HARNESS
from tests.harness.orchestrator import orchestrating
from tests.loops.test_hostile import GOOD, SHA, check_that_it_goes_on, elsewhere

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

    from tests.harness.host import Host

CONTENT = b"1,2,3\n"
VARIABLES = {"ORCHESTRATOR_URL", "JOB_ID", "TASK_ID", "NODE_API_KEY", "TASK_FILES_DIR"}
STATE_FILES = {
    "lock",
    "runner-id",
    "run",
    "journal.sqlite3",
    "journal.sqlite3-wal",
    "journal.sqlite3-shm",
}
PER_EXAMPLE = 6

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
letters = st.text(st.characters(max_codepoint=0x2FFF), max_size=20)
task_ids = st.from_regex(r"[A-Za-z0-9._-]{1,12}", fullmatch=True)
file_names = st.sampled_from(
    ["a.csv", "..", ".", "/tmp/x", "a/../b", "con", "A.CSV", ".victoria-part-0", "-rf", "a\nb", "~"]  # noqa: S108 - to be refused
)
urls = st.sampled_from(
    ["https://o.example/x", "http://o\nX=1", "http://[", "https://a b", "HTTP://O", "http://é"]
)
fields = {
    "prompt": letters,
    "task_id": task_ids,
    "orchestrator_url": urls,
    "timeout_seconds": st.floats(0.5, 1e9) | st.integers(-1, 1 << 70),
    "files": st.lists(file_names | letters, max_size=4),
    "file_checksums": st.lists(st.just(SHA) | letters, max_size=4),
    "image": letters,
}


@st.composite
def assignments(draw: st.DrawFn) -> object:
    """Draw one that is good but for one or two fields; seldom anything at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(anything)
    assigned: dict[str, object] = {"task_id": draw(task_ids), "prompt": "do it"}
    for name in draw(st.lists(st.sampled_from(sorted(fields)), max_size=3)):
        assigned[name] = draw(st.one_of(fields[name], fields[name], fields[name], anything))
    return assigned


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(assigned=st.lists(assignments(), min_size=PER_EXAMPLE, max_size=PER_EXAMPLE))
def test_whatever_is_assigned_the_runner_goes_on_and_writes_nowhere_else(
    caplog: pytest.LogCaptureFixture, assigned: list[object]
) -> None:
    caplog.clear()
    caplog.set_level(logging.INFO, logger="runner")
    backend, options = HARNESS
    anyio.run(live_through, assigned, backend=backend, backend_options=dict(options))

    assert not [record.getMessage() for record in caplog.records if record.exc_info]


async def live_through(assigned: list[object]) -> None:
    """Hand out all of it, and then a good task; check what is left."""
    async with new_host() as host:
        (host.folder / "precious").write_text("untouched")
        before = elsewhere(host)
        for assignment in assigned:
            serve_files_of(assignment, host)
            host.orchestrator.hand_out(assignment)
        async with host.runner():
            while host.orchestrator.queue:
                await host.clock.advance(34)
            await check_that_it_goes_on(host)
        check_what_is_left(host, assigned, before)


def check_what_is_left(host: Host, assigned: list[object], before: dict[Path, object]) -> None:
    """Check that everything is in its place, and that each usable id has one end."""
    assert elsewhere(host) == before
    assert {path.name for path in host.state_dir.iterdir()} <= STATE_FILES
    ids = [one["task_id"] for one in assigned if isinstance(one, dict) and "task_id" in one]
    usable = {one for one in ids if isinstance(one, str) and is_task_id(one)}
    for path in host.home.rglob("*"):
        place = path.relative_to(host.home).parts
        assert place[0] == "tasks"
        assert place[1:2] == () or place[1] in {*usable, GOOD}
        assert place[2:3] in {(), ("files",), ("starts.log",), ("result.txt",)}
        assert not path.is_symlink()
    for task_id in usable:
        # One that is assigned twice is reported twice, with the same message.
        ends = {(end["status"], end["message"]) for end in host.orchestrator.ends(task_id)}
        assert len(ends) == 1
    assert {end["task_id"] for end in host.orchestrator.taken} == {*usable, GOOD}
    assert set(host.engine.starts) <= {f"victoria-{task_id}" for task_id in {*usable, GOOD}}
    assert all(set(given_) <= VARIABLES for given_ in host.engine.variables.values())


def serve_files_of(assignment: object, host: Host) -> None:
    """Have the orchestrator know every file that is named, however it is named."""
    names = assignment.get("files") if isinstance(assignment, dict) else None
    for name in names if isinstance(names, list) else ():
        if isinstance(name, str):
            host.orchestrator.files[name] = CONTENT


@asynccontextmanager
async def new_host() -> AsyncIterator[Host]:
    """Yield a host of its own for each example."""
    clock = VirtualClock()
    with TemporaryDirectory(prefix="victoria-fuzz-") as folder:
        async with (
            orchestrating(clock.uptime_s) as orchestrator,
            hosting(Path(folder) / "host", clock, orchestrator) as host,
        ):
            yield host
