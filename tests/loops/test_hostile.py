"""Whatever an orchestrator assigns, nothing is written elsewhere, and the runner goes on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests.harness.orchestrator import POLL, sha256
from tests.harness.server import json_response, raw, serving

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.host import Host
    from tests.harness.server import Answer

pytestmark = pytest.mark.anyio

GOOD = "good"
CONTENT = b"1,2,3\n"
SHA = sha256(CONTENT)
NO_ID = "cannot read the assignment: its task_id must be 1 to 128 letters"


@dataclass(frozen=True)
class Bad:
    """What is assigned, and the sentence that must come of it."""

    sentence: str
    fields: dict[str, object] = field(default_factory=dict)
    """What a good assignment is changed by."""
    served: dict[str, bytes | Answer] = field(default_factory=dict)
    """The files that the orchestrator has."""


# Every field and sentence is in tests/unit/test_assignment.py.
UNUSABLE: dict[str, tuple[object, str]] = {
    "not an object": (["t-1"], "cannot read the assignment: it is not a JSON object"),
    "no id": ({"prompt": "do it"}, NO_ID),
    "climbing id": ({"task_id": "../../escaped", "prompt": "do it"}, NO_ID),
    "id that is a flag": ({"task_id": "--privileged", "prompt": "do it"}, NO_ID),
}

REJECTED: dict[str, Bad] = {
    "NUL in the prompt": Bad("its prompt has a NUL character in it", {"prompt": "a\0b"}),
    "prompt of 3 MB": Bad("its prompt has 3000000 bytes", {"prompt": "x" * 3_000_000}),
    "half a character": Bad("its prompt is not valid Unicode", {"prompt": "\ud83d"}),
    "timeout that is not a number": Bad(
        "its timeout_seconds must lie between 0 and", {"timeout_seconds": float("nan")}
    ),
    "newline in the URL": Bad(
        "its orchestrator_url is not a URL", {"orchestrator_url": "https://a\nNODE_API_KEY=x"}
    ),
    "climbing file": Bad("is not a plain name", {"files": ["../../../escaped"]}),
    "newline in a file's name": Bad("has control characters in it", {"files": ["a\nb"]}),
    "too few checksums": Bad(
        "its file_checksums do not match its files", {"files": ["a", "b"], "file_checksums": [SHA]}
    ),
}

UNSTARTABLE: dict[str, Bad] = {
    "file that is not there": Bad(
        "cannot fetch the file 'gone.csv': HTTP 404: no such file", {"files": ["gone.csv"]}
    ),
    "other content than promised": Bad(
        f"cannot use the file 'a': its SHA-256 is {sha256(b'evil')}, not {SHA}",
        {"files": ["a"], "file_checksums": [SHA]},
        {"a": b"evil"},
    ),
    "file larger than the disk": Bad(
        "cannot fetch the file 'a': it takes",
        {"files": ["a"]},
        {"a": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999999999\r\n\r\nxxxx")},
    ),
    "file that is refused": Bad(
        "cannot fetch the file 'a': HTTP 403: not yours",
        {"files": ["a"]},
        {"a": json_response({"detail": "not yours"}, 403)},
    ),
}


def elsewhere(host: Host) -> dict[Path, object]:
    """List everything around the Victoria home and the state folder, and what it is."""
    around = [host.folder.parent, *host.folder.parent.iterdir(), *host.folder.rglob("*")]
    ours = (host.home, host.state_dir)
    return {
        path: path.read_bytes() if path.is_file() else path.is_dir()
        for path in around
        if not any(folder == path or folder in path.parents for folder in ours)
    }


async def check_that_it_goes_on(host: Host) -> None:
    """Run a good task."""
    await host.clock.settle()
    host.orchestrator.offer(GOOD)
    await host.clock.advance(34)
    assert (await host.wait_for_end(GOOD))["status"] == "success"


@pytest.mark.parametrize(("assignment", "sentence"), UNUSABLE.values(), ids=UNUSABLE.keys())
async def test_assignment_without_a_usable_id_is_logged_and_not_reported(
    host: Host, log: pytest.LogCaptureFixture, assignment: object, sentence: str
) -> None:
    (host.folder / "precious").write_text("untouched")
    before = elsewhere(host)
    host.orchestrator.hand_out(assignment)
    async with host.runner():
        await host.wait_for_calls(POLL)
        await check_that_it_goes_on(host)

    assert f"assignment rejected: {sentence}" in log.text
    assert {report["task_id"] for report in host.orchestrator.taken} == {GOOD}
    assert elsewhere(host) == before
    assert [path.name for path in (host.home / "tasks").iterdir()] == [GOOD]
    assert list(host.engine.starts) == [f"victoria-{GOOD}"]


@pytest.mark.parametrize(
    ("reason", "bad"),
    [
        *(("rejected", bad) for bad in REJECTED.values()),
        *(("unstartable", bad) for bad in UNSTARTABLE.values()),
    ],
    ids=[*REJECTED, *UNSTARTABLE],
)
async def test_assignment_that_cannot_be_carried_out_is_reported_with_the_sentence(
    host: Host, reason: str, bad: Bad
) -> None:
    (host.folder / "precious").write_text("untouched")
    before = elsewhere(host)
    host.orchestrator.files.update(bad.served)
    host.orchestrator.hand_out({"task_id": "t-1", "prompt": "do it", **bad.fields})
    async with host.runner():
        end = await host.wait_for_end()
        await check_that_it_goes_on(host)

    assert end["status"] == "error"
    assert end["message"].startswith(f"{reason}: cannot ")
    assert bad.sentence in end["message"]
    assert "\n" not in end["message"]
    assert host.starts_of("t-1") == 0
    assert elsewhere(host) == before
    written = {path.relative_to(host.home).as_posix() for path in host.home.rglob("*")}
    ours = {"tasks", "tasks/t-1", "tasks/t-1/files"}
    assert all(path in ours or f"tasks/{GOOD}" in path for path in written)


async def test_rejected_assignment_that_is_offered_on_and_on_is_not_asked_for_without_end(
    host: Host,
) -> None:
    for _ in range(50):
        host.orchestrator.hand_out({"task_id": "t-1", "prompt": ""})
    async with host.runner():
        await host.wait_for_state("t-1", "closed")
        await host.clock.advance(600)

    assert host.orchestrator.count(POLL) <= 25


async def test_key_is_not_sent_to_the_address_of_an_assignment(
    host: Host,
) -> None:
    host.orchestrator.files["a.csv"] = CONTENT
    async with serving() as decoy:
        decoy.answer(json_response({}))
        assigned = {"files": ["a.csv"], "orchestrator_url": decoy.url}
        assert (await host.finish_task(assigned=assigned))["status"] == "success"
        assert decoy.requests == []
