"""The Victoria home holds tasks whatever is in the way, and what a task gets of it is its own."""

import errno
import os
import stat
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.errors import HomeUnusable
from runner.handles import open_below, open_file
from runner.model import HomeMode
from runner.workspace.home import (
    Tidying,
    check_home,
    home_of_task,
    make_task_folder,
    task_folder,
)
from tests.unit.another_user import as_another_user

STAMP = "20261129T080000Z"
ASIDE = f".{STAMP}.unusable"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make it")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Make a home with something in it."""
    home = tmp_path / "home"
    (home / "data").mkdir(parents=True)
    (home / "crush.json").write_text("{}")
    return home


def make(
    home: Path, mode: HomeMode = HomeMode.SHARED, task_id: str = "t-1", *, is_new: bool = True
) -> list[str]:
    """Make a task's folder; return what was moved aside."""
    tidying = Tidying(STAMP)
    make_task_folder(home, task_id, mode, tidying, with_files=True, is_new=is_new)
    return tidying.sentences


# What is in the way


OBSTACLES: dict[str, Callable[[Path], object]] = {
    "file": Path.touch,
    "link": lambda path: path.symlink_to("/"),
    "pipe": os.mkfifo,
}
PLACES = ("tasks", "tasks/t-1", "tasks/t-1/files", "tasks/t-1/artifacts", ".crush")


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("plant", OBSTACLES.values(), ids=OBSTACLES)
def test_obstacle_is_moved_aside_and_found_before_by_the_same_check(
    home: Path, plant: Callable[[Path], object], name: str
) -> None:
    path = home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    plant(path)
    kind = stat.S_IFMT(path.lstat().st_mode)
    if name in {"tasks", ".crush"}:
        with pytest.raises(HomeUnusable, match=f"^cannot use {path}: it is not a folder; the run"):
            check_home(home, HomeMode.SHARED, Tidying(None), thorough=True)
        assert stat.S_IFMT(path.lstat().st_mode) == kind

    (sentence,) = make(home)
    assert sentence.startswith(f"cannot use {path}: it is not a folder; it was moved aside as ")
    aside = path.with_name(path.name + ASIDE)
    assert stat.S_IFMT(aside.lstat().st_mode) == kind
    assert (task_folder(home, "t-1") / "files").is_dir()
    assert not make(home, task_id="t-2")


@needs_root
@pytest.mark.parametrize("name", PLACES)
def test_folder_of_another_is_moved_aside_unless_it_is_the_agents(home: Path, name: str) -> None:
    (home / name).mkdir(parents=True)
    os.chown(home / name, 4711, 4711)
    expected = f"cannot use {home / name}: it belongs to the user id 4711; it was moved aside as "
    assert [sentence.startswith(expected) for sentence in make(home)] == [True] * (name != ".crush")


def test_folder_of_mode_0_is_mended(home: Path) -> None:
    make(home)
    for name in (*PLACES, "."):
        (home / name).mkdir(exist_ok=True)
        (home / name).chmod(0)
        assert make(home) == []
        assert (home / name).stat().st_mode & 0o700 == 0o700


def test_obstacle_that_cannot_be_moved_is_a_sentence_and_stays(home: Path) -> None:
    (home / "tasks").touch()
    (home / f"tasks{ASIDE}").mkdir()
    with pytest.raises(HomeUnusable, match=r"cannot be moved aside: is a directory; move it away$"):
        make(home)
    assert (home / "tasks").is_file()


# Devices and pipes


def test_pipe_is_not_opened_in_the_place_of_a_file(home: Path) -> None:
    os.mkfifo(home / "pipe")
    ends: list[int] = []
    # Its opening ends as soon as anybody opens the other end.
    writer = threading.Thread(target=lambda: ends.append(os.open(home / "pipe", os.O_WRONLY)))
    writer.start()
    folder = open_below(home, (), make=False)
    with pytest.raises(OSError, match="pipe is not a regular file"):
        open_file(folder, "pipe")
    writer.join(0.2)
    assert writer.is_alive()
    os.close(os.open(home / "pipe", os.O_RDONLY | os.O_NONBLOCK))
    writer.join()
    for handle in (*ends, folder):
        os.close(handle)


