"""Something in the way: a file, link, pipe or closed folder where the runner wants a folder.

A task runs it as a program, ``poison.py PLACE FORM``, on a place in its Victoria home; the soak
uses `put` from the host's side. Runs on Python 3.9, with the standard library.
"""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress

FORMS = ("file", "link", "loose-link", "fifo", "device", "closed", "others")
NOBODY = 65_534


def put(form: str, path: str) -> None:
    """Make what is in the way, at a path where nothing is. Raises OSError if it cannot be made."""
    if form == "file":
        with open(path, "x", encoding="utf-8") as file:
            file.write("in the way\n")
    elif form == "link":
        os.symlink("/etc", path)
    elif form == "loose-link":
        os.symlink("nowhere", path)
    elif form == "fifo":
        os.mkfifo(path)
    elif form == "device":
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    else:
        os.mkdir(path)
        if form == "others" and os.geteuid() == 0:
            os.chown(path, NOBODY, NOBODY)
        os.chmod(path, 0)


def poison(path: str, form: str) -> None:
    """Move away what is at a path, and put something else there, as far as the host allows it."""
    with suppress(OSError):
        os.rename(path, f"{path}-{os.environ['JOB_ID']}")
    with suppress(OSError):
        os.unlink(path)
    with suppress(OSError):
        put(form, path)


if __name__ == "__main__":
    home = os.environ.get("VICTORIA_HOME", "/workspace/Victoria")
    place, form = sys.argv[1:]
    poison(os.path.join(home, place.replace("OWN", os.environ["JOB_ID"])), form)
