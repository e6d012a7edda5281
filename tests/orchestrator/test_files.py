"""Files: stored whole or not at all, under safe names, for the node that holds their task alone."""

import errno
import fcntl
import os
import shutil
from io import FileIO
from pathlib import Path
from urllib.parse import quote

import pytest

from orchestrator import uploads
from tests.orchestrator.serving import RunningOrchestrator, ok, refusal, sha256

CONTENT = bytes(range(256)) * 10_000
NO_ROOM = (507, "the server's disk has no room for the file")


def _stored(orchestrator: RunningOrchestrator) -> list[Path]:
    return [path for path in orchestrator.settings.data_dir.rglob("files/*") if path.is_file()]


def _names_outside(orchestrator: RunningOrchestrator) -> set[str]:
    data_dir = orchestrator.settings.data_dir
    return {path.name for path in [*data_dir.parent.iterdir(), *data_dir.iterdir()]}


def _refused_upload(orchestrator: RunningOrchestrator, size: int) -> tuple[int, str]:
    files = {"file": ("large.bin", b"x" * size)}
    refused = refusal(orchestrator.admin.post("/upload", files=files))
    assert _stored(orchestrator) == []
    return refused


def test_holder_downloads_files_whole_and_in_their_order(orchestrator: RunningOrchestrator) -> None:
    node = orchestrator.register()
    files = [("same.txt", b"one"), ("same.txt", b""), ("with space.csv", b"\r\n--boundary\r\n")]
    files.append(("日本.md", CONTENT))
    uploaded = [orchestrator.upload(name, content) for name, content in files]
    names = [file["filename"] for file in reversed(uploaded)]
    orchestrator.create_task(files=names)
    assignment = node.poll()
    assert assignment is not None
    assert assignment["files"] == names
    assert assignment["original_names"] == [name for name, _ in reversed(files)]
    checksums = reversed(assignment["file_checksums"])
    for file, checksum, (name, content) in zip(uploaded, checksums, files, strict=True):
        response = node.http.get(f"/files/{quote(file['filename'], safe='')}")
        assert (response.content, checksum) == (content, sha256(content))
        assert (file["original_name"], file["filename"][-len(name) :]) == (name, name)


def test_file_is_sent_whole_whatever_range_is_requested(shared: RunningOrchestrator) -> None:
    node, file = shared.register(), shared.upload("a.txt", b"abc")["filename"]
    shared.assign(node, files=[file])
    for span in ("bytes=0-0", "bytes=100-200", "nonsense"):
        response = node.http.get(f"/files/{file}", headers={"Range": span})
        assert (response.status_code, response.content) == (200, b"abc")
        assert response.headers["Accept-Ranges"] == "none"


@pytest.mark.both_databases
def test_file_is_404_before_and_after_its_node_has_it(orchestrator: RunningOrchestrator) -> None:
    node = orchestrator.register()
    path = f"/files/{orchestrator.upload('a.txt', b'a')['filename']}"
    task_id = orchestrator.create_task(files=[path.rpartition("/")[2]])["id"]
    codes = [node.http.get(path).status_code]
    node.poll()
    codes.append(node.http.get(path).status_code)
    node.report(task_id, "success")
    codes.append(node.http.get(path).status_code)
    assert codes == [404, 200, 404]


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "..\\..\\passwd", "..", "%2e%2e%2fpasswd", ".bashrc", "é" * 300]
)
def test_name_cannot_leave_the_folder(shared: RunningOrchestrator, name: str) -> None:
    node, outside, before = shared.register(), _names_outside(shared), len(_stored(shared))
    filename = shared.upload(name, b"harmless")["filename"]
    assert (_names_outside(shared), len(_stored(shared))) == (outside, before + 1)
    assert not {"/", "\\"} & set(filename)
    assert (filename[0] == ".", len(filename.encode()) > 255) == (False, False)
    shared.assign(node, files=[filename])
    assert node.http.get(f"/files/{quote(filename, safe='')}").content == b"harmless"


