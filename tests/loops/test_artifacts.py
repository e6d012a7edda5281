"""What a task leaves in its folder of artifacts is uploaded before its final status, or named."""

import io
import os
import tarfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from runner.engine.base import Container, Phase
from runner.journal.journal import open_journal
from runner.model import Identity, TaskState
from runner.outbox import retry_reports
from runner.redaction import Secret
from runner.state_dir import run_folder
from runner.tasks.artifacts import find_artifacts
from runner.tasks.context import TaskContext
from runner.tasks.outcome import final_report
from tests.harness.engine import FakeEngine
from tests.harness.host import Host, container_of
from tests.harness.orchestrator import ARTIFACT, BEAT, STATUS
from tests.harness.server import Answer, http, json_response, stalled
from tests.harness.until import until
from tests.loops.steps import FAILED, Log, leave_task
from tests.unit.another_user import as_another_user

pytestmark = pytest.mark.anyio

REPORT = "Bericht für 50 %.csv"
CONTENTS = {"a.txt": b"one", f"more/{REPORT}": b"1,2\n" * 600_000, "z": b""}
TARGETS = {
    "a.txt": "/tasks/t-1/artifacts/a.txt",
    "z": "/tasks/t-1/artifacts/z",
}


@pytest.fixture(autouse=True)
def _extension(host: Host) -> None:
    host.orchestrator.extensions = ["artifacts"]


def folder(host: Host) -> Path:
    return host.home / "tasks" / "t-1" / "artifacts"


def leave(host: Host, contents: dict[str, bytes] = CONTENTS) -> None:
    for path, content in contents.items():
        (folder(host) / path).parent.mkdir(parents=True, exist_ok=True)
        (folder(host) / path).write_bytes(content)


async def finish(
    host: Host,
    leave_all: Callable[[Host], None] = leave,
    prompt: str = "[wait-for go]",
    **changed: Any,  # noqa: ANN401 - fields of Settings
) -> str:
    """Run a task that leaves these artifacts; return the message of its final report."""
    async with host.running_task(prompt, **changed):
        leave_all(host)
        host.let_go()
        await host.pass_time_until_closed("t-1", step_s=30)
        return str((await host.wait_for_end())["message"])


def taken(host: Host) -> dict[str, bytes]:
    return {path: content for (_, path), content in host.orchestrator.artifacts.items()}


async def test_artifacts_are_uploaded_with_their_checksums_before_the_final_status(
    host: Host,
) -> None:
    message = await finish(host)
    assert taken(host) == CONTENTS
    assert "artifact" not in message
    calls = [call.request for call in host.orchestrator.calls]
    uploads = [index for index, call in enumerate(calls) if ARTIFACT.fullmatch(call.target)]
    final = max(index for index, call in enumerate(calls) if call.target == STATUS)
    assert max(uploads) < final
    assert [calls[index].target for index in uploads] == [
        "/tasks/t-1/artifacts/a.txt",
        "/tasks/t-1/artifacts/more/Bericht%20f%C3%BCr%2050%20%25.csv",
        "/tasks/t-1/artifacts/z",
    ]
    assert {call.method for call in calls if ARTIFACT.fullmatch(call.target)} == {"PUT"}
    variables = host.engine.variables[container_of("t-1")]
    assert variables["TASK_ARTIFACTS_DIR"] == "/workspace/Victoria/tasks/t-1/artifacts"


async def test_artifacts_of_a_failed_task_are_uploaded(host: Host) -> None:
    message = await finish(host, prompt="[wait-for go][fail 7]")
    assert message.startswith("failed: exit code 7")
    assert taken(host) == CONTENTS


async def test_without_the_extension_the_files_stay_and_the_message_names_the_folder(
    host: Host,
) -> None:
    host.orchestrator.extensions = []
    message = await finish(host)
    assert taken(host) == {}
    assert message.startswith("completed: exit code 0")
    assert f"does not take any; they are in {folder(host)} on the host" in message
    assert (folder(host) / "a.txt").read_bytes() == b"one"


async def test_task_without_artifacts_uploads_nothing_and_says_nothing(host: Host) -> None:
    assert "artifact" not in await finish(host, lambda _: None)
    assert host.orchestrator.uploads() == []


def leave_hostile_tree(host: Host) -> None:
    """Leave one honest file among all that must not be opened, followed or believed."""
    root = folder(host)
    outside = host.folder / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (root / "link").symlink_to(outside / "secret")
    (root / "linked").symlink_to(outside)
    os.mkfifo(root / "pipe")
    if os.geteuid() == 0:
        os.mknod(root / "device", 0o20666, os.makedev(1, 5))  # /dev/zero
    with (root / "sparse").open("wb") as file:
        file.truncate(1 << 42)
    (root / "a\nb\x1b[31m").touch()
    (root / os.fsdecode(b"\xff")).touch()
    deep = os.open(root, os.O_RDONLY)
    for _ in range(300):
        os.mkdir("d" * 200, dir_fd=deep)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(deep)
    leave(host, {"honest": b"honest"})


