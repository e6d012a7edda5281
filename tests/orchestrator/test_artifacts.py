"""Artifacts: stored whole or not at all, for those alone who may read the task, until it goes."""

import io
import os
import shutil
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import httpx
import pytest
from sqlalchemy import update

from orchestrator.archive import PIECE_BYTES, Entry, safe_names, zip_pieces
from orchestrator.db.tables import Task
from tests.orchestrator.serving import (
    Json,
    RegisteredNode,
    RunningOrchestrator,
    ok,
    refusal,
    rows,
    sha256,
)

CONTENT = bytes(range(256)) * 10_000
NOW = datetime(2026, 1, 31, 9, 26, 52, tzinfo=timezone.utc)


class Running(NamedTuple):
    """A task that runs on a node."""

    node: RegisteredNode
    task_id: str

    def path(self, path: str = "") -> str:
        return f"/tasks/{self.task_id}/artifacts" + (f"/{quote(path)}" if path else "")

    def put(self, path: str, content: bytes, checksum: str | None = None) -> httpx.Response:
        headers = {"X-Checksum-SHA256": checksum or sha256(content)}
        return self.node.http.put(self.path(path), content=content, headers=headers)


def _run(orchestrator: RunningOrchestrator, **fields: object) -> Running:
    node = orchestrator.register()
    return Running(node, orchestrator.assign(node, "running", **fields))


@pytest.fixture
def running(orchestrator: RunningOrchestrator) -> Running:
    return _run(orchestrator)


def _stored(orchestrator: RunningOrchestrator) -> list[Path]:
    return list((orchestrator.settings.data_dir / "artifacts").iterdir())


@pytest.mark.both_databases
def test_artifacts_come_back_whole_one_by_one_and_in_one_archive(
    orchestrator: RunningOrchestrator, running: Running
) -> None:
    files = {"reports/日本 1.csv": b"north,7\n", "empty": b"", "a/b/c.bin": CONTENT}
    for path, content in files.items():
        expected: Json = {"path": path, "size": len(content), "checksum": sha256(content)}
        for _ in range(2):  # The second time as if the first response was lost.
            assert ok(running.put(path, content)) == expected
    running.node.report(running.task_id, "success")
    listed = rows(orchestrator.admin.get(running.path()))
    assert [one.pop("path") for one in listed] == sorted(files)
    assert listed[0].keys() == {"size", "checksum", "created_at"}
    for path, content in files.items():
        response = orchestrator.admin.get(running.path(path))
        assert response.content == content
        assert response.headers["X-Checksum-SHA256"] == sha256(content)
        assert response.headers["Content-Disposition"].startswith("attachment; filename")
        assert response.headers["X-Content-Type-Options"] == "nosniff"
    archive = orchestrator.admin.get(f"{running.path()}.zip")
    assert archive.headers["Content-Type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(archive.content)) as unpacked:
        assert {name: unpacked.read(name) for name in unpacked.namelist()} == files
    assert len(_stored(orchestrator)) == len(files)


@pytest.mark.both_databases
def test_other_bytes_replace_an_artifact_until_the_end_of_its_task(
    orchestrator: RunningOrchestrator, running: Running
) -> None:
    ok(running.put("a.txt", b"first"))
    ok(running.put("a.txt", b"second"))
    assert len(_stored(orchestrator)) == 1
    orchestrator.cancel(running.task_id)
    refused = refusal(running.put("a.txt", b"third"))
    assert refused == (409, "cannot replace the artifact: its task has ended")
    ok(running.put("a.txt", b"second"))
    # The node of a cancelled task sends what there is once the container has ended.
    ok(running.put("b.txt", b"late"))
    assert orchestrator.admin.get(running.path("a.txt")).content == b"second"
    assert len(_stored(orchestrator)) == 2


def test_same_bytes_again_are_stored_if_the_first_are_gone(
    orchestrator: RunningOrchestrator, running: Running
) -> None:
    ok(running.put("a.txt", b"content"))
    running.node.report(running.task_id, "success")
    _stored(orchestrator)[0].unlink()
    for path in (running.path("a.txt"), f"{running.path()}.zip"):
        assert refusal(orchestrator.admin.get(path))[0] == 404
    ok(running.put("a.txt", b"content"))
    assert orchestrator.admin.get(running.path("a.txt")).content == b"content"


@pytest.mark.both_databases
def test_artifact_that_is_sent_several_times_at_once_is_stored_once(
    orchestrator: RunningOrchestrator, running: Running
) -> None:
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda _: running.put("a.bin", CONTENT), range(8)))
    assert [response.status_code for response in responses] == [200] * 8
    assert len(rows(orchestrator.admin.get(running.path()))) == len(_stored(orchestrator)) == 1


