"""What the orchestrator knows of this host: its identity, its tasks and slots, and its problems."""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar

import anyio
import anyio.to_thread

from runner.api.client import OrchestratorClient
from runner.errors import (
    ConfigurationError,
    JournalError,
    Refused,
    RegistrationPostponed,
    RegistrationRefused,
    Unavailable,
    Unexplained,
)
from runner.identity import IdentityFile
from runner.journal.journal import Journal, read_unfinished_tasks
from runner.log import fields
from runner.model import Identity, Registration, Task, TaskState
from runner.outage import FailureLog, Outage, Span
from runner.redaction import Secret
from runner.settings import Settings
from runner.systemd import Watchdog
from runner.timing import (
    DEFAULT_TIMINGS,
    ChangeSignal,
    Clock,
    HostClock,
    Retry,
    RetryPolicy,
    Timings,
    retry,
)

log = logging.getLogger(__name__)
INVALID_TOKEN = "Registration failed - invalid registration token"  # noqa: S105 - what users read
DISABLED = "Registration failed - orchestrator has registration disabled"
_SERVICE_UNAVAILABLE = 503
_GONE = 410
_UNAUTHORISED = 401
_NOT_ALLOWED = frozenset({_UNAUTHORISED, 403})
_CHECK_ADDRESS, _CHECK_NODE = "check --orchestrator-url", "check --name, --tag and --capability"
_ADVICE = {404: _CHECK_ADDRESS, 405: _CHECK_ADDRESS, 400: _CHECK_NODE, 422: _CHECK_NODE}
_REGISTER = "register"
"""What the outage's log calls it."""
_ASK = "ask the orchestrator's administrator"
T = TypeVar("T")


REREGISTER = "reregister"
"""The extension by which a node stays the same when its description changes."""
_HOST_FACTS = frozenset({"hostname", "os_type"})
"""Parts of a description that are not the operator's: alone they never make a new node."""


