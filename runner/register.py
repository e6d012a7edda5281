"""Who this host is to the orchestrator: registered once, remembered, renewed when refused."""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio

from runner import backoff
from runner.api import Identity, Orchestrator
from runner.clock import Clock
from runner.errors import (
    Refused,
    RegistrationPostponed,
    RegistrationRefused,
    Unauthorised,
    Unavailable,
)
from runner.journal import Journal
from runner.log import fields
from runner.settings import Settings
from runner.systemd import Pulse
from runner.workload import Workload, written

log = logging.getLogger(__name__)

INVALID_TOKEN = "Registration failed - invalid registration token"  # noqa: S105 - what users read
DISABLED = "Registration failed - orchestrator has registration disabled"

_SERVICE_UNAVAILABLE = 503
_NOT_ALLOWED = frozenset({401, 403})
_CHECK_ADDRESS, _CHECK_NODE = "check --orchestrator-url", "check --name, --tag and --capability"
_ADVICE = {404: _CHECK_ADDRESS, 405: _CHECK_ADDRESS, 400: _CHECK_NODE, 422: _CHECK_NODE}
_ASK = "ask the orchestrator's administrator"
_LONGEST_ATTEMPT_S = 60.0
_LONGEST_WAIT_S = 300.0
_SPACING_S = 30.0


class Node:
    """The host's identity, for whoever needs it."""

    def __init__(  # noqa: PLR0913, PLR0917 - the parts that it is put together from
        self,
        settings: Settings,
        orchestrator: Orchestrator,
        journal: Journal,
        clock: Clock,
        pulse: Pulse,
        workload: Workload,
    ) -> None:
        self.refusal: RegistrationRefused | None = None
        """Why there is no identity and will be none: nothing more can be asked for."""
        self._settings = settings
        self._orchestrator = orchestrator
        self._journal = journal
        self._clock = clock
        self._pulse = pulse
        self._workload = workload
        self._description = describe(settings)
        self._identity: Identity | None = None
        self._lock = anyio.Lock()
        self._registrations = 0

    @property
    def known_identity(self) -> Identity | None:
        """Give the identity if there is one now; nothing is asked for."""
        return self._identity

    async def identity(self) -> Identity:
        """Give the identity, registering first if there is none; waits through any outage.

        Raises:
            RegistrationRefused: the orchestrator does not take the registration token, or, with
                `--once`, does not answer.
        """
        async with self._lock:
            if self.refusal is not None:
                raise self.refusal
            if self._identity is None:
                self._identity = await written(
                    lambda: self._journal.identity(self._orchestrator.url, self._description),
                    self._workload,
                    self._clock,
                )
            if self._identity is None:
                self._identity = await self._register()
            return self._identity

    async def renew(self, refused: Identity) -> None:
        """Note that the orchestrator no longer knows this identity; the next call registers."""
        async with self._lock:
            await self._written(lambda: self._journal.refuse_identity(refused))
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
        except RegistrationRefused as refusal:
            self.refusal = refusal
            raise
        finally:
            self._pulse.rest("register")
        now = self._clock.wall_s()
        await self._written(
            lambda: self._journal.store_identity(
                identity, self._orchestrator.url, self._description, now
            )
        )
        log.info(
            "registered",
            extra=fields(node_id=identity.node_id, name=self._settings.name),
        )
        return identity

    async def _written(self, write: Callable[[], Awaitable[None]]) -> None:
        self._pulse.rest("register")
        await written(write, self._workload, self._clock)

    async def _ask_for_identity(self) -> Identity:
        failures = 0
        while True:
            self._pulse.beat("register", next_within_s=_LONGEST_ATTEMPT_S)
            try:
                return await self._orchestrator.register(
                    self._settings.registration_token, self._description
                )
            except (Refused, Unavailable) as error:
                _tell(error)
                if isinstance(error, Refused) and error.status in _NOT_ALLOWED:
                    raise RegistrationRefused(str(error)) from error
                if self._settings.once:
                    raise RegistrationPostponed(f"cannot register: {error}") from error
                failures += 1
                asked_s = (error.retry_after_s or 0) if isinstance(error, Unavailable) else 0
                wait_s = min(backoff.delay_s(failures, at_least_s=asked_s), _LONGEST_WAIT_S)
            self._pulse.beat("register", next_within_s=wait_s + _LONGEST_ATTEMPT_S)
            await self._clock.sleep(wait_s)


def _tell(error: Refused | Unavailable) -> None:
    """Say why there is no registration, and what an operator can do where that is known."""
    if isinstance(error, Unauthorised):
        log.error(INVALID_TOKEN)
    elif isinstance(error, Refused) and error.status in _NOT_ALLOWED:
        log.error("Registration failed - %s", error)
    elif isinstance(error, Refused):
        log.error("cannot register: %s; %s", error, _ADVICE.get(error.status, _ASK))
    elif error.status == _SERVICE_UNAVAILABLE and error.detail is not None:
        log.error(DISABLED)
    else:
        log.warning("cannot register: %s", error)


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