def test_only_the_node_that_has_the_task_stores_artifacts(
    orchestrator: RunningOrchestrator, running: Running
) -> None:
    other = orchestrator.register()
    assert refusal(running._replace(node=other).put("a", b"a"))[0] == 403
    by_task = orchestrator.assign(running.node)
    unstarted = Running(running.node, by_task)
    assert refusal(unstarted.put("a", b"a"))[0] == 409
    node_id = other.id
    ok(orchestrator.admin.post("/tasks", json={"prompt": "p", "target_node_id": node_id}))
    assignment = other.poll() or {}
    key = orchestrator.client(assignment["task_api_key"])
    holder = Running(RegisteredNode(node_id, "", "", key), assignment["task_id"])
    other.report(assignment["task_id"], "running")
    assert refusal(holder.put("a", b"a"))[0] == 403
    assert refusal(Running(other, "none").put("a", b"a"))[0] == 404
    assert _stored(orchestrator) == []


def test_role_that_reads_tasks_reads_their_artifacts(orchestrator: RunningOrchestrator) -> None:
    operator = orchestrator.client(orchestrator.create_key(role="operator")["api_key"])
    task_id = ok(operator.post("/tasks", json={"prompt": "p"}))["id"]
    node = orchestrator.register()
    assert node.poll_id() == task_id
    node.report(task_id, "running")
    running = Running(node, task_id)
    ok(running.put("a.txt", b"a"))
    for role, code in (("submitter", 403), ("operator", 404)):
        other = orchestrator.client(orchestrator.create_key(role=role)["api_key"])
        for path in (running.path(), running.path("a.txt"), f"{running.path()}.zip"):
            assert refusal(other.get(path))[0] == code
            assert operator.get(path).status_code == 200
    assert refusal(operator.get(running.path("none")))[0] == 404


ACCEPTED = (
    *("a b.csv", "-rf.txt", ".hidden", "...", "con", 'a<b>:"|?*.txt', " . ", "back\\slash"),
    *("\u200e2026 report.pdf", "\U0001fae0.png", "cafe\u0301.txt", "é" * 127, "/".join("d" * 500)),
)
REFUSED = (
    *("a/../b", "..", "./a", "a//b", "a/", "line\nbreak", "\x7f", "\x85", "é" * 128),
    "/".join("d" * 600),
)


@pytest.mark.parametrize("index", range(len(ACCEPTED)))
def test_path_may_have_what_file_names_have(shared: RunningOrchestrator, index: int) -> None:
    running, path = _run(shared), ACCEPTED[index]
    ok(running.put(path, b"content"))
    assert [one["path"] for one in rows(shared.admin.get(running.path()))] == [path]
    assert shared.admin.get(running.path(path)).content == b"content"


def test_bad_path_is_422_and_leaves_nothing(shared: RunningOrchestrator) -> None:
    running, before = _run(shared), _stored(shared)
    headers = {"X-Checksum-SHA256": sha256(b"")}
    sentences = set()
    for path in REFUSED:
        # Encoded as a whole: httpx would take the dots out of the path.
        encoded = quote(path, safe="").replace(".", "%2e")
        response = running.node.http.put(running.path() + "/" + encoded, headers=headers)
        code, sentence = refusal(response)
        assert (code, sentence[:6]) == (422, "path: "), path
        sentences.add(sentence)
    response = running.node.http.put(running.path() + "/%ff", headers=headers)
    assert refusal(response) == (422, "path: must be URL-encoded UTF-8")
    response = running.node.http.put(running.path() + "/a%00", headers=headers)
    assert refusal(response)[0] == 404
    assert len(sentences) == 4
    assert _stored(shared) == before
    assert rows(shared.admin.get(running.path())) == []


@pytest.mark.parametrize("checksum", ["0" * 64, "nonsense", sha256(b"content").upper()])
def test_wrong_checksum_is_422_and_leaves_nothing(
    shared: RunningOrchestrator, checksum: str
) -> None:
    running, before = _run(shared), _stored(shared)
    assert refusal(running.put("a", b"content", checksum))[0] == 422
    assert refusal(running.node.http.put(running.path("a"), content=b"content"))[0] == 422
    assert _stored(shared) == before


