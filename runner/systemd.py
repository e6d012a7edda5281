"""What systemd is told (sd_notify), and the watchdog, fed only while every loop makes progress."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import MutableMapping

from runner.log import fields
from runner.timing import Clock, Timings

log = logging.getLogger(__name__)


class Notifier:
    """The service manager at the other end of NOTIFY_SOCKET; nobody, when it is not set."""

    def __init__(self, environment: MutableMapping[str, str] | None = None) -> None:
        """Take systemd's variables out of the environment, for no child is to have them."""
        variables = os.environ if environment is None else environment
        address = variables.pop("NOTIFY_SOCKET", "")
        # An abstract socket is written with @ and addressed with NUL (sd_notify(3)).
        self._address = "\0" + address[1:] if address.startswith("@") else address
        watchdog_us = variables.pop("WATCHDOG_USEC", "")
        watchdog_pid = variables.pop("WATCHDOG_PID", "")
        is_for_us = not watchdog_pid or watchdog_pid == str(os.getpid())
        self.watchdog_s = int(watchdog_us) / 1e6 if watchdog_us.isdigit() and is_for_us else None

    def tell(self, message: str) -> None:
        """Send a message such as READY=1; one that cannot be sent is not worth a failure."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(0)
                sock.sendto(message.encode(), self._address)
        except OSError as error:
            log.debug("cannot notify systemd: %s", error)


class Watchdog:
    """The loops' promises to show up again in time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._due: dict[str, float] = {}

    def expect(self, loop: str, *, next_within_s: float) -> None:
        """Promise that this loop will call again within so many seconds."""
        self._due[loop] = self._clock.awake_s() + next_within_s

    def suspend(self, loop: str) -> None:
        """Withdraw the promise: the loop waits for something that need not come."""
        self._due.pop(loop, None)

    def overdue(self) -> list[str]:
        """Name the loops that broke their promise."""
        now = self._clock.awake_s()
        return [loop for loop, due in self._due.items() if due < now]


async def feed_watchdog(
    notifier: Notifier, watchdog: Watchdog, clock: Clock, timings: Timings
) -> None:
    """Feed the watchdog while no loop is overdue. Ends only by being cancelled."""
    watchdog_s = notifier.watchdog_s
    interval_s = watchdog_s / 3 if watchdog_s else timings.watchdog_check_interval_s
    while True:
        overdue = watchdog.overdue()
        if overdue:
            log.error("a loop is stuck", extra=fields(loops=",".join(overdue)))
        elif watchdog_s:
            notifier.tell("WATCHDOG=1")
        await clock.sleep(interval_s)
