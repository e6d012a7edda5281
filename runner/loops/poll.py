"""Poll for the next task while this host can take one.

Ends when the registration is refused, when it is cancelled, or after one request with `--once`.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from runner.api.assignment import parse_assignment
from runner.api.client import Offer
from runner.engine.base import ROOTFUL
from runner.env_file import read_env_file
from runner.errors import (
    BadAssignment,
    ConfigurationError,
    EngineError,
    HomeUnusable,
    JournalError,
    NoResponse,
    RegistrationRefused,
    RunnerError,
    Unauthorised,
    Unavailable,
    WireError,
)
from runner.handles import check_free
from runner.log import fields
from runner.loops.housekeeping import remove_old_images
from runner.model import Identity, Task, TaskState
from runner.outage import FailureLog
from runner.state_dir import check_writable
from runner.tasks.context import RunnerContext
from runner.tasks.outcome import final_report, outcome_without_container
from runner.tasks.prepare import check_task_key
from runner.tasks.trial import may_start
from runner.timing import Clock, Timings, file_stamp, jittered_s
from runner.workspace.home import Tidying, check_home

log = logging.getLogger(__name__)
_ENGINE = "engine"
_TIMEOUTS = frozenset({408, 504, 524})
"""Status codes of proxies for a response that they have waited for too long."""
_LOST_BEHIND_A_PROXY = frozenset({502, 503})
POLLING = "poll for tasks"
"""What the outage's log calls it."""


async def can_take_work(runner: RunnerContext) -> bool:
    """Check whether a new task may be accepted now; what forbids it becomes a problem."""
    runner.watchdog.expect("poll", next_within_s=runner.timings.host_check_timeout_s)
    if _ENGINE not in runner.problems.sentences:
        # Before the disks are looked at: it may be images that have filled one.
        await remove_old_images(runner)
    if not (
        await _has_room(runner)
        and await _has_usable_env_file(runner)
        and await _has_usable_home(runner)
    ):
        return False
    problems = runner.problems.sentences
    if any(name.startswith(f"{_ENGINE}/") for name in problems):
        return False  # a running task waits for the engine, and clears the problem
    if _ENGINE in problems and not await _engine_answers(runner):
        return False
    return runner.problems.START not in problems or await _may_start(runner)


async def check_host(runner: RunnerContext) -> None:
    """Check home and engine and fetch the image, before the first task; log what will fail."""
    path = runner.settings.env_file
    with suppress(ConfigurationError):  # a problem, once work is asked for
        for warning in read_env_file(path).warnings:
            log.warning("--env-file %s: %s", path, warning)
    await _has_usable_home(runner, thorough=True)
    if await _engine_answers(runner):
        await _may_start(runner)


async def _has_room(runner: RunnerContext) -> bool:
    """Check the disks of the Victoria home, of the state folder and of the engine's images."""
    settings, facts = runner.settings, runner.engine.known_facts
    folders = {
        "disk/home": settings.victoria_home,
        "disk/state": settings.state_dir,
        "disk/engine": None if facts is None else facts.storage,
    }
    for name, folder in folders.items():
        reason = None if folder is None else await _disk_problem(runner, name, folder)
        if reason is not None:
            runner.problems.set(name, f"no new task is taken: {reason}")
            return False
        runner.problems.clear(name)
    return True


async def _disk_problem(runner: RunnerContext, name: str, folder: Path) -> str | None:
    """Return why a folder cannot take what the next task writes; None if it can."""
    try:
        await anyio.to_thread.run_sync(check_free, folder, runner.settings.min_free_disk)
        if name == "disk/state":
            await anyio.to_thread.run_sync(check_writable, folder)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return f"{folder} has {error.strerror}; free some space there or lower --min-free-disk"
        if name != "disk/engine":
            return f"cannot use {folder}: {error.strerror}"
        # The engine's own folder may be closed to this user, or in another machine.
    return None


async def _has_usable_env_file(runner: RunnerContext) -> bool:
    """Check the operator's env file, which may have been changed since the last task."""
    problems = runner.problems
    try:
        await anyio.to_thread.run_sync(read_env_file, runner.settings.env_file)
    except ConfigurationError as error:
        problems.set(problems.ENV_FILE, f"no new task is taken: {error}")
        return False
    problems.clear(problems.ENV_FILE)
    return True