def test_upload_that_breaks_off_leaves_nothing_and_can_be_repeated(
    shared: RunningOrchestrator,
) -> None:
    running, before = _run(shared), _stored(shared)

    def broken() -> Iterator[bytes]:
        yield CONTENT
        raise ConnectionError

    length = {"X-Checksum-SHA256": sha256(CONTENT), "Content-Length": str(2 * len(CONTENT))}
    with pytest.raises(ConnectionError):
        running.node.http.put(running.path("a"), content=broken(), headers=length)
    ok(running.put("a", CONTENT))
    assert len(rows(shared.admin.get(running.path()))) == 1
    assert len(_stored(shared)) == len(before) + 1


@pytest.mark.both_databases
@pytest.mark.settings(max_artifact_bytes=1000, max_task_artifact_bytes=2000, max_task_artifacts=3)
def test_artifacts_of_a_task_are_limited_with_a_sentence(
    orchestrator: RunningOrchestrator, running: Running
) -> None:
    assert refusal(running.put("a", b"x" * 1001)) == (413, "body is over the limit of 1000 bytes")
    pieces = iter([b"x" * 600, b"x" * 600])
    headers = {"X-Checksum-SHA256": sha256(b"x" * 1200)}
    response = running.node.http.put(running.path("a"), content=pieces, headers=headers)
    assert refusal(response)[0] == 413
    ok(running.put("a", b"x" * 1000))
    ok(running.put("b", b"x" * 900))
    pieces = iter([b"y" * 101])
    headers = {"X-Checksum-SHA256": sha256(b"y" * 101)}
    for response in (
        running.put("c", b"y" * 101),
        running.node.http.put(running.path("c"), content=pieces, headers=headers),
    ):
        code, sentence = refusal(response)
        assert (code, "of its task would take more than 2000 bytes" in sentence) == (413, True)
    # What an artifact is replaced by counts instead of it.
    ok(running.put("b", b"y" * 1000))
    ok(running.put("c", b""))
    code, sentence = refusal(running.put("d", b""))
    assert (code, "its task has 3, as many as it may" in sentence) == (413, True)
    assert len(_stored(orchestrator)) == 3
    ok(_run(orchestrator).put("a", b"x" * 1000))


@pytest.mark.settings(node_artifact_bytes=1000)
def test_artifacts_of_a_node_are_limited_whatever_task_they_are_of(
    orchestrator: RunningOrchestrator, running: Running
) -> None:
    other_task = Running(running.node, orchestrator.assign(running.node, "running"))
    pieces = iter([b"y" * 300, b"y" * 300])
    headers = {"X-Checksum-SHA256": sha256(b"y" * 600)}
    for _ in range(3):  # what is stored is not sent again
        ok(running.put("a", b"x" * 600))
    for response in (
        running.put("a", b"y" * 600),  # replaced without end, it would never be more than it may
        other_task.put("b", b"y" * 600),
        other_task.node.http.put(other_task.path("c"), content=pieces, headers=headers),
    ):
        sentence = "a node's artifacts are limited to 1000 bytes a day (--node-artifact-bytes)"
        assert refusal(response) == (429, sentence)
        assert int(response.headers["Retry-After"]) > 60
    assert [path.read_bytes() for path in _stored(orchestrator)] == [b"x" * 600]
    ok(_run(orchestrator).put("a", b"y" * 600))


# No test fills a disk, so this one replaces what the system returns of one.
@pytest.mark.settings(min_free_bytes=2_000_000)
def test_artifact_that_would_fill_the_disk_is_507_and_leaves_nothing(
    orchestrator: RunningOrchestrator,
    running: Running,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=3_000_000))
    no_room = (507, "the server's disk has no room for the file")
    assert refusal(running.put("a", CONTENT)) == no_room
    headers = {"X-Checksum-SHA256": sha256(CONTENT)}
    pieces = iter([CONTENT])
    response = running.node.http.put(running.path("a"), content=pieces, headers=headers)
    assert refusal(response) == no_room
    assert _stored(orchestrator) == []
    ok(running.put("a", b"small"))