ZWJ = "\u200d"
KEPT = (
    *("a b.csv", "-rf.txt", ".hidden", "con", 'a<b>:"|?*.txt', " . ", f"👨{ZWJ}👩.png"),
    *("\u06af\u0632\u200c\u0647.xlsx", "\u200e2026 report.pdf", "so\u00adft.txt"),
    *("\U0001fae0.png", "cafe\u0301.txt"),
)


@pytest.mark.parametrize(
    ("original", "expected"),
    [
        *((name, name) for name in KEPT),
        ("dir/report.tar.gz", "report.tar.gz"),
        ("C:\\dir\\report.csv", "report.csv"),
        ("tab\there\x00\n\x85.txt", "tabhere.txt"),
        ("..", "file"),
        ("lone\udc80.txt", "lone.txt"),
        ("é" * 300 + ".txt", "é" * 125 + ".txt"),
        ("x." + "é" * 300, "x." + "é" * 126),
    ],
)
def test_name_is_kept_but_for_folders_and_control_characters(original: str, expected: str) -> None:
    assert uploads.plain_name(original) == expected
    stored = uploads.stored_name("0123456789abcdef", original)
    assert stored.startswith(f"0123456789ab-{expected[:60]}")


@pytest.mark.parametrize(
    ("disposition", "expected"),
    [
        ("filename*=utf-8''%E6%97%A5%E6%9C%AC.txt", "日本.txt"),  # urllib3 before 1.25
        ("filename=\"=?utf-8?B?w7wudHh0?=\"; filename*=utf-8''%C3%BC.txt", "ü.txt"),  # .NET
        ('filename="=?utf-8?B?w7wudHh0?="', "ü.txt"),
        ("filename*=iso-8859-1'en'caf%E9.txt", "café.txt"),
        ("filename=plain.txt; filename*=utf-8''%FF.txt", "plain.txt"),
        ("filename=plain.txt; filename*=nonsense''%61.txt", "plain.txt"),
        ("filename=\"a; filename*=utf-8''b.txt\"", "a; filename*=utf-8''b.txt"),
        ('filename="=?nonsense?B?w7wudHh0?="', "=?nonsense?B?w7wudHh0?="),
    ],
)
def test_name_is_read_in_the_forms_that_clients_send(disposition: str, expected: str) -> None:
    part = uploads.FilePart("multipart/form-data; boundary=b")
    head = f"--b\r\nContent-Disposition: form-data; name=file; {disposition}\r\n\r\n"
    part.feed(head.encode() + b"content\r\n--b--\r\n")
    assert part.finish() == expected


@pytest.mark.parametrize("path", ["%2e%2e%2fadmin-key", "..%5Cadmin-key", "%00", "%ff"])
def test_path_cannot_leave_the_folder(shared: RunningOrchestrator, path: str) -> None:
    assert refusal(shared.register().http.get(f"/files/{path}"))[0] == 404


@pytest.mark.settings(max_upload_bytes=2_500_000)
def test_file_over_the_limit_is_413_and_leaves_nothing(orchestrator: RunningOrchestrator) -> None:
    # The body is small enough to be accepted, and much of the file is written before its end.
    too_large = (413, "file is over the limit of 2500000 bytes")
    assert _refused_upload(orchestrator, 2_500_001) == too_large
    request = orchestrator.admin.build_request("POST", "/upload", files={"file": b"x" * 5_000_000})
    body, headers = request.read(), {"Content-Type": request.headers["Content-Type"]}
    for content in (body, iter([body[:1_000_000], body[1_000_000:]])):
        response = orchestrator.admin.post("/upload", content=content, headers=headers)
        assert refusal(response)[0] == 413
        assert _stored(orchestrator) == []
    orchestrator.upload("fits.bin", b"x" * 2_500_000)


# No test fills a disk, so these two replace what the system returns of one.


