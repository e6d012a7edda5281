"""Folders of tasks are removed with everything in them, and nothing outside ever is."""

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from runner.workspace.folders import Extent, TaskFolders


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """Make a Victoria home with the folders of two tasks; return the folder of tasks."""
    tasks = tmp_path / "home" / "tasks"
    for task_id in ("t-1", "t-2"):
        (tasks / task_id / "files").mkdir(parents=True)
        (tasks / task_id / "files" / "a.csv").write_bytes(bytes(1000))
    return tasks


@pytest.fixture
def folders(tasks: Path) -> Iterator[TaskFolders]:
    opened = TaskFolders(tasks.parent)
    yield opened
    opened.close()


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """Make a folder outside the home, with the layout of a folder of tasks, which must stay."""
    outside = tmp_path / "outside"
    for task_id in ("t-1", "t-2"):
        (outside / task_id).mkdir(parents=True)
        (outside / task_id / "precious").touch()
    yield outside
    assert len(list(outside.glob("*/precious"))) == 2


def test_only_folders_of_tasks_are_listed(tasks: Path, folders: TaskFolders, outside: Path) -> None:
    (tasks / "a file").touch()
    (tasks / "t-3").touch()
    (tasks / "t-4").symlink_to(outside / "t-1")
    (tasks / "no task").mkdir()
    assert folders.task_ids() == ["t-1", "t-2"]


def test_extent_is_the_size_and_the_newest_change(tasks: Path, folders: TaskFolders) -> None:
    folder = tasks / "t-1"
    (folder / "b").write_bytes(bytes(24))
    (folder / "link").symlink_to("/proc/kcore")
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (1e9, 1e9), follow_symlinks=False)
    os.utime(folder / "files" / "a.csv", (1.5e9, 1.5e9))
    assert folders.extent_of("t-1") == Extent(1024 + len("/proc/kcore"), 1.5e9)
    before = time.time()
    os.utime(folder / "b", (4e9, 4e9))  # in the year 2096
    assert before - 1 < folders.extent_of("t-1").newest <= time.time()


def test_home_of_a_task_is_measured_and_removed_with_its_folder(tasks: Path) -> None:
    for task_id in ("t-1", "t-3"):
        (tasks / ".homes" / task_id).mkdir(parents=True)
        (tasks / ".homes" / task_id / "b").write_bytes(bytes(24))
    with closing(TaskFolders(tasks.parent)) as folders:
        assert folders.task_ids() == ["t-1", "t-2", "t-3"]
        assert [folders.extent_of(task_id).size for task_id in ("t-1", "t-3")] == [1024, 24]
        for task_id in ("t-1", "t-3"):
            folders.remove(task_id)
        assert folders.task_ids() == ["t-2"]
    assert not list((tasks / ".homes").iterdir())


def test_links_are_removed_not_followed(tasks: Path, folders: TaskFolders, outside: Path) -> None:
    (tasks / "t-1" / "files" / "out").symlink_to(outside / "t-1")
    folders.remove("t-1")
    assert [path.name for path in tasks.iterdir()] == ["t-2"]

    (tasks / "t-1").symlink_to(outside / "t-1")
    with pytest.raises(OSError, match=r"t-1|symbolic link"):
        folders.remove("t-1")
    assert shutil.rmtree.avoids_symlink_attacks, "one that is planted while it runs"

    moved = tasks.rename(tasks.with_name("moved"))
    tasks.symlink_to(outside)
    folders.remove("t-2")
    assert not (moved / "t-2").exists()
    with pytest.raises(NotADirectoryError):
        TaskFolders(tasks.parent)


@pytest.mark.parametrize("depth", [100, 1500])
def test_deep_tree_is_removed_or_refused(tasks: Path, folders: TaskFolders, depth: int) -> None:
    here = os.open(tasks / "t-1", os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)

    assert folders.extent_of("t-1").size == 1000
    try:
        folders.remove("t-1")
    except OSError as error:
        # Before Python 3.13, or with fewer open files than levels.
        assert depth == 1500
        too_deep = "its folders are nested too deep; remove it with rm -r"
        assert error.strerror in {too_deep, os.strerror(errno.EMFILE)}  # noqa: PT017 - either end is right
        subprocess.run(["rm", "-r", tasks], check=True)  # pytest could not
        return

    assert folders.task_ids() == ["t-2"]
