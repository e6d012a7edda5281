"""Whatever an orchestrator assigns, nothing is written elsewhere, and the runner goes on.

One assignment of each kind first, then assignments by chance. Every field and sentence is in
tests/unit/test_assignment.py, where the checks themselves are fuzzed as well.
"""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.model import is_task_id
from tests.harness.clock import VirtualClock
from tests.harness.host import Host, hosting
from tests.harness.loop import HARNESS
from tests.harness.orchestrator import POLL, orchestrating, sha256
from tests.harness.server import Answer, json_response, raw, serving
from tests.loops.steps import Log, finish_another

pytestmark = pytest.mark.anyio

GOOD = "good"
CONTENT = b"1,2,3\n"
SHA = sha256(CONTENT)
NO_ID = "cannot read the assignment: its task_id must be 1 to 128 letters"

UNUSABLE: dict[str, tuple[object, str]] = {
    "not an object": (["t-1"], "cannot read the assignment: it is not a JSON object"),
    "no id": ({"prompt": "do it"}, NO_ID),
    "climbing id": ({"task_id": "../../escaped", "prompt": "do it"}, NO_ID),
    "id that is a flag": ({"task_id": "--privileged", "prompt": "do it"}, NO_ID),
}

URL_LINES = "https://a\nNODE_API_KEY=x"
CHECKSUM = {"files": ["a"], "file_checksums": [SHA]}
EVIL = f"its SHA-256 is {sha256(b'evil')}, not {SHA}"
LARGE = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999999999\r\n\r\nxxxx")
NOT_YOURS = json_response({"detail": "not yours"}, 403)
TIMEOUT = "its timeout_seconds must lie between 0 and"
TWO_FILES = {"files": ["a", "b"], "file_checksums": [SHA]}

IMPOSSIBLE: dict[str, tuple[dict[str, Any], bytes | Answer, str, str]] = {
    "NUL": ({"prompt": "a\0b"}, b"", "rejected", "its prompt has a NUL character in it"),
    "3 MB": ({"prompt": "x" * 3_000_000}, b"", "rejected", "its prompt has 3000000 bytes"),
    "half a character": ({"prompt": "\ud83d"}, b"", "rejected", "its prompt is not valid Unicode"),
    "timeout": ({"timeout_seconds": float("nan")}, b"", "rejected", TIMEOUT),
    "URL": ({"orchestrator_url": URL_LINES}, b"", "rejected", "its orchestrator_url is not a URL"),
    "climbing file": ({"files": ["../../../escaped"]}, b"", "rejected", "is not a plain name"),
    "newline in a name": ({"files": ["a\nb"]}, b"", "rejected", "has control characters in it"),
    "checksums": (TWO_FILES, b"", "rejected", "its file_checksums do not match its files"),
    "no file": ({"files": ["b"]}, b"", "unstartable", "the file 'b': HTTP 404: no such file"),
    "other content": (CHECKSUM, b"evil", "unstartable", EVIL),
    "large file": ({"files": ["a"]}, LARGE, "unstartable", "cannot fetch the file 'a': it takes"),
    "refused file": ({"files": ["a"]}, NOT_YOURS, "unstartable", "'a': HTTP 403: not yours"),
}
"""A field of the assignment, the file a that the orchestrator has, the reason and the sentence."""


def elsewhere(host: Host) -> dict[Path, object]:
    """List everything around the Victoria home and the state folder, and what it is."""
    (host.folder / "precious").write_text("untouched")
    around = [host.folder.parent, *host.folder.parent.iterdir(), *host.folder.rglob("*")]
    ours = (host.home, host.state_dir)
    return {
        path: path.read_bytes() if path.is_file() else path.is_dir()
        for path in around
        if not any(folder == path or folder in path.parents for folder in ours)
    }


@pytest.mark.parametrize(("assignment", "sentence"), UNUSABLE.values(), ids=UNUSABLE.keys())
async def test_assignment_without_a_usable_id_is_logged_and_not_reported(
    host: Host, log: Log, assignment: object, sentence: str
) -> None:
    before = elsewhere(host)
    host.orchestrator.hand_out(assignment)
    async with host.runner():
        await finish_another(host, GOOD)
    assert f"assignment rejected: {sentence}" in log.text
    assert {report["task_id"] for report in host.orchestrator.taken} == {GOOD}
    assert elsewhere(host) == before
    assert [path.name for path in (host.home / "tasks").iterdir()] == [GOOD]
    assert list(host.engine.starts) == [f"victoria-{GOOD}"]