class Node:
    """Who this host is to the orchestrator: one identity, registered when it is needed.

    Tasks of an older identity come from an earlier version's journal, or from containers whose
    journal was lost: they stay with that identity until it is refused. An earlier key of the same
    node is not another identity.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - the parts that it is put together from
        self,
        settings: Settings,
        orchestrator: OrchestratorClient,
        journal: Journal,
        clock: Clock,
        watchdog: Watchdog,
        problems: Problems,
        timings: Timings = DEFAULT_TIMINGS,
    ) -> None:
        self.refusal: RegistrationRefused | None = None
        """Why the orchestrator did not register this host; there is no further attempt."""
        self.registration_error: str | None = None
        """Why the registration has to be retried."""
        self._settings = settings
        self._orchestrator = orchestrator
        self._journal = journal
        self._clock = clock
        self._watchdog = watchdog
        self._problems = problems
        self._timings = timings
        self.outage = Outage(clock)
        """Whether the orchestrator is away, as all calls to it see it."""
        self._failure_log = self.failure_log(_REGISTER, is_vital=True)
        self._description = node_description(settings)
        self._file = IdentityFile(settings.state_dir)
        self._registration: Registration | None = None
        self._last_extensions: frozenset[str] | None = None
        """Those that the orchestrator named before it refused this node."""
        self._owners: dict[str, Identity] = {}
        """By task id, the identities that accepted the tasks of an earlier runner."""
        self._refused_key, self._refused_at_s = Secret(""), 0.0
        """The node's last key that was refused, and the uptime of that in seconds."""
        self._last_identity: Identity | None = None
        """The refused identity by which reports are still tried when no other is to be had."""
        self._has_warned_of_its_key = False
        self._has_sent_facts = False
        """Facts of the host are sent once; a failure does not keep the node from its work."""
        self._is_waiting = False
        self._lock = anyio.Lock()
        self._registrations = 0

    @property
    def known_identity(self) -> Identity | None:
        """The present identity, without a request; None before a registration."""
        return None if self._registration is None else self._registration.identity

    def failure_log(
        self, what: str, ids: Mapping[str, object] | None = None, *, is_vital: bool = False
    ) -> FailureLog:
        """Return the log of a call to the orchestrator."""
        return FailureLog(
            what, self._clock, self._timings, ids, outage=self.outage, is_vital=is_vital
        )

    @property
    def is_refused(self) -> bool:
        """Whether there is no identity, and there will be none."""
        return self.refusal is not None and self._registration is None

    async def identity(self) -> Identity:
        """Return the identity; register first if there is none, and wait through any outage.

        Raises:
            RegistrationRefused: the orchestrator does not take the registration token, or, with
                `--once`, does not answer.
        """
        if self._registration is not None:
            # Not under the lock: a registration may be under way for another description.
            return self._registration.identity
        async with self._lock:
            return (await self._registered()).identity

    async def identity_for_new_tasks(self) -> Identity | None:
        """Return the identity, under a description that is up to date, to ask for tasks with.

        None while new tasks must wait: for those of an older identity or description, or for an
        orchestrator that cannot change the description now.

        Raises:
            RegistrationRefused: as for `identity`.
        """
        async with self._lock:
            current = await self._registered()
            if current.description != self._description:
                current = await self._update(current)
            must_wait = not is_same_node(current.description, self._description)
            must_wait = must_wait or await self._has_other_owners(current)
            if must_wait and not self._is_waiting:
                log.info(
                    "no new task is taken until those of an older identity or description are "
                    "reported",
                    extra=fields(node_id=current.identity.node_id),
                )
            self._is_waiting = must_wait
            return None if must_wait else current.identity

    def note_owner(self, task_id: str, owner: Identity | None) -> None:
        """Note which identity accepted an earlier runner's task; None if it was refused since."""
        if owner is not None:
            self._owners[task_id] = owner

    async def identity_of(self, task_id: str) -> Identity:
        """Return the identity to report a task with: its owner, once refused the present one.

        Raises:
            RegistrationRefused: as for `identity`.
        """
        owner = self._owners.get(task_id)
        if owner is None or is_key_of(self.known_identity, owner):
            return await self.identity()
        return owner

    async def identity_to_deliver(self, task_id: str) -> Identity | None:
        """Return `identity_of`; without a registration the refused one, until it fails again.

        What refused it may have been a proxy, and a report that is delivered late is not lost.
        """
        try:
            return await self.identity_of(task_id)
        except RegistrationRefused:
            return self._last_identity

    def can_deliver(self, task_id: str) -> bool:
        """Check without a request whether there is an identity to deliver a task's report with."""
        return not self.is_refused or task_id in self._owners or self._last_identity is not None

    async def replace_identity(self, refused: Identity) -> bool:
        """Note that a report was refused under this identity; return whether there is another."""
        if self.is_refused and refused == self._last_identity:
            self._last_identity = None
        await self.forget_identity(refused)
        try:
            await self.identity()
        except RegistrationRefused:
            return False
        return True

    def by_identity(self, current: Identity, task_ids: Iterable[str]) -> dict[Identity, list[str]]:
        """Return these tasks by the identity to send heartbeats with; the current one is always in.

        A task's own key sends none.
        """
        grouped: dict[Identity, list[str]] = {current: []}
        for task_id in task_ids:
            owner = self._owners.get(task_id, current)
            is_current = owner.is_task_key or is_key_of(current, owner)
            grouped.setdefault(current if is_current else owner, []).append(task_id)
        return grouped

    async def rotate_key(self, identity: Identity, key: Secret) -> None:
        """Replace this identity's key by the one that the orchestrator has sent.

        It is on disk before it is used. The key before it is kept: should the orchestrator refuse
        the new one, the node goes on with the old one, and takes the new one when it is sent again
        after a pause. Tasks that were accepted under the old key are the same node's.
        """
        async with self._lock:
            current = self._registration
            if current is None or current.identity != identity or key == identity.api_key:
                return
            refused_for_s = self._clock.uptime_s() - self._refused_at_s
            if key == self._refused_key and refused_for_s < self._timings.rotation_retry_s:
                return
            rotated = replace(current, identity=replace(identity, api_key=key))
            url, now = self._orchestrator.url, self._clock.wall_s()
            try:
                await anyio.to_thread.run_sync(self._file.store, url, rotated)
            except ConfigurationError as error:
                log.error("the node's key is not replaced: %s", error)
                return
            await self._persist(lambda: self._journal.rotate_key(identity, rotated, url, now))
            self._registration = rotated
            log.info("the node's key is replaced", extra=fields(node_id=identity.node_id))

    def note_task_without_key(self) -> None:
        """Warn, once, that a container gets this node's key."""
        if not self._has_warned_of_its_key:
            self._has_warned_of_its_key = True
            log.warning(
                "the orchestrator sends no key for each task (extension task-key): containers get "
                "this node's key, which opens all that the node may do; --require-task-key "
                "rejects such tasks"
            )

    async def forget_identity(self, refused: Identity) -> None:
        """Note that the orchestrator no longer knows this identity; the next call registers."""
        async with self._lock:
            await self._forget(refused)

    def offers(self, extension: str) -> bool:
        """Return whether the orchestrator named an extension, at registration or since."""
        return self._registration is not None and extension in self._registration.extensions

    def lacks(self, extension: str) -> bool:
        """Return whether the orchestrator did not name an extension when this node last knew."""
        current = self._registration
        known = self._last_extensions if current is None else current.extensions
        return known is not None and extension not in known

    async def note_extensions(self, identity: Identity, extensions: frozenset[str]) -> bool:
        """Note which extensions the orchestrator names; return whether they changed."""
        current = self._registration
        if current is None or (current.identity, current.extensions) == (identity, extensions):
            return False
        if current.identity != identity:
            return False
        self._registration = replace(current, extensions=extensions)
        try:
            await self._journal.store_extensions(identity, extensions)
        except JournalError as error:
            # The next start learns it again from its first heartbeat.
            log.debug("cannot write the orchestrator's extensions: %s", error)
        return True

    async def is_registered(self) -> bool:
        """Check without a request whether there is an identity."""
        async with self._lock:
            return await self._load() is not None

    async def recover(self) -> None:
        """Load the identity; from the identity file if the journal was lost.

        Else the file, which may be missing or older, is made the journal's copy.
        """
        async with self._lock:
            if await self._load() is not None:
                return
            try:
                registrations = await anyio.to_thread.run_sync(self._file.read)
            except ConfigurationError as error:
                log.error(str(error))
                return
            url, now = self._orchestrator.url, self._clock.wall_s()
            copy = registrations.get(url)
            if copy is None:
                return
            if await self._persist(lambda: self._journal.has_refused(copy.identity)):
                return
            await self._persist(lambda: self._journal.store_registration(copy, url, now))
            log.warning(
                "the journal knows no identity; it is taken from the identity file",
                extra=fields(node_id=copy.identity.node_id),
            )
            await self._load()

    async def _load(self) -> Registration | None:
        if self._registration is None:
            url = self._orchestrator.url
            registration = await self._persist(lambda: self._journal.registration(url))
            if registration is not None:
                await self._use(registration)
        return self._registration

    async def _use(self, registration: Registration) -> None:
        """Use a registration that the journal has, and copy it to the identity file."""
        try:
            await anyio.to_thread.run_sync(self._file.store, self._orchestrator.url, registration)
        except ConfigurationError as error:
            # Needed only if the journal is lost: no reason to keep the node from its work.
            log.error(str(error))
        self._registration = registration
        self.registration_error = None
        self.outage.changes.notify()

    async def _registered(self) -> Registration:
        """Return the registration in the journal, else a new one."""
        if await self._load() is None:
            await self._register(None)
        if self._registration is None:
            raise AssertionError("a new registration succeeds or raises")
        return self._registration

    async def _update(self, current: Registration) -> Registration:
        """Register again with a changed description, as the same node or when nothing is open."""
        has_extension = REREGISTER in current.extensions
        if is_same_node(current.description, self._description):
            if has_extension and not self._has_sent_facts:
                self._has_sent_facts = True
                await self._register(current.identity, is_needed=False)
        elif has_extension:
            await self._register(current.identity)
        elif not await self._persist(self._journal.unfinished_tasks):
            await self._register(None)
        return await self._registered()

    async def _has_other_owners(self, current: Registration) -> bool:
        """Check, in the journal if need be, for unfinished tasks of other identities."""
        if all(is_key_of(current.identity, owner) for owner in self._owners.values()):
            return False
        tasks = await self._persist(self._journal.unfinished_tasks)
        self._owners = {task.task_id: task.identity for task in tasks if task.identity}
        return not all(is_key_of(current.identity, owner) for owner in self._owners.values())

    async def _forget(self, refused: Identity) -> None:
        await self._persist(lambda: self._journal.refuse_identity(refused))
        owners = self._owners.items()
        self._owners = {task_id: owner for task_id, owner in owners if owner != refused}
        if self.known_identity != refused:
            return
        if self._registration is not None:
            self._last_extensions = self._registration.extensions
        self._registration, self._last_identity = None, refused
        self._refused_key, self._refused_at_s = refused.api_key, self._clock.uptime_s()
        former = await self._load()
        if former is not None and is_key_of(former.identity, refused):
            sentence = "the orchestrator refuses this node's new key; using the one before it"
        else:
            sentence = "the orchestrator no longer knows this node; registering it again"
        log.warning(sentence, extra=fields(node_id=refused.node_id))

    async def _register(self, known: Identity | None, *, is_needed: bool = True) -> None:
        """Register as a new node, or make one attempt to replace the known one's description.

        Raises:
            RegistrationRefused: as for `identity`, if the registration is needed.
        """
        if self.refusal is not None:
            raise self.refusal
        try:
            registration = await self._request(known)
        except RegistrationRefused as refusal:
            self.outage.drop(_REGISTER)
            if not is_needed:
                return
            self.refusal = refusal
            raise
        finally:
            self._watchdog.suspend("register")
        if registration is None:
            if not is_needed:
                self.outage.drop(_REGISTER)
            return
        self._failure_log.end()
        now = self._clock.wall_s()
        url = self._orchestrator.url
        await self._persist(lambda: self._journal.store_registration(registration, url, now))
        ids = fields(node_id=registration.identity.node_id, name=self._settings.name)
        if known is not None and registration.identity != known:
            log.warning("the orchestrator registered this node as another one", extra=ids)
            for task in await self._persist(self._journal.unfinished_tasks):
                self.note_owner(task.task_id, task.identity)
        await self._use(registration)
        log.info("registered", extra=ids)

    async def _request(self, known: Identity | None) -> Registration | None:
        """Return the response of `POST /register`; None if the known node could not be changed now.

        Raises:
            RegistrationRefused: the token is not taken, or with `--once` nobody answers.
        """
        if known is None:
            await self._pause_before_registration()
        timings = self._timings
        policy = timings.backoff(retry_after_limit_s=timings.registration_retry_after_limit_s)
        attempts = Retry(self._clock, policy, self._log_failure)
        token = self._settings.registration_token
        while True:
            self._watchdog.expect("register", next_within_s=timings.registration_timeout_s)
            try:
                return await self._orchestrator.register(token, self._description, known)
            except (Refused, Unavailable) as error:
                if known is not None and isinstance(error, Refused) and error.status == _GONE:
                    await self._forget(known)
                    return None
                if isinstance(error, Refused) and error.status in _NOT_ALLOWED:
                    self._log_failure(error, 0)
                    raise RegistrationRefused(str(error)) from error
                if self._settings.once:
                    self._log_failure(error, 0)
                    raise RegistrationPostponed(f"cannot register: {error}") from error
                if known is not None:
                    # Not retried here: its key may be refused meanwhile, which needs the lock.
                    self._log_failure(error, 0)
                    return None
                await attempts.wait_after(error)

    async def _pause_before_registration(self) -> None:
        """Wait, but for the first two: a key that is refused at once must not cause a flood."""
        timings = self._timings
        if self._registrations:
            wait_s = timings.registration_pause_s + timings.backoff().wait_s(self._registrations)
            self._watchdog.expect("register", next_within_s=wait_s + timings.registration_timeout_s)
            await self._clock.sleep(wait_s if self._registrations > 1 else 0)
        self._registrations += 1

    async def _persist(self, write: Callable[[], Awaitable[T]]) -> T:
        self._watchdog.suspend("register")
        return await persist(write, self._problems, self._clock, self._timings)

    def _log_failure(self, error: Exception, wait_s: float) -> None:
        """Log why there is no registration, and what an operator can do where that is known."""
        self._watchdog.expect(
            "register", next_within_s=wait_s + self._timings.registration_timeout_s
        )
        status = error.status if isinstance(error, (Refused, Unavailable)) else None
        is_not_allowed, level = status in _NOT_ALLOWED, logging.ERROR
        refusal = INVALID_TOKEN if status == _UNAUTHORISED else f"Registration failed - {error}"
        if is_not_allowed and _is_first_doubt(error):
            log.error(refusal)
        if is_not_allowed and isinstance(error, Refused):
            sentence = refusal
        elif isinstance(error, Refused) or status in _ADVICE:
            sentence = f"cannot register: {error}; {_ADVICE.get(status or 0, _ASK)}"
        elif (
            isinstance(error, Unavailable)
            and status == _SERVICE_UNAVAILABLE
            and error.detail is not None
        ):
            sentence = DISABLED
        else:
            sentence, level = f"cannot register: {error}", logging.WARNING
        self._failure_log.note(error, wait_s, sentence, level)
        if wait_s:
            self.registration_error = sentence
            self.outage.changes.notify()


