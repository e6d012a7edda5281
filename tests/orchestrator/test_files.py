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
from tests.orchestrator.serving import RegisteredNode, RunningOrchestrator, ok, refusal, sha256

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


def test_holder_downloads_files_whole_and_in_their_order(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    contents = {
        "plain.txt": b"",
        "with space.csv": b"\r\n--boundary\r\n",
        "Übersicht 2024.xlsx": CONTENT,
        "日本.md": b"d",
    }
    names: list[str] = []
    for name, content in contents.items():
        file = orchestrator.upload(name, content)
        names.insert(0, file.pop("filename"))
        assert names[0].endswith(f"-{name}")
        size, checksum = len(content), sha256(content)
        assert file == {"original_name": name, "checksum": checksum, "size": size}
    orchestrator.create_task(files=names)
    assignment = node.poll()
    assert assignment is not None
    assert assignment["files"] == names
    for name, checksum in zip(names, assignment["file_checksums"], strict=True):
        response = node.http.get(f"/files/{quote(name, safe='')}")
        content = contents[name.partition("-")[2]]
        assert (response.content, checksum) == (content, sha256(content))
        assert response.headers["Content-Length"] == str(len(content))


def test_file_is_sent_whole_whatever_range_is_requested(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    file = orchestrator.upload("a.txt", b"abc")["filename"]
    orchestrator.assign(node, files=[file])
    for span in ("bytes=0-0", "bytes=100-200", "bytes=abc", "lines=1", "nonsense"):
        response = node.http.get(f"/files/{file}", headers={"Range": span})
        assert (response.status_code, response.content) == (200, b"abc")
        assert response.headers["Accept-Ranges"] == "none"


@pytest.mark.both_databases
def test_file_is_404_for_all_but_the_holder(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    file, other = orchestrator.upload("a.txt", b"a")["filename"], orchestrator.register("other")

    def codes() -> list[int]:
        return [one.http.get(f"/files/{file}").status_code for one in (node, other)]

    assert codes() == [404, 404]
    task_id = orchestrator.create_task(files=[file], target_node_id=node.id)["id"]
    assert codes() == [404, 404]
    node.poll()
    assert codes() == [200, 404]
    node.report(task_id, "running")
    assert codes() == [200, 404]
    node.report(task_id, "success")
    assert codes() == [404, 404]


def test_same_name_never_overwrites(shared: RunningOrchestrator) -> None:
    node = shared.register()
    names = [shared.upload("same.txt", b"%d" % number)["filename"] for number in range(3)]
    assert len(set(names)) == 3
    shared.assign(node, files=names)
    assert [node.http.get(f"/files/{name}").content for name in names] == [b"0", b"1", b"2"]


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "..\\..\\passwd",
        "..",
        "../registration-token",
        "orchestrator.db",
        "a/../../b",
        "%2e%2e%2fpasswd",
        ".bashrc",
        "x" * 500 + ".txt",
        "é" * 300,
    ],
)
def test_name_cannot_leave_the_folder(shared: RunningOrchestrator, name: str) -> None:
    node, outside, before = shared.register(), _names_outside(shared), len(_stored(shared))
    filename = shared.upload(name, b"harmless")["filename"]
    assert _names_outside(shared) == outside
    assert len(_stored(shared)) == before + 1
    assert not {"/", "\\"} & set(filename)
    assert not filename.startswith(".")
    assert len(filename.encode()) <= 255
    shared.assign(node, files=[filename])
    assert node.http.get(f"/files/{quote(filename, safe='')}").content == b"harmless"


@pytest.mark.parametrize(
    ("original", "expected"),
    [
        ("report.csv", "report.csv"),
        ("dir/report.csv", "report.csv"),
        ("tab\there\x00\n.txt", "tabhere.txt"),
        ("right\u202eleft.txt", "rightleft.txt"),
        ('a<b>:"|?*.txt', "a_b______.txt"),
        (" . ", "file"),
        ("", "file"),
        (".hidden", "hidden"),
        ("archive.tar.gz", "archive.tar.gz"),
        ("lone\udc80.txt", "lone.txt"),
        ("no-suffix." + "x" * 50, "no-suffix." + "x" * 50),
    ],
)
def test_name_keeps_what_is_harmless(original: str, expected: str) -> None:
    assert uploads.harmless_name(original) == expected


@pytest.mark.parametrize(
    "path", ["..%2Fadmin-key", "%2e%2e%2fadmin-key", "..%5Cadmin-key", "%00", "nothing", "%ff"]
)
def test_path_cannot_leave_the_folder(shared: RunningOrchestrator, path: str) -> None:
    assert refusal(shared.register().http.get(f"/files/{path}"))[0] == 404


@pytest.mark.settings(max_upload_bytes=2_500_000)
def test_file_over_the_limit_is_413_and_leaves_nothing(orchestrator: RunningOrchestrator) -> None:
    # The whole body is small enough to be accepted, and the file large enough for much to be
    # written.
    sentence = "file is over the limit of 2500000 bytes"
    for size in (2_500_001, 2_550_000):
        assert _refused_upload(orchestrator, size) == (413, sentence)
    request = orchestrator.admin.build_request("POST", "/upload", files={"file": b"x" * 5_000_000})
    body, headers = request.read(), {"Content-Type": request.headers["Content-Type"]}
    for content in (body, iter([body[:1_000_000], body[1_000_000:]])):
        response = orchestrator.admin.post("/upload", content=content, headers=headers)
        assert refusal(response)[0] == 413
        assert _stored(orchestrator) == []
    orchestrator.upload("fits.bin", b"x" * 2_500_000)


@pytest.mark.settings(min_free_bytes=2**62)
def test_file_that_would_fill_the_disk_is_507_and_leaves_nothing(
    orchestrator: RunningOrchestrator,
) -> None:
    assert _refused_upload(orchestrator, 1) == NO_ROOM


# No test fills a disk, so these two replace what the system returns of one.


@pytest.mark.settings(min_free_bytes=0)
def test_disk_that_fills_during_an_upload_is_507_and_leaves_nothing(
    orchestrator: RunningOrchestrator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = shutil.disk_usage(tmp_path)
    left = iter([disk.total, disk.total, 10])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=next(left)))
    assert _refused_upload(orchestrator, 5_000_000) == NO_ROOM
    assert next(left, None) is None


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
        ("", b""),
        ("application/json", b"{}"),
        ("multipart/form-data", _part("file")),
        ("multipart/form-data; boundary=" + "b" * 5000, _part("file")),
        ("multipart/form-data; boundary=b", b""),
        ("multipart/form-data; boundary=b", b"nonsense"),
        ("multipart/form-data; boundary=b", _part("other")),
        ("multipart/form-data; boundary=b", _part("file", end=False)),
        ("multipart/form-data; boundary=b", _part("file", end=False) + _part("file")),
        ("multipart/form-data; boundary=b", b"--b\r\nno header at all\r\n\r\nx\r\n--b--"),
    ],
)
def test_broken_upload_is_422_and_leaves_nothing(
    shared: RunningOrchestrator, content_type: str, body: bytes
) -> None:
    before, headers = _stored(shared), {"Content-Type": content_type}
    assert refusal(shared.admin.post("/upload", content=body, headers=headers))[0] == 422
    assert _stored(shared) == before


def test_other_parts_of_the_form_are_ignored(shared: RunningOrchestrator) -> None:
    node, files = shared.register(), {"file": ("a.txt", b"content"), "more": ("b.txt", b"other")}
    file = ok(shared.admin.post("/upload", data={"note": "text"}, files=files))
    assert file["checksum"] == sha256(b"content")
    shared.assign(node, files=[file["filename"]])
    assert node.http.get(f"/files/{file['filename']}").content == b"content"


def test_start_removes_incomplete_uploads_unless_another_server_writes_them(
    orchestrator: RunningOrchestrator,
) -> None:
    orchestrator.upload("complete.txt", b"complete")
    folder = orchestrator.settings.data_dir / "files"
    (folder / "crashed.partial").write_bytes(b"half")
    with (folder / "written.partial").open("wb") as written:
        fcntl.flock(written, fcntl.LOCK_EX)
        orchestrator.restart()
        assert sorted(path.suffix for path in _stored(orchestrator)) == ["", ".partial"]
    orchestrator.restart()
    assert [path.suffix for path in _stored(orchestrator)] == [""]
