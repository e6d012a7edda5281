"""Which release the scenarios take for the one before this."""

import subprocess
from pathlib import Path

import pytest

from tools.dev.before import VARIABLE, release_before, unpack_release_before
from tools.dev.shell import SetupError


class Repository:
    """A repository whose commits are named by their messages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(self.folder), *identity, *arguments]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def commit(self, message: str, tag: str = "") -> str:
        (self.folder / "file").write_text(message)
        self.git("add", "file")
        self.git("commit", "--quiet", f"--message={message}")
        if tag:
            self.git("tag", tag)
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    monkeypatch.delenv(VARIABLE, raising=False)
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "repository"
    folder.mkdir()
    return Repository(folder)


def test_it_is_the_newest_tag_before_this_commit(repository: Repository) -> None:
    repository.commit("one", "v1.0.0")
    repository.commit("two", "v1.1.0")
    repository.commit("three")
    assert release_before(repository.folder) == "v1.1.0"
    repository.commit("four", "v1.2.0")
    assert release_before(repository.folder) == "v1.1.0", "the release itself is not the one before"


def test_without_tags_it_is_where_the_branch_left_main(repository: Repository) -> None:
    repository.commit("one")
    left = repository.commit("two")
    repository.git("checkout", "--quiet", "-b", "branch")
    repository.commit("three")
    repository.commit("four")
    assert release_before(repository.folder) == left


def test_without_tags_and_on_main_it_is_the_commit_before(repository: Repository) -> None:
    before = repository.commit("one")
    repository.commit("two")
    assert release_before(repository.folder) == before


def test_it_can_be_named(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    first = repository.commit("one", "v1.0.0")
    repository.commit("two", "v1.1.0")
    repository.commit("three")
    monkeypatch.setenv(VARIABLE, "v1.0.0")
    assert release_before(repository.folder) == first
    monkeypatch.setenv(VARIABLE, "v9")
    with pytest.raises(SetupError, match="cannot find v9 in this checkout"):
        release_before(repository.folder)


def test_checkout_without_history_is_refused_with_a_remedy(repository: Repository) -> None:
    repository.commit("one")
    with pytest.raises(SetupError, match="git fetch --unshallow --tags"):
        release_before(repository.folder)


def test_it_is_unpacked_as_it_was(repository: Repository, tmp_path: Path) -> None:
    commit = repository.commit("one")
    repository.commit("two")
    folder = tmp_path / "before"
    for _ in range(2):
        env = unpack_release_before(folder, repository.folder)
        assert (folder / "file").read_text() == "one"
    assert env == {f"{VARIABLE}_FOLDER": str(folder), f"{VARIABLE}_COMMIT": commit}