def _is_first_doubt(error: Exception) -> bool:
    return isinstance(error, Unexplained) and error.is_first


def is_key_of(current: Identity | None, owner: Identity) -> bool:
    """Check whether an identity is the current node, be it with an earlier key of it."""
    return current is not None and not owner.is_task_key and owner.node_id == current.node_id


def is_same_node(before: Mapping[str, object] | None, after: Mapping[str, object]) -> bool:
    """Check whether only facts of the host differ; an unknown description counts as the same."""
    if before is None:
        return True
    return all(before.get(name) == after[name] for name in after.keys() - _HOST_FACTS)


def belongs_here(task: Task, settings: Settings, engine_kind: str) -> bool:
    """Check whether a task was accepted from this orchestrator and for this engine."""
    has_url = settings.orchestrator_url in {"", task.orchestrator_url}
    return has_url and engine_in_use(task) in {None, engine_kind}


def engine_in_use(task: Task) -> str | None:
    """Return the kind of engine that may hold the task's container; None if there is none."""
    return None if task.state is TaskState.CLOSED else task.engine


def can_be_drained(tasks: Sequence[Task], settings: Settings, engine_kind: str) -> bool:
    """Check whether a runner with these settings can finish some of these unfinished tasks.

    If other tasks of this orchestrator need another engine, only a task that uses this one counts.
    """
    own = [task for task in tasks if belongs_here(task, settings, engine_kind)]
    is_held = any(
        task not in own and task.orchestrator_url == settings.orchestrator_url for task in tasks
    )
    return any(not is_held or engine_in_use(task) == engine_kind for task in own)


