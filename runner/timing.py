"""Time and waiting: the clock, every deadline and pause, the one retry, and change signals."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import anyio

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_DAY_S = 24 * 3600.0

T = TypeVar("T")


class Clock(Protocol):
    """What the runner needs of time; tests pass a clock that they move themselves."""

    @property
    def boot_id(self) -> str:
        """The id of this boot of the host."""

    def wall_s(self) -> float:
        """Return seconds since the epoch: for people and reports, never for deadlines."""

    def uptime_s(self) -> float:
        """Return seconds since the boot, suspended time included: for deadlines.

        It is the same for all processes of one boot: a deadline written down by one runner holds
        for the next, and setting the host's clock does not move it.
        """

    def awake_s(self) -> float:
        """Return seconds since the boot, suspended time left out, as `sleep` counts them."""

    async def sleep(self, seconds: float) -> None:
        """Wait that long, not counting suspended time."""


class HostClock:
    """The host's own time."""

    @property
    def boot_id(self) -> str:
        """The id of this boot of the host."""
        return _BOOT_ID.read_text(encoding="ascii").strip()

    def wall_s(self) -> float:
        """Return seconds since the epoch."""
        return time.time()

    def uptime_s(self) -> float:
        """Return seconds since the boot."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def awake_s(self) -> float:
        """Return seconds since the boot without those that the host was suspended."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait that long."""
        await anyio.sleep(seconds)


@dataclass(frozen=True)
class RetryPolicy:
    """How long to wait between attempts, and when to give up.

    Full jitter: the wait is drawn between `shortest_s` and a bound that doubles with each failure
    up to `ceiling_s`, so that a fleet does not come back all at once. Source: "Exponential Backoff
    And Jitter", AWS Architecture Blog, 2015.
    """

    first_s: float = 1.0
    """Half the bound after the first failure."""
    shortest_s: float = 0.5
    ceiling_s: float = 60.0
    retry_after_limit_s: float = 3600.0
    """A Retry-After is obeyed up to this."""
    gives_up_after_s: float | None = None
    """Counted from the first failure; None never gives up."""
    gives_up_after_failures: int | None = None

    @classmethod
    def every(cls, pause_s: float, *, gives_up_after_s: float | None = None) -> RetryPolicy:
        """Return a policy with the same pause after each failure."""
        return cls(pause_s, pause_s, pause_s, gives_up_after_s=gives_up_after_s)

    def wait_s(self, failures: int, retry_after_s: float | None = None) -> float:
        """Return the wait after `failures` failures (1 for the first), in seconds.

        A `retry_after_s` that the other side asked for is obeyed, and spread by a tenth.
        """
        bound_s = min(self.ceiling_s, self.first_s * 2.0 ** min(failures, 30))
        wait_s = random.uniform(self.shortest_s, max(bound_s, self.shortest_s))  # noqa: S311 - spreading load needs no secrecy
        if not retry_after_s:
            return wait_s
        asked_s = min(retry_after_s, self.retry_after_limit_s)
        return max(asked_s * random.uniform(1.0, 1.1), wait_s)  # noqa: S311 - as above


