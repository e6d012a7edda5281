"""systemd: notifications (sd_notify), and the watchdog, fed only while all loops progress."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterable, MutableMapping
from contextlib import suppress
from pathlib import Path

from runner.log import fields
from runner.timing import Clock, Timings

log = logging.getLogger(__name__)
UNIT = "victoria-runner.service"
UNIT_FOLDERS = tuple(
    Path(folder) / "systemd/system" for folder in ("/etc", "/run", "/usr/local/lib", "/usr/lib")
)
LINGER = Path("/var/lib/systemd/linger")
"""Has a file for each user whose systemd instance outlives the logins."""


class Notifier:
    """Notifies the service manager at NOTIFY_SOCKET; does nothing if that is not set."""

    def __init__(self, environment: MutableMapping[str, str] | None = None) -> None:
        """Remove systemd's variables from the environment, so that no child process has them."""
        variables = os.environ if environment is None else environment
        address = variables.pop("NOTIFY_SOCKET", "")
        # An abstract socket is written with @ and addressed with NUL (sd_notify(3)).
        self._address = "\0" + address[1:] if address.startswith("@") else address
        watchdog_us = variables.pop("WATCHDOG_USEC", "")
        watchdog_pid = variables.pop("WATCHDOG_PID", "")
        is_for_us = not watchdog_pid or watchdog_pid == str(os.getpid())
        self.watchdog_s = int(watchdog_us) / 1e6 if watchdog_us.isdigit() and is_for_us else None

    def notify(self, message: str) -> None:
        """Send a message such as READY=1. Never fails: the runner works without systemd too."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(0)
                sock.sendto(message.encode(), self._address)
        except OSError as error:
            log.debug("cannot notify systemd: %s", error)


def service_user(folders: Iterable[Path] = UNIT_FOLDERS) -> str | None:
    """Return the user that the unit of the runner's service names; None if there is no unit."""
    for folder in folders:
        with suppress(OSError, UnicodeDecodeError):
            lines = (folder / UNIT).read_text(encoding="utf-8").splitlines()
            users = [line.partition("=")[2].strip() for line in lines if line.startswith("User=")]
            return users[-1] if users else "root"
    return None


class Watchdog:
    """By when each loop must show progress again."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._due: dict[str, float] = {}
        """The time, in awake seconds, until which a loop must have called again."""

    def expect(self, loop: str, *, next_within_s: float) -> None:
        """Expect the next call for this loop within so many seconds, or it counts as stuck."""
        self._due[loop] = self._clock.awake_s() + next_within_s

    def suspend(self, loop: str) -> None:
        """Expect nothing of this loop: it waits for something that may never come."""
        self._due.pop(loop, None)

    def overdue(self) -> list[str]:
        """Return the names of the loops that are stuck."""
        now_s = self._clock.awake_s()
        return [loop for loop, due_s in self._due.items() if due_s < now_s]


async def feed_watchdog(
    notifier: Notifier, watchdog: Watchdog, clock: Clock, timings: Timings
) -> None:
    """Send the keep-alive ping to systemd while no loop is stuck. Ends only when cancelled.

    Without it systemd kills and restarts the runner; the containers keep running.
    """
    watchdog_s = notifier.watchdog_s
    interval_s = watchdog_s / 3 if watchdog_s else timings.watchdog_check_interval_s
    logged: list[str] = []
    logged_at_s = 0.0
    while True:
        overdue, now_s = watchdog.overdue(), clock.awake_s()
        if overdue != logged or now_s - logged_at_s >= timings.outage_reminder_s:
            logged, logged_at_s = overdue, now_s
            if overdue:
                log.error("a loop is stuck", extra=fields(loops=",".join(overdue)))
        if watchdog_s and not overdue:
            notifier.notify("WATCHDOG=1")
        await clock.sleep(interval_s)