async def _has_usable_home(runner: RunnerContext, *, thorough: bool = False) -> bool:
    """Check that the next task's folder can be made; what is in the way is moved aside."""
    settings, problems = runner.settings, runner.problems
    tidying = Tidying(file_stamp(runner.clock.wall_s()))
    # The start and a problem are reasons to measure all that is to be copied.
    thorough = thorough or not problems.sentences.keys().isdisjoint({problems.HOME, problems.START})
    check = partial(check_home, settings.victoria_home, settings.home, tidying, thorough=thorough)
    try:
        await anyio.to_thread.run_sync(check)
    except HomeUnusable as error:
        problems.set(problems.HOME, f"no new task is taken: {error}")
        return False
    finally:
        for sentence in tidying.sentences:
            log.error(sentence)
    problems.clear(problems.HOME)
    return True


async def _engine_answers(runner: RunnerContext) -> bool:
    engine = runner.engine
    try:
        facts = await engine.facts()
    except EngineError as error:
        runner.problems.set(_ENGINE, f"no new task is taken: {error}")
        return False
    runner.problems.clear(_ENGINE)
    log.info(
        "engine ready",
        extra=fields(
            engine=engine.kind,
            version=facts.version,
            rootless=facts.is_rootless,
            cgroup_manager=facts.cgroup_manager,
        ),
    )
    if not facts.is_rootless:
        log.warning(ROOTFUL, engine.kind)
    if engine.kind == "podman" and facts.is_rootless and facts.cgroup_manager != "systemd":
        log.error(
            "podman does not use systemd's cgroups here: a stop of this service would end the "
            "containers with it; run `loginctl enable-linger` for this user and set "
            "XDG_RUNTIME_DIR and DBUS_SESSION_BUS_ADDRESS"
        )
    return True


async def _may_start(runner: RunnerContext) -> bool:
    if runner.clock.uptime_s() >= runner.problems.next_start_at_s:
        runner.watchdog.expect("poll", next_within_s=runner.timings.host_check_timeout_s)
        await remove_old_images(runner)
    # An image may be large, and fetching it has a deadline of its own.
    runner.watchdog.suspend("poll")
    return await may_start(runner)


class PollResult(Enum):
    """What came of a request for work."""

    TASK = "task"
    """A task was accepted: ask again at once."""
    HELD = "held"
    """A long poll ended without work: ask again at once."""
    NOTHING = "nothing"
    """There is no work now."""
    FAILED = "failed"
    """The request failed."""


class Hold:
    """For how long the orchestrator is asked to hold a poll.

    Short at first, since many a proxy cuts off a response that takes 30 or 60 s. If a poll is held
    to its end, the next ones are long. Those that are cut off are followed by shorter ones for a
    while, or by plain polls: none of this is an outage, and the next poll comes at once.
    """

    def __init__(self, clock: Clock, timings: Timings) -> None:
        self.seconds = timings.long_poll_s
        self._clock = clock
        self._timings = timings
        self._cuts = 0
        self._short_until_s = 0.0
        self._shortest_s = float("inf")

    def note_response(self, held_s: float) -> None:
        """Note a response; after a poll that was held to its end, the next may be long."""
        self._cuts = 0
        if self._clock.awake_s() < self._short_until_s:
            return
        if held_s >= self._timings.long_poll_s:
            self.seconds = self._timings.longest_long_poll_s
        else:
            self.seconds = max(self.seconds, self._timings.long_poll_s)

    def was_cut(self, error: WireError | JournalError, waited_s: float) -> bool:
        """Note a poll that failed; return whether only its length may be to blame."""
        grace_s, usual_s = self._timings.shortest_long_poll_s, self._timings.long_poll_s
        is_hung = waited_s >= self.seconds + grace_s and self.seconds <= usual_s
        if not _may_be_cut(error) or waited_s < grace_s or is_hung:
            self._cuts = 0
            return False
        self._cuts += 1
        was_long = waited_s >= usual_s
        # A connection that breaks soon, and once, may be a restart of the orchestrator.
        if was_long or self._cuts > 1 or getattr(error, "status", None) in _TIMEOUTS:
            self._shorten(error, waited_s)
        return True

    def _shorten(self, error: Exception, waited_s: float) -> None:
        timings = self._timings
        shorter_s = min(timings.long_poll_s, float(int(0.8 * waited_s)))
        self.seconds = shorter_s if shorter_s >= timings.least_long_poll_s else 0.0
        self._cuts = 0
        self._short_until_s = self._clock.awake_s() + timings.long_poll_retry_s
        if self.seconds < self._shortest_s:
            self._shortest_s = self.seconds
            length = (
                f"holding them for {self.seconds:.0f} s" if self.seconds else "not holding them"
            )
            log.log(
                # A long one may also have met a restart of the orchestrator, and costs nothing.
                logging.WARNING if self.seconds < timings.long_poll_s else logging.INFO,
                "long polls are cut off after %.0f s, probably by a proxy (%s); %s from now on",
                *(waited_s, error, length),
            )