@dataclass(frozen=True)
class Timings:
    """Every deadline and pause of the runner, in seconds; tests and soaks pass shorter ones."""

    # Requests to the orchestrator
    connect_timeout_s: float = 10.0
    """To connect; a host that drops packets never answers."""
    call_timeout_s: float = 30.0
    """For a whole request and its response, beside the time that the body takes to send."""
    stall_timeout_s: float = 60.0
    """Between two chunks of a download, which has no other time limit."""
    keepalive_s: float = 60.0
    """For which an idle connection stays open: above the intervals at which it is used."""
    long_poll_s: float = 25.0
    """For how long the orchestrator is asked to hold a poll (RFC 7240): below the 30 s and 60 s
    after which common proxies cut a silent request."""
    longest_long_poll_s: float = 55.0
    """Once a poll was held for `long_poll_s`, until a proxy cuts one off: half as many requests."""
    long_poll_retry_s: float = 3600.0
    """Before polls are long again: it may have been a restart of the orchestrator."""
    least_long_poll_s: float = 3.0
    """Where a proxy cuts polls off sooner, they are not held: so short, they would be a load."""
    shortest_long_poll_s: float = 1.0
    """A poll that returns earlier was not held: the next one waits for the poll interval."""

    unexplained_refusal_s: float = 600.0
    """For which a refusal without a reason must last to be believed: a proxy shows its own 401 or
    404 while what is behind it is replaced, and what a refusal ends cannot be taken back."""

    # Retries
    retry_first_s: float = 1.0
    retry_shortest_s: float = 0.5
    retry_ceiling_s: float = 60.0
    """Outages of seconds are over soon, and one of hours is noticed within a minute of its end."""
    journal_retry_s: float = 5.0
    """A full disk: what happened must be written down, however long it takes."""
    journal_busy_timeout_s: float = 10.0
    """While another process has the journal locked, such as a copy of it."""
    engine_retry_s: float = 5.0
    """An engine that does not answer: often its daemon restarts, which takes seconds."""

    # The log
    outage_reminder_s: float = 600.0
    """What goes on failing is logged so often: it is seen, and hides nothing else."""
    outage_left_to_poll_s: float = 120.0
    """A poll notices an outage within this: until then a heartbeat that fails is not logged."""

    # Registration
    registration_timeout_s: float = 60.0
    """One attempt, for the watchdog: a call and what surrounds it."""
    ready_timeout_s: float = 30.0
    """For which a start waits for the first registration: below systemd's limit of 90 s."""
    registration_retry_after_limit_s: float = 300.0
    """An operator who corrects the orchestrator sees the node within five minutes."""
    registration_pause_s: float = 30.0
    """Before a third registration: a key that is refused at once must not cause a flood."""
    rotation_retry_s: float = 60.0
    """Before a new key that was refused is tried again: a cache may not have it yet."""

    # Poll and heartbeat
    host_check_timeout_s: float = 300.0
    """For the watchdog: disks on a network have no deadline of their own."""
    reoffer_pause_s: float = 10.0
    """For which a task is not accepted again after its claim was refused."""
    start_retry_first_s: float = 5.0
    start_retry_ceiling_s: float = 300.0
    """A host where containers do not start takes one task, then waits, twice as long each time."""
    image_retry_s: float = 3600.0
    """Before an image whose program could not be executed is tried with another task."""
    debounce_s: float = 1.0
    """Tasks that follow one another change a heartbeat once a second at most."""
    offline_timeout_s: float = 1.0
    """For the last heartbeat: a stop must not wait for an orchestrator that is away."""

    # Delivery
    outbox_interval_s: float = 60.0
    """The outbox is read at least so often, should a notification be missed."""
    log_first_s: float = 600.0
    """After which a task's status overtakes its log."""
    log_retry_ceiling_s: float = 3600.0
    """A log has megabytes: it is not sent every minute."""
    output_interval_s: float = 5.0
    """Between two chunks of a task's output, until the orchestrator asks for another interval."""
    shortest_output_interval_s: float = 1.0
    longest_output_interval_s: float = 60.0
    """Within these it is obeyed."""
    drain_check_interval_s: float = 1.0
    """A drain reads the unfinished tasks at least so often: not every change notifies it."""
    last_delivery_s: float = 30.0
    """For which a drained runner waits for its last reports to be delivered."""

    # Housekeeping
    orphan_grace_s: float = 300.0
    """Before an orphan that never ran is removed: its task may be on its way."""
    orphan_retry_s: float = 60.0
    prune_interval_s: float = _DAY_S
    image_check_interval_s: float = 600.0
    """For old images that could not be removed, while the disk is near its reserve."""
    prune_after_s: float = 30 * _DAY_S
    """Until then a late offer of a closed task is recognised."""

    # A task
    download_gives_up_s: float = 3600.0
    """After the first failure of a file."""
    download_timeout_s: float = _DAY_S
    """For all files of a task."""
    download_report_interval_s: float = 30.0
    """How much of a task's files has come is logged so often."""
    inspect_interval_s: float = 30.0
    """A container is inspected at least so often, even if `wait` does not return."""
    engine_timeout_grace_s: float = 60.0
    """The engine's own time limit is later than ours: it is for the time without a runner."""
    removal_grace_s: float = 1.0
    """`rm --force` of somebody else kills a container first and removes it within this."""
    daemon_return_s: float = 30.0
    """A container killed so shortly after docker's daemon came back went down with the daemon."""
    finish_s: float = 5.0
    """A task that has ended is reported within this, usually. Heartbeats name one that takes
    longer: an orchestrator could take it for lost."""
    final_output_timeout_s: float = 60.0
    """How long a final status waits for an engine that is asked for the container's output, beside
    the time for the agent's log: a log that takes long must not cost the output."""
    final_log_timeout_s: float = 60.0
    """For what the agent left: the final status waits for it."""
    artifact_copy_timeout_s: float = 600.0
    """For the engine to copy artifacts that belong to another user: the final status waits."""
    session_read_timeout_s: float = 30.0
    """A copy of a Crush database of 1 GiB takes some ten seconds, a busy host as long again."""

    # The engine
    engine_timeout_s: float = 30.0
    """For what an engine answers at once; more than a busy one needs."""
    engine_run_timeout_s: float = 600.0
    """podman may relabel a large Victoria home for SELinux, or a disk may be slow. A start that is
    killed begins from the beginning."""
    slow_start_interval_s: float = 60.0
    """A start that takes longer is logged so often."""
    engine_start_grace_s: float = 20.0
    """For which a start under way may finish when the runner stops or the task is cancelled: an
    engine that is killed as it starts a container does not know afterwards that it ran."""
    pull_timeout_s: float = 3600.0
    """Images have gigabytes."""
    newer_image_timeout_s: float = 120.0
    """For which a task waits for a newer image if one is on this host already."""
    pull_stall_timeout_s: float = 120.0
    """After which a pull that receives nothing is a problem of the host; it is not ended."""
    pull_report_interval_s: float = 30.0
    """How much of an image is downloaded is logged so often."""
    registry_retry_s: float = 300.0
    registry_retry_ceiling_s: float = 3600.0
    """Before a registry that failed is asked for a newer image again: one that limits its rate
    must not be asked at each task."""
    stop_grace_s: int = 10
    """Between TERM and KILL, for the container; the engines' own default."""
    kill_grace_s: float = 2.0
    """Between TERM and KILL, for a command of the engine."""
    leftover_start_grace_s: float = 600.0
    """For which a killed runner's start of a container may finish before it is killed: as long as
    one of this runner's."""
    leftover_start_kill_timeout_s: float = 2.0
    """A process that is still there so long after KILL is stuck in the kernel."""
    leftover_start_check_interval_s: float = 0.05

    watchdog_check_interval_s: float = 30.0
    """Where systemd asks for no watchdog, stuck loops are logged so often."""

    def backoff(
        self,
        *,
        ceiling_s: float = 0.0,
        retry_after_limit_s: float = 3600.0,
        gives_up_after_s: float | None = None,
        gives_up_after_failures: int | None = None,
    ) -> RetryPolicy:
        """Return the policy for calls across the network; `ceiling_s` can raise its ceiling."""
        return RetryPolicy(
            self.retry_first_s,
            self.retry_shortest_s,
            max(self.retry_ceiling_s, ceiling_s),
            retry_after_limit_s,
            gives_up_after_s,
            gives_up_after_failures,
        )