async def test_hostile_tree_yields_its_regular_files_and_one_line(host: Host, log: Log) -> None:
    message = await finish(host, leave_hostile_tree)
    assert taken(host) == {"honest": b"honest"}
    sentence = message.partition("\n\n")[2]
    assert " artifacts are not uploaded; see " in sentence
    assert "it is not a regular file" in sentence
    assert sentence.isprintable()
    (line,) = [one for one in log.messages if "are not uploaded" in one]
    assert line == sentence


@pytest.mark.parametrize(
    ("contents", "uploaded", "reason"),
    [
        (
            {"a": b"1", "b": b"2", "c": b"3"},
            ["a", "b"],
            "'c': there are more than --max-artifacts 2",
        ),
        ({"a": b"12345", "b": b"2"}, ["b"], "'a': it has more than --max-artifact-size 4 B"),
    ],
    ids=["number", "size"],
)
async def test_limit_is_kept_and_named(
    host: Host, log: Log, contents: dict[str, bytes], uploaded: list[str], reason: str
) -> None:
    limits: dict[str, Any] = {"max_artifacts": 2, "max_artifact_size": 4}
    message = await finish(host, lambda host: leave(host, contents), **limits)
    assert host.orchestrator.uploads() == uploaded
    assert f"1 artifact is not uploaded; see {folder(host)} on the host: {reason}" in message
    assert reason in log.text


@pytest.mark.parametrize(
    "answer",
    [
        json_response({"detail": "too large"}, 413),
        http(413, b"<html>", {"Content-Type": "text/html"}),
        json_response({"detail": "not so"}, 422),
    ],
    ids=["413", "413 of a proxy", "422"],
)
async def test_refusal_of_one_artifact_keeps_no_other(host: Host, answer: Answer) -> None:
    host.orchestrator.always(TARGETS["a.txt"], answer)
    message = await finish(host)
    assert sorted(taken(host)) == [f"more/{REPORT}", "z"]
    assert "1 artifact is not uploaded" in message
    assert "'a.txt': " in message


async def test_refusal_of_all_is_parked_and_the_status_says_so(host: Host) -> None:
    host.orchestrator.always(TARGETS["a.txt"], json_response({"detail": "no such task"}, 404))
    message = await finish(host)
    assert host.orchestrator.uploads() == ["a.txt"]
    assert "the artifacts are not uploaded and stay in" in message
    assert "no such task" in message
    (parked,) = host.rows("SELECT path, parked FROM outbox")
    assert parked["path"] == "artifacts"

    host.orchestrator.always(TARGETS["a.txt"], None)
    async with host.runner():
        assert await retry_reports(host.settings(), ["t-1"], lambda _: None) == 0
        await host.pass_time_until(lambda: not host.rows("SELECT * FROM outbox"))
    assert taken(host) == CONTENTS


async def test_uploads_that_keep_failing_while_other_calls_succeed_are_given_up(
    host: Host,
) -> None:
    full = json_response({"detail": "the disk is full"}, 507, {"Retry-After": "3600"})
    host.orchestrator.always(TARGETS["z"], full)
    begun = host.clock.uptime_s()
    message = await finish(host)
    assert host.orchestrator.uploads().count("z") == 16
    assert host.orchestrator.uploads().count("a.txt") == 1
    assert "the other artifacts are not uploaded" in message
    assert "given up after 16 attempts: HTTP 507: the disk is full" in message
    assert host.clock.uptime_s() - begun < 1800


async def test_outage_with_a_restart_within_it_only_delays_the_uploads(
    host: Host,
) -> None:
    async with host.running_task():
        leave(host)
        host.orchestrator.is_down = True
        host.let_go()
        await host.wait_for_state("t-1", "ended")
        await host.clock.advance(600)
    async with host.runner():
        await host.clock.advance(60)
    assert taken(host) == {}
    host.orchestrator.is_down = False
    async with host.runner():
        await host.pass_time_until_closed("t-1")
        assert "artifact" not in (await host.wait_for_end())["message"]
    assert taken(host) == CONTENTS


@pytest.mark.parametrize("path", list(TARGETS))
async def test_runner_that_is_killed_during_an_upload_goes_on_with_it(
    host: Host, path: str
) -> None:
    host.orchestrator.then(TARGETS[path], stalled(b""))
    async with host.running_task():
        leave(host)
        host.let_go()
        await until(lambda: path in host.orchestrator.uploads())
    assert host.orchestrator.ends("t-1") == []
    async with host.runner():
        await host.pass_time_until_closed("t-1")
        await host.wait_for_end()
    assert taken(host) == CONTENTS
    sent = host.orchestrator.uploads()
    assert {one: sent.count(one) for one in sent} == {**dict.fromkeys(CONTENTS, 1), path: 2}


