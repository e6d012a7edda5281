"""Artifacts are listed and read without trust in what a task has left."""

import io
import os
import tarfile
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from runner.workspace.artifacts import (
    MAX_DEPTH,
    Artifact,
    ArtifactChanged,
    ArtifactError,
    Limits,
    OpenArtifact,
    list_artifacts,
    unpack,
)
from tests.unit.another_user import as_another_user

MANY = Limits(1000, 1 << 20)
MIB = 1 << 20
COPIES = ".victoria-artifacts-0"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make the artifacts' folder of the task t-1; the home is `tmp_path`."""
    folder = tmp_path / "tasks" / "t-1" / "artifacts"
    folder.mkdir(parents=True)
    return folder


def paths(home: Path, limits: Limits = MANY, copies: str | None = None) -> list[str]:
    return [artifact.path for artifact in list_artifacts(home, "t-1", copies, limits).artifacts]


def reasons(home: Path) -> dict[str, str]:
    return dict(list_artifacts(home, "t-1", None, MANY).omitted)


def opened(home: Path, name: str, most: int = MIB) -> OpenArtifact:
    return OpenArtifact(home, "t-1", Artifact((name,)), most)


def test_regular_files_are_listed_in_the_order_of_their_paths(tmp_path: Path, folder: Path) -> None:
    (folder / "b" / "c").mkdir(parents=True)
    for name in ("b/c/1", "b/0", "a", "c"):
        (folder / name).touch()
    assert paths(tmp_path) == ["a", "b/0", "b/c/1", "c"]
    assert paths(tmp_path, Limits(2, 1)) == ["a", "b/0"]


def test_only_so_many_files_and_folders_are_looked_at(tmp_path: Path, folder: Path) -> None:
    (folder / "b" / "c").mkdir(parents=True)
    (folder.parent / COPIES).mkdir()
    for name in ("a", "b/c/1", "b/c/2", "b/d", "e", f"../{COPIES}/f"):
        (folder / name).touch()
    listing = list_artifacts(tmp_path, "t-1", COPIES, Limits(9, 1, entries=4))
    assert [artifact.path for artifact in listing.artifacts] == ["a", "b/c/1"]
    assert listing.omitted == [("b/c", "there are more than 4 files and folders")]


def test_folder_that_is_missing_or_a_link_has_no_artifacts(tmp_path: Path, folder: Path) -> None:
    (folder / "a").touch()
    folder.rename(tmp_path / "elsewhere")
    assert paths(tmp_path) == []
    folder.symlink_to(tmp_path / "elsewhere")
    assert paths(tmp_path) == []
    assert list(reasons(tmp_path)) == ["artifacts"]


def test_folders_too_deep_and_paths_too_long_are_named(tmp_path: Path, folder: Path) -> None:
    (folder / "/".join("d" * MAX_DEPTH)).mkdir(parents=True)
    (folder / "/".join(["x" * 250] * 4)).mkdir(parents=True)
    (folder / "/".join(["x" * 250] * 4) / ("y" * 100)).touch()
    assert paths(tmp_path) == []
    assert sorted(reasons(tmp_path).values()) == [
        "it is more than 64 folders deep",
        "its path is longer than 1024 bytes",
    ]


def test_what_another_user_has_closed_is_listed_as_forbidden() -> None:
    # Not in pytest's own folder, which other users may not enter.
    with TemporaryDirectory() as made:
        home = Path(made)
        folder = home / "tasks" / "t-1" / "artifacts"
        (folder / "closed").mkdir(parents=True)
        for name in ("closed/a", "own", "open"):
            (folder / name).touch()
        home.chmod(0o755)
        (folder / "closed").chmod(0)
        (folder / "own").chmod(0)
        with as_another_user():
            listing = list_artifacts(home, "t-1", None, MANY)
        (folder / "closed").chmod(0o700)
    assert listing.forbidden == [("closed",), ("own",)]
    assert [artifact.path for artifact in listing.artifacts] == ["open"]


def test_checksum_is_that_of_what_is_sent(tmp_path: Path, folder: Path) -> None:
    content = bytes(range(256)) * (3 * MIB // 256) + b"end"
    (folder / "a").write_bytes(content)
    with closing(opened(tmp_path, "a", 4 * MIB)) as file:
        assert b"".join(file.blocks()) == content
        (folder / "a").write_bytes(content + b"more")
        assert b"".join(file.blocks()) == content


@pytest.mark.parametrize("change", [b"", b"a" * 10, b"b" * MIB * 2], ids=["none", "less", "other"])
def test_file_that_changes_is_never_sent_whole(tmp_path: Path, folder: Path, change: bytes) -> None:
    (folder / "a").write_bytes(b"a" * MIB * 2)
    sent: list[bytes] = []
    with closing(opened(tmp_path, "a", 2 * MIB)) as file:
        (folder / "a").write_bytes(change)
        with pytest.raises(ArtifactChanged):
            sent.extend(file.blocks())
        assert sum(map(len, sent)) < file.size


def test_what_is_no_regular_file_any_more_is_not_opened(tmp_path: Path, folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to("/etc/hostname")
    for name in ("pipe", "link", "missing"):
        with pytest.raises(ArtifactError):
            opened(tmp_path, name)


def test_sparse_file_is_refused_by_its_size(tmp_path: Path, folder: Path) -> None:
    with (folder / "sparse").open("wb") as file:
        file.truncate(1 << 42)
    with pytest.raises(ArtifactError, match="--max-artifact-size 1 MiB"):
        opened(tmp_path, "sparse")


def test_copies_are_regular_files_below_their_folder_and_the_original_comes_first(
    tmp_path: Path, folder: Path
) -> None:
    archive = tmp_path / "archive"
    with tarfile.open(archive, "w") as tar:
        for name in (
            "closed/a",
            "closed/b/c",
            "closed/../../../../evil",
            "closed//x/.",
            "/closed/d",
        ):
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"abc"))
        for name, kind in (("closed/l", tarfile.SYMTYPE), ("closed/dev", tarfile.CHRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    (folder / "closed").mkdir()
    (folder / "closed" / "a").touch()
    skipped = unpack(tmp_path, "t-1", COPIES, ("closed",), archive)
    assert {"closed/l", "closed/dev"} < set(skipped)
    assert not (tmp_path / "evil").exists()
    found = list_artifacts(tmp_path, "t-1", COPIES, MANY).artifacts
    assert [(one.path, one.folder) for one in found] == [
        ("closed/a", "artifacts"),
        ("closed/b/c", COPIES),
        ("closed/d", COPIES),
    ]


def test_archive_that_is_damaged_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(b"no tar" * 1000)
    with pytest.raises(ArtifactError, match="cannot be copied"):
        unpack(tmp_path, "t-1", COPIES, (), tmp_path / "archive")