DEFAULT_TIMINGS = Timings()


@dataclass(frozen=True)
class ReporterTimings:
    """The deadlines of the status reporter, a process of its own in a container, in seconds."""

    call_timeout_s: float = 30.0
    """For a call of a tool: half of the timeout that the documents set in Crush."""
    retry_ceiling_s: float = 5.0
    """An agent waits meanwhile."""
    session_id_timeout_s: float = 2.0
    """To find the agent's session; a report is sent without its id as well."""
    lock_timeout_s: float = 5.0
    """A change of the shared state takes milliseconds: who holds its lock for longer is stopped."""
    lock_retry_s: float = 0.01


DEFAULT_REPORTER_TIMINGS = ReporterTimings()


class Retry:
    """The attempts at one thing: counts failures, waits between attempts, and gives up.

    `on_failure` is called with each failure and the wait in seconds that follows: it logs.
    """

    def __init__(
        self, clock: Clock, policy: RetryPolicy, on_failure: Callable[[Exception, float], None]
    ) -> None:
        self.failures = 0
        self._clock = clock
        self._policy = policy
        self._on_failure = on_failure
        self._gives_up_at_s = float("inf")

    def next_wait_s(self, error: Exception) -> float:
        """Count a failure and return the wait until the next attempt.

        Raises:
            Exception: the error itself, when the policy gives up.
        """
        self.failures += 1
        policy, now_s = self._policy, self._clock.awake_s()
        if self.failures == 1 and policy.gives_up_after_s is not None:
            self._gives_up_at_s = now_s + policy.gives_up_after_s
        if now_s >= self._gives_up_at_s or self.failures == policy.gives_up_after_failures:
            raise error
        wait_s = policy.wait_s(self.failures, getattr(error, "retry_after_s", None))
        return min(wait_s, self._gives_up_at_s - now_s)

    async def wait_after(self, error: Exception) -> None:
        """Count a failure, have it logged, and wait for the next attempt.

        Raises:
            Exception: the error itself, when the policy gives up.
        """
        wait_s = self.next_wait_s(error)
        self._on_failure(error, wait_s)
        await self._clock.sleep(wait_s)


