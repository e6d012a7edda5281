"""A user for whom permissions count."""

import concurrent.futures.thread  # noqa: F401 - imported late, else by a user who may not read it
import os
from collections.abc import Iterator
from contextlib import contextmanager

NOBODY = 65534


@contextmanager
def as_another_user() -> Iterator[None]:
    """Drop root's rights, if we have them, so that permissions count."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
