"""Files: in whole or not at all, under safe names, out to the node that needs them and no other."""

import errno
import fcntl
import os
import shutil
from io import FileIO
from pathlib import Path
from urllib.parse import quote

import pytest

from orchestrator import uploads as storage
from orchestrator.uploads import harmless_name
from tests.orchestrator.serving import (
    RegisteredNode,
    RunningOrchestrator,
    ok,
    refusal,
    serve,
    sha256,
)

CONTENT = bytes(range(256)) * 10_000
LARGER_THAN_ANY_BUFFER = 64 << 20


def _stored(orchestrator: RunningOrchestrator) -> list[Path]:
    return [path for path in orchestrator.settings.data_dir.rglob("files/*") if path.is_file()]


def _names_outside(orchestrator: RunningOrchestrator) -> set[str]:
    data_dir = orchestrator.settings.data_dir
    return {path.name for path in [*data_dir.parent.iterdir(), *data_dir.iterdir()]}


@pytest.mark.parametrize("content", [b"", b"\r\n--boundary\r\n", CONTENT])
def test_upload_answers_name_checksum_and_size(
    orchestrator: RunningOrchestrator, content: bytes
) -> None:
    uploaded = orchestrator.upload("sales data.csv", content)
    assert uploaded["filename"].endswith("-sales data.csv")
    del uploaded["filename"]
    assert uploaded == {
        "original_name": "sales data.csv",
        "checksum": sha256(content),
        "size": len(content),
    }


@pytest.mark.parametrize("name", ["plain.txt", "with space.csv", "Übersicht 2024.xlsx", "日本.md"])
def test_holder_reads_the_file_whole(
    orchestrator: RunningOrchestrator, node: RegisteredNode, name: str
) -> None:
    first, second = orchestrator.upload(name, CONTENT), orchestrator.upload(name, b"second")
    names = [second["filename"], first["filename"]]
    orchestrator.create_task(files=names)
    assignment = node.poll()
    assert assignment is not None
    assert assignment["files"] == names
    assert assignment["file_checksums"] == [sha256(b"second"), sha256(CONTENT)]
    response = node.http.get(f"/files/{quote(names[1], safe='')}")
    assert response.content == CONTENT
    assert response.headers["Content-Length"] == str(len(CONTENT))


@pytest.mark.parametrize("span", ["bytes=0-0", "bytes=100-200", "bytes=abc", "lines=1", "nonsense"])
def test_file_is_answered_whole_whatever_part_is_asked_for(
    orchestrator: RunningOrchestrator, node: RegisteredNode, span: str
) -> None:
    file = orchestrator.upload("a.txt", b"abc")
    orchestrator.create_task(files=[file["filename"]])
    node.poll()
    response = node.http.get(f"/files/{file['filename']}", headers={"Range": span})
    assert (response.status_code, response.content) == (200, b"abc")
    assert response.headers["Accept-Ranges"] == "none"