async def poll(runner: RunnerContext, begin: Callable[[Task], None]) -> PollResult:
    """Ask for work and begin it; return what came of the last request."""
    ceiling_s = runner.settings.poll_interval_s
    backoff = runner.timings.backoff(ceiling_s=ceiling_s)
    failures = 0
    hold = Hold(runner.clock, runner.timings)
    failure_log = runner.node.failure_log(POLLING, is_vital=True)
    while True:
        runner.watchdog.suspend("poll")
        seen = runner.outbox.count
        try:
            identity = await runner.node.identity_for_new_tasks()
        except RegistrationRefused:
            return PollResult.FAILED
        if identity is None and runner.settings.once:
            return PollResult.NOTHING
        if identity is None:
            await runner.outbox.after_or(seen, runner.settings.poll_interval_s, runner.clock)
            continue
        if not runner.slots.has_room:
            await runner.slots.wait_for_room()
            continue
        result, error = PollResult.FAILED, None
        if await can_take_work(runner):
            runner.watchdog.expect(
                "poll", next_within_s=2 * runner.timings.call_timeout_s + hold.seconds
            )
            result, error = await _ask(runner, identity, hold, begin)
        failures = failures + 1 if result is PollResult.FAILED else 0
        wait_s = jittered_s(runner.settings.poll_interval_s)
        if failures:
            wait_s = backoff.wait_s(failures, getattr(error, "retry_after_s", None))
        _log_result(runner, failure_log, result, error, wait_s)
        if runner.settings.once:
            return result
        if result in {PollResult.TASK, PollResult.HELD}:
            continue
        runner.watchdog.expect("poll", next_within_s=wait_s + runner.timings.call_timeout_s)
        await runner.clock.sleep(wait_s)


def _log_result(
    runner: RunnerContext,
    failure_log: FailureLog,
    result: PollResult,
    error: RunnerError | None,
    wait_s: float,
) -> None:
    if error is not None:
        failure_log.note(error, wait_s, f"Error polling for tasks: {error}")
    elif result is PollResult.FAILED:
        # A problem of the host, or a refused key, keeps it from polling.
        runner.node.outage.drop(POLLING)
    else:
        failure_log.end()