@pytest.mark.parametrize(
    ("fields", "file", "reason", "sentence"), IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys()
)
async def test_assignment_that_cannot_be_carried_out_is_reported_with_the_sentence(
    host: Host, fields: dict[str, Any], file: bytes | Answer, reason: str, sentence: str
) -> None:
    before = elsewhere(host)
    host.orchestrator.files["a"] = file
    host.orchestrator.hand_out({"task_id": "t-1", "prompt": "do it", **fields})
    async with host.runner():
        end = await host.wait_for_end()
        await finish_another(host, GOOD)
    assert end["status"] == "error"
    assert end["message"].startswith(f"{reason}: cannot ")
    assert sentence in end["message"]
    assert "\n" not in end["message"]
    assert host.starts_of("t-1") == 0
    assert elsewhere(host) == before
    written = {path.relative_to(host.home).as_posix() for path in host.home.rglob("*")}
    ours = {"tasks", *(f"tasks/t-1{below}" for below in ("", "/files", "/artifacts"))}
    assert all(path in ours or f"tasks/{GOOD}" in path for path in written)


async def test_rejected_assignment_that_is_offered_on_and_on_makes_no_flood(host: Host) -> None:
    for _ in range(50):
        host.orchestrator.hand_out({"task_id": "t-1", "prompt": ""})
    async with host.runner():
        await host.wait_for_state("t-1", "closed")
        await host.clock.advance(600)
    assert host.orchestrator.count(POLL) <= 25


async def test_key_is_not_sent_to_the_address_of_an_assignment(host: Host) -> None:
    host.orchestrator.files["a.csv"] = CONTENT
    async with serving() as decoy:
        decoy.answer(json_response({}))
        assigned = {"files": ["a.csv"], "orchestrator_url": decoy.url}
        assert (await host.finish_task(assigned=assigned))["status"] == "success"
        assert decoy.requests == []


# By chance: most are good but for one or two fields, so that they come past the first check

FOLDERS = {"TASK_FILES_DIR", "TASK_ARTIFACTS_DIR"}
VARIABLES = {"ORCHESTRATOR_URL", "JOB_ID", "TASK_ID", "NODE_API_KEY", *FOLDERS}
STATE = {
    "identity.json",
    "lock",
    "runner-id",
    "run",
    *(f"journal.sqlite3{end}" for end in ("", "-wal", "-shm")),
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
urls = st.sampled_from(["https://o.example/x", "http://o\nX=1", "http://[", "HTTP://O", "http://é"])
fields_by_chance = {
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
    for name in draw(st.lists(st.sampled_from(sorted(fields_by_chance)), max_size=3)):
        good = fields_by_chance[name]
        assigned[name] = draw(st.one_of(good, good, good, anything))
    return assigned


@pytest.mark.long
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(assigned=st.lists(assignments(), min_size=PER_EXAMPLE, max_size=PER_EXAMPLE))
def test_whatever_is_assigned_the_runner_goes_on_and_writes_nowhere_else(
    caplog: pytest.LogCaptureFixture, assigned: list[object]
) -> None:
    caplog.clear()
    caplog.set_level(logging.INFO, logger="runner")
    backend, options = HARNESS
    anyio.run(assign_all, assigned, backend=backend, backend_options=dict(options))
    assert not [record.getMessage() for record in caplog.records if record.exc_info]


async def assign_all(assigned: list[object]) -> None:
    """Hand out all of it to a new host, then a good task; check what is left."""
    clock = VirtualClock()
    with TemporaryDirectory(prefix="victoria-fuzz-") as folder:
        async with (
            orchestrating(clock.uptime_s) as orchestrator,
            hosting(Path(folder) / "host", clock, orchestrator) as host,
        ):
            before = elsewhere(host)
            for assignment in assigned:
                serve_files_of(assignment, host)
                host.orchestrator.hand_out(assignment)
            async with host.runner():
                while host.orchestrator.queue:
                    await host.clock.advance(34)
                await finish_another(host, GOOD)
            assert elsewhere(host) == before
            check_what_is_left(host, assigned)


def serve_files_of(assignment: object, host: Host) -> None:
    """Have the orchestrator know every file that is named, however it is named."""
    names = assignment.get("files") if isinstance(assignment, dict) else None
    for name in names if isinstance(names, list) else ():
        if isinstance(name, str):
            host.orchestrator.files[name] = CONTENT


def check_what_is_left(host: Host, assigned: list[object]) -> None:
    """Check that everything is in its place, and that each usable id has one end."""
    assert {path.name for path in host.state_dir.iterdir()} <= STATE
    ids = [one["task_id"] for one in assigned if isinstance(one, dict) and "task_id" in one]
    usable = {one for one in ids if isinstance(one, str) and is_task_id(one)}
    for path in host.home.rglob("*"):
        place = path.relative_to(host.home).parts
        assert place[0] == "tasks"
        assert place[1:2] == () or place[1] in {*usable, GOOD}
        assert place[2:3] in {(), ("files",), ("artifacts",), ("starts.log",), ("result.txt",)}
        assert not path.is_symlink()
    for task_id in usable:
        # One that is assigned twice is reported twice, with the same message.
        ends = host.orchestrator.ends(task_id)
        assert len({(end["status"], end["message"]) for end in ends}) == 1
    assert {end["task_id"] for end in host.orchestrator.taken} == {*usable, GOOD}
    assert set(host.engine.starts) <= {f"victoria-{task_id}" for task_id in {*usable, GOOD}}
    assert all(set(variables) <= VARIABLES for variables in host.engine.variables.values())