def test_wrong_key_is_401_before_the_body_is_stored(shared: RunningOrchestrator) -> None:
    running, before = _run(shared), _stored(shared)
    for client, code in ((shared.client("wrong"), 401), (shared.admin, 403)):
        stranger = running._replace(node=RegisteredNode("", "", "", client))
        assert refusal(stranger.put("a", CONTENT))[0] == code
    assert _stored(shared) == before


def _age(orchestrator: RunningOrchestrator, running: Running) -> None:
    past = datetime.now(timezone.utc) - timedelta(days=8)
    orchestrator.change(update(Task).where(Task.id == running.task_id).values(completed_at=past))


@pytest.mark.both_databases
def test_cleanup_removes_the_artifacts_of_old_tasks_and_orphaned_bytes(
    orchestrator: RunningOrchestrator, running: Running
) -> None:
    ok(running.put("a", b"old"))
    running.node.report(running.task_id, "success")
    _age(orchestrator, running)
    recent = _run(orchestrator)
    ok(recent.put("a", b"recent"))
    recent.node.report(recent.task_id, "success")
    orphan, young = (orchestrator.settings.data_dir / "artifacts" / name for name in ("o", "y"))
    for path in (orphan, young):
        path.touch()
    os.utime(orphan, (0, 0))
    # As when another call removes it while the folder is read.
    gone = orphan.with_name("gone")
    gone.symlink_to("nowhere")
    assert ok(orchestrator.admin.post("/tasks/cleanup")) == {"deleted_count": 1}
    assert not orphan.exists()
    young.unlink()
    gone.unlink()
    assert [path.read_bytes() for path in _stored(orchestrator)] == [b"recent"]
    assert refusal(orchestrator.admin.get(running.path("a")))[0] == 404
    assert orchestrator.admin.get(recent.path("a")).content == b"recent"


def test_start_removes_uploads_that_no_server_writes(
    orchestrator: RunningOrchestrator, running: Running
) -> None:
    ok(running.put("a", b"a"))
    (orchestrator.settings.data_dir / "artifacts" / "crashed.partial").touch()
    orchestrator.restart()
    assert [path.suffix for path in _stored(orchestrator)] == [""]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        *((path, path) for path in ("a/b.txt", ".hidden", "日本.csv", "ab:c", "x/C:", "...x")),
        ("..\\..\\evil", ".._.._evil"),
        ("C:/evil", "C_/evil"),
        ("c:evil", "c_evil"),
        (".. /.. ./evil", "___/____/evil"),
        ("a/... ", "a/____"),
    ],
)
def test_name_in_an_archive_stays_below_its_folder(path: str, expected: str) -> None:
    assert safe_names([path]) == [expected]


def test_names_in_an_archive_are_different() -> None:
    names = safe_names(["a\\b", "a_b", "a\\\\b", "a_\\b"])
    assert names == ["a_b (2)", "a_b", "a__b", "a__b (2)"]


def test_archive_is_built_in_small_pieces(tmp_path: Path) -> None:
    file = tmp_path / "random"
    content = os.urandom(20 * PIECE_BYTES)
    file.write_bytes(content)
    entry = Entry("random", len(content), NOW, file)
    pieces = list(zip_pieces([entry]))
    assert max(map(len, pieces)) < 2 * PIECE_BYTES
    with zipfile.ZipFile(io.BytesIO(b"".join(pieces))) as archive:
        assert archive.read("random") == content
        assert archive.getinfo("random").date_time == (2026, 1, 31, 9, 26, 52)


def test_archive_whose_file_is_gone_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    entries = [Entry(name, 1, NOW, tmp_path / name) for name in ("a", "gone")]
    with pytest.raises(zipfile.BadZipFile):
        zipfile.ZipFile(io.BytesIO(b"".join(zip_pieces(entries))))


@pytest.mark.long
def test_archive_has_files_of_more_than_4_gib(tmp_path: Path) -> None:
    size = 4 * 1024**3 + 1
    with (tmp_path / "sparse").open("wb") as sparse:
        sparse.truncate(size)
    with (tmp_path / "archive.zip").open("wb") as target:
        for piece in zip_pieces([Entry("sparse", size, NOW, tmp_path / "sparse")]):
            target.write(piece)
    with zipfile.ZipFile(tmp_path / "archive.zip") as archive:
        assert archive.getinfo("sparse").file_size == size
        assert archive.testzip() is None