@pytest.mark.settings(min_free_bytes=2_000_000)
def test_upload_that_would_fill_the_disk_is_507_and_leaves_nothing(
    orchestrator: RunningOrchestrator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = shutil.disk_usage(tmp_path)
    # Enough for the write, but not for what has to stay free.
    free = iter([disk.total, disk.total, 2_000_000])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=next(free)))
    assert _refused_upload(orchestrator, 5_000_000) == NO_ROOM
    assert next(free, None) is None


class _FullDisk(FileIO):
    def write(self, _: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_is_507_and_leaves_nothing(
    orchestrator: RunningOrchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "FileIO", _FullDisk)
    assert _refused_upload(orchestrator, 1) == NO_ROOM


def _part(name: str, *, end: bool = True) -> bytes:
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="f"\r\n\r\n'
    return f"{head}content\r\n".encode() + (b"--b--\r\n" if end else b"")


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", _part("file")),
        ("multipart/form-data; boundary=" + "b" * 5000, _part("file")),
        ("multipart/form-data; boundary=b", b"nonsense"),
        ("multipart/form-data; boundary=b", _part("other")),
        ("multipart/form-data; boundary=b", _part("file", end=False)),
        ("multipart/form-data; boundary=b", _part("file", end=False) + _part("file")),
        ("multipart/form-data; boundary=b", _part("o", end=False) * 8 + _part("file")),
        ("multipart/form-data; boundary=b", b"--b\r\nno header at all\r\n\r\nx\r\n--b--"),
    ],
)
def test_broken_upload_is_422(shared: RunningOrchestrator, content_type: str, body: bytes) -> None:
    before, headers = _stored(shared), {"Content-Type": content_type}
    assert refusal(shared.admin.post("/upload", content=body, headers=headers))[0] == 422
    assert _stored(shared) == before


def test_other_parts_of_the_form_are_ignored(shared: RunningOrchestrator) -> None:
    files = {"file": ("a.txt", b"content"), "more": ("b.txt", b"other")}
    file = ok(shared.admin.post("/upload", data={"note": "text"}, files=files))
    assert (file["original_name"], file["checksum"]) == ("a.txt", sha256(b"content"))


@pytest.mark.both_databases
@pytest.mark.settings(key_upload_bytes=1000)
def test_files_of_a_scoped_key_have_a_quota(orchestrator: RunningOrchestrator) -> None:
    scoped = orchestrator.client(orchestrator.create_key()["api_key"])
    ok(scoped.post("/upload", files={"file": ("a", b"x" * 900)}))
    stored = _stored(orchestrator)
    for size in (101, 100_000):
        code, sentence = refusal(scoped.post("/upload", files={"file": ("b", b"x" * size)}))
        assert (code, sentence[:38]) == (413, "the key's files would take more than 1")
        assert _stored(orchestrator) == stored
    ok(scoped.post("/upload", files={"file": ("b", b"x" * 100)}))
    orchestrator.upload("of the admin", b"x" * 2000)


def test_start_removes_uploads_that_no_server_writes(orchestrator: RunningOrchestrator) -> None:
    orchestrator.upload("complete.txt", b"complete")
    folder = orchestrator.settings.data_dir / "files"
    (folder / "crashed.partial").write_bytes(b"half")
    with (folder / "written.partial").open("wb") as written:
        fcntl.flock(written, fcntl.LOCK_EX)
        orchestrator.restart()
        assert sorted(path.suffix for path in _stored(orchestrator)) == ["", ".partial"]
    orchestrator.restart()
    assert [path.suffix for path in _stored(orchestrator)] == [""]


def test_files_are_stored_where_the_file_system_has_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "crashed.partial").touch()
    uploads.prepare_folder(tmp_path)
    upload = uploads.Upload(tmp_path, "f", limit_bytes=10, min_free_bytes=0)
    with upload:
        upload.add(b"content")
        upload.keep()
    assert uploads.stored_file(tmp_path, "f").read_bytes() == b"content"
    assert (tmp_path / "files" / "crashed.partial").exists()
