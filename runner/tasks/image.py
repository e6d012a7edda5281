"""The image that tasks run in: fetched for whichever task needs it.

With `newer` and an image on this host, a registry that hangs or limits its rate does not hold up
tasks: there is one pull for all of them, and a task waits for it for `newer_image_timeout_s`, then
starts with the image on this host while the pull goes on. After a failure the registry is asked
again with backoff, and no task waits for that.
"""

from __future__ import annotations

import logging
from functools import partial

import anyio

from runner.engine.base import Engine
from runner.engine.progress import PullProgress
from runner.errors import EngineError, ImageMissing, ImageUnchecked, LoginRefused
from runner.log import fields
from runner.model import PullPolicy
from runner.node import Problems
from runner.timing import (
    DEFAULT_TIMINGS,
    ChangeSignal,
    Clock,
    RetryPolicy,
    Timings,
    watch_call,
)

log = logging.getLogger(__name__)
_PULL, _LOGIN = "pull", "registry-login"


class ImageFetcher:
    """One image, and what is known of its registry."""

    def __init__(  # noqa: PLR0913, PLR0917 - the parts that it is put together from
        self,
        engine: Engine,
        image: str,
        policy: PullPolicy,
        problems: Problems,
        clock: Clock,
        timings: Timings,
    ) -> None:
        self._engine = engine
        self._image = image
        self._policy = policy
        self._problems = problems
        self._clock = clock
        self._timings = timings
        self._requests, self._ends = ChangeSignal(), ChangeSignal()
        self._is_checking = False
        self._is_late = False
        """Whether the check under way has outlasted the timeout of a task."""
        self._failures = 0
        self._next_check_at_s = 0.0
        """The uptime in seconds before which the registry is not asked again."""

    async def fetch(self) -> None:
        """Have the image on this host, as new as the policy asks, where its registry answers.

        Raises:
            EngineError: it cannot be had.
        """
        if self._policy is not PullPolicy.NEWER or not await _is_here(self._engine, self._image):
            await self._pull()
            return
        if not self._is_checking:
            if self._clock.uptime_s() < self._next_check_at_s:
                return
            self._is_checking = True
            self._requests.notify()
        if self._failures or self._is_late:
            return
        timeout_s = self._timings.newer_image_timeout_s
        await self._ends.after_or(self._ends.count, timeout_s, self._clock)
        if self._is_checking and not self._is_late:
            self._is_late = True
            log.warning(
                "the registry has not answered, or not sent all, within %.0f s: tasks use the "
                "image on this host, and the pull goes on",
                timeout_s,
                extra=fields(image=self._image),
            )

    async def check_on_request(self) -> None:
        """Check for a newer image whenever `fetch` requests it; ends by being cancelled."""
        seen = self._requests.count
        while True:
            await self._requests.after(seen)
            seen = self._requests.count
            try:
                await self._pull(is_here=True)
            except EngineError as error:
                self._note_failure(error)
            else:
                self._failures = 0
                self._problems.clear(_LOGIN)
            self._is_checking = self._is_late = False
            self._ends.notify()

    def _note_failure(self, error: EngineError) -> None:
        self._failures += 1
        first_s, ceiling_s = self._timings.registry_retry_s, self._timings.registry_retry_ceiling_s
        wait_s = RetryPolicy(first_s, first_s, ceiling_s).wait_s(self._failures)
        self._next_check_at_s = self._clock.uptime_s() + wait_s
        if isinstance(error, LoginRefused):
            # Only an operator can help, and until then this host runs an ever older image.
            self._problems.set(_LOGIN, str(error))
            return
        log.warning(
            "%s; tasks use the one on this host, and its registry is asked again in %.0f s",
            error,
            wait_s,
            extra=fields(image=self._image),
        )

    async def _pull(self, *, is_here: bool = False) -> None:
        """Call the engine, and log the progress."""
        progress = PullProgress()
        report = _PullReport(self._image, progress, self._timings.pull_stall_timeout_s)
        began_at_s = self._clock.awake_s()
        try:
            await watch_call(
                partial(self._engine.fetch_image, self._image, self._policy, progress),
                lambda elapsed_s: report.write(elapsed_s, None if is_here else self._problems),
                self._timings.pull_report_interval_s,
                self._clock,
            )
        finally:
            self._problems.clear(_PULL)
        elapsed_s = self._clock.awake_s() - began_at_s
        if elapsed_s >= self._timings.pull_report_interval_s:
            log.info("image pulled", extra=fields(image=self._image, elapsed_s=round(elapsed_s)))


class _PullReport:
    """Logs the progress of a pull."""

    def __init__(self, image: str, progress: PullProgress, stall_timeout_s: float) -> None:
        self._image = image
        self._progress = progress
        self._stall_timeout_s = stall_timeout_s
        self._changes, self._changed_at_s = 0, 0.0

    def write(self, elapsed_s: float, problems: Problems | None) -> None:
        """Log how much is downloaded; note a problem of the host while nothing is received."""
        if self._progress.changes != self._changes:
            self._changes, self._changed_at_s = self._progress.changes, elapsed_s
        has_stalled = elapsed_s - self._changed_at_s >= self._stall_timeout_s
        log.log(
            # Nobody waits for it then.
            logging.DEBUG if has_stalled and problems is None else logging.INFO,
            "pulling the image",
            extra=fields(
                image=self._image,
                elapsed_s=round(elapsed_s),
                downloaded=self._progress.summary,
            ),
        )
        if problems is None:
            return
        if not has_stalled:
            problems.clear(_PULL)
            return
        problems.set(
            _PULL,
            f"cannot pull the image {self._image}: nothing was received from its registry for "
            f"{self._stall_timeout_s:.0f} s; check the registry, the network and the proxy",
        )


async def fetch_image_once(
    engine: Engine, image: str, policy: PullPolicy, timings: Timings = DEFAULT_TIMINGS
) -> ImageUnchecked | None:
    """Have the image on this host, as `ImageFetcher.fetch` does, for one container.

    Return why it may not be the newest; None if it is as new as the policy asks.

    Raises:
        EngineError: it cannot be had.
    """
    may_be_cut = policy is PullPolicy.NEWER and await _is_here(engine, image)
    timeout_s = timings.newer_image_timeout_s
    with anyio.move_on_after(timeout_s if may_be_cut else None):
        try:
            await engine.fetch_image(image, policy)
        except ImageUnchecked as error:
            return error
        return None
    return ImageUnchecked(
        f"cannot check for a newer image {image}: no answer within {timeout_s:.0f} s"
    )


async def _is_here(engine: Engine, image: str) -> bool:
    try:
        await engine.fetch_image(image, PullPolicy.NEVER)
    except ImageMissing:
        return False
    return True