async def _ask(
    runner: RunnerContext, identity: Identity, hold: Hold, begin: Callable[[Task], None]
) -> tuple[PollResult, RunnerError | None]:
    """Ask once; return what came of it, and what failed."""
    asked_at = runner.clock.awake_s()
    try:
        offer = await runner.orchestrator.next_task(
            identity, 0 if runner.settings.once else hold.seconds
        )
        if offer.assignment is not None and offer.was_held and not await can_take_work(runner):
            # A disk has filled up meanwhile. An orchestrator with long polls offers a task again.
            log.warning("a task was offered and is not accepted now")
            return PollResult.NOTHING, None
        if offer.assignment is not None:
            # What is in the journal must be begun: a drain may cancel the poll at any moment.
            with anyio.CancelScope(shield=True):
                is_taken = await _take(runner, offer, identity, begin)
            if is_taken:
                return PollResult.TASK, None
    except Unauthorised:
        runner.watchdog.suspend("poll")
        await runner.node.forget_identity(identity)
        return PollResult.FAILED, None
    except (WireError, JournalError) as error:
        if hold.was_cut(error, runner.clock.awake_s() - asked_at):
            return PollResult.HELD, None
        return PollResult.FAILED, error
    # An orchestrator that names a long poll and answers at once is not asked without a pause.
    held_s = runner.clock.awake_s() - asked_at if offer.was_held else 0
    was_held = held_s >= runner.timings.shortest_long_poll_s
    hold.note_response(held_s)
    is_empty = offer.assignment is None
    return (PollResult.HELD if was_held and is_empty else PollResult.NOTHING), None


def _may_be_cut(error: WireError | JournalError) -> bool:
    """Return whether a proxy may have ended the poll: without a response, or with its own."""
    if not isinstance(error, Unavailable) or error.retry_after_s:
        return False
    is_status_of_one = error.status in _TIMEOUTS | _LOST_BEHIND_A_PROXY
    return is_status_of_one or isinstance(error, NoResponse)


async def _take(
    runner: RunnerContext, offer: Offer, identity: Identity, begin: Callable[[Task], None]
) -> bool:
    """Write a new task and begin it; False for one that is known or cannot be obeyed."""
    now = runner.clock.wall_s()
    try:
        assignment = parse_assignment(offer.assignment, orchestrator_url=runner.orchestrator.url)
        check_task_key(assignment, runner.settings)
    except BadAssignment as error:
        return await _reject(runner, error, identity, begin)
    if runner.slots.was_just_dropped(assignment.task_id, runner.clock.uptime_s()):
        # An orchestrator that offers what it then refuses is not asked without a pause.
        log.info(
            "task is offered again; it is not taken yet", extra=fields(task_id=assignment.task_id)
        )
        return False
    if await runner.journal.accept(assignment, identity, now):
        log.info("task accepted", extra=fields(task_id=assignment.task_id))
        # Not read back: from here on it must begin, or it would lie until a restart.
        begin(
            Task(
                assignment.task_id,
                TaskState.ACCEPTED,
                runner.orchestrator.url,
                assignment,
                accepted_at=now,
                identity=identity,
            )
        )
        return True
    if await runner.journal.replace_task_key(assignment):
        log.info("task is offered with another key", extra=fields(task_id=assignment.task_id))
    await _answer_redelivery(runner, assignment.task_id)
    return False


async def _reject(
    runner: RunnerContext, error: BadAssignment, identity: Identity, begin: Callable[[Task], None]
) -> bool:
    """Report an assignment that cannot be obeyed, if it has a task id."""
    log.error("assignment rejected: %s", error, extra=fields(task_id=error.task_id or "unusable"))
    if error.task_id is None:
        return False
    now = runner.clock.wall_s()
    end = outcome_without_container(error.reason, error)
    report = final_report(error.task_id, end, now)
    if not await runner.journal.reject(error.task_id, end, report, identity, now):
        await _answer_redelivery(runner, error.task_id)
        return False
    runner.outbox.notify()
    begin(
        Task(
            error.task_id,
            TaskState.ENDED,
            runner.orchestrator.url,
            None,
            accepted_at=now,
            identity=identity,
            end_reason=end.reason,
            message=end.message,
            ended_at=now,
        )
    )
    return True


async def _answer_redelivery(runner: RunnerContext, task_id: str) -> None:
    """Leave a task that is under way alone; report the outcome of a finished one again."""
    task = await runner.journal.task(task_id)
    if task is None or task.end_reason is None or task.state is not TaskState.CLOSED:
        log.debug("task is offered again; it is under way", extra=fields(task_id=task_id))
        return
    log.info("task is offered again; its end is reported again", extra=fields(task_id=task_id))
    now = runner.clock.wall_s()
    end = task.outcome
    if end is not None and await runner.journal.report_again(
        task_id, final_report(task_id, end, now), now
    ):
        runner.outbox.notify()
