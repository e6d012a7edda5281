"""Finds a Chromium for the dashboard's tests, or installs one."""

from __future__ import annotations

from tests.setup.packages import ensure_program, find_program

NAMES = ("chromium", "chromium-browser", "google-chrome")


def ready() -> str:
    """Return the path of a Chromium, whatever it is called here."""
    found = installed()
    if found is None:
        ensure_program("chromium", "the browser that the dashboard's tests run in")
        found = installed()
    return found or NAMES[0]


def installed() -> str | None:
    """Return the path of a Chromium, if there is one."""
    return next((path for path in map(find_program, NAMES) if path is not None), None)