def test_file_is_404_for_all_but_the_holder(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    file = orchestrator.upload("a.txt", b"a")
    path = f"/files/{file['filename']}"
    other = orchestrator.register("other")
    assert refusal(node.http.get(path))[0] == 404
    task = orchestrator.create_task(files=[file["filename"]], target_node_id=node.id)
    assert refusal(node.http.get(path))[0] == 404
    node.poll()
    assert node.http.get(path).content == b"a"
    assert refusal(other.http.get(path))[0] == 404
    node.report(task["id"], "running")
    assert node.http.get(path).content == b"a"
    node.report(task["id"], "success")
    assert refusal(node.http.get(path))[0] == 404


def test_same_name_never_overwrites(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    files = [orchestrator.upload("same.txt", b"%d" % number) for number in range(3)]
    names = [file["filename"] for file in files]
    assert len(set(names)) == 3
    orchestrator.create_task(files=names)
    node.poll()
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
def test_name_cannot_climb(
    orchestrator: RunningOrchestrator, node: RegisteredNode, name: str
) -> None:
    before = _names_outside(orchestrator)
    filename = orchestrator.upload(name, b"harmless")["filename"]
    assert _names_outside(orchestrator) == before
    assert len(_stored(orchestrator)) == 1
    assert "/" not in filename
    assert "\\" not in filename
    assert not filename.startswith(".")
    assert len(filename.encode()) <= 255
    orchestrator.create_task(files=[filename])
    node.poll()
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
    assert harmless_name(original) == expected


@pytest.mark.parametrize(
    "path", ["..%2Fadmin-key", "%2e%2e%2fadmin-key", "..%5Cadmin-key", "%00", "nothing", "%ff"]
)
def test_path_cannot_climb(node: RegisteredNode, path: str) -> None:
    assert refusal(node.http.get(f"/files/{path}"))[0] == 404


@pytest.mark.parametrize("declared", [True, False])
def test_file_over_the_limit_is_413_and_leaves_nothing(
    tmp_path: Path, database_url: str | None, *, declared: bool
) -> None:
    with serve(tmp_path, database_url=database_url, max_upload_bytes=100_000) as orchestrator:
        orchestrator.upload("fits.bin", b"x" * 100_000)
        request = orchestrator.admin.build_request(
            "POST", "/upload", files={"file": ("large.bin", b"x" * 3_000_000)}
        )
        body = request.read()
        content = body if declared else iter([body[:1_000_000], body[1_000_000:]])
        headers = {"Content-Type": request.headers["Content-Type"]}
        response = orchestrator.admin.post("/upload", content=content, headers=headers)
        assert refusal(response)[0] == 413
        assert len(_stored(orchestrator)) == 1
        response = orchestrator.admin.post("/upload", files={"file": b"x" * 100_001})
        assert refusal(response) == (413, "file is over the limit of 100000 bytes")
        assert len(_stored(orchestrator)) == 1


def test_file_that_is_too_large_after_some_megabytes_leaves_nothing(
    tmp_path: Path, database_url: str | None
) -> None:
    with serve(tmp_path, database_url=database_url, max_upload_bytes=2_500_000) as orchestrator:
        # Small enough for the whole body to be let in, and large enough for much to be written.
        response = orchestrator.admin.post("/upload", files={"file": ("a", b"x" * 2_550_000)})
        assert refusal(response) == (413, "file is over the limit of 2500000 bytes")
        assert _stored(orchestrator) == []


def test_file_that_would_fill_the_disk_is_507_and_leaves_nothing(tmp_path: Path) -> None:
    with serve(tmp_path, min_free_bytes=2**62) as orchestrator:
        response = orchestrator.admin.post("/upload", files={"file": ("a.txt", b"a")})
        assert refusal(response) == (507, "the server's disk has no room for the file")
        assert _stored(orchestrator) == []


# No test fills a disk, so these two stand in for one: what it says of itself, and its end.


def test_disk_that_fills_while_a_file_comes_is_507_and_leaves_nothing(
    tmp_path: Path, database_url: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = shutil.disk_usage(tmp_path)
    left = iter([disk.total, disk.total, 10])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=next(left)))
    with serve(tmp_path, database_url=database_url, min_free_bytes=0) as orchestrator:
        content = b"x" * 5_000_000
        response = orchestrator.admin.post("/upload", files={"file": ("a.txt", content)})
        assert refusal(response) == (507, "the server's disk has no room for the file")
        assert next(left, None) is None
        assert _stored(orchestrator) == []


class _FullDisk(FileIO):
    def write(self, _: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_disk_that_is_full_is_507_and_leaves_nothing(
    tmp_path: Path, database_url: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "FileIO", _FullDisk)
    with serve(tmp_path, database_url=database_url) as orchestrator:
        response = orchestrator.admin.post("/upload", files={"file": ("a.txt", b"a")})
        assert refusal(response) == (507, "the server's disk has no room for the file")
        assert _stored(orchestrator) == []


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
    orchestrator: RunningOrchestrator, content_type: str, body: bytes
) -> None:
    headers = {"Content-Type": content_type}
    response = orchestrator.admin.post("/upload", content=body, headers=headers)
    assert refusal(response)[0] == 422
    assert _stored(orchestrator) == []


def test_other_parts_of_the_form_are_passed_over(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    files = {"file": ("a.txt", b"content"), "more": ("b.txt", b"other")}
    file = ok(orchestrator.admin.post("/upload", data={"note": "text"}, files=files))
    assert file["checksum"] == sha256(b"content")
    orchestrator.create_task(files=[file["filename"]])
    node.poll()
    assert node.http.get(f"/files/{file['filename']}").content == b"content"


def test_start_leaves_uploads_of_other_servers_alone(
    tmp_path: Path, database_url: str | None
) -> None:
    with serve(tmp_path, database_url=database_url) as orchestrator:
        partial = tmp_path / "files" / "under-way.partial"
        with partial.open("wb") as under_way:
            fcntl.flock(under_way, fcntl.LOCK_EX)
            orchestrator.restart()
            assert partial.exists()
        orchestrator.restart()
        assert not partial.exists()


def test_start_clears_uploads_that_a_crash_cut_short(
    tmp_path: Path, database_url: str | None
) -> None:
    with serve(tmp_path, database_url=database_url) as orchestrator:
        orchestrator.upload("kept.txt", b"kept")
        orchestrator.stop()
        (tmp_path / "files" / "cut.partial").write_bytes(b"half")
        orchestrator.start()
        names = [path.suffix for path in _stored(orchestrator)]
    assert names == [""]
