"""Who this host is to the orchestrator: registered once, remembered, renewed when refused."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import anyio
import stamina

from runner import backoff
from runner.api import Identity, Orchestrator
from runner.clock import Clock
from runner.errors import Refused, RegistrationRefused, Unavailable
from runner.journal import Journal
from runner.log import fields
from runner.settings import Settings
from runner.systemd import Pulse

log = logging.getLogger(__name__)

INVALID_TOKEN = "Registration failed - invalid registration token"  # noqa: S105 - what users read
DISABLED = "Registration failed - orchestrator has registration disabled"

_SERVICE_UNAVAILABLE = 503
_LONGEST_ATTEMPT_S = 60.0
_LONGEST_WAIT_S = 300.0
_SPACING_S = 30.0


class Node:
    """The host's identity, for whoever needs it."""

    def __init__(
        self,
        settings: Settings,
        orchestrator: Orchestrator,
        journal: Journal,
        clock: Clock,
        pulse: Pulse,
    ) -> None:
        self.refused = anyio.Event()
        """Set when the registration token was refused: nothing more can be asked for."""
        self._settings = settings
        self._orchestrator = orchestrator
        self._journal = journal
        self._clock = clock
        self._pulse = pulse
        self._description = describe(settings)
        self._identity: Identity | None = None
        self._lock = anyio.Lock()
        self._registrations = 0

    async def identity(self) -> Identity:
        """Give the identity, registering first if there is none; waits through any outage.

        Raises:
            RegistrationRefused: the orchestrator does not take the registration token.
        """
        async with self._lock:
            if self.refused.is_set():
                raise RegistrationRefused(INVALID_TOKEN)
            if self._identity is None:
                self._identity = await self._journal.identity(
                    self._orchestrator.url, self._description
                )
            if self._identity is None:
                self._identity = await self._register()
            return self._identity

    async def renew(self, refused: Identity) -> None:
        """Note that the orchestrator no longer knows this identity; the next call registers."""
        async with self._lock:
            await self._journal.refuse_identity(refused)
            if self._identity == refused:
                log.warning(
                    "the orchestrator no longer knows this node; registering anew",
                    extra=fields(node_id=refused.node_id),
                )
                self._identity = None

    async def _register(self) -> Identity:
        if self._registrations:
            # One that is refused as soon as it is given must not turn into a flood.
            wait_s = _SPACING_S + backoff.delay_s(self._registrations)
            self._pulse.beat("register", next_within_s=wait_s + _LONGEST_ATTEMPT_S)
            await self._clock.sleep(wait_s if self._registrations > 1 else 0)
        self._registrations += 1
        try:
            identity = await self._ask_for_identity()
        except Refused as error:
            self.refused.set()
            log.error(INVALID_TOKEN if error.status == 401 else f"Registration failed - {error}")  # noqa: PLR2004 - HTTP's own number
            raise RegistrationRefused(INVALID_TOKEN) from error
        finally:
            self._pulse.rest("register")
        await self._journal.store_identity(
            identity, self._orchestrator.url, self._description, self._clock.wall_s()
        )
        log.info(
            "registered",
            extra=fields(node_id=identity.node_id, name=self._settings.name),
        )
        return identity

    async def _ask_for_identity(self) -> Identity:
        attempts = stamina.retry_context(
            on=_wait_as_asked,
            attempts=None,
            timeout=None,
            wait_max=backoff.CEILING_S,
        )
        async for attempt in attempts:
            with attempt:
                self._pulse.beat(
                    "register",
                    next_within_s=_LONGEST_WAIT_S + backoff.CEILING_S + _LONGEST_ATTEMPT_S,
                )
                return await self._orchestrator.register(
                    self._settings.registration_token, self._description
                )
        raise AssertionError("stamina gives up only when it is told a limit")


def _wait_as_asked(error: Exception) -> bool | float:
    """Decide whether to try again, and after how long if the orchestrator has said it."""
    if not isinstance(error, Unavailable):
        return False
    if error.status == _SERVICE_UNAVAILABLE and error.detail is not None:
        log.error(DISABLED)
    else:
        log.warning("cannot register: %s", error)
    if error.retry_after_s is None:
        return True
    return min(error.retry_after_s, _LONGEST_WAIT_S)


def describe(settings: Settings) -> dict[str, object]:
    """Describe this host in the fields that `POST /register` takes."""
    return {
        "hostname": socket.gethostname(),
        "name": settings.name,
        "os_type": os_type(),
        "capabilities": list(settings.capabilities),
        "tags": dict(settings.tags),
    }


def os_type(os_release: Path = Path("/etc/os-release")) -> str:
    """Give the distribution's ID, such as fedora or ubuntu (os-release(5)); linux if unknown."""
    try:
        lines = os_release.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "linux"
    for line in lines:
        name, _, text = line.partition("=")
        if name == "ID":
            return text.strip().strip("\"'") or "linux"
    return "linux"
