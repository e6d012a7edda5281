"""A disk of its own for a folder, small enough to be filled."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tools.dev.shell import as_root


@contextmanager
def small_disk(folder: Path, *options: str) -> Iterator[None]:
    """Mount a disk of 8 MiB on a folder."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    joined = ",".join(["size=8m", "mode=777", *options])
    mount(folder, "-t", "tmpfs", "-o", joined, "tmpfs")
    try:
        yield
    finally:  # lazily: a container may hold it for a moment yet
        subprocess.run(as_root(["umount", "--lazy", str(folder)]), check=True)


def mount(folder: Path, *arguments: str) -> None:
    subprocess.run(as_root(["mount", *arguments, str(folder)]), check=True)


def fill(folder: Path) -> Path:
    """Write a file until the disk is full."""
    filler = folder / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler


def use_up_inodes(folder: Path) -> Path:
    """Make folders until no more fit; return the one that holds them."""
    crowd = folder / "crowd"
    with suppress(OSError):
        for number in range(100_000):
            (crowd / str(number)).mkdir(parents=True)
    return crowd