def find_conflict(tasks: Sequence[Task], settings: Settings, engine_kind: str) -> str | None:
    """Return why these unfinished tasks keep the runner from these settings, and what to do.

    None if all of them belong to the orchestrator and the engine of the settings.
    """
    others = [task for task in tasks if not belongs_here(task, settings, engine_kind)]
    if not others:
        return None
    other = others[0]
    options = {
        "--orchestrator-url": (settings.orchestrator_url, other.orchestrator_url),
        "--container-runtime": (engine_kind, engine_in_use(other) or engine_kind),
    }
    changed = {name: pair for name, pair in options.items() if pair[0] != pair[1]}
    new = " ".join(f"{name} {pair[0]}" for name, pair in changed.items())
    old = " ".join(f"{name} {pair[1]}" for name, pair in changed.items())
    return (
        f"cannot use {new}: {settings.state_dir} has unfinished tasks ({len(others)}) of {old}; "
        f"start the runner once with `{old} --once`, which finishes and reports them, or choose "
        "another --state-dir"
    )


async def runtime_to_use(settings: Settings) -> str:
    """Return the container runtime to look for: for `auto` that of the open tasks, if any."""
    if settings.container_runtime != "auto":
        return settings.container_runtime
    tasks = await read_unfinished_tasks(settings.state_dir)
    return next(filter(None, map(engine_in_use, tasks)), "auto")