async def test_heartbeats_name_a_task_until_its_artifacts_are_uploaded(host: Host) -> None:
    # Else an orchestrator may take it for lost: its time limit may be over long before that.
    stuck = http(507, b"full", {"Retry-After": "3600"})
    host.orchestrator.always(TARGETS["a.txt"], stuck)
    async with host.running_task():
        leave(host)
        host.let_go()
        await until(lambda: "a.txt" in host.orchestrator.uploads())
        await host.clock.advance(1.1)
        await until(lambda: "current_task_id" in host.orchestrator.called(BEAT)[-1].body)
        await host.clock.advance(31)
        assert host.orchestrator.called(BEAT)[-1].body["current_task_id"] == "t-1"
    seen = host.orchestrator.count(BEAT)
    async with host.runner():
        await host.wait_for_calls(BEAT, seen + 1)
        assert host.orchestrator.called(BEAT)[seen].body["current_task_id"] == "t-1", "at once"
        await host.clock.advance(31)
        assert host.orchestrator.called(BEAT)[-1].body["current_task_id"] == "t-1"
        assert host.orchestrator.called(BEAT)[-1].body["status"] == "idle"
        host.orchestrator.always(TARGETS["a.txt"], None)
        await host.pass_time_until_closed("t-1")
        await host.clock.advance(31)
    assert "current_task_id" not in host.orchestrator.called(BEAT)[-1].body


@pytest.mark.parametrize("name", ["node-key-1-node-key-1", f"{'x' * 190}node-key-1-node-key-1"])
async def test_key_in_the_name_of_an_artifact_is_redacted_in_the_message(
    host: Host, name: str
) -> None:
    names = {name: b"12345"}
    message = await finish(host, lambda host: leave(host, names), max_artifact_size=1)
    assert "1 artifact is not uploaded" in message
    assert "node-key" not in message


class ArchivingEngine(FakeEngine):
    """One whose containers have one file each, and that is root's."""

    async def copy_out(self, name: str, path: str, archive: Path, max_bytes: int) -> bool:
        self.called[f"copy {name} {path}"] += 1
        assert max_bytes > 0
        with tarfile.open(archive, "x") as tar:
            member = tarfile.TarInfo("a.txt")
            member.size = 3
            tar.addfile(member, io.BytesIO(b"one"))
        return True


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can leave files of another user")
async def test_what_this_user_may_not_read_is_copied_by_the_engine_and_uploaded(
    host: Host,
) -> None:
    # Not in pytest's own folder, which other users may not enter.
    with TemporaryDirectory() as made:
        elsewhere = replace(host, folder=Path(made))
        elsewhere.home.mkdir()
        elsewhere.state_dir.mkdir()
        engine = await _leave_with_a_copy(elsewhere)
        assert [call for call in engine.called if call.startswith("copy c0ffee")] == [
            "copy c0ffee /workspace/Victoria/tasks/t-1/artifacts/a.txt"
        ]
        (folder(elsewhere) / "a.txt").unlink()  # it is the copy that is uploaded
        async with elsewhere.runner():
            await elsewhere.pass_time_until_closed("t-1")
            await elsewhere.wait_for_end()
    assert taken(host) == {"a.txt": b"one"}


async def _leave_with_a_copy(host: Host) -> ArchivingEngine:
    """Write what a runner of another user has written when t-1 has left a file of root's."""
    await leave_task(host, TaskState.RUNNING)
    leave(host, {"a.txt": b"one"})
    (folder(host) / "a.txt").chmod(0o600)
    host.folder.chmod(0o755)
    host.state_dir.chmod(0o755)
    for place in (folder(host).parent, run_folder(host.state_dir)):
        place.chmod(0o777)
    engine = ArchivingEngine("image")
    journal, _ = open_journal(host.state_dir, "now")
    with closing(journal.connection):
        await journal.store_extensions(Identity("node-1", Secret("node-key-1")), ["artifacts"])
        async with host.parts(journal) as parts:
            record = await journal.task("t-1")
            assert record is not None
            task = TaskContext(record, replace(parts, engine=engine))
            with as_another_user():
                container = Container("c0ffee", "victoria-t-1", Phase.EXITED)
                reports = await find_artifacts(task, container)
        await journal.end("t-1", FAILED, [*reports, final_report("t-1", FAILED, 0)], 0)
    assert not list(run_folder(host.state_dir).iterdir())
    return engine