@needs_root
def test_device_is_not_opened_in_the_place_of_a_file(home: Path) -> None:
    os.mknod(home / "device", stat.S_IFCHR | 0o666, os.makedev(4095, 1))
    with pytest.raises(OSError, match="No such device") as opened:
        (home / "device").open("rb")
    assert opened.value.errno == errno.ENXIO, "its opening would show"
    folder = open_below(home, (), make=False)
    with pytest.raises(OSError, match="device is not a regular file"):
        open_file(folder, "device")
    os.close(folder)


# A home of its own


def test_own_home_is_a_copy_without_tasks_and_crush_that_follows_no_link(home: Path) -> None:
    for name in ("tasks/t-0", ".crush"):
        (home / name).mkdir(parents=True)
        (home / name / "of another").touch()
    (home / "data" / "run").write_text("#!/bin/sh\n")
    (home / "data" / "run").chmod(0o4755)
    (home / "out").symlink_to(home.parent)
    os.mkfifo(home / "data" / "pipe")
    home.chmod(0o750)

    assert make(home, HomeMode.TASK) == []
    own = home_of_task(home, "t-1")
    assert own == home / "tasks" / ".homes" / "t-1"
    assert {path.relative_to(own).as_posix() for path in own.rglob("*")} == {
        *("crush.json", "data", "data/run", "out", "tasks")
    }
    assert (own / "out").readlink() == home.parent
    assert (own / "data" / "run").stat().st_mode & 0o7777 == 0o755
    assert own.stat().st_mode & 0o777 == 0o750
    assert (own / "data" / "run").read_text() == "#!/bin/sh\n"
    assert home_of_task(home, "t-2") == home


def test_own_home_is_made_anew_for_a_new_task_and_kept_for_one_that_was_prepared(
    home: Path,
) -> None:
    make(home, HomeMode.TASK)
    left = home_of_task(home, "t-1") / "left"
    left.touch()
    make(home, HomeMode.SHARED, is_new=False)
    assert left.exists()
    make(home, HomeMode.TASK)
    assert not left.exists()
    make(home, HomeMode.SHARED)
    assert home_of_task(home, "t-1") == home


def test_own_home_that_its_task_has_closed_is_still_that_tasks() -> None:
    with tempfile.TemporaryDirectory() as made:
        home = Path(made)
        home.chmod(0o755)
        make(home, HomeMode.TASK)
        own = home_of_task(home, "t-1")
        own.chmod(0)
        with as_another_user():
            assert home_of_task(home, "t-1") == own
        own.chmod(0o700)


def test_home_that_is_too_large_is_a_sentence_and_leaves_no_copy(home: Path) -> None:
    with (home / "data" / "large").open("wb") as file:
        file.truncate(100_000_001)
    sentence = "it has more than 100 MB beside tasks/ and .crush/, .*; move something out of it, or"
    with pytest.raises(HomeUnusable, match=sentence):
        check_home(home, HomeMode.TASK, Tidying(None), thorough=True)
    with pytest.raises(HomeUnusable, match=sentence):
        make(home, HomeMode.TASK)
    assert home_of_task(home, "t-1") == home
    assert make(home, HomeMode.SHARED) == []


@needs_root
def test_folder_and_home_of_a_task_belong_to_the_owner_of_the_victoria_home(home: Path) -> None:
    os.chown(home, 4711, 4711)
    home.chmod(0o770)
    for is_new in (True, False):
        assert make(home, HomeMode.TASK, is_new=is_new) == []
    for path in (task_folder(home, "t-1"), home_of_task(home, "t-1")):
        assert (path.stat().st_uid, path.stat().st_mode & 0o770) == (4711, 0o770)