def node_description(settings: Settings) -> dict[str, object]:
    """Return this host in the fields that `POST /register` takes."""
    return {
        "hostname": socket.gethostname(),
        "name": settings.name,
        "os_type": os_type(),
        "capabilities": list(settings.capabilities),
        "tags": dict(settings.tags),
    }


def os_type(os_release: Path = Path("/etc/os-release")) -> str:
    """Return the distribution's ID, such as fedora or ubuntu (os-release(5)); linux if unknown."""
    try:
        lines = os_release.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "linux"
    for line in lines:
        name, _, text = line.partition("=")
        if name == "ID":
            return text.strip().strip("\"'") or "linux"
    return "linux"


class Problems:
    """What is wrong with this host: a sentence by the name of each problem.

    Most keep new tasks away; a refused login or a pull that stalls does not.
    """

    START = "start"
    """The name of the problem that containers cannot be started here."""
    ENV_FILE = "env file"
    """The name of the problem that the operator's env file cannot be used."""
    HOME = "home"
    """The name of the problem that no folder of a task can be made in the Victoria home."""

    def __init__(
        self,
        changes: ChangeSignal,
        timings: Timings = DEFAULT_TIMINGS,
        clock: Clock | None = None,
    ) -> None:
        self._changes = changes
        self._timings = timings
        self._clock = clock or HostClock()
        self._sentences: dict[str, str] = {}
        self._spans: dict[str, Span] = {}
        self._refused_starts = 0
        self.parked_reports = 0
        """How many reports wait for an operator, as heartbeats and the status line have it."""
        self._failed_image = ("", 0.0)
        self.is_proven = False
        """Whether a task's container has run since the last failure."""
        self.next_start_at_s = 0.0
        """The uptime in seconds before which no container is started after refusals."""

    @property
    def sentences(self) -> dict[str, str]:
        """The problems that there are now."""
        return dict(self._sentences)

    def set(self, name: str, sentence: str) -> None:
        """Note a problem and log it: once, and every ten minutes in which it is noted again."""
        now_s = self._clock.awake_s()
        is_new = name not in self._sentences
        self._sentences[name] = sentence
        span = self._spans.setdefault(_outage_of(name), Span(now_s, self._clock.wall_s()))
        span.failures += 1
        if now_s - span.logged_at_s >= self._timings.outage_reminder_s:
            span.logged_at_s = now_s
            facts = {} if span.failures == 1 else fields(**span.facts(now_s))
            log.error("%s", sentence, extra=facts)
        if is_new:
            self._changes.notify()

    def clear(self, name: str) -> None:
        """Note that a problem is over."""
        if self._sentences.pop(name, None) is None:
            return
        outage = _outage_of(name)
        if outage not in map(_outage_of, self._sentences):
            facts = self._spans.pop(outage).facts(self._clock.awake_s())
            log.info("problem is over", extra=fields(problem=outage, **facts))
        self._changes.notify()

    def note_parked(self, count: int) -> None:
        """Note how many reports are parked, which keeps no task away."""
        if count != self.parked_reports:
            self.parked_reports = count
            self._changes.notify()

    def start_failed(self, sentence: str, uptime_s: float) -> None:
        """Note that a container could not be started for a reason that the next would meet too.

        Each failure in a row doubles the wait before the next task: a broken host must not use up
        the queue.
        """
        self._refused_starts += 1
        self.is_proven = False
        doubled_s = self._timings.start_retry_first_s * 2.0 ** min(self._refused_starts - 1, 30)
        self.next_start_at_s = uptime_s + min(doubled_s, self._timings.start_retry_ceiling_s)
        self.set(self.START, f"slowing down until a container starts: {sentence}")

    def image_failed(self, sentence: str, image_id: str, uptime_s: float) -> None:
        """Note that the program of an image cannot be executed, whatever else of it can be."""
        self._failed_image = image_id, uptime_s + self._timings.image_retry_s
        self.start_failed(sentence, uptime_s)

    def has_failed(self, image_id: str, uptime_s: float) -> bool:
        """Check whether an image failed so, not too long ago."""
        failed_id, until_s = self._failed_image
        return image_id == failed_id and uptime_s < until_s

    def note_start(self) -> None:
        """Note that a container has started; the wait after the next failure stays as long."""
        self.next_start_at_s = 0.0
        self.clear(self.START)

    def note_run(self) -> None:
        """Note that a task's container has run: this host is well."""
        self._refused_starts = 0
        self.is_proven = True