async def retry(
    call: Callable[[], Awaitable[T]],
    on: type[Exception] | tuple[type[Exception], ...],
    attempts: Retry,
) -> T:
    """Return what `call` returns, called again after each of these errors.

    Raises:
        Exception: the last of them, when the policy gives up; any other error at once.
    """
    while True:
        try:
            return await call()
        except on as error:
            await attempts.wait_after(error)


async def watch_call(
    call: Callable[[], Awaitable[T]],
    report: Callable[[float], None],
    interval_s: float,
    clock: Clock,
) -> T:
    """Return what `call` returns; until then, pass `report` the seconds that it has taken."""

    async def keep_reporting() -> None:
        began_at_s = clock.awake_s()
        while True:
            await clock.sleep(interval_s)
            report(clock.awake_s() - began_at_s)

    failure: Exception | None = None
    async with anyio.create_task_group() as group:
        group.start_soon(keep_reporting)
        try:
            return await call()
        except Exception as error:  # noqa: BLE001 - raised below, since the group would wrap it
            failure = error
        finally:
            group.cancel_scope.cancel()
    raise failure or AssertionError("no task of the group swallows an exception")


def file_stamp(wall_s: float) -> str:
    """Return a moment in seconds since the epoch as a part of a file's name."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(wall_s))


def jittered_s(interval_s: float) -> float:
    """Return a regular wait, spread by a tenth to either side."""
    return interval_s * random.uniform(0.9, 1.1)  # noqa: S311 - spreading load needs no secrecy


class ChangeSignal:
    """A counter that can be waited on: no change is missed between reading it and waiting."""

    def __init__(self) -> None:
        self.count = 0
        self._next = anyio.Event()

    def notify(self) -> None:
        """Count a change and wake all who wait for one."""
        self.count += 1
        self._next.set()
        self._next = anyio.Event()

    async def after(self, count: int) -> None:
        """Wait until more than `count` changes have been counted."""
        while self.count <= count:
            await self._next.wait()

    async def after_or(self, count: int, seconds: float, clock: Clock) -> None:
        """Wait as `after` does, at most so many seconds."""
        async with anyio.create_task_group() as group:
            group.start_soon(_cancel_after, seconds, clock, group.cancel_scope)
            await self.after(count)
            group.cancel_scope.cancel()


async def _cancel_after(seconds: float, clock: Clock, scope: anyio.CancelScope) -> None:
    await clock.sleep(seconds)
    scope.cancel()