def _outage_of(name: str) -> str:
    """Return by what name a problem is logged: an engine that does not answer is one for all."""
    return "engine" if name.startswith("engine/") else name


class Cancellable(Protocol):
    """What `Slots` needs of a running task."""

    def cancel(self, who: str) -> None:
        """Stop it at whatever step it is; `who` is named in the log."""


class Slots:
    """The running tasks, and the slots that they occupy."""

    def __init__(
        self, max_tasks: int, changes: ChangeSignal, timings: Timings = DEFAULT_TIMINGS
    ) -> None:
        self._max_tasks = max_tasks
        self._changes = changes
        self._timings = timings
        self._slots = ChangeSignal()
        self._tasks: dict[str, Cancellable] = {}
        self._exited: set[str] = set()
        self._dropped_at_s: dict[str, float] = {}

    @property
    def task_ids(self) -> tuple[str, ...]:
        """The ids of the running tasks, oldest first."""
        return tuple(self._tasks)

    @property
    def has_room(self) -> bool:
        """Whether one more task may be asked for: max-tasks is enforced here."""
        # An engine that does not answer how containers ended is not given more and more of them.
        return len(self._tasks) - min(len(self._exited), self._max_tasks) < self._max_tasks

    def add(self, task_id: str, task: Cancellable) -> None:
        """Track a task, which takes a slot."""
        self._tasks[task_id] = task
        self._notify()

    def release(self, task_id: str) -> None:
        """Stop tracking a task and free its slot; both may have been done before."""
        self._exited.discard(task_id)
        if self._tasks.pop(task_id, None) is not None:
            self._notify()

    def cancel(self, task_id: str, who: str) -> None:
        """Cancel a task, if it is running."""
        task = self._tasks.get(task_id)
        if task is not None:
            task.cancel(who)

    def free_slot(self, task_id: str) -> None:
        """Free the slot of a task whose container has exited, while its outcome is confirmed."""
        if task_id in self._tasks:
            self._exited.add(task_id)
            self._slots.notify()

    async def wait_for_room(self) -> None:
        """Wait until there is room for one more task."""
        while not self.has_room:
            await self._slots.after(self._slots.count)

    async def wait_for_confirmation(self, task_id: str) -> None:
        """Wait until it is known how all other containers ended that have exited."""
        while self._exited - {task_id}:
            await self._slots.after(self._slots.count)

    def note_dropped(self, task_id: str, uptime_s: float) -> None:
        """Note that a task was dropped, because its claim was refused."""
        self._dropped_at_s[task_id] = uptime_s

    def was_just_dropped(self, task_id: str, uptime_s: float) -> bool:
        """Check whether a task was dropped a moment ago: accepted now, it would be again."""
        self._dropped_at_s = {
            dropped: at_s
            for dropped, at_s in self._dropped_at_s.items()
            if uptime_s - at_s < self._timings.reoffer_pause_s
        }
        return task_id in self._dropped_at_s

    def _notify(self) -> None:
        self._changes.notify()
        self._slots.notify()


async def persist(
    write: Callable[[], Awaitable[T]], problems: Problems, clock: Clock, timings: Timings
) -> T:
    """Return what a write to the journal returns; retried without end, for a full disk may pass.

    A failure is a problem of the host until a write succeeds.
    """

    def note_failure(error: Exception, _wait_s: float) -> None:
        problems.set("journal", str(error))

    attempts = Retry(clock, RetryPolicy.every(timings.journal_retry_s), note_failure)
    result = await retry(write, JournalError, attempts)
    problems.clear("journal")
    return result
